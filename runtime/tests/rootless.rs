//! Containers of a user who is not root: a copy of the program and a bundle that belong to it, and nothing else.

mod common;

use std::fs;
use std::path::Path;

use common::own::{Own, USER};
use common::{differences, eventually, tool};
use serde_json::{Value, json};

#[test]
fn a_user_runs_a_container_as_its_root() {
    let mut own = Own::new(
        "id -u; id -g; cat /proc/self/uid_map; cat /proc/self/setgroups; touch /made; hostname; head -c 1 /dev/zero | wc -c; ls -d /sys/class; echo x > /dev/full || echo full",
    );
    own.bundle.set("/root/readonly", json!(false));
    let printed = own.prints();
    let words: Vec<&str> = printed.split_whitespace().collect();
    let user = USER.to_string();
    assert_eq!(
        words,
        ["0", "0", "0", &user, "1", "deny", "runc", "1", "/sys/class", "full"].map(|word| if word == "runc" {
            own.bundle.config["hostname"].as_str().unwrap()
        } else {
            word
        })
    );
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(own.bundle.rootfs("made")).unwrap()), USER);
    assert!(!own.bundle.path("own-state").join(&own.bundle.id).exists());
}

#[test]
fn its_life_by_the_verbs() {
    let own = Own::new("sleep 1000");
    own.create();
    let state = || -> Value { serde_json::from_slice(&own.call(&["state", &own.bundle.id]).stdout).unwrap() };
    assert_eq!(state()["status"], "created");
    assert!(own.call(&["start", &own.bundle.id]).status.success());
    assert_eq!(state()["status"], "running");
    assert!(own.call(&["exec", &own.bundle.id, "true"]).status.success());
    assert!(own.call(&["kill", &own.bundle.id, "KILL"]).status.success());
    eventually("it stops", || (state()["status"] == "stopped").then_some(()));
    let output = own.call(&["delete", &own.bundle.id]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_only_root_may_is_refused_by_name() {
    let mut own = Own::new("true");
    own.bundle.set("/linux/resources/pids", json!({"limit":5}));
    let (_, stderr, code) = own.run();
    assert!(code != 0 && stderr.contains("linux.resources.pids.limit: this user may make no cgroup in"), "{stderr}");
    let mut own = Own::new("true");
    own.bundle.set("/linux/uidMappings", json!([{"containerID":0,"hostID":USER,"size":1},{"containerID":1,"hostID":100_000,"size":10}]));
    let (_, stderr, code) = own.run();
    // Nobody granted this user any more ids.
    assert!(code != 0 && stderr.contains("uidMappings: ") && stderr.contains("newuidmap"), "{stderr}");
    let mut own = Own::new("true");
    own.bundle.set("/process/user", json!({"uid":0,"gid":0,"additionalGids":[0]}));
    let (_, stderr, code) = own.run();
    assert!(
        code != 0 && stderr.contains("additionalGids: this user namespace was made without the privilege to change groups"),
        "{stderr}"
    );
    let left = fs::read_dir(own.bundle.path("own-state")).into_iter().flatten().count();
    assert_eq!(left, 0);
}

#[test]
fn it_agrees_with_runc() {
    let Some(runc) = tool("runc") else { return };
    let look = "id; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; grep -E '^(Cap|NoNew|Groups)' /proc/self/status; cd /dev; \
        stat -c '%n %F %t:%T %a' null zero full random urandom tty pts shm; hostname; pwd; env | sort; cat /proc/self/limits /proc/self/oom_score_adj; \
        touch /made && stat -c %u:%g /made; grep -E ' (/t|/m|/dev/shm) ' /proc/self/mounts; \
        touch /proc/sys/kernel/domainname 2>/dev/null || echo ro; grep Seccomp: /proc/self/status; cat /proc/self/cgroup";
    let cases = [
        ("plain", json!({})),
        ("name", json!({"/hostname":"inside"})),
        ("writable", json!({"/root/readonly":false})),
        ("mounts", json!({"/mounts/7":{"destination":"/t","type":"tmpfs","source":"tmpfs","options":["size=64k","noexec"]}})),
        (
            "privileges",
            json!({"/process/noNewPrivileges":false,"/process/capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],"permitted":["CAP_KILL"]}}),
        ),
        ("limits", json!({"/process/rlimits":[{"type":"RLIMIT_NOFILE","soft":60,"hard":60}],"/process/oomScoreAdj":100})),
        ("filter", json!({"/linux/seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}})),
        ("settings", json!({"/linux/sysctl":{"kernel.msgmax":"4242"}})),
        ("a limit", json!({"/linux/resources":{"pids":{"limit":5}}})),
        ("a group", json!({"/process/user":{"uid":0,"gid":0,"additionalGids":[0]}})),
        ("a user outside", json!({"/process/user":{"uid":5,"gid":0}})),
        ("a device", json!({"/linux/devices":[{"path":"/dev/own","type":"c","major":10,"minor":200}]})),
    ];
    let mut refused = 0;
    for (name, edits) in cases {
        let mut own = Own::new(look);
        for (pointer, value) in edits.as_object().unwrap() {
            match pointer.strip_prefix("/mounts/") {
                Some(_) => own.bundle.push("/mounts", value.clone()),
                None => own.bundle.set(pointer, value.clone()),
            };
        }
        let (ours, error, code) = own.run();
        let args = ["run", "--bundle", own.bundle.path("").to_str().unwrap(), &own.bundle.id].map(str::to_owned);
        let output = own.command(&runc, "runc-state", &args.each_ref().map(String::as_str)).output().unwrap();
        let theirs = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((&ours, code == 0), (&theirs, output.status.success()), "{name}: ours and runc's\n{error}\n{said}");
        refused += u32::from(ours.is_empty());
    }
    assert!(refused < 6, "nearly nothing was compared");
}

/// `spec --rootless` prints what runc's does, but for the version.
#[test]
fn the_configuration_to_begin_with_is_runcs() {
    let Some(runc) = tool("runc") else { return };
    let own = Own::new("true");
    let written = |program: &Path, name: &str| {
        let dir = own.bundle.path(name);
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(USER), Some(USER)).unwrap();
        let output = own.command(program, "spec-state", &["spec", "--rootless", "--bundle", dir.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        assert!(config.as_object_mut().unwrap().remove("ociVersion").is_some());
        config
    };
    let (ours, theirs) = (written(&own.bundle.path("runtime"), "ours"), written(&runc, "theirs"));
    assert_eq!(differences(&ours, &theirs), Vec::<String>::new());
}

/// The user's own program cannot be overwritten through the container (CVE-2019-5736): what runs until the exec is a sealed copy.
#[test]
fn a_sealed_copy_runs_until_the_exec() {
    let own = Own::new("sleep 1000");
    own.create();
    let state: Value = serde_json::from_slice(&own.call(&["state", &own.bundle.id]).stdout).unwrap();
    let exe = format!("/proc/{}/exe", state["pid"]);
    let name = fs::read_link(&exe).unwrap();
    assert!(name.to_str().unwrap().starts_with("/memfd:rcluster-runtime"), "{name:?}");
    let seals = rustix::fs::fcntl_get_seals(fs::File::open(&exe).unwrap()).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL), "{seals:?}");
}

/// What `/etc/subuid` and `/etc/subgid` grant is mapped by newuidmap and newgidmap, and a change of groups is then allowed.
#[test]
fn granted_ids_are_mapped() {
    if tool("newuidmap").is_none() {
        std::io::Write::write_all(&mut std::io::stderr().lock(), b"SKIPPED: newuidmap is not installed: apt-get install uidmap\n").unwrap();
        return;
    }
    let mut own = Own::new("echo begun >/dev/shm/begun; exec sleep 1000");
    let mappings = json!([{"containerID":0,"hostID":USER,"size":1},{"containerID":1,"hostID":700_000,"size":65_535}]);
    own.bundle.set("/linux/uidMappings", mappings.clone()).set("/linux/gidMappings", mappings);
    own.bundle.set("/process/user", json!({"uid":5,"gid":6,"additionalGids":[7]}));
    own.bundle.write();
    let create = ["create", "--bundle", own.bundle.path("").to_str().unwrap(), &own.bundle.id].map(str::to_owned);
    let create: Vec<&str> = create.iter().map(String::as_str).collect();
    let output = own.with_granted_ids("700000:100", &create);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && stderr.contains("uidMappings: newuidmap: "), "{stderr}");
    assert_eq!(fs::read_dir(own.bundle.path("own-state")).into_iter().flatten().count(), 0);

    let output = own.with_granted_ids("700000:65536", &create);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (_, stderr, code) = own.exec(&[], &["true"]);
    assert!(code == 255 && stderr.contains("waits for its start as another user") && stderr.contains("`start "), "{stderr}");
    assert!(own.call(&["start", &own.bundle.id]).status.success());
    let begun = format!("/proc/{}/root/dev/shm/begun", own.pid());
    let owner = |path: &str| fs::metadata(path).ok().map(|file| std::os::unix::fs::MetadataExt::uid(&file));
    assert_eq!(eventually("the program", || owner(&begun)), 700_004);
    // It needs no granting any more: the namespace is the user's.
    let look = "id -u; id -g; id -G; cat /proc/self/setgroups; grep -c . /proc/self/uid_map";
    assert_eq!(own.executed(&[], look).split_whitespace().collect::<Vec<_>>(), ["5", "6", "6", "7", "allow", "2"]);
    eventually("its second program", || (own.executed(&["--user", "0:0"], "id -u; cat /proc/1/comm") == "0\nsleep").then_some(()));
    assert_eq!(own.executed(&["--user", "65535:1", "-g", "9"], "id -u; id -G"), "65535\n1 7 9");
    let (_, stderr, code) = own.exec(&["--user", "65536"], &["true"]);
    assert!(code == 255 && stderr.contains("process.user.uid: 65536"), "{stderr}");
    assert!(own.call(&["kill", "--all", &own.bundle.id, "KILL"]).status.success());
    eventually("stopped", || (own.state()["status"] == "stopped").then_some(()));
    assert!(own.call(&["delete", &own.bundle.id]).status.success());
}
