//! create, start, state, kill, delete and run of real containers: states, exit codes, and that nothing is left behind.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::{Bundle, alive, eventually, write_program};
use serde_json::json;

#[test]
fn a_container_goes_through_its_states() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    assert_eq!(bundle.status(), "created");
    let pid = bundle.pid();
    assert!(alive(pid));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("is created"));
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    assert_eq!(bundle.pid(), pid);
    assert!(bundle.fails(&["start", &bundle.id]).contains("is running: only a created container can be started"));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("delete --force"));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    eventually("stopped", || (bundle.status() == "stopped").then_some(()));
    assert_eq!(bundle.state()["pid"], 0);
    assert!(bundle.fails(&["kill", &bundle.id]).contains("is stopped"));
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_nothing_is_left();
    assert!(bundle.fails(&["state", &bundle.id]).contains("does not exist"));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("does not exist"));
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn run_returns_exit_codes_and_signals() {
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$; sleep 1", 137)] {
        let mut bundle = Bundle::new(script);
        // The first process of a pid namespace ignores what it sends to itself.
        bundle.set("/linux/namespaces", json!([{"type":"mount"},{"type":"network"},{"type":"cgroup"}]));
        bundle.config.as_object_mut().unwrap().remove("hostname");
        bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "mqueue");
        assert_eq!(bundle.run().2, expected, "{script}");
        bundle.assert_nothing_is_left();
    }
}

#[test]
fn run_passes_signals_on() {
    let bundle = Bundle::new("trap 'exit 3' TERM; touch /dev/shm/ready; while :; do sleep 0.05; done");
    bundle.write();
    let mut run = bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]).spawn().unwrap();
    let ready = || {
        let pid = bundle.call(&["state", &bundle.id]);
        let state: serde_json::Value = serde_json::from_slice(&pid.stdout).ok()?;
        fs::metadata(format!("/proc/{}/root/dev/shm/ready", state["pid"])).ok()
    };
    eventually("the trap", ready);
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(3));
    bundle.assert_nothing_is_left();
}

#[test]
fn an_id_is_used_once() {
    let bundle = Bundle::new("true");
    bundle.create();
    let error = bundle.fails(&["create", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(bundle.status(), "created");
}

#[test]
fn delete_force_kills_what_runs() {
    let bundle = Bundle::new("sleep 1000 & sleep 1000");
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let pid = bundle.pid();
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!alive(pid));
    bundle.assert_nothing_is_left();
}

#[test]
fn delete_force_reaches_every_process_without_a_pid_namespace() {
    let mut bundle = Bundle::new("sleep 1000 & sleep 1000 & exit 0");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    eventually("stopped", || (bundle.status() == "stopped").then_some(()));
    let left = bundle.cgroup_file(&["tasks", "cgroup.procs"]);
    assert_eq!(left.lines().count(), 2, "{left}");
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(left.lines().all(|pid| !alive(pid.parse().unwrap())));
    bundle.assert_nothing_is_left();
}

#[test]
fn a_frozen_container_can_be_deleted() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let freezer = bundle.cgroups().into_iter().find_map(|group| {
        let v1 = (group.join("freezer.state"), "FROZEN");
        let v2 = (group.join("cgroup.freeze"), "1");
        [v1, v2].into_iter().find(|(path, _)| path.exists())
    });
    let (path, value) = freezer.expect("every container is in a cgroup that can freeze it");
    fs::write(path, value).unwrap();
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.assert_nothing_is_left();
}

#[test]
fn a_failed_create_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    bundle.set("/process/args", json!(["nosuch"]));
    let error = bundle.create_fails();
    assert!(error.contains("process.args[0]: find \"nosuch\""), "{error}");

    let mut bundle = Bundle::new("true");
    bundle.push("/mounts", json!({"destination":"/x","source":"/no/such/place","options":["bind"]}));
    let error = bundle.create_fails();
    assert!(error.contains("mounts[7].source: open /no/such/place: No such file"), "{error}");

    let mut bundle = Bundle::new("true");
    bundle.push("/mounts", json!({"destination":"/x","type":"nosuchfs","source":"x"}));
    let error = bundle.create_fails();
    assert!(error.contains("mounts[7]: mount nosuchfs at /x: open file system nosuchfs: No such device"), "{error}");

    let mut bundle = Bundle::new("true");
    bundle.set("/linux/resources/cpu", json!({"cpus":"9999"}));
    let error = bundle.create_fails();
    assert!(error.contains("linux.resources.cpu.cpus: write \"9999\""), "{error}");

    let mut bundle = Bundle::new("true");
    bundle.set("/linux/seccomp", json!({"defaultAction":"ALLOW"}));
    let error = bundle.create_fails();
    assert!(error.contains("linux.seccomp.defaultAction: \"ALLOW\" is no action"), "{error}");
}

#[test]
fn a_create_that_is_killed_can_be_deleted() {
    let bundle = Bundle::new("true");
    bundle.create();
    let path = bundle.path("state").join(&bundle.id).join("state.json");
    // As if the creator had been killed before it recorded the process.
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["init"] = serde_json::Value::Null;
    fs::write(&path, record.to_string()).unwrap();
    assert_eq!(bundle.status(), "creating");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.assert_nothing_is_left();
}

#[test]
fn another_boot_means_stopped() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create();
    let path = bundle.path("state").join(&bundle.id).join("state.json");
    let whole = fs::read(&path).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    record["init"]["boot_id"] = json!("another");
    fs::write(&path, record.to_string()).unwrap();
    assert_eq!(bundle.status(), "stopped");
    assert!(bundle.fails(&["kill", &bundle.id, "KILL"]).contains("is stopped"));
    fs::write(&path, whole).unwrap();
    assert_eq!(bundle.status(), "created");
}

#[test]
fn start_tells_that_the_program_cannot_be_executed() {
    let mut bundle = Bundle::new("true");
    write_program(&bundle.rootfs("bin/garbage"), "\u{7f}ELFgarbage");
    bundle.set("/process/args", json!(["/bin/garbage"]));
    bundle.create();
    let error = bundle.fails(&["start", &bundle.id]);
    assert!(error.contains("process.args[0]: execute /bin/garbage: exec format error"), "{error}");
    assert_eq!(bundle.status(), "stopped");
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_nothing_is_left();
}

#[test]
fn the_pid_file_and_detach() {
    let bundle = Bundle::new("sleep 1000");
    bundle.write();
    let pid_file = bundle.path("pid");
    let mut command = bundle.command(&["run", "--detach", &bundle.id, "-b", bundle.path("").to_str().unwrap(), "--pid-file"]);
    assert!(command.arg(&pid_file).stdout(std::process::Stdio::null()).status().unwrap().success());
    assert_eq!(fs::read_to_string(pid_file).unwrap(), bundle.pid().to_string());
    assert_eq!(bundle.status(), "running");
    let list: serde_json::Value = serde_json::from_str(&bundle.ok(&["list", "--format", "json"])).unwrap();
    assert_eq!(list[0]["id"], bundle.id);
}

#[test]
fn a_thousand_lives_leave_nothing() {
    let bundle = Bundle::new("exit 4");
    for round in 0..1000 {
        assert_eq!(bundle.run().2, 4, "round {round}");
    }
    bundle.assert_nothing_is_left();
    assert_eq!(fs::read_dir(bundle.path("state")).unwrap().count(), 0);
}

#[test]
fn the_program_on_the_host_cannot_be_overwritten() {
    let bundle = Bundle::new("true");
    bundle.create();
    let exe = format!("/proc/{}/exe", bundle.pid());
    let host = fs::metadata(env!("CARGO_BIN_EXE_rcluster-runtime")).unwrap();
    let seen = fs::metadata(&exe).unwrap();
    assert_eq!((seen.dev(), seen.ino()), (host.dev(), host.ino()), "the process at the gate is this program");
    // With O_TRUNC the kernel asks whether the mount may be written before it asks whether the file is being executed.
    let error = fs::OpenOptions::new().write(true).truncate(true).open(&exe).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
}

#[test]
fn a_reaper_passes_signals_on_and_leaves_no_zombies() {
    let orphan = "p=$( (sleep 0 >/dev/null & echo $!) )";
    let gone = "i=0; while [ -d /proc/$p ] && [ $i -lt 400 ]; do sleep 0.05; i=$((i+1)); done; [ -d /proc/$p ] && echo left";
    let mut bundle = Bundle::new(&format!("echo $$; {orphan}; {gone}; exit 7"));
    bundle.set("/annotations/io.rcluster.init", json!("true"));
    let (stdout, stderr, code) = bundle.run();
    assert_eq!((stdout.as_str(), code), ("2", 7), "{stderr}");

    let mut bundle = Bundle::new("trap 'exit 9' USR1; while true; do sleep 0.05; done");
    bundle.set("/annotations/io.rcluster.init", json!("true"));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let first = bundle.pid();
    eventually("the program has its handler", || {
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{}/status", children.split_whitespace().next()?)).ok()?;
        let caught = u64::from_str_radix(status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim(), 16).ok()?;
        (caught & (1 << 9) != 0).then_some(())
    });
    bundle.ok(&["kill", &bundle.id, "USR1"]);
    eventually("it ended by its own handler", || (!alive(first)).then_some(()));

    let mut bundle = Bundle::new("true");
    bundle.set("/annotations/io.rcluster.init", json!("true"));
    bundle.set("/process/args", json!(["sh", "-c", "kill -9 $$"]));
    assert_eq!(bundle.run().2, 137);
}

#[test]
fn a_reaper_that_cannot_be_made_fails_the_start() {
    let mut bundle = Bundle::new("true");
    bundle.set("/annotations/io.rcluster.init", json!("true"));
    let denied = json!({"names": ["clone", "clone3", "fork", "vfork"], "action": "SCMP_ACT_ERRNO"});
    bundle.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}));
    bundle.create();
    let error = bundle.fails(&["start", &bundle.id]);
    assert!(error.contains("begin the process beside the reaper: Operation not permitted"), "{error}");
    bundle.ok(&["delete", "--force", &bundle.id]);
}
