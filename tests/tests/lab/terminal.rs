//! What a person at a terminal does in containers: `exec -it`, and `attach` to a container that has a terminal of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use rcluster_tests::lab::{Lab, bin_dir, wait_for};
use rustix::termios::LocalModes;

use crate::Turn;
use crate::relay::{SOON, pod, run, text};

/// A person at a terminal of 31 rows and 101 columns, who runs a command.
struct Person {
    screen: std::fs::File,
    child: std::process::Child,
    seen: String,
}

impl Person {
    fn runs(lab: &Lab, arguments: &[&str]) -> Self {
        let size = nix::pty::Winsize { ws_row: 31, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        // A session of its own, whose terminal this is: SIGWINCH goes to those in its foreground.
        let mut command = std::process::Command::new("setsid");
        let inner = lab.command(arguments);
        command.args(["--ctty", "--wait"]).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        drop(pty.slave);
        Self { screen: std::fs::File::from(pty.master), child, seen: String::new() }
    }

    /// Reads until `wanted` is on the screen; what comes before it is forgotten.
    fn sees(&mut self, wanted: &str) {
        let mut buffer = [0; 4096];
        let limit = rustix::event::Timespec { tv_sec: SOON.as_secs().cast_signed(), tv_nsec: 0 };
        while !self.seen.contains(wanted) {
            let mut fds = [rustix::event::PollFd::new(&self.screen, rustix::event::PollFlags::IN)];
            let ready = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
            assert!(ready > 0, "{wanted:?} does not come after {:?}", self.seen);
            let count = self.screen.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "the end, and {wanted:?} is not in {:?}", self.seen);
            self.seen.push_str(&text(&buffer[..count]));
        }
        let end = self.seen.find(wanted).unwrap() + wanted.len();
        self.seen.drain(..end);
    }

    fn types(&mut self, keys: &str) {
        self.screen.write_all(keys.as_bytes()).unwrap();
    }

    fn resizes(&self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.screen, size).unwrap();
    }

    /// Whether the terminal shows what is typed: it does not while it is raw.
    fn echoes(&self) -> bool {
        rustix::termios::tcgetattr(&self.screen).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    fn ends(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // It may have ended by itself; it must not outlive the test.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_terminal_has_the_persons_size_follows_it_and_passes_keys_on() {
    let (turn, _) = pod("exec-tty", 1);
    let lab = turn.lab();
    let mut person = Person::runs(lab, &["exec", "-it", "box.1", "sh"]);
    person.sees("# ");
    person.types("stty size; tty; echo $TERM\r");
    person.sees("31 101\r\n/dev/pts/");
    person.sees("xterm\r\n");
    person.types("sleep 6001\r");
    wait_for("it sleeps", SOON, || Ok(lab.ctl(&["exec", "box.1", "sh", "-c", "ps -o args | grep '[s]leep 6001'"]).ok())).unwrap();
    person.types("\x03");
    person.sees("# ");
    person.resizes(41, 77);
    wait_for("the command's terminal follows", SOON, || {
        person.types("stty size\r");
        person.sees("stty size\r\n");
        person.sees("# ");
        Ok(lab.ctl(&["exec", "box.1", "sh", "-c", "stty size < /dev/pts/0"]).ok().filter(|size| size == "41 77\n"))
    })
    .unwrap();
    person.types("exit 9\r");
    assert_eq!(person.ends(), Some(9));
    turn.finish();
}

/// A lab with a shell at a container's terminal, and a service that has one and no open input.
fn terminals(name: &str) -> Turn {
    let turn = Turn::with(name, 1, 1, &["--image", &bin_dir().unwrap().join("busybox.tar").to_string_lossy()]);
    turn.lab()
        .deploy(
            "kind: Service\nname: box\nspec:\n  stop_grace: 0s\n  restart: {condition: none}\n  containers:\n    - image: \
             rcluster/busybox:test\n      stdin: true\n      tty: true\n      env: {PATH: /bin}\n      healthcheck: {command: \
             [/bin/busybox, \"true\"], interval: 200ms}\n      command: [/bin/busybox, sh, -c, '/bin/busybox --install -s /bin; \
             exec sh']\n---\nkind: Service\nname: deaf\nspec:\n  stop_grace: 0s\n  containers:\n    - image: rcluster/busybox:test\n      \
             tty: true\n      command: [/bin/busybox, cat]\n",
        )
        .unwrap();
    for service in ["box", "deaf"] {
        turn.lab().wait_running(service, 1, SOON).unwrap();
    }
    turn
}

#[test]
fn who_attaches_to_a_terminal_types_into_it_and_leaves_it_running() {
    let turn = terminals("tty");
    let lab = turn.lab();
    let attach = |more: &[&str]| Person::runs(lab, &[&["attach", "box.1"], more].concat());
    let mut one = attach(&[]);
    // A shell shows its prompt to who has just come: the size is new to it.
    one.sees("# ");
    assert!(!one.echoes());
    one.types("stty size; echo $TERM; X=7\r");
    one.sees("31 101\r\nxterm\r\n");
    let mut two = attach(&["--detach-keys", "ctrl-a,d"]);
    two.sees("# ");
    one.types("echo all-$((X*6))\r");
    one.sees("all-42\r\n");
    two.sees("all-42\r\n");
    two.resizes(41, 77);
    let size = || Ok(lab.ctl(&["exec", "box.1", "stty", "size", "-F", "/dev/console"]).ok().filter(|size| size == "41 77\n"));
    wait_for("the terminal follows who changed last", SOON, size).unwrap();
    // Control-C is for what runs there.
    one.types("sleep 6002\r");
    wait_for("it sleeps", SOON, || Ok(lab.ctl(&["exec", "box.1", "sh", "-c", "ps -o args | grep '[s]leep 6002'"]).ok())).unwrap();
    one.types("\x03");
    one.sees("# ");
    one.types("\x10\x11");
    one.sees("\r\ndetached from box.1, which goes on\r\n");
    assert_eq!((one.ends(), one.echoes()), (Some(0), true));
    two.types("echo past $((X+1)) \x01d");
    two.sees("detached from box.1, which goes on\r\n");
    assert_eq!(two.ends(), Some(0));
    // What was typed before is there; the agent's death ends nothing but the conversation.
    let mut three = attach(&[]);
    three.types("\r");
    three.sees("past 8");
    lab.host("kill", &["n1/agent"]).unwrap();
    lab.host("start", &["n1/agent"]).unwrap();
    assert_eq!(three.ends(), Some(1));
    assert!(three.echoes());
    wait_for("the agent is back", SOON, || lab.ctl(&["exec", "box.1", "true"]).map(Some)).unwrap();
    let mut four = attach(&[]);
    four.types("echo still $X\r");
    four.sees("still 7\r\n");
    four.types("exit 9\r");
    assert_eq!(four.ends(), Some(9));
    let logs = lab.ctl(&["logs", "box"]).unwrap();
    assert!(logs.contains("all-42\n") && logs.contains("still 7\n"), "{logs}");
    turn.finish();
}

#[test]
fn a_terminal_without_open_input_is_looked_at() {
    let turn = terminals("tty-deaf");
    let lab = turn.lab();
    let mut person = Person::runs(lab, &["attach", "deaf.1"]);
    let say = |text: &str| lab.ctl(&["exec", "deaf.1", "/bin/busybox", "sh", "-c", &format!("echo {text} > /dev/console")]).unwrap();
    person.types("unheard\r");
    // Its own terminal shows what it types.
    person.sees("unheard\r\n");
    wait_for("the size", SOON, || {
        let size = lab.ctl(&["exec", "deaf.1", "/bin/busybox", "stty", "size", "-F", "/dev/console"])?;
        Ok((size == "31 101\n").then_some(()))
    })
    .unwrap();
    say("word");
    person.sees("word\r");
    assert!(person.echoes());
    assert!(!lab.ctl(&["logs", "deaf"]).unwrap().contains("unheard"));
    // A program gets the output as it is, when it asks for no more than that.
    let refused = run(lab, &["attach", "box.1"], b"unheard\n");
    let expected =
        "error: container box has a terminal, and standard input is none\nhint: run it in a terminal, or look on with --no-stdin\n";
    assert_eq!((text(&refused.stderr).as_str(), refused.status.code()), (expected, Some(2)));
    let refused = run(lab, &["attach", "--detach-keys", "ctrl-1", "box.1"], b"");
    assert!(text(&refused.stderr).contains("\"ctrl-1\" is no key"), "{}", text(&refused.stderr));
    let mut command = lab.command(&["attach", "--no-stdin", "deaf.1"]);
    let mut looker = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(looker.stdout.take().unwrap());
    let (first, line) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        output.read_line(&mut text).unwrap();
        first.send(text).unwrap();
    });
    // Said until it is there to hear.
    let heard = wait_for("it sees", SOON, || {
        say("more");
        Ok(line.try_recv().ok())
    });
    looker.kill().unwrap();
    looker.wait().unwrap();
    reader.join().unwrap();
    assert_eq!(heard.unwrap(), "more\r\n");
    turn.finish();
}
