//! `exec` and its like by a user who is not root, in containers that user made: the same rights, and no way out; compared with runc's.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use common::client::{Answer, Client, EXEC, connect, receive, request};
use common::own::{Own, USER};
use common::terminals::{in_terminal, listener, outer, sent};
use common::{alive, eventually, namespace, tool};
use serde_json::{Value, json};

const KINDS: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

#[test]
fn a_program_runs_in_the_containers_namespaces() {
    let own = Own::started("exec sleep 1000");
    let pid = own.pid().to_string();
    let links = own.executed(&[], "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done");
    assert_eq!(links.lines().collect::<Vec<_>>(), KINDS.map(|kind| namespace(&pid, kind)));
    eventually("the first process", || (own.executed(&[], "cat /proc/1/cmdline") == "sleep\x001000\0").then_some(()));
    assert_eq!(
        own.executed(&["--cwd", "/bin", "-e", "A=1"], "pwd; echo $A; id -u; id -g; hostname").split('\n').collect::<Vec<_>>(),
        ["/bin", "1", "0", "0", own.bundle.config["hostname"].as_str().unwrap()]
    );
}

#[test]
fn rights_are_the_containers() {
    let own = Own::started("exec sleep 1000");
    let sets = "grep -E '^(Cap|NoNew|Uid|Gid|Groups)' /proc/self/status";
    let container = own.executed(&[], "grep -E '^(Cap|NoNew|Uid|Gid|Groups)' /proc/1/status");
    assert_eq!(own.executed(&[], sets), container);
    let more = own.executed(&["--cap", "CAP_SYS_ADMIN"], "grep ^CapEff /proc/self/status");
    let bits = |line: &str| u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
    assert_eq!(bits(&more) & !bits(container.lines().find(|line| line.starts_with("CapEff")).unwrap()), 1 << 21);
    // What the user namespace maps is all it can become.
    let (_, stderr, code) = own.exec(&["--user", "5"], &["true"]);
    assert!(code == 255 && stderr.contains("process.user.uid: 5"), "{stderr}");
}

#[test]
fn exit_codes_and_signals() {
    let own = Own::started("exec sleep 1000");
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
        assert_eq!(own.exec(&[], &["sh", "-c", script]).2, expected, "{script}");
    }
    let (_, stderr, code) = own.exec(&[], &["nosuch"]);
    assert!(code == 255 && stderr.contains("exec failed: process.args[0]: find \"nosuch\""), "{stderr}");
    let (_, stderr, code) = own.exec(&[], &["/no/such"]);
    assert!(code == 255 && stderr.contains("no such file or directory"), "{stderr}");
    let script = "trap 'exit 3' TERM; touch /dev/shm/ready; while :; do sleep 0.05; done";
    let mut call = own.command(&own.bundle.path("runtime"), "own-state", &["exec", &own.bundle.id, "sh", "-c", script]).spawn().unwrap();
    let ready = format!("/proc/{}/root/dev/shm/ready", own.pid());
    eventually("the trap", || fs::metadata(&ready).ok());
    rustix::process::kill_process(rustix::process::Pid::from_child(&call), rustix::process::Signal::TERM).unwrap();
    assert_eq!(call.wait().unwrap().code(), Some(3));
    assert_eq!(own.state()["status"], "running");
}

#[test]
fn one_that_is_left_alone_is_listed_and_killed_with_the_others() {
    let own = Own::started("exec sleep 1000");
    let pid_file = own.bundle.path("exec.pid");
    let args = ["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), &own.bundle.id, "sh", "-c", "sleep 1001 & exec sleep 1002"];
    let mut call = own.command(&own.bundle.path("runtime"), "own-state", &args);
    assert!(call.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    // The shell becomes it.
    eventually("the program", || fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| line == b"sleep\x001002\0"));
    let listed = || -> Vec<i32> {
        let output = own.call(&["ps", "--format", "json", &own.bundle.id]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let found = eventually("all three", || Some(listed()).filter(|found| found.len() == 3));
    assert!(found.contains(&pid) && found.contains(&own.pid()), "{found:?}");
    let table = String::from_utf8(own.call(&["ps", &own.bundle.id]).stdout).unwrap();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(own.call(&["kill", "--all", &own.bundle.id, "KILL"]).status.success());
    eventually("their end", || found.iter().all(|pid| !alive(*pid)).then_some(()));
    eventually("stopped", || (own.state()["status"] == "stopped").then_some(()));
    assert_eq!(listed(), [] as [i32; 0]);
}

#[test]
fn without_a_cgroup_nothing_is_frozen_and_the_refusal_says_so() {
    let own = Own::started("exec sleep 1000");
    let output = own.call(&["pause", &own.bundle.id]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && stderr.contains("the container has no cgroup that could be frozen"), "{stderr}");
    assert_eq!(own.state()["status"], "running");
}

#[test]
fn a_program_has_a_terminal() {
    let own = Own::started("exec sleep 1000");
    let (mut master, side) = outer(24, 80);
    let script = "busybox tty; busybox stty size; read line; echo got $line; exit 3";
    let args = ["exec", "-t", &own.bundle.id, "sh", "-c", script];
    let mut exec = in_terminal(own.command(&own.bundle.path("runtime"), "own-state", &args), &side);
    master.expect("/dev/pts/0\r\n24 80\r\n");
    master.say("x\r");
    master.expect("got x\r\n");
    assert_eq!(exec.wait().unwrap().code(), Some(3));

    let (listener, socket) = listener(&own.bundle);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let args = ["exec", "--tty", "--detach", "--console-socket", &socket, &own.bundle.id, "sh", "-c", "read line; echo got $line"];
    assert!(own.command(&own.bundle.path("runtime"), "own-state", &args).stdout(Stdio::null()).status().unwrap().success());
    let (_, mut master) = sent(&listener);
    master.say("y\n");
    master.expect("got y");
}

#[test]
fn a_created_container_takes_a_program() {
    let own = Own::new("exec sleep 1000");
    own.create();
    assert_eq!(own.executed(&[], "echo in"), "in");
    assert_eq!(own.state()["status"], "created");
}

/// CVE-2024-21626: a working directory by way of a descriptor that leads to the host.
#[test]
fn no_working_directory_leads_out() {
    let own = Own::started("exec sleep 1000");
    for fd in 3..10 {
        let at = format!("/proc/self/fd/{fd}");
        let output = leaking(&own, &format!("{fd}</"), &["exec", "--cwd", &at, &own.bundle.id, "ls", "-a"]);
        assert!(!output.status.success(), "fd {fd}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn no_descriptor_is_passed_on_but_those_asked_for() {
    let own = Own::started("exec sleep 1000");
    let list = |options: &[&str]| {
        let args = [&["exec"], options, &[own.bundle.id.as_str(), "sh", "-c", "exec ls /proc/self/fd"]].concat();
        let output = leaking(&own, "3</etc/hostname 4</etc/hostname", &args);
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    // The last is the directory that `ls` itself has open.
    assert_eq!(list(&[]), "0 1 2 3");
    assert_eq!(list(&["--preserve-fds", "1"]), "0 1 2 3 4");
}

/// A call by a shell that has more open than it should.
fn leaking(own: &Own, redirections: &str, args: &[&str]) -> Output {
    let program = own.bundle.path("runtime");
    let mut shell = Command::new("sh");
    shell.uid(USER).gid(USER).args(["-c", &format!("exec \"$0\" \"$@\" {redirections}")]);
    shell.arg(program).arg("--root").arg(own.bundle.path("own-state")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// CVE-2019-5736: the program belongs to the user who is the container's root, and runs as `/proc/PID/exe` until the exec; and
/// CVE-2016-9962: nothing that the process holds before that can be looked into.
#[test]
fn neither_the_users_program_nor_the_process_on_its_way_is_laid_open() {
    let own = Own::started("exec sleep 1000");
    // A search that takes its time.
    let path = format!("PATH={}", vec!["/bin/nosuch"; 500_000].join(":"));
    let file = own.bundle.path("process.json");
    fs::write(&file, json!({"cwd":"/","args":["nosuch"],"env":[path],"user":{"uid":0,"gid":0}}).to_string()).unwrap();
    let args = ["exec", "--process", file.to_str().unwrap(), &own.bundle.id];
    // Some of them end before all was looked at.
    eventually("a look at one that still searches", || look_at_one_on_its_way(&own, &args).then_some(()));
}

/// Whether it was still on its way when all was looked at.
fn look_at_one_on_its_way(own: &Own, args: &[&str]) -> bool {
    let mut slow = own.command(&own.bundle.path("runtime"), "own-state", args).stderr(Stdio::null()).spawn().unwrap();
    let inside = namespace(&own.pid().to_string(), "pid");
    let on_its_way = eventually("the process on its way", || {
        if slow.try_wait().unwrap().is_some() {
            return Some(None);
        }
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", slow.id())).unwrap();
        let is_inside = |pid: &&str| {
            let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).ok();
            link("ns/pid").is_some_and(|link| link.to_str() == Some(&inside)) && link("root") == link("cwd")
        };
        children.split_whitespace().find(is_inside).map(|pid| Some(pid.to_owned()))
    });
    let Some(on_its_way) = on_its_way else { return false };
    let exe = format!("/proc/{on_its_way}/exe");
    let seen = (fs::read_link(&exe), fs::File::open(&exe), fs::read_to_string(format!("/proc/{on_its_way}/status")));
    let (Ok(name), Ok(file), Ok(status)) = seen else {
        slow.wait().unwrap();
        return false;
    };
    assert!(name.to_str().unwrap().starts_with("/memfd:rcluster-runtime"), "{name:?}");
    let seals = rustix::fs::fcntl_get_seals(file).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL), "{seals:?}");
    let inner = status.lines().find(|line| line.starts_with("NSpid")).and_then(|line| line.split_whitespace().last()).unwrap();
    let look = format!("cat /proc/{inner}/comm; readlink /proc/{inner}/exe; ls /proc/{inner}/fd; ls /proc/{inner}/root/; true");
    // Even with the capability that looks into others.
    let (stdout, stderr, _) = own.exec(&["--cap", "CAP_SYS_PTRACE"], &["sh", "-c", &look]);
    if !alive(on_its_way.parse().unwrap()) {
        slow.wait().unwrap();
        return false;
    }
    assert_eq!((stdout.lines().count(), stderr.matches("Permission denied").count()), (1, 2), "{stdout}\n{stderr}");
    slow.kill().unwrap();
    slow.wait().unwrap();
    eventually("its end with its parent", || (!alive(on_its_way.parse().unwrap())).then_some(()));
    true
}

/// Another user has no part in it, root has.
#[test]
fn only_the_containers_user_and_root_come_in() {
    let own = Own::started("exec sleep 1000");
    let output = Command::new(env!("CARGO_BIN_EXE_rcluster-runtime"))
        .arg("--root")
        .arg(own.bundle.path("own-state"))
        .args(["exec", &own.bundle.id, "readlink", "/proc/self/ns/user"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), namespace(&own.pid().to_string(), "user"));
    // Even one who may read the state.
    for path in ["", "own-state"] {
        fs::set_permissions(own.bundle.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for entry in fs::read_dir(own.bundle.path("own-state").join(&own.bundle.id)).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::set_permissions(own.bundle.path("own-state").join(&own.bundle.id), fs::Permissions::from_mode(0o755)).unwrap();
    let mut other = own.command(&own.bundle.path("runtime"), "own-state", &["exec", &own.bundle.id, "true"]);
    let output = other.uid(USER + 1).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(255) && stderr.contains("join the container's user pid namespaces"), "{stderr}");
}

/// The same container under runc, the same programs in it: output and exit code must agree.
#[test]
fn as_under_runc() {
    let Some(runc) = tool("runc") else {
        std::io::Write::write_all(&mut std::io::stderr().lock(), b"SKIPPED: runc is not installed: apt-get install runc\n").unwrap();
        return;
    };
    let mut own = Own::new("exec sleep 1000");
    own.bundle.set("/process/oomScoreAdj", json!(700));
    let look = "id; umask; pwd; hostname; env | sort; ls /dev/pts /proc/self/fd; cat /proc/self/limits; cat /proc/self/uid_map; \
                grep -E '^(Cap|NoNew|Uid|Gid|Groups|Sig(Blk|Pnd|Cgt))' /proc/self/status; cat /proc/self/oom_score_adj; exit 9";
    let cases: [&[&str]; 5] =
        [&[], &["--cwd", "/bin", "-e", "A=1", "-e", "B=2"], &["--cap", "CAP_LINUX_IMMUTABLE"], &["--no-new-privs"], &["--user", "0:0"]];
    own.start();
    let ours: Vec<_> = cases.iter().map(|options| own.exec(options, &["sh", "-c", look])).collect();
    let ours_missing = own.exec(&[], &["nosuch"]).2;
    assert!(own.call(&["delete", "--force", &own.bundle.id]).status.success());
    let call = |args: &[&str]| own.command(&runc, "runc-state", args).output().unwrap();
    let bundle = own.bundle.path("");
    let mut run = own.command(&runc, "runc-state", &["run", "-d", "--bundle", bundle.to_str().unwrap(), &own.bundle.id]);
    assert!(run.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let theirs: Vec<_> = cases
        .iter()
        .map(|options| {
            let output = call(&[&["exec"], *options, &[own.bundle.id.as_str(), "sh", "-c", look]].concat());
            (String::from_utf8(output.stdout).unwrap().trim_end().to_owned(), output.status.code().unwrap())
        })
        .collect();
    let theirs_missing = call(&["exec", &own.bundle.id, "nosuch"]).status.code().unwrap();
    call(&["delete", "--force", &own.bundle.id]);
    for ((options, ours), theirs) in cases.iter().zip(&ours).zip(&theirs) {
        assert_eq!((&ours.0, ours.2), (&theirs.0, theirs.1), "{options:?}: {}", ours.1);
        assert!(!ours.0.is_empty());
    }
    assert_eq!(ours_missing, theirs_missing);
}

/// The monitor's socket: it serves the user it runs as, and no other but root.
#[test]
fn the_users_monitor_serves_its_user() {
    let own = Own::new("exec sleep 1000");
    own.bundle.write();
    let paths = ["", "log", "exit", "monitor.sock"].map(|name| own.bundle.path(name).to_str().unwrap().to_owned());
    let args =
        ["monitor", "--id", &own.bundle.id, "--bundle", &paths[0], "--log", &paths[1], "--exit-file", &paths[2], "--socket", &paths[3]];
    let mut monitor = own.command(&own.bundle.path("runtime"), "own-state", &args);
    let output = monitor.stderr(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(own.call(&["start", &own.bundle.id]).status.success());
    let socket = own.bundle.path("monitor.sock");
    let connected_as = |uid: u32| {
        // The user of one thread alone.
        let by = || {
            rustix::thread::set_thread_res_uid(rustix::fs::Uid::ROOT, rustix::fs::Uid::from_raw(uid), rustix::fs::Uid::ROOT).unwrap();
            connect(&socket).unwrap()
        };
        std::thread::scope(|scope| scope.spawn(by).join().unwrap())
    };
    for uid in [USER, 0] {
        let mut client = Client::over(connected_as(uid), &request(EXEC, b"sh\0-c\0id -u; exit 7\0"));
        let pid = client.started();
        assert_eq!(client.answer(), Answer::Ended(7), "{pid}");
        assert_eq!(client.printed(), "0\n");
    }
    fs::set_permissions(own.bundle.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = receive(&connected_as(USER + 1)).0;
    assert!(matches!(&refused, Answer::Refused(why) if why.contains("only root, or the user a monitor runs as")), "{refused:?}");
    assert!(own.call(&["delete", "--force", &own.bundle.id]).status.success());
    eventually("the exit file", || fs::read(own.bundle.path("exit")).ok());
}

/// What a program of `exec` asks is told to the profile's listener, where the process can hand its descriptor over itself: it hides from its
/// own user too, who could take it otherwise.
#[test]
fn a_listener_hears_of_its_calls() {
    let profile = |names: &[&str]| json!({"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":names,"action":"SCMP_ACT_NOTIFY"}]});
    for (notified, can) in [(&["rmdir"][..], true), (&["rmdir", "sendmsg"], false)] {
        let mut own = Own::new("exec sleep 1000");
        let socket = own.bundle.path("agent.sock");
        let agent = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        own.bundle.set("/linux/seccomp", profile(notified)).set("/linux/seccomp/listenerPath", json!(socket));
        own.start();
        // Whoever hangs up answers nothing: the call is then unknown.
        let introduced = || {
            let mut text = String::new();
            agent.accept().unwrap().0.read_to_string(&mut text).unwrap();
            serde_json::from_str::<Value>(&text).unwrap()["state"]["status"].clone()
        };
        assert_eq!(introduced(), "creating");
        let execute = || own.exec(&[], &["busybox", "rmdir", "/nosuch"]);
        if can {
            let (_, stderr, code) = std::thread::scope(|scope| {
                let executed = scope.spawn(execute);
                assert_eq!(introduced(), "running");
                executed.join().unwrap()
            });
            assert!(code == 1 && stderr.contains("Function not implemented"), "{stderr}");
        } else {
            let (_, stderr, code) = execute();
            assert!(code == 255 && stderr.contains("linux.seccomp: ") && stderr.contains("let the profile allow sendmsg"), "{stderr}");
        }
    }
}

/// A cgroup that was given to the user, and goes with the test.
struct Given(std::path::PathBuf);

impl Drop for Given {
    fn drop(&mut self) {
        // An error means that none was made.
        let below = fs::read_dir(&self.0).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
        below.filter(|path| path.is_dir()).for_each(|path| drop(fs::remove_dir(path)));
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn in_a_cgroup_given_to_the_user_it_is_joined_and_frozen() {
    // Goes after the container.
    let mut given = Given(std::path::PathBuf::new());
    let mut own = Own::new("exec sleep 1000");
    let freezer = own.bundle.cgroup_root("freezer");
    if !freezer.join("release_agent").exists() {
        std::io::Write::write_all(&mut std::io::stderr().lock(), b"SKIPPED: no freezer of cgroup version 1\n").unwrap();
        return;
    }
    given.0 = freezer.join(format!("rt-test-given-{}", std::process::id()));
    fs::create_dir(&given.0).unwrap();
    for path in [given.0.clone(), given.0.join("tasks"), given.0.join("cgroup.procs")] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    // From the caller's own cgroup.
    own.bundle.set("/linux/cgroupsPath", json!(own.bundle.id));
    own.bundle.write();
    let inside = |args: &[&str]| {
        let call = own.command(&own.bundle.path("runtime"), "own-state", args);
        let script = format!("echo $$ >\"$0\"/cgroup.procs && exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(&given.0).arg(call.get_program()).args(call.get_args());
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).status().unwrap().success()
    };
    assert!(inside(&["create", "--bundle", own.bundle.path("").to_str().unwrap(), &own.bundle.id]));
    assert!(inside(&["start", &own.bundle.id]));
    let group = given.0.join(&own.bundle.id);
    assert!(group.is_dir(), "it was not made");
    let detached = own.bundle.path("exec.pid");
    assert!(inside(&["exec", "--detach", "--pid-file", detached.to_str().unwrap(), &own.bundle.id, "sleep", "1000"]));
    let pid = fs::read_to_string(&detached).unwrap();
    assert!(fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().any(|line| line == pid), "{pid} is not in the cgroup");
    assert!(inside(&["pause", &own.bundle.id]));
    assert_eq!(own.state()["status"], "paused");
    assert!(!inside(&["exec", &own.bundle.id, "true"]));
    assert!(inside(&["resume", &own.bundle.id]));
    assert!(inside(&["exec", &own.bundle.id, "true"]));
    assert!(inside(&["delete", "--force", &own.bundle.id]));
    assert!(!group.exists() && !alive(pid.parse().unwrap()));
}
