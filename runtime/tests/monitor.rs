//! The monitor: its report, the log, the exit file, and what is left when it is killed.

mod common;

use std::fs;
use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use common::monitored::Monitored;
use common::{Bundle, alive, eventually, tool};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

#[test]
fn it_keeps_output_and_exit_code() {
    let monitored = Monitored::new(Bundle::new("echo one; echo two >&2; printf tail; exit 5"));
    assert_eq!(monitored.bundle.status(), "created");
    assert_eq!(monitored.bundle.pid(), monitored.pid("pid"));
    assert!(!monitored.bundle.path("exit").exists());
    monitored.start();
    let exit = monitored.exit();
    assert_eq!((&exit["exit_code"], &exit["signal"], &exit["oom_killed"]), (&json!(5), &Value::Null, &json!(false)));
    assert!(exit["finished_at"].as_str().unwrap().ends_with('Z'));
    let mut log = monitored.log();
    log.sort();
    let expected = [("stderr", "two"), ("stdout", "one"), ("stdout", "tail")].map(|(s, l)| (s.to_owned(), l.to_owned()));
    assert_eq!(log, expected);
    monitored.bundle.ok(&["delete", &monitored.bundle.id]);
}

#[test]
fn nothing_is_lost_that_a_container_printed_before_its_end() {
    let monitored = Monitored::new(Bundle::new("i=0; while [ $i -lt 1000 ]; do echo line $i is here; i=$((i+1)); done"));
    let monitor = Pid::from_raw(monitored.pid("monitor_pid")).unwrap();
    kill_process(monitor, Signal::STOP).unwrap();
    monitored.start();
    // All of it fits into the pipe, and more than the monitor takes at a time.
    eventually("the container's end", || (!alive(monitored.pid("pid"))).then_some(()));
    kill_process(monitor, Signal::CONT).unwrap();
    assert_eq!(monitored.exit()["exit_code"], 0);
    let log = monitored.log();
    assert_eq!((log.len(), log.last().map(|(_, line)| line.as_str())), (1000, Some("line 999 is here")));
}

#[test]
fn it_tells_a_signal() {
    let monitored = Monitored::new(Bundle::new("sleep 1000"));
    monitored.start();
    monitored.bundle.ok(&["kill", &monitored.bundle.id, "KILL"]);
    let exit = monitored.exit();
    assert_eq!((&exit["exit_code"], &exit["signal"]), (&json!(137), &json!(9)));
}

#[test]
fn it_tells_that_memory_ran_out() {
    let mut bundle = Bundle::new("dd if=/dev/zero of=/dev/null bs=64M count=1");
    bundle.set("/linux/resources/memory", json!({"limit":8_388_608}));
    let monitored = Monitored::new(bundle);
    monitored.start();
    let exit = monitored.exit();
    assert_eq!((&exit["exit_code"], &exit["oom_killed"]), (&json!(137), &json!(true)));
}

#[test]
fn a_refused_container_is_told_and_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    bundle.set("/process/args", json!(["nosuch"]));
    let monitored = Monitored::new(bundle);
    assert!(monitored.report["error"].as_str().unwrap().contains("find \"nosuch\""), "{}", monitored.report);
    assert!(!monitored.bundle.path("exit").exists());
    assert_eq!(monitored.bundle.cgroups(), Vec::<PathBuf>::new());
    assert!(!monitored.bundle.path("state").join(&monitored.bundle.id).exists());
}

#[test]
fn it_outlives_a_termination() {
    let monitored = Monitored::new(Bundle::new("sleep 1000"));
    monitored.start();
    let pid = monitored.pid("monitor_pid");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    // It takes signals one by one: once the container's end is told, the earlier one was taken and ignored.
    monitored.bundle.ok(&["kill", &monitored.bundle.id, "KILL"]);
    assert_eq!(monitored.exit()["exit_code"], 137);
}

#[test]
fn a_container_can_be_deleted_when_its_monitor_was_killed() {
    let monitored = Monitored::new(Bundle::new("sleep 1000"));
    monitored.start();
    let (monitor, pid) = (monitored.pid("monitor_pid"), monitored.pid("pid"));
    kill_process(Pid::from_raw(monitor).unwrap(), Signal::KILL).unwrap();
    eventually("the monitor's end", || (!alive(monitor)).then_some(()));
    assert!(alive(pid), "the container lives on");
    assert_eq!(monitored.bundle.status(), "running");
    monitored.bundle.ok(&["delete", "--force", &monitored.bundle.id]);
    assert!(!alive(pid));
    monitored.bundle.assert_nothing_is_left();
}

#[test]
fn the_log_is_bounded() {
    let script = "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done";
    let monitored = Monitored::with(Bundle::new(script), &["--log-max-bytes", "65536"]);
    monitored.start();
    assert_eq!(monitored.exit()["exit_code"], 0);
    for name in ["log", "log.1"] {
        let size = fs::metadata(monitored.bundle.path(name)).unwrap().len();
        assert!((1..=65536).contains(&size), "{name}: {size}");
    }
    assert!(!monitored.bundle.path("log.2").exists());
}

#[test]
fn it_idles_and_is_small() {
    let (monitored, _) = Monitored::at_rest(|| {
        let monitored = Monitored::new(Bundle::new("sleep 1000"));
        monitored.start();
        assert_eq!(monitored.monitors("Threads"), 1);
        // Of its own, whatever way it is linked.
        assert!(monitored.monitors("RssAnon") <= 512, "{} KiB", monitored.monitors("RssAnon"));
        monitored
    });
    let switches = monitored.monitors("voluntary_ctxt_switches");
    // That it does nothing is only seen while time goes by.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(monitored.monitors("voluntary_ctxt_switches") <= switches + 1, "it wakes without reason");
}

#[test]
fn it_stays_with_containers_of_other_runtimes() {
    let mut tried = 0;
    for name in ["runc", "crun"] {
        let Some(program) = tool(name) else {
            continue;
        };
        let bundle = Bundle::new("echo one; exit 6");
        let root = bundle.path("other").to_str().unwrap().to_owned();
        let other = |args: &[&str]| std::process::Command::new(&program).args(["--root", &root]).args(args).output().unwrap();
        if name == "crun" && fs::read_to_string("/proc/self/cgroup").unwrap().lines().count() > 1 {
            // crun refuses hybrid hosts (its own message: "unsupported cgroup mode").
            continue;
        }
        tried += 1;
        let id = bundle.id.clone();
        let monitored = Monitored::with(bundle, &["--runtime", program.to_str().unwrap(), "--runtime-root", &root]);
        let started = other(&["start", &id]);
        assert!(started.status.success(), "{name}: {}", String::from_utf8_lossy(&started.stderr));
        assert_eq!(monitored.exit()["exit_code"], 6, "{name}");
        assert_eq!(monitored.log(), [("stdout".to_owned(), "one".to_owned())], "{name}");
        assert!(other(&["delete", "--force", &id]).status.success());
    }
    assert!(tried > 0, "neither runc nor a crun that runs here is installed: apt-get install runc");
}

fn socket(dir: &tempfile::TempDir) -> (UnixDatagram, PathBuf) {
    let path = dir.path().join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (socket, path)
}

fn sunk(script: &str, sink: &Value) -> Monitored {
    let monitored = Monitored::with(Bundle::new(script), &["--log-sink", &sink.to_string()]);
    monitored.start();
    monitored
}

#[test]
fn output_goes_to_the_journal_too() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, path) = socket(&dir);
    let address = format!("unix://{}", path.display());
    let monitored =
        sunk("echo one; echo two >&2", &json!({"driver":"journald","address":address,"tag":"web.1","fields":{"CONTAINER_NAME":"web"}}));
    let mut entries: Vec<String> = (0..2)
        .map(|_| {
            let mut bytes = [0; 4096];
            let count = journal.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..count].to_vec()).unwrap()
        })
        .collect();
    entries.sort();
    let entry = |priority: u8, text: &str| {
        format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=web.1\nCONTAINER_NAME=web\nMESSAGE\n\u{3}\0\0\0\0\0\0\0{text}\n")
    };
    assert_eq!(entries, [entry(3, "two"), entry(6, "one")]);
    monitored.exit();
    assert_eq!(monitored.log().len(), 2);
}

#[test]
fn a_log_daemon_that_is_away_stops_nothing_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let address = format!("unix://{}", path.display());
    let script = "echo one; while [ ! -e /dev/shm/end ]; do echo more; usleep 50000; done";
    let monitored = sunk(script, &json!({"driver":"syslog","address":address,"tag":"web.1"}));
    let lines = || monitored.log().into_iter().map(|(_, line)| line).collect::<Vec<_>>();
    eventually("the note", || lines().iter().any(|line| line.contains("takes no lines")).then_some(()));
    let (daemon, _) = socket(&dir);
    let (first, came) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut received = 0;
        loop {
            let mut bytes = [0; 4096];
            let count = daemon.recv(&mut bytes).unwrap();
            let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
            if message == "over" {
                return received;
            }
            assert!(message.starts_with("<30>") && message.ends_with(" web.1: more"), "{message}");
            received += 1;
            // Only the first is waited for.
            let _ = first.send(());
        }
    });
    came.recv().unwrap();
    monitored.bundle.ok(&["exec", &monitored.bundle.id, "touch", "/dev/shm/end"]);
    monitored.exit();
    UnixDatagram::unbound().unwrap().send_to(b"over", &path).unwrap();
    let received: usize = reader.join().unwrap();
    let (notes, output): (Vec<String>, Vec<String>) = lines().into_iter().partition(|line| line.starts_with("rcluster: "));
    assert_eq!(notes[0], format!("rcluster: syslog at {} takes no lines: No such file or directory (os error 2)", path.display()));
    assert!(notes[1].starts_with("rcluster: syslog takes lines again: "), "{notes:?}");
    // A daemon on a slow machine may be too slow, too.
    let number = |note: &String| note.split(' ').find_map(|word| word.parse::<usize>().ok());
    let lost: usize = notes[1..].iter().filter_map(number).sum();
    assert!(lost > 0 && received + lost == output.len(), "{received} {notes:?} {output:?}");
}

#[test]
fn output_goes_to_a_server_by_udp_and_tcp() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let address = format!("udp://{}", udp.local_addr().unwrap());
    let monitored = sunk("echo one", &json!({"driver":"syslog","address":address,"facility":"local7","tag":"web.1"}));
    let mut bytes = [0; 4096];
    let count = udp.recv(&mut bytes).unwrap();
    let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
    assert!(message.starts_with("<190>1 2") && message.ends_with(" web.1 - - - one"), "{message}");
    monitored.exit();

    // The server listens and does not read until the container has said it all: more than fits is counted, what was sent is whole.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", server.local_addr().unwrap());
    let script = "i=0; while [ $i -lt 300 ]; do printf '%s %0900d\\n' line $i; i=$((i+1)); done; echo done >&2; sleep 1000";
    let monitored = sunk(script, &json!({"driver":"syslog","address":address,"tag":"web.1"}));
    eventually("all is in the file", || monitored.log().iter().any(|(_, line)| line == "done").then_some(()));
    let (mut stream, _) = server.accept().unwrap();
    monitored.bundle.ok(&["kill", &monitored.bundle.id, "KILL"]);
    monitored.exit();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let mut rest = text.as_str();
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let (length, message) = rest.split_once(' ').unwrap();
        let (message, more) = message.split_at(length.parse().unwrap());
        seen.push(message.split_once(" - - - ").unwrap().1.to_owned());
        rest = more;
    }
    let counted = |line: &str| line.strip_suffix(" lines were not taken by syslog")?.rsplit(' ').next()?.parse::<usize>().ok();
    let lost: usize = monitored.log().iter().filter_map(|(_, line)| counted(line)).sum();
    assert_eq!(seen.len() + lost, 301);
    assert!(seen[0].starts_with("line 0000") && seen.windows(2).all(|pair| pair[0] != pair[1]), "{:?}", seen.first());
}

#[test]
fn output_that_is_not_to_be_kept_is_not() {
    let monitored = sunk("echo one", &json!({"driver":"none"}));
    monitored.exit();
    let note = "rcluster: the output of this container is not kept (logging.driver none)";
    assert_eq!(monitored.log(), [("stderr".to_owned(), note.to_owned())]);
    let refused = Monitored::with(Bundle::new("true"), &["--log-sink", r#"{"driver":"gelf"}"#]);
    assert!(refused.report["error"].as_str().unwrap().contains("there is no driver \"gelf\""), "{}", refused.report);
}

#[test]
fn standard_input_stays_open_for_who_writes_to_it() {
    let bundle = Bundle::new("while read line; do echo got $line; [ $line = end ] && exit 7; done");
    let fifo = bundle.path("stdin");
    let monitored = Monitored::with(bundle, &["--stdin", fifo.to_str().unwrap()]);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&fifo).unwrap().permissions()) & 0o7777, 0o600);
    monitored.start();
    let lines = || monitored.log().into_iter().map(|(_, line)| line).collect::<Vec<_>>();
    // Each writer comes and goes, and the container does not see the end of its input.
    for word in ["one", "two"] {
        fs::write(&fifo, format!("{word}\n")).unwrap();
        eventually("the line", || lines().contains(&format!("got {word}")).then_some(()));
    }
    fs::write(&fifo, "end\n").unwrap();
    assert_eq!(monitored.exit()["exit_code"], 7);
    assert!(!fifo.exists());
}
