//! `pause`, `resume`, `update`, `ps`, `events`, and options of `create` and `run`: what they do to real containers; compared with runc's.

mod common;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{Bundle, eventually, tool};
use serde_json::json;

fn running(script: &str) -> Bundle {
    started(Bundle::new(script))
}

fn started(bundle: Bundle) -> Bundle {
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    bundle
}

/// Whether this host's cgroups can hold a limit; a test that needs it says so when it skips.
fn has_controller(bundle: &Bundle, files: &[&str]) -> bool {
    let found = bundle.cgroups().iter().any(|group| files.iter().any(|file| group.join(file).exists()));
    if !found {
        std::io::stderr().write_all(format!("SKIPPED a part: no cgroup has any of {files:?}\n").as_bytes()).unwrap();
    }
    found
}

/// Where runc keeps its containers during a test, and its calls; removes its container at the end, however the test ends.
struct Runc<'a> {
    program: PathBuf,
    bundle: &'a Bundle,
}

impl<'a> Runc<'a> {
    fn new(bundle: &'a Bundle) -> Option<Self> {
        let program = tool("runc");
        if program.is_none() {
            std::io::stderr().write_all(b"SKIPPED: runc is not installed: apt-get install runc\n").unwrap();
        }
        Some(Self { program: program?, bundle })
    }

    fn call(&self, args: &[&str]) -> Output {
        Command::new(&self.program).arg("--root").arg(self.bundle.path("runc")).args(args).stdin(Stdio::null()).output().unwrap()
    }

    fn run_detached(&self) {
        let mut run = Command::new(&self.program);
        run.arg("--root").arg(self.bundle.path("runc")).args(["run", "-d", "--bundle"]).arg(self.bundle.path("")).arg(&self.bundle.id);
        assert!(run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    }
}

impl Drop for Runc<'_> {
    fn drop(&mut self) {
        self.call(&["delete", "--force", &self.bundle.id]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    let bundle = running("i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.01; done");
    let file = format!("/proc/{}/root/dev/shm/count", bundle.pid());
    let count = || fs::read_to_string(&file).ok()?.trim().parse::<u64>().ok();
    eventually("the loop", count);
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    assert!(bundle.pid() > 0);
    let frozen = fs::read_to_string(&file).unwrap();
    // Frozen is what the kernel says before `pause` returns; a process that still ran would count on while these calls are made.
    for _ in 0..5 {
        assert!(bundle.fails(&["pause", &bundle.id]).contains("is paused: only a created or running one can be paused"));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), frozen);
    let refused = bundle.call(&["exec", &bundle.id, "true"]);
    assert_eq!(refused.status.code(), Some(255));
    assert!(text(&refused.stderr).contains("is paused: `resume"), "{}", text(&refused.stderr));
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    let before = frozen.trim().parse::<u64>().unwrap_or(0);
    eventually("the loop goes on", || count().filter(|now| *now > before));
    assert!(bundle.fails(&["resume", &bundle.id]).contains("is running, not paused"));
    assert_eq!(text(&bundle.call(&["exec", &bundle.id, "echo", "in"]).stdout), "in");
}

#[test]
fn exec_waits_in_a_paused_container_if_told_so() {
    let bundle = running("exec sleep 1000");
    bundle.ok(&["pause", &bundle.id]);
    let mut call = bundle.command(&["exec", "--ignore-paused", &bundle.id, "sh", "-c", "exit 6"]).stdin(Stdio::null()).spawn().unwrap();
    // It is frozen with the rest as soon as it has joined.
    eventually("it has joined", || (bundle.cgroup_file(&["tasks", "cgroup.procs"]).lines().count() == 2).then_some(()));
    assert!(call.try_wait().unwrap().is_none());
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(call.wait().unwrap().code(), Some(6));
}

#[test]
fn a_created_container_can_be_paused_and_a_paused_one_killed() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "created");
    bundle.ok(&["start", &bundle.id]);
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    eventually("stopped", || (bundle.status() == "stopped").then_some(()));
    assert!(bundle.fails(&["pause", &bundle.id]).contains("is stopped"));
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_nothing_is_left();
}

#[test]
fn limits_change_and_stay_changed() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.set("/linux/resources/pids", json!({"limit":50}));
    let bundle = started(bundle);
    bundle.ok(&["update", "--pids-limit", "60", &bundle.id]);
    assert_eq!(bundle.cgroup_file(&["pids.max"]), "60");
    if has_controller(&bundle, &["memory.limit_in_bytes", "memory.max"]) {
        let memory = || bundle.cgroup_file(&["memory.limit_in_bytes", "memory.max"]);
        bundle.ok(&["update", &bundle.id, "--memory", "64m", "--memory-swap=96m"]);
        assert_eq!(memory(), (64 << 20).to_string());
        // Up past the old bound of both together, and down again.
        bundle.ok(&["update", "--memory", "128m", "--memory-swap", "256m", &bundle.id]);
        assert_eq!(memory(), (128 << 20).to_string());
        bundle.ok(&["update", "--memory", "32m", "--memory-swap", "32m", &bundle.id]);
        assert_eq!(memory(), (32 << 20).to_string());
        let error = bundle.fails(&["update", "--memory", "64m", &bundle.id]);
        assert!(error.contains("linux.resources.memory.swap"), "{error}");
        assert_eq!(memory(), (32 << 20).to_string());
        bundle.ok(&["update", "--memory", "-1", &bundle.id]);
        assert_ne!(memory(), (32 << 20).to_string());
    }
    assert_eq!(bundle.cgroup_file(&["pids.max"]), "60");
}

#[test]
fn cpu_limits_change_together() {
    let bundle = running("exec sleep 1000");
    if !has_controller(&bundle, &["cpu.cfs_quota_us"]) {
        return;
    }
    let now = || ["cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuset.cpus"].map(|file| bundle.cgroup_file(&[file]));
    bundle.ok(&["update", "--cpu-share", "512", "--cpu-quota", "50000", "--cpu-period", "100000", "--cpuset-cpus", "0", &bundle.id]);
    assert_eq!(now(), ["512", "50000", "100000", "0"]);
    bundle.ok(&["update", "--cpu-quota", "10000", "--cpu-period", "20000", &bundle.id]);
    assert_eq!(now(), ["512", "10000", "20000", "0"]);
    bundle.ok(&["update", "--cpu-quota", "-1", &bundle.id]);
    assert_eq!(now(), ["512", "-1", "20000", "0"]);
}

#[test]
fn limits_come_from_a_file_or_from_standard_input() {
    let bundle = running("exec sleep 1000");
    let file = bundle.path("limits.json");
    fs::write(&file, r#"{"pids":{"limit":70},"memory":{"limit":0},"cpu":{"cpus":""}}"#).unwrap();
    bundle.ok(&["update", "-r", file.to_str().unwrap(), &bundle.id]);
    assert_eq!(bundle.cgroup_file(&["pids.max"]), "70");
    let mut call = bundle.command(&["update", "--resources", "-", &bundle.id]).stdin(Stdio::piped()).spawn().unwrap();
    call.stdin.take().unwrap().write_all(br#"{"pids":{"limit":80}}"#).unwrap();
    assert!(call.wait().unwrap().success());
    assert_eq!(bundle.cgroup_file(&["pids.max"]), "80");
    for (text, expected) in [
        ("[]", "is no object"),
        ("{", "EOF"),
        (r#"{"pids":{"limit":"x"}}"#, "linux.resources.pids.limit: invalid type"),
        (r#"{"devices":[{"allow":true}]}"#, "devices: the device rules"),
    ] {
        fs::write(&file, text).unwrap();
        let error = bundle.fails(&["update", "-r", file.to_str().unwrap(), &bundle.id]);
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert_eq!(bundle.cgroup_file(&["pids.max"]), "80");
}

#[test]
fn what_the_kernel_refuses_half_way_is_put_back() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.set("/linux/resources/pids", json!({"limit":50})).set("/linux/resources/cpu", json!({"shares":500}));
    let bundle = started(bundle);
    if !has_controller(&bundle, &["cpu.shares"]) {
        return;
    }
    let error = bundle.fails(&["update", "--cpu-share", "600", "--cpuset-cpus", "9999", "--pids-limit", "60", &bundle.id]);
    assert!(error.contains("linux.resources.cpu.cpus: write \"9999\""), "{error}");
    assert_eq!((bundle.cgroup_file(&["cpu.shares"]), bundle.cgroup_file(&["pids.max"])), ("500".into(), "50".into()));
    bundle.ok(&["update", "--pids-limit", "61", &bundle.id]);
    assert_eq!((bundle.cgroup_file(&["cpu.shares"]), bundle.cgroup_file(&["pids.max"])), ("500".into(), "61".into()));
}

/// The same updates under runc leave the same values.
#[test]
fn updates_as_under_runc() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.set("/linux/resources/memory", json!({"limit":64 << 20,"swap":96 << 20}));
    let bundle = started(bundle);
    if !has_controller(&bundle, &["memory.limit_in_bytes"]) {
        return;
    }
    let Some(runc) = Runc::new(&bundle) else { return };
    let updates: [&[&str]; 6] = [
        &["--memory", "32m", "--memory-swap", "48m"],
        &["--memory", "1g", "--memory-swap", "2g", "--memory-reservation", "512m"],
        &["--cpu-share", "333", "--pids-limit", "44"],
        &["--cpu-quota", "20000", "--cpu-period", "50000"],
        &["--cpuset-cpus", "0", "--cpuset-mems", "0"],
        &["--memory", "-1"],
    ];
    let look = |call: &dyn Fn(&[&str]) -> Output| {
        let mut seen = Vec::new();
        for update in updates {
            let mut args = vec!["update"];
            args.extend(update);
            args.push(&bundle.id);
            let output = call(&args);
            assert!(output.status.success(), "{update:?}: {}", text(&output.stderr));
            let files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes", "cpu.shares", "pids.max"];
            let more = ["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuset.cpus", "cpuset.mems"];
            seen.push(files.iter().chain(&more).map(|file| format!("{file}={}", bundle.cgroup_file(&[file]))).collect::<Vec<_>>());
        }
        seen
    };
    let ours = look(&|args| bundle.call(args));
    bundle.ok(&["delete", "--force", &bundle.id]);
    runc.run_detached();
    assert_eq!(ours, look(&|args| runc.call(args)));
}
