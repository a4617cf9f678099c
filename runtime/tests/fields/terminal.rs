//! `process.terminal`, over a console socket as engines use it, and how large it is.

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::common::terminals::sent;
use crate::common::{Bundle, eventually};
use crate::engine::{Engine, Kind};

const LOOK: &str = "exec 2>&1; busybox tty; busybox stty size; stat -c %t:%T:%a:%u:%g /dev/console; stat -L -c %t:%T:%a:%u:%g /proc/self/fd/0; \
    busybox stty -a | grep -o -E '(-?(echo|icanon|isig|onlcr|ixon))' | sort; ls /dev/pts; read line; echo \"got $line\"; exit 4";

#[test]
fn a_terminal_over_a_socket() {
    for edits in [json!({}), json!({"/process/user":{"uid":5,"gid":6}}), json!({"/process/consoleSize":{"height":33,"width":77}})] {
        let mut bundle = Bundle::new(LOOK);
        bundle.set("/process/terminal", json!(true));
        crate::engine::edit(&mut bundle, &edits);
        bundle.write();
        let seen = [Kind::Ours, Kind::Runc].map(|kind| {
            let engine = Engine::new(kind, &bundle)?;
            let path = bundle.path(&format!("{kind:?}.sock"));
            let listener = UnixListener::bind(&path).unwrap();
            let created = engine.create(&["--console-socket", path.to_str().unwrap()]);
            assert_eq!(created.code, 0, "{kind:?}: {}", created.stderr);
            let (_, mut master) = sent(&listener);
            let started = engine.call(&["start", &bundle.id]).code;
            let first = master.expect("ptmx\r\n");
            master.say("hello\n");
            let last = master.expect("got hello");
            eventually("it stops", || (engine.state()["status"] == "stopped").then_some(()));
            engine.delete();
            Some((started, first, last))
        });
        if let [Some(ours), Some(theirs)] = seen {
            assert_eq!(ours, theirs, "{edits}");
        }
    }
}

/// A terminal for which nobody gave a socket, and a socket for no terminal.
#[test]
fn sockets_that_do_not_fit() {
    for (terminal, verb, options) in [
        (true, "create", &[][..]),
        (true, "run", &["--detach"]),
        (true, "create", &["--console-socket", "/no/such"]),
        (false, "create", &["--console-socket", "/no/such"]),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.set("/process/terminal", Value::Bool(terminal));
        bundle.write();
        for kind in [Kind::Ours, Kind::Runc] {
            let Some(engine) = Engine::new(kind, &bundle) else { return };
            let dir = bundle.path("");
            let args: Vec<&str> =
                [verb].into_iter().chain(options.iter().copied()).chain(["--bundle", dir.to_str().unwrap(), &bundle.id]).collect();
            let status = engine.command(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
            assert!(!status.success(), "{kind:?}: {terminal} {verb} {options:?}");
            engine.delete();
        }
        bundle.assert_nothing_is_left();
    }
}
