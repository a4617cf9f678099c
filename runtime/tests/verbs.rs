//! `pause`, `resume`, `update`, `ps`, `events`, and options of `create` and `run`: what they do to real containers; compared with runc's.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{Bundle, eventually, tool};
use serde_json::{Value, json};

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
        // It returns before the program is executed.
        eventually("runc has executed the program", || {
            let state: Value = serde_json::from_slice(&self.call(&["state", &self.bundle.id]).stdout).ok()?;
            fs::read_link(format!("/proc/{}/exe", state["pid"])).ok().filter(|program| program.ends_with("busybox"))
        });
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

#[test]
fn ps_shows_the_containers_processes_only() {
    let bundle = running("sleep 1000 & exec sleep 1001");
    let list = || serde_json::from_str::<Vec<i32>>(&bundle.ok(&["ps", "--format", "json", &bundle.id])).unwrap();
    let found = eventually("both processes", || Some(list()).filter(|found| found.len() == 2));
    assert!(found.contains(&bundle.pid()), "{found:?}");
    let table = bundle.ok(&["ps", &bundle.id]);
    assert!(table.lines().next().unwrap().contains("PID"), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    let own = bundle.ok(&["ps", &bundle.id, "-o", "pid,args"]);
    assert!(own.lines().skip(1).all(|line| line.contains("sleep 100")) && own.lines().count() <= 3, "{own}");
    assert!(bundle.fails(&["ps", &bundle.id, "-o", "args"]).contains("no column PID"));
    assert!(bundle.fails(&["ps", "nosuch"]).contains("container nosuch does not exist"));
}

#[test]
fn stats_once() {
    let bundle = running("exec sleep 1000");
    let event: Value = serde_json::from_str(&bundle.ok(&["events", "--stats", &bundle.id])).unwrap();
    assert_eq!((&event["type"], event["id"].as_str()), (&json!("stats"), Some(bundle.id.as_str())));
    let data = &event["data"];
    if has_controller(&bundle, &["pids.current"]) {
        assert_eq!(data["pids"]["current"], 1);
    }
    if has_controller(&bundle, &["memory.usage_in_bytes", "memory.current"]) {
        assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{data}");
    }
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{data}");
}

#[test]
fn events_come_until_the_container_ends() {
    let bundle = running("exec sleep 1000");
    let mut call = bundle.command(&["events", "--interval", "20ms", &bundle.id]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(call.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(event["type"], "stats");
    }
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    lines.for_each(|line| assert!(line.unwrap().starts_with('{')));
    assert!(call.wait().unwrap().success());
    assert!(bundle.fails(&["events", "--stats", &bundle.id]).contains("is stopped"));
    assert!(bundle.fails(&["events", &bundle.id]).contains("is stopped"));
}

#[test]
fn running_out_of_memory_is_an_event() {
    let mut bundle = Bundle::new("read go < /dev/shm/go; head -c 60000000 /dev/zero | tail -c 50000000 | wc -c; exec sleep 1000");
    bundle.set("/linux/resources/memory", json!({"limit":20 << 20,"swap":20 << 20}));
    let bundle = started(bundle);
    if !has_controller(&bundle, &["memory.limit_in_bytes", "memory.max"]) {
        return;
    }
    let mut call = bundle.command(&["events", "--interval", "1h", &bundle.id]).stdout(Stdio::piped()).spawn().unwrap();
    // It listens once it has the counter open.
    let listens = || {
        let entries = fs::read_dir(format!("/proc/{}/fd", call.id())).ok()?;
        let links: Vec<_> = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
        links.iter().any(|link| ["anon_inode:[eventfd]", "anon_inode:inotify"].contains(&link.to_str().unwrap_or(""))).then_some(())
    };
    eventually("the listener", listens);
    // Nearly always it is `tail` that is killed; it is the kernel's choice.
    let code = bundle.call(&["exec", &bundle.id, "sh", "-c", "head -c 60000000 /dev/zero | tail -c 50000000 | wc -c"]).status.code();
    assert!([Some(0), Some(137)].contains(&code), "{code:?}");
    let mut line = String::new();
    BufReader::new(call.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event, json!({"type":"oom","id":bundle.id}));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    assert!(call.wait().unwrap().success());
}

/// The same keys as runc's, and the values that do not change by themselves.
#[test]
fn stats_and_ps_as_under_runc() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.set("/linux/resources", json!({"devices":[{"allow":false,"access":"rwm"}],"pids":{"limit":9},"memory":{"limit":64 << 20}}));
    bundle.set("/process/args", json!(["sleep", "1000"]));
    let bundle = started(bundle);
    let Some(runc) = Runc::new(&bundle) else { return };
    let look = |call: &dyn Fn(&[&str]) -> Output| {
        let stats = call(&["events", "--stats", &bundle.id]);
        let event: Value = serde_json::from_slice(&stats.stdout).unwrap_or_else(|_| panic!("{}", text(&stats.stderr)));
        let mut keys = Vec::new();
        paths(&event, String::new(), &mut keys);
        let data = &event["data"];
        let same = (event["id"].clone(), data["cpuset"].clone(), data["pids"].clone(), data["memory"]["usage"]["limit"].clone());
        let ps = call(&["ps", &bundle.id, "-o", "pid,args"]);
        let lines: Vec<String> =
            text(&ps.stdout).lines().map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")).collect();
        let codes = ["-f json", "-f x"].map(|options| {
            let mut args = vec!["ps"];
            args.extend(options.split(' '));
            args.push(&bundle.id);
            call(&args).status.success()
        });
        (keys, same, lines, codes)
    };
    let ours = look(&|args| bundle.call(args));
    bundle.ok(&["delete", "--force", &bundle.id]);
    runc.run_detached();
    let theirs = look(&|args| runc.call(args));
    for (ours, theirs) in ours.0.iter().zip(&theirs.0) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours, theirs);
}

/// Where values are, but for those that are absent while they are zero.
fn paths(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| paths(value, format!("{at}/{name}"), found)),
        // runc does not look for controllers of version 2 on a hybrid host.
        _ if at.ends_with("/cache") || at.starts_with("/data/hugetlb") => {}
        _ => found.push(at),
    }
}

#[test]
fn a_unit_of_systemd_becomes_a_cgroup() {
    let mut bundle = Bundle::new("exec sleep 1000");
    let slice = format!("{}.slice", bundle.id.replace('-', "_"));
    bundle.set("/linux/cgroupsPath", json!(format!("{slice}:rc:x")));
    assert!(bundle.create_fails().contains("linux.cgroupsPath: slice:prefix:name is systemd's form"));
    bundle.write();
    let mut call = bundle.command(&["--debug", "--systemd-cgroup", "run", "-d", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    let error = fs::File::create(bundle.path("err")).unwrap();
    assert!(call.stdin(Stdio::null()).stdout(Stdio::null()).stderr(error).status().unwrap().success());
    let said = fs::read_to_string(bundle.path("err")).unwrap();
    let path = format!("/{slice}/rc-x.scope");
    assert!(said.contains(&format!("is made as the cgroup {path}, not as a unit")), "{said}");
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    assert!(groups.lines().all(|line| line.ends_with(&path)), "{groups}");
    assert_eq!(text(&bundle.call(&["exec", &bundle.id, "echo", "in"]).stdout), "in");
    bundle.ok(&["update", "--pids-limit", "33", &bundle.id]);
    bundle.ok(&["delete", "--force", &bundle.id]);
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(" - cgroup")) {
        assert!(!PathBuf::from(line.split(' ').nth(4).unwrap()).join(&slice).exists(), "{slice} is left");
    }
}

/// A call by a shell that has files open beside the standard ones.
fn with_open(bundle: &Bundle, redirections: &str, args: &[&str]) -> Output {
    let command = bundle.command(args);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{redirections} exec \"$0\" \"$@\"")]).arg(command.get_program()).args(command.get_args());
    shell.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn descriptors_are_passed_on_by_number() {
    let bundle = Bundle::new("cat <&3; cat <&4; ls /proc/self/fd | wc -w; echo $LISTEN_FDS $LISTEN_PID");
    bundle.write();
    fs::write(bundle.path("three"), "three\n").unwrap();
    fs::write(bundle.path("four"), "four\n").unwrap();
    let dir = bundle.path("");
    let open = format!("exec 3<{0}/three 4<{0}/four 5</;", dir.display());
    let run = |open: &str, options: &[&str]| {
        let mut args = vec!["run", "--bundle", dir.to_str().unwrap()];
        args.extend(options);
        args.push(&bundle.id);
        let output = with_open(&bundle, open, &args);
        (text(&output.stdout), text(&output.stderr))
    };
    // The shell, `ls`'s own directory, and what was passed.
    assert_eq!(run(&open, &["--preserve-fds", "2"]).0, "three\nfour\n6");
    assert_eq!(run(&format!("{open} export LISTEN_FDS=1 LISTEN_PID=$$;"), &["--preserve-fds", "1"]).0, "three\nfour\n6\n1 1");
    assert_eq!(run(&format!("{open} export LISTEN_FDS=1 LISTEN_PID=1;"), &["--preserve-fds", "2"]).0, "three\nfour\n6");
    let error = run("exec 3<&- 4<&-;", &["--preserve-fds", "1"]).1;
    assert!(error.contains("--preserve-fds 1: descriptor 3 is not open"), "{error}");
    bundle.assert_nothing_is_left();
}

#[test]
fn a_container_is_kept_if_told_so() {
    let bundle = Bundle::new("exit 3");
    bundle.write();
    let output = bundle.call(&["run", "--keep", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(bundle.status(), "stopped");
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_nothing_is_left();
}

#[test]
fn the_callers_keys_are_not_the_containers() {
    let keyring = |options: &[&str]| {
        let mut bundle = Bundle::new("");
        bundle.script(&format!("grep -c _ses.{}: /proc/keys", bundle.id));
        bundle.set("/linux/maskedPaths", json!([]));
        bundle.write();
        let dir = bundle.path("");
        let mut args = vec!["run", "--bundle", dir.to_str().unwrap()];
        args.extend(options);
        args.push(&bundle.id);
        text(&bundle.call(&args).stdout)
    };
    if !std::path::Path::new("/proc/keys").exists() {
        std::io::stderr().write_all(b"SKIPPED: this kernel has no keyrings\n").unwrap();
        return;
    }
    assert_eq!((keyring(&[]).as_str(), keyring(&["--no-new-keyring"]).as_str()), ("1", "0"));
}

/// The root is left by moving instead of pivoting: nothing of the host is to be seen, and exec finds its way in.
#[test]
fn without_pivot_root_the_host_is_out_of_sight_all_the_same() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.write();
    let mut call = bundle.command(&["run", "--detach", "--no-pivot", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    assert!(call.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let exec = |command: &[&str]| {
        let mut args = vec!["exec", bundle.id.as_str()];
        args.extend(command);
        text(&bundle.call(&args).stdout)
    };
    assert_eq!(exec(&["ls", "/"]), text(&bundle.call(&["exec", &bundle.id, "ls", "/.."]).stdout));
    assert!(exec(&["ls", "/"]).lines().all(|name| ["bin", "dev", "proc", "sys"].contains(&name)), "{}", exec(&["ls", "/"]));
    assert_eq!(exec(&["ls", "/bin/busybox"]), "/bin/busybox");
}
