//! Programs that the monitor executes for whoever may ask, and what others who connect can do to it.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::client::{ANSWER_WAIT, Answer, Client, EXEC, EXEC_PROCESS, connect, receive, request};
use common::monitored::Monitored;
use common::{Bundle, alive, eventually};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// A container that a monitor with a socket keeps.
fn served(script: &str) -> Monitored {
    served_in(Bundle::new(script))
}

fn served_in(bundle: Bundle) -> Monitored {
    let socket = bundle.path("monitor.sock").to_str().unwrap().to_owned();
    let monitored = Monitored::with(bundle, &["--socket", &socket]);
    monitored.start();
    monitored
}

fn ends_with(monitored: &Monitored, args: &[&str]) -> Answer {
    let client = Client::exec(monitored, args);
    client.started();
    client.answer()
}

#[test]
fn a_program_runs_in_the_container_and_its_end_is_told() {
    let monitored = served("sleep 1000");
    let mut client = Client::exec(&monitored, &["sh", "-c", "read line; echo \"$line $1\"; hostname; echo bad >&2; exit 7", "sh", "b"]);
    let pid = client.started();
    assert_eq!(common::namespace(&pid.to_string(), "mnt"), common::namespace(&monitored.pid("pid").to_string(), "mnt"));
    client.stdin.write_all(b"a\n").unwrap();
    assert_eq!(client.answer(), Answer::Ended(7));
    let hostname = monitored.bundle.config["hostname"].as_str().unwrap();
    // It ends although the container goes on: nobody else holds the pipe.
    assert_eq!(client.printed(), format!("a b\n{hostname}\nbad\n"));
    assert_eq!(client.answer(), Answer::HungUp);
    assert_eq!(ends_with(&monitored, &["sh", "-c", "kill -9 $$"]), Answer::Ended(137));
    let missing = Client::exec(&monitored, &["no-such-program"]);
    assert!(missing.not_started().contains("no-such-program"));
    // What is executed is none of the container's own end or output.
    assert_eq!(monitored.bundle.status(), "running");
    assert_eq!(monitored.log(), []);
}

fn parent(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

#[test]
fn who_serves_holds_nothing_but_its_connection() {
    let monitored = served("sleep 1000");
    let client = Client::exec(&monitored, &["sh", "-c", "exec >&- 2>&-; exec sleep 1000"]);
    let pid = client.started();
    let mut output = [PollFd::new(&client.stdout, PollFlags::IN)];
    let wait = Timespec { tv_sec: ANSWER_WAIT.as_secs().cast_signed(), tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut output, Some(&wait)), Ok(1), "another than the program holds its output");
    assert!(alive(pid));
    let servant = parent(pid);
    let open = fs::read_dir(format!("/proc/{servant}/fd")).unwrap().map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
    let open: Vec<_> = open.map(|link| link.to_str().unwrap().to_owned()).collect();
    let kind = |name: &str| open.iter().filter(|link| link.starts_with(name)).count();
    assert_eq!((kind("socket:"), kind("pipe:"), kind("anon_inode:[signalfd]")), (1, 0, 0), "{open:?}");
}

#[test]
fn a_process_is_described_as_in_a_file() {
    let monitored = served("sleep 1000");
    let ask = |process: &serde_json::Value| Client::ask(&monitored, &request(EXEC_PROCESS, process.to_string().as_bytes()));
    let mut process =
        json!({"args":["sh","-c","echo $A; pwd; id -u; exit 7"],"env":["PATH=/bin","A=b c"],"cwd":"/bin","user":{"uid":5,"gid":6}});
    let mut client = ask(&process);
    client.started();
    assert_eq!(client.answer(), Answer::Ended(7));
    assert_eq!(client.printed(), "b c\n/bin\n5\n");
    process["terminal"] = json!(true);
    assert!(ask(&process).not_started().contains("process.terminal: needs --console-socket"));
    assert!(Client::ask(&monitored, &request(EXEC_PROCESS, b"{\"args\":7}")).not_started().contains("process: args"));
}

#[test]
fn its_process_is_the_one_of_the_descriptor_that_comes_along() {
    let monitored = served("sleep 1000");
    let client = Client::exec(&monitored, &["sleep", "1000"]);
    assert_eq!(client.answer(), Answer::Taken);
    let (Answer::Started(pid), Some(pidfd)) = receive(&client.socket) else { panic!("not started") };
    rustix::process::pidfd_send_signal(&pidfd, Signal::TERM).unwrap();
    // The first signal of its own kind: sleep does not handle it, and is not the first process of its namespace.
    assert_eq!(client.answer(), Answer::Ended(143));
    assert!(!alive(pid));
}

#[test]
fn a_client_that_hangs_up_takes_its_program_with_it() {
    let monitored = served("sleep 1000");
    let client = Client::exec(&monitored, &["sleep", "1000"]);
    let pid = client.started();
    assert!(alive(pid));
    drop(client);
    eventually("the program's end", || (!alive(pid)).then_some(()));
    assert_eq!(monitored.bundle.status(), "running");
}

#[test]
fn a_program_dies_with_who_serves_it() {
    let mut filtered = Bundle::new("sleep 1000");
    filtered.set("/linux/seccomp", json!({"defaultAction":"SCMP_ACT_ALLOW"}));
    for (monitored, is_filtered) in [(served("sleep 1000"), false), (served_in(filtered), true)] {
        // Whoever it runs as: a change of the user takes the signal away that was asked for before. A process that may gain privileges changes
        // it under the filter already.
        for uid in [0, 5] {
            let process = json!({"args":["sleep","1000"],"env":["PATH=/bin"],"cwd":"/","user":{"uid":uid,"gid":uid}});
            let client = Client::ask(&monitored, &request(EXEC_PROCESS, process.to_string().as_bytes()));
            let pid = client.started();
            let mode = fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("Seccomp:\t2");
            assert_eq!(mode, is_filtered);
            let servant = Pid::from_raw(parent(pid)).unwrap();
            kill_process(servant, Signal::KILL).unwrap();
            eventually(&format!("the end of uid {uid}'s program, filtered: {is_filtered}"), || (!alive(pid)).then_some(()));
            assert_eq!(client.answer(), Answer::HungUp);
        }
        assert_eq!(monitored.bundle.status(), "running");
    }
}

#[test]
fn who_says_nothing_holds_up_nobody_and_there_is_a_bound() {
    let monitored = served("while [ ! -e /stop ]; do echo x; sleep 0.05; done; exit 3");
    let path = monitored.bundle.path("monitor.sock");
    let lines = || fs::read_to_string(monitored.bundle.path("log")).unwrap_or_default().lines().count();
    let mut silent = vec![connect(&path).unwrap()];
    assert_eq!(ends_with(&monitored, &["true"]), Answer::Ended(0));
    let before = lines();
    eventually("the log goes on", || (lines() > before).then_some(()));
    // 32 are served at once; the one of `true` may not be reaped yet.
    let bounded = eventually("a refusal", || {
        assert!(silent.len() <= 40, "there is no bound");
        let one = connect(&path).unwrap();
        // One that must be refused is waited for.
        let wait = if silent.len() < 33 { Duration::from_millis(100) } else { Duration::from_secs(15) };
        set_socket_timeout(&one, Timeout::Recv, Some(wait)).unwrap();
        let answered = rustix::net::recv(&one, &mut [0u8; 1][..], RecvFlags::PEEK).is_ok();
        let refused = answered.then(|| receive(&one).0);
        silent.push(one);
        refused
    });
    assert!(matches!(&bounded, Answer::Refused(why) if why.contains("serves 32 requests already")), "{bounded:?}");
    silent.clear();
    eventually("it serves again", || {
        let client = Client::exec(&monitored, &["true"]);
        (client.answer() == Answer::Taken).then_some(())
    });
    fs::write(monitored.bundle.rootfs("stop"), "").unwrap();
    assert_eq!(monitored.exit()["exit_code"], 3);
    eventually("the socket is removed", || (!path.exists()).then_some(()));
}

#[test]
fn nonsense_is_refused_by_name() {
    let monitored = served("sleep 1000");
    for (message, why) in [
        (vec![0xff; 5], "less than a header"),
        (request(1, b"true\0"), "kind 1"),
        (request(EXEC, b"true"), "NUL"),
        (request(EXEC, &[b'x'; (64 << 10) + 1]), "limit of 65536"),
        (request(EXEC, &vec![0; 64 << 10]), "empty"),
    ] {
        let client = Client::ask(&monitored, &message);
        let said = client.refused();
        assert!(said.contains(why), "{said}: not {why:?}");
    }
    let alone = connect(&monitored.bundle.path("monitor.sock")).unwrap();
    rustix::net::send(&alone, &request(EXEC, b"true\0"), SendFlags::empty()).unwrap();
    assert!(matches!(receive(&alone).0, Answer::Refused(why) if why.contains("0 descriptors")));
    assert_eq!(ends_with(&monitored, &["true"]), Answer::Ended(0));
}

#[test]
fn root_only_is_served() {
    let monitored = served("sleep 1000");
    let path = monitored.bundle.path("monitor.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Its mode alone would keep others out: they are let through to the check of who they are.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(monitored.bundle.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let said = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65534);
        // Of this thread alone.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        receive(&connect(&path).unwrap()).0
    });
    assert!(matches!(said.join().unwrap(), Answer::Refused(why) if why.contains("only root")));
}

#[test]
fn it_is_as_small_after_a_request_as_before() {
    let (monitored, busy) = Monitored::at_rest(|| served("sleep 1000"));
    let own = monitored.monitors("RssAnon");
    for _ in 0..20 {
        assert_eq!(ends_with(&monitored, &["true"]), Answer::Ended(0));
    }
    eventually("it is at rest again", || (monitored.monitors("RssFile") < busy).then_some(()));
    assert!(monitored.monitors("RssAnon") <= own + 64, "{own} KiB, then {}", monitored.monitors("RssAnon"));
    let pid = monitored.pid("monitor_pid");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(descriptors <= 10, "{descriptors} descriptors");
}

#[test]
fn a_container_is_removed_while_its_monitor_stands_still() {
    let monitored = served("sleep 1000");
    let monitor = Pid::from_raw(monitored.pid("monitor_pid")).unwrap();
    kill_process(monitor, Signal::STOP).unwrap();
    let client = Client::exec(&monitored, &["true"]);
    set_socket_timeout(&client.socket, Timeout::Recv, Some(Duration::from_millis(200))).unwrap();
    assert!(rustix::net::recv(&client.socket, &mut [0u8; 1][..], RecvFlags::empty()).is_err(), "it answers");
    let init = monitored.pid("pid");
    monitored.bundle.ok(&["delete", "--force", &monitored.bundle.id]);
    assert!(!alive(init));
    kill_process(monitor, Signal::KILL).unwrap();
}

#[test]
fn what_was_not_taken_before_its_client_hung_up_is_never_executed() {
    let monitored = served("sleep 1000");
    let pid = monitored.pid("monitor_pid");
    let monitor = Pid::from_raw(pid).unwrap();
    kill_process(monitor, Signal::STOP).unwrap();
    let client = Client::exec(&monitored, &["touch", "/dev/shm/executed"]);
    rustix::net::shutdown(&client.socket, Shutdown::Both).unwrap();
    // Nothing was said before, and nothing can be said from here on.
    assert_eq!(client.answer(), Answer::HungUp);
    kill_process(monitor, Signal::CONT).unwrap();
    // The one that serves it ends without a program: the monitor has no child but the container then.
    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(ends_with(&monitored, &["true"]), Answer::Ended(0));
    eventually("it is served out", || (children().split_whitespace().count() == 1).then_some(()));
    assert_eq!(ends_with(&monitored, &["sh", "-c", "[ -e /dev/shm/executed ]"]), Answer::Ended(1));
}

/// Of a monitor on a host whose `/dev/null` is gone.
#[test]
fn what_cannot_be_served_to_its_end_is_not_begun() {
    let bundle = Bundle::new("sleep 1000");
    let socket = bundle.path("monitor.sock").to_str().unwrap().to_owned();
    let monitored = Monitored::in_own_mounts(bundle, &["--socket", &socket]);
    monitored.start();
    let monitor = monitored.pid("monitor_pid").to_string();
    let hidden = Command::new("nsenter").args(["--target", &monitor, "--mount", "mount", "-t", "tmpfs", "none", "/dev"]).status().unwrap();
    assert!(hidden.success());
    let said = Client::exec(&monitored, &["touch", "/dev/shm/executed"]).refused();
    assert!(said.contains("open /dev/null"), "{said}");
    let ran = monitored.bundle.call(&["exec", &monitored.bundle.id, "busybox", "test", "-e", "/dev/shm/executed"]);
    assert_eq!(ran.status.code(), Some(1));
}

#[test]
fn a_socket_that_cannot_be_leaves_no_container() {
    let bundle = Bundle::new("sleep 1000");
    bundle.write();
    let paths = ["", "log", "exit", "no/such/dir/sock"].map(|name| bundle.path(name).to_str().unwrap().to_owned());
    let args = ["monitor", "--id", &bundle.id, "--bundle", &paths[0], "--log", &paths[1], "--exit-file", &paths[2], "--socket", &paths[3]];
    // Not by a pipe: a container that is left would hold it, and the test would wait for ever.
    let report = bundle.path("report");
    let status = bundle.command(&args).stdout(File::create(&report).unwrap()).stderr(Stdio::null()).status().unwrap();
    assert!(!status.success());
    let said = fs::read_to_string(report).unwrap();
    assert!(said.contains("no/such/dir/sock"), "{said}");
    eventually("nothing is left", || bundle.nothing_is_left().then_some(()));
}
