//! Terminals: over a console socket, by the program's own relay, and where a bundle tries to lead them astray; compared with runc's.

mod common;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use common::terminals::{in_terminal, listener, outer, sent, size};
use common::{Bundle, eventually, tool};
use serde_json::json;

fn with_terminal(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.set("/process/terminal", json!(true));
    bundle
}

const LOOK: &str = "exec 2>&1; busybox tty; stat -c %t:%T:%a:%u /dev/console; stat -L -c %t:%T:%a:%u /proc/self/fd/0; \
                    busybox ps -o tty,pid,sid | grep -c '  1 '; read line; busybox stty size; echo \"got $line\"; exit 4";

#[test]
fn a_created_container_has_the_terminal_it_sends() {
    let mut bundle = with_terminal(LOOK);
    bundle.set("/process/consoleSize", json!({"height":33,"width":77})).set("/process/user", json!({"uid":5,"gid":6}));
    bundle.write();
    let (listener, socket) = listener(&bundle);
    let mut call = bundle.command(&["create", "--console-socket", &socket, "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    assert!(call.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap().success());
    let (name, mut master) = sent(&listener);
    assert!(!name.is_empty());
    bundle.ok(&["start", &bundle.id]);
    master.expect("/dev/pts/0\r\n88:0:620:5\r\n88:0:620:5\r\n");
    master.say("hello\n");
    master.expect("33 77\r\ngot hello");
    eventually("stopped", || (bundle.status() == "stopped").then_some(()));
    bundle.ok(&["delete", &bundle.id]);
    bundle.assert_nothing_is_left();
}

#[test]
fn run_relays_its_own_terminal() {
    let bundle = with_terminal("busybox stty size; while read line; do busybox stty size; echo \"got $line\"; done; echo end; exit 4");
    bundle.write();
    let (mut master, side) = outer(20, 60);
    let before = rustix::termios::tcgetattr(&side).unwrap();
    let mut run = in_terminal(bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]), &side);
    master.expect("20 60\r\n");
    master.say("one\r");
    master.expect("20 60\r\ngot one\r\n");
    rustix::termios::tcsetwinsize(&side, size(30, 90)).unwrap();
    // It is not the test's own controlling terminal, so the kernel tells nobody.
    rustix::process::kill_process(rustix::process::Pid::from_child(&run), rustix::process::Signal::WINCH).unwrap();
    eventually("the new size", || (inner_size(&bundle) == (30, 90)).then_some(()));
    master.say("two\r");
    master.expect("30 90\r\ngot two\r\n");
    // Control-D ends the input of the shell, not of the relay.
    master.say("\u{4}");
    master.expect("end");
    assert_eq!(run.wait().unwrap().code(), Some(4));
    let after = rustix::termios::tcgetattr(&side).unwrap();
    assert_eq!((after.local_modes, after.input_modes, after.output_modes), (before.local_modes, before.input_modes, before.output_modes));
    bundle.assert_nothing_is_left();
}

fn inner_size(bundle: &Bundle) -> (u16, u16) {
    let terminal = File::open(format!("/proc/{}/fd/0", bundle.pid())).unwrap();
    let size = rustix::termios::tcgetwinsize(terminal.as_fd()).unwrap();
    (size.ws_row, size.ws_col)
}

#[test]
fn control_c_goes_to_the_container() {
    let bundle = with_terminal("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done");
    bundle.write();
    let (mut master, side) = outer(20, 60);
    let mut run = in_terminal(bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]), &side);
    master.expect("ready");
    master.say("\u{3}");
    master.expect("caught");
    assert_eq!(run.wait().unwrap().code(), Some(5));
}

#[test]
fn a_program_is_executed_in_a_terminal() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let (mut master, side) = outer(24, 80);
    let mut exec =
        in_terminal(bundle.command(&["exec", "-t", &bundle.id, "sh", "-c", "busybox tty; read line; echo got $line; exit 3"]), &side);
    master.expect("/dev/pts/0\r\n");
    master.say("x\r");
    master.expect("got x\r\n");
    assert_eq!(exec.wait().unwrap().code(), Some(3));

    let (listener, socket) = listener(&bundle);
    let mut call =
        bundle.command(&["exec", "--tty", "--detach", "--console-socket", &socket, &bundle.id, "sh", "-c", "read line; echo got $line"]);
    assert!(call.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap().success());
    let (_, mut master) = sent(&listener);
    master.say("y\n");
    master.expect("got y");
}

/// Much output at once, and all of it although the program ends at once.
#[test]
fn nothing_of_the_output_is_lost() {
    let bundle = with_terminal("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done");
    let (stdout, stderr, code) = bundle.run();
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!((lines.len(), lines.last().copied()), (5000, Some("line 4999")));
}

#[test]
fn who_does_not_stay_needs_a_socket() {
    let bundle = with_terminal("true");
    assert!(bundle.create_fails().contains("process.terminal: needs --console-socket"));
    let run = |bundle: &Bundle, more: &[&str]| {
        bundle.write();
        let dir = bundle.path("");
        let mut args = vec!["run", "--bundle", dir.to_str().unwrap()];
        args.extend(more);
        args.push(&bundle.id);
        let error = bundle.fails(&args);
        bundle.assert_nothing_is_left();
        error
    };
    assert!(run(&bundle, &["--detach"]).contains("process.terminal: needs --console-socket"));
    assert!(run(&bundle, &["--console-socket", "/s"]).contains("--console-socket: this program stays"));
    assert!(run(&bundle, &["--detach", "--console-socket", "/no/such"]).contains("--console-socket: connect to /no/such"));
    let plain = Bundle::new("true");
    assert!(run(&plain, &["--detach", "--console-socket", "/s"]).contains("--console-socket: there is no terminal"));
}

/// CVE-2025-52565: `/dev` of the bundle's own, in which names lead elsewhere.
#[test]
fn no_name_in_the_bundle_leads_the_terminal_astray() {
    let prepared = |prepare: fn(&Path)| {
        let mut bundle = with_terminal("true");
        bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| {
            let at = mount["destination"].as_str().unwrap();
            !at.starts_with("/dev") || at == "/dev/pts"
        });
        bundle.set("/root/readonly", json!(false));
        fs::create_dir(bundle.rootfs("dev")).unwrap();
        fs::write(bundle.rootfs("target"), "kept").unwrap();
        prepare(&bundle.rootfs(""));
        bundle.write();
        let error = bundle.fails(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
        assert_eq!(fs::read_to_string(bundle.rootfs("target")).unwrap(), "kept");
        bundle.assert_nothing_is_left();
        error
    };
    let console = prepared(|root| symlink("/target", root.join("dev/console")).unwrap());
    assert!(console.contains("process.terminal: open it: cover /dev/console") && console.contains("symbolic links"), "{console}");
    let directory = prepared(|root| fs::create_dir(root.join("dev/console")).unwrap());
    assert!(directory.contains("cover /dev/console") && directory.contains("Is a directory"), "{directory}");

    let mut no_devpts = with_terminal("true");
    no_devpts.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev/pts");
    no_devpts.push("/mounts", json!({"destination":"/dev/pts","type":"tmpfs","source":"tmpfs"}));
    let (_, error, code) = no_devpts.run();
    assert!(code != 0 && error.contains("/dev/pts is no devpts"), "{error}");

    let mut covered = with_terminal("true");
    covered.push("/mounts", json!({"destination":"/dev/pts/ptmx","type":"bind","source":"/dev/null","options":["bind"]}));
    let (_, error, code) = covered.run();
    assert!(code != 0 && error.contains("open /dev/pts/ptmx"), "{error}");
}

/// The same in a terminal under runc: what is printed and the exit code must agree.
#[test]
fn as_under_runc() {
    let Some(runc) = tool("runc") else {
        std::io::Write::write_all(&mut std::io::stderr().lock(), b"SKIPPED: runc is not installed: apt-get install runc\n").unwrap();
        return;
    };
    let bundle = with_terminal(LOOK);
    bundle.write();
    let look = |mut command: Command| {
        let (mut master, side) = outer(25, 81);
        command.args(["run", "--bundle"]).arg(bundle.path("")).arg(&bundle.id);
        let mut run = in_terminal(command, &side);
        let first = master.expect("\r\n1\r\n");
        master.say("hi\r");
        let said = first + &master.expect("got hi");
        (said, run.wait().unwrap().code())
    };
    let mut theirs = Command::new(runc);
    theirs.arg("--root").arg(bundle.path("runc"));
    let ours = look(bundle.command(&[]));
    assert!(ours.0.contains("25 81") && ours.1 == Some(4), "{ours:?}");
    assert_eq!(ours, look(theirs));
}
