//! Hooks of all six kinds: where, when and with what they run, and what their failure does.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Bundle, eventually, namespace, tool, write_program};
use serde_json::{Value, json};

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Sets a hook of the host's shell; `$state` is what it read.
fn hook(bundle: &mut Bundle, kind: &str, script: &str) {
    let script = format!("state=$(cat); {script}");
    let hooks = bundle.config.as_object_mut().unwrap().entry("hooks").or_insert_with(|| json!({}));
    let list = hooks.as_object_mut().unwrap().entry(kind).or_insert_with(|| json!([]));
    list.as_array_mut().unwrap().push(json!({"path":"/bin/sh","args":["sh","-c",script],"env":["PATH=/usr/bin:/bin:/usr/sbin:/sbin"]}));
}

fn record(bundle: &Bundle) -> PathBuf {
    bundle.path("record")
}

/// A hook of every kind that writes its name, its state and its mount namespace down; in the container it writes into a bound directory.
fn recording(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.set("/annotations", json!({"key":"value"}));
    fs::create_dir(record(&bundle)).unwrap();
    bundle.push("/mounts", json!({"destination":"/record","source":"record","type":"bind","options":["bind"]}));
    for kind in KINDS {
        let at = if kind == "startContainer" { PathBuf::from("/record") } else { record(&bundle) };
        let at = at.display();
        let line = format!("echo {kind} >> {at}/order; echo \"$state\" > {at}/{kind}; readlink /proc/self/ns/mnt > {at}/{kind}.mnt");
        hook(&mut bundle, kind, &line);
    }
    bundle
}

fn order(bundle: &Bundle) -> Vec<String> {
    let text = fs::read_to_string(record(bundle).join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn told(bundle: &Bundle, kind: &str) -> Value {
    serde_json::from_slice(&fs::read(record(bundle).join(kind)).unwrap()).unwrap()
}

#[test]
fn each_runs_in_its_turn_and_place_and_is_told_the_state() {
    let bundle = recording("sleep 1000");
    bundle.create();
    let pid = bundle.pid();
    assert_eq!(order(&bundle), KINDS[..3]);
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(order(&bundle), KINDS[..5]);
    let (host, inside) = (namespace("self", "mnt"), namespace(&pid.to_string(), "mnt"));
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(order(&bundle), KINDS);
    let statuses = ["creating", "creating", "creating", "created", "running", "stopped"];
    for (kind, status) in KINDS.into_iter().zip(statuses) {
        let state = told(&bundle, kind);
        assert_eq!((state["id"].as_str(), state["status"].as_str()), (Some(bundle.id.as_str()), Some(status)), "{kind}");
        assert_eq!(state["bundle"].as_str(), bundle.dir.path().canonicalize().unwrap().to_str(), "{kind}");
        assert_eq!(state["annotations"], json!({"key":"value"}), "{kind}");
        let in_container = ["createContainer", "startContainer"].contains(&kind);
        let expected = if kind == "poststop" {
            Value::Null
        } else if in_container {
            json!(1)
        } else {
            json!(pid)
        };
        assert_eq!(state["pid"], expected, "{kind}");
        let ran_in = fs::read_to_string(record(&bundle).join(format!("{kind}.mnt"))).unwrap();
        assert_eq!(ran_in.trim(), if in_container { &inside } else { &host }, "{kind}");
    }
}

/// runc opens its gate and runs poststart beside what comes after the gate: those two come in any order, and in any state.
#[test]
fn order_and_state_are_runcs() {
    let Some(runc) = tool("runc") else { return };
    let bundle = recording("true");
    let told_each = || KINDS.map(|kind| (told(&bundle, kind)["status"].clone(), told(&bundle, kind)["annotations"].clone()));
    assert_eq!(bundle.run().2, 0);
    let ours = (order(&bundle), told_each());
    assert_eq!(ours.0, KINDS);
    fs::remove_file(record(&bundle).join("order")).unwrap();
    let mut command = std::process::Command::new(runc);
    let status = command.arg("--root").arg(bundle.path("runc")).args(["run", "--bundle"]).arg(bundle.path("")).arg(&bundle.id).status();
    assert!(status.unwrap().success());
    let mut theirs = (order(&bundle), told_each());
    theirs.0[3..5].sort_by_key(|kind| kind != "startContainer");
    theirs.1[4].0 = json!("running");
    assert_eq!(ours, theirs);
}

#[test]
fn they_see_the_mounts_before_they_become_the_root() {
    let mut bundle = Bundle::new("cat /made/by-hook");
    fs::create_dir(bundle.path("source")).unwrap();
    fs::write(bundle.path("source/by-hook"), "mounted\n").unwrap();
    fs::create_dir(bundle.rootfs("made")).unwrap();
    // The host's files, and the container's mounts: the working directory is the root to be.
    let source = bundle.path("source").display().to_string();
    hook(&mut bundle, "createContainer", &format!("test -e ./proc/self/stat && mount --bind {source} made"));
    assert_eq!(bundle.prints(), "mounted");
    assert!(!bundle.rootfs("made/by-hook").exists());
}

#[test]
fn a_container_hook_runs_as_the_containers_user() {
    let mut bundle = Bundle::new("cat /tmp/id");
    bundle.push("/mounts", json!({"destination":"/tmp","type":"tmpfs","options":["mode=1777"]}));
    bundle.set("/process/user", json!({"uid":7,"gid":8}));
    bundle.set(
        "/hooks",
        json!({"startContainer":[{"path":"/bin/sh","args":["sh","-c","id -u > /tmp/id; echo $A$HOME >> /tmp/id"],
        "env":["A=b=c","PATH=/bin"]}]}),
    );
    assert_eq!(bundle.prints(), "7\nb=c");
}

#[test]
fn a_hook_without_arguments_and_environment() {
    let mut bundle = Bundle::new("true");
    let program = bundle.path("hook");
    write_program(
        &program,
        "#!/bin/sh\nexec > $0.out\necho $0 $#\ntr '\\0' '\\n' < /proc/$$/environ | grep -v -E '^(PWD|_|SHLVL|OLDPWD)='\nexit 0\n",
    );
    bundle.set("/hooks", json!({"prestart":[{"path":program}]}));
    bundle.prints();
    assert_eq!(fs::read_to_string(bundle.path("hook.out")).unwrap(), format!("{} 0\n", program.display()));
}

#[test]
fn a_failure_before_the_start_undoes_all_and_poststop_still_runs() {
    for kind in &KINDS[..3] {
        let mut bundle = recording("true");
        hook(&mut bundle, kind, "echo went wrong >&2; exit 3");
        let never = format!("touch {}/never", record(&bundle).display());
        hook(&mut bundle, kind, &never);
        let error = bundle.create_fails();
        assert!(error.contains(&format!("hooks.{kind}[1]: /bin/sh: ended with 3: went wrong")), "{error}");
        assert_eq!(order(&bundle).last().unwrap(), "poststop");
        assert!(!record(&bundle).join("never").exists());
    }
}

#[test]
fn a_failure_in_a_user_namespace_undoes_all() {
    for kind in &KINDS[..3] {
        let mut bundle = Bundle::new("true");
        bundle.push("/linux/namespaces", json!({"type":"user"}));
        let ids = json!([{"containerID":0,"hostID":0,"size":1000}]);
        bundle.set("/linux/uidMappings", ids.clone()).set("/linux/gidMappings", ids);
        hook(&mut bundle, kind, "exit 3");
        let error = bundle.create_fails();
        assert!(error.contains(&format!("hooks.{kind}[0]: /bin/sh: ended with 3")), "{error}");
    }
}

#[test]
fn a_failed_start_container_stops_the_container() {
    let mut bundle = recording("touch /record/ran");
    bundle.config["hooks"]["startContainer"][0]["args"] = json!(["sh", "-c", "exit 4"]);
    bundle.create();
    let error = bundle.fails(&["start", &bundle.id]);
    assert!(error.contains("hooks.startContainer[0]: /bin/sh: ended with 4"), "{error}");
    eventually("it stops", || (bundle.status() == "stopped").then_some(()));
    assert!(!record(&bundle).join("ran").exists());
    bundle.ok(&["delete", &bundle.id]);
    assert_eq!(order(&bundle).last().unwrap(), "poststop");
}

#[test]
fn a_failed_poststart_stops_the_container() {
    let mut bundle = recording("sleep 1000");
    hook(&mut bundle, "poststart", "exit 5");
    bundle.create();
    let error = bundle.fails(&["start", &bundle.id]);
    assert!(error.contains("hooks.poststart[1]: /bin/sh: ended with 5"), "{error}");
    assert_eq!(bundle.status(), "stopped");
    bundle.ok(&["delete", &bundle.id]);
    assert_eq!(order(&bundle).last().unwrap(), "poststop");
    let (_, stderr, code) = bundle.run();
    assert!(stderr.contains("hooks.poststart[1]") && code == 1, "{stderr}");
    bundle.assert_nothing_is_left();
}

#[test]
fn failed_poststops_are_told_and_stop_nothing() {
    let mut bundle = recording("true");
    bundle.config["hooks"]["poststop"] = json!([{"path":"/missing"}, bundle.config["hooks"]["poststop"][0]]);
    hook(&mut bundle, "poststop", "exit 6");
    let (_, stderr, code) = bundle.run();
    assert_eq!(code, 0);
    assert!(stderr.contains("hooks.poststop[0]: /missing: ") && stderr.contains("hooks.poststop[2]: /bin/sh: ended with 6"), "{stderr}");
    assert_eq!(order(&bundle), KINDS);
    bundle.assert_nothing_is_left();
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let mut bundle = Bundle::new("true");
    bundle.set("/hooks", json!({"createRuntime":[{"path":"/bin/sleep","args":["sleep","1000"],"timeout":1}]}));
    let error = bundle.create_fails();
    assert!(error.contains("hooks.createRuntime[0]: /bin/sleep: was killed: it did not end within 1 s"), "{error}");
}

#[test]
fn what_a_hook_leaves_behind_holds_nothing_up() {
    let mut bundle = Bundle::new("true");
    let pid = bundle.path("pid");
    hook(&mut bundle, "prestart", &format!("sleep 1000 & echo $! > {}", pid.display()));
    // Neither is one that does not read its state.
    bundle.config["hooks"]["prestart"][0]["args"][2] = json!(format!("sleep 1000 & echo $! > {}", pid.display()));
    bundle.set("/annotations", json!({"long":"x".repeat(1 << 20)}));
    bundle.prints();
    let left: i32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    assert!(common::alive(left));
    assert!(std::process::Command::new("kill").args(["-9", &left.to_string()]).status().unwrap().success());
}
