//! A container's terminal under a monitor: what those who look at it get, what the log keeps, with this runtime and with others.

mod common;

use std::fs::{self, File};
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use common::monitored::Monitored;
use common::{Bundle, eventually, tool};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use serde_json::json;

const WAIT: Duration = Duration::from_secs(20);
const REFUSED: u8 = 4;
const TERMINAL: u8 = 5;
const OUTPUT: u8 = 6;
const MISSED: u8 = 7;
/// What waits for a viewer that takes nothing: 64 KiB with the kernel's part of it, and the message that no longer fits.
const UNTAKEN_BYTES_MAX: usize = 72 << 10;

fn with_terminal(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.set("/process/terminal", json!(true));
    bundle
}

fn started(script: &str) -> Monitored {
    started_with(script, &[])
}

/// The same with a monitor that waits for viewers so long: one that takes what comes does not miss anything because the machine is slow.
fn patient(script: &str, patience: Duration) -> Monitored {
    started_with(script, &["--tty-patience-ms", &patience.as_millis().to_string()])
}

fn started_with(script: &str, more: &[&str]) -> Monitored {
    let bundle = with_terminal(script);
    let socket = bundle.path("tty.sock").to_str().unwrap().to_owned();
    let monitored = Monitored::with(bundle, &[&["--tty", &socket], more].concat());
    monitored.start();
    monitored
}

fn words(monitored: &Monitored) -> Vec<String> {
    monitored.log().into_iter().map(|(stream, line)| format!("{stream}: {line}")).collect()
}

/// Someone who looks at a terminal.
struct Viewer {
    socket: OwnedFd,
    master: File,
    seen: String,
    missed: u64,
}

type Message = (u8, i32, Vec<u8>, Option<OwnedFd>);

/// `None` at the end.
fn receive(socket: &OwnedFd) -> Option<Message> {
    let mut bytes = [0; 12 + 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let count = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).expect("an answer in time").bytes;
    let file = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let (header, payload) = bytes[..count].split_first_chunk::<12>()?;
    assert_eq!((header[0], u32::from_le_bytes(header[8..].try_into().unwrap()) as usize), (1, payload.len()));
    Some((header[1], i32::from_le_bytes(header[4..8].try_into().unwrap()), payload.to_vec(), file))
}

fn connected(path: &Path) -> OwnedFd {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_timeout(&socket, Timeout::Recv, Some(WAIT)).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

impl Viewer {
    fn of(monitored: &Monitored) -> Self {
        let socket = connected(&monitored.bundle.path("tty.sock"));
        let (kind, _, _, master) = receive(&socket).unwrap();
        assert_eq!(kind, TERMINAL);
        Self { socket, master: master.unwrap().into(), seen: String::new(), missed: 0 }
    }

    /// Takes the next message; `false` at the end.
    fn take(&mut self) -> bool {
        match receive(&self.socket) {
            Some((OUTPUT, _, bytes, _)) => self.seen.push_str(std::str::from_utf8(&bytes).unwrap()),
            Some((MISSED, bytes, _, _)) => self.missed += u64::try_from(bytes).unwrap(),
            Some(message) => panic!("{message:?}"),
            None => return false,
        }
        true
    }

    fn takes_what_is_there(&mut self) {
        while rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0 {
            assert!(self.take(), "the end");
        }
    }

    fn sees(&mut self, wanted: &str) {
        while !self.seen.contains(wanted) {
            assert!(self.take(), "the end, and {wanted:?} is not in {:?}", self.seen);
        }
    }

    fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }
}

#[test]
fn all_who_look_see_the_same_and_the_log_keeps_it() {
    let monitored = started("stty -echo; echo ready >&2; while read line; do printf \"got $line\\n\"; [ $line = end ] && exit 7; done");
    assert_eq!(fs::metadata(monitored.bundle.path("tty.sock")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!monitored.bundle.path("tty.sock.console").exists());
    eventually("the line of the past", || (words(&monitored) == ["stdout: ready"]).then_some(()));
    let (mut one, mut two) = (Viewer::of(&monitored), Viewer::of(&monitored));
    one.types("first\n");
    for viewer in [&mut one, &mut two] {
        viewer.sees("got first\r\n");
        assert_eq!(viewer.seen, "got first\r\n", "only what comes from then on, as the terminal ends lines");
    }
    // Who leaves takes nothing along.
    drop(one);
    let mut three = Viewer::of(&monitored);
    two.types("end\n");
    three.sees("got end\r\n");
    two.sees("got end\r\n");
    assert!(!two.take() && !three.take(), "the end");
    assert_eq!(monitored.exit()["exit_code"], 7);
    assert_eq!(words(&monitored), ["stdout: ready", "stdout: got first", "stdout: got end"]);
    assert!(!monitored.bundle.path("tty.sock").exists());
}

#[test]
fn a_viewer_sets_the_size_and_the_program_hears_of_it() {
    let monitored = started("trap 'echo size $(busybox stty size)' WINCH; echo ready; while :; do sleep 0.05; done");
    let mut viewer = Viewer::of(&monitored);
    eventually("it waits", || words(&monitored).contains(&"stdout: ready".to_owned()).then_some(()));
    tcsetwinsize(&viewer.master, Winsize { ws_row: 31, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    viewer.sees("size 31 101\r\n");
    assert_eq!(tcgetwinsize(&viewer.master).unwrap().ws_col, 101);
    viewer.types("\u{3}");
    while viewer.take() {}
    assert_eq!(monitored.exit()["exit_code"], 130, "control-C is the terminal's own");
}

#[test]
fn a_program_that_leaves_its_terminal_goes_on() {
    let monitored = started("echo before; exec </dev/null >/dev/null 2>&1; touch /dev/shm/left; sleep 1000");
    let has_left = || monitored.bundle.call(&["exec", &monitored.bundle.id, "busybox", "test", "-e", "/dev/shm/left"]).status.success();
    eventually("it has left", || has_left().then_some(()));
    eventually("the line", || (words(&monitored) == ["stdout: before"]).then_some(()));
    // The monitor serves whoever comes all the same, and does not spin.
    drop(Viewer::of(&monitored));
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", monitored.pid("monitor_pid"))).unwrap();
        stat.split(' ').skip(13).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = ticks();
    monitored.bundle.ok(&["exec", &monitored.bundle.id, "sleep", "1"]);
    assert!(ticks() < before + 20, "{} of the 100 ticks of a second", ticks() - before);
    monitored.bundle.ok(&["kill", &monitored.bundle.id, "KILL"]);
    assert_eq!(monitored.exit()["exit_code"], 137);
}

fn numbers() -> String {
    (1..=100_000).map(|number| format!("{number}\r\n")).collect()
}

#[test]
fn a_viewer_that_takes_nothing_holds_nobody_up_for_long_and_is_told() {
    // Who takes nothing uses all of it up, once.
    let monitored = patient("read go; busybox seq 100000; echo all; read line; echo bye", WAIT / 3);
    let mut idle = Viewer::of(&monitored);
    let mut busy = Viewer::of(&monitored);
    busy.types("go\n");
    busy.sees("all\r\n");
    assert_eq!(busy.missed, 0, "who takes what comes misses nothing");
    assert_eq!(busy.seen, format!("go\r\n{}all\r\n", numbers()));
    // What fitted in is there; then how much did not, once there is room and more to say.
    idle.takes_what_is_there();
    assert!(idle.seen.len() <= UNTAKEN_BYTES_MAX, "{} bytes were kept for it, whatever the host's default", idle.seen.len());
    busy.types("end\n");
    // The last words are the program's own: the kernel wakes it before it echoes what was typed, and one that ends at once may leave no echo.
    busy.sees("bye\r\n");
    assert_eq!(monitored.exit()["exit_code"], 0);
    while busy.take() {}
    while idle.take() {}
    let head: String = idle.seen.chars().take(20).collect();
    let tail: String = idle.seen.chars().skip(idle.seen.len().saturating_sub(20)).collect();
    let is_right = idle.missed > 0 && head.starts_with("go\r\n1\r\n2\r\n") && tail.ends_with("bye\r\n");
    assert!(is_right, "missed {} of {}, seen {}: {head:?} … {tail:?}", idle.missed, busy.seen.len(), idle.seen.len());
    assert_eq!(idle.seen.len() as u64 + idle.missed, busy.seen.len() as u64, "seen {head:?} … {tail:?}, missed {}", idle.missed);
}

#[test]
fn a_slow_viewer_misses_nothing() {
    let monitored = patient("read go; busybox seq 100000; exit 3", WAIT * 30);
    let mut slow = Viewer::of(&monitored);
    slow.types("go\n");
    // It takes nothing until the container waits for it: the numbers are not all written, and no more of them come.
    let log = || fs::metadata(monitored.bundle.path("log")).unwrap().len();
    let (mut before, mut same) = (0, 0);
    eventually("the container waits", || {
        let now = log();
        same = if now > 100_000 && now == before { same + 1 } else { 0 };
        before = now;
        (same == 20).then_some(())
    });
    assert!(fs::metadata(monitored.bundle.path("exit")).is_err(), "it has waited for nobody");
    while slow.take() {}
    assert_eq!(slow.missed, 0);
    assert_eq!(slow.seen, format!("go\r\n{}", numbers()));
    assert_eq!(monitored.exit()["exit_code"], 3);
}

#[test]
fn more_viewers_than_are_served_are_refused() {
    let monitored = started("read line");
    let viewers: Vec<Viewer> = (0..16).map(|_| Viewer::of(&monitored)).collect();
    let (kind, _, why, _) = receive(&connected(&monitored.bundle.path("tty.sock"))).unwrap();
    assert_eq!(kind, REFUSED);
    assert!(String::from_utf8(why).unwrap().contains("16 look at this terminal already"));
    drop(viewers);
    let mut last = Viewer::of(&monitored);
    last.types("\n");
    assert_eq!(monitored.exit()["exit_code"], 0);
}

#[test]
fn a_terminal_and_its_option_belong_together() {
    let without = Monitored::new(with_terminal("true"));
    assert!(without.report["error"].as_str().unwrap().contains("process.terminal: needs --console-socket"), "{}", without.report);
    let plain = Bundle::new("true");
    let socket = plain.path("tty.sock").to_str().unwrap().to_owned();
    let plain = Monitored::with(plain, &["--tty", &socket]);
    assert!(plain.report["error"].as_str().unwrap().contains("there is no terminal"), "{}", plain.report);
    assert!(!plain.bundle.path("tty.sock.console").exists());
}

#[test]
fn containers_of_other_runtimes_have_terminals_too() {
    let mut tried = 0;
    for name in ["runc", "crun"] {
        let Some(program) = tool(name) else {
            continue;
        };
        if name == "crun" && fs::read_to_string("/proc/self/cgroup").unwrap().lines().count() > 1 {
            // crun refuses hybrid hosts (its own message: "unsupported cgroup mode").
            continue;
        }
        tried += 1;
        let bundle = with_terminal("read line; echo got $line; busybox stty size; exit 6");
        let root = bundle.path("other").to_str().unwrap().to_owned();
        let socket = bundle.path("tty.sock").to_str().unwrap().to_owned();
        let id = bundle.id.clone();
        let other = |args: &[&str]| std::process::Command::new(&program).args(["--root", &root]).args(args).output().unwrap();
        let monitored = Monitored::with(bundle, &["--runtime", program.to_str().unwrap(), "--runtime-root", &root, "--tty", &socket]);
        let started = other(&["start", &id]);
        assert!(started.status.success(), "{name}: {}", String::from_utf8_lossy(&started.stderr));
        let mut viewer = Viewer::of(&monitored);
        tcsetwinsize(&viewer.master, Winsize { ws_row: 31, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        viewer.types("word\n");
        viewer.sees("got word\r\n31 101\r\n");
        assert_eq!(monitored.exit()["exit_code"], 6, "{name}");
        assert!(words(&monitored).contains(&"stdout: got word".to_owned()), "{name}");
        assert!(other(&["delete", "--force", &id]).status.success());
    }
    assert!(tried > 0, "neither runc nor a crun that runs here is installed: apt-get install runc");
}
