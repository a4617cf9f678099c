//! `attach`: what a container writes from now on, and what is written to it; `pause` and `unpause`: freezes a task, and lets it go on.

use std::future::pending;
use std::io::{ErrorKind, IsTerminal, Read, Write, stdin};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rcluster_api::object::{Kind, Object};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1::{self, relay_input, relay_open, relay_output};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::exec::{RawTerminal, next, pass_input, print, terminal_size, window_changes};
use super::relay::{Inputs, Relay};
use crate::args::{Attach, Pause};
use crate::detach_keys::Watch;
use crate::error::CliError;
use crate::output;
use crate::session::Session;

/// Largest piece of what is typed in a frame.
const KEYS_BYTES_MAX: usize = 4 << 10;
/// So much is typed ahead of a container that does not read; more is lost, with a bell.
const AHEAD_BYTES_MAX: usize = 64 << 10;

/// `attach TASK`: ends as the container does, or when the user leaves its terminal.
pub async fn attach(mut session: Session, args: Attach) -> Result<(), CliError> {
    let container = args.container.unwrap_or_default();
    let mut relay = Relay::open(&mut session, &args.target, &container, relay_open::Kind::Attach(v1::RelayAttach {})).await?;
    let opened = relay.opened().await?;
    let takes_input = opened.stdin && !args.no_stdin;
    if !opened.tty {
        if takes_input {
            pass_input(relay.inputs());
        }
        let interrupts = if args.sig_proxy { Some(watch(SignalKind::interrupt())?) } else { None };
        return match converse(&mut relay, interrupts, None, pending()).await? {
            Some(code) => ended(code),
            None => Ok(()),
        };
    }
    if takes_input && !stdin().is_terminal() {
        let message = format!("container {} has a terminal, and standard input is none", opened.container);
        return Err(CliError::usage(message, "run it in a terminal, or look on with --no-stdin"));
    }
    let raw = takes_input.then(RawTerminal::enter).transpose()?;
    let (leave, leaves) = oneshot::channel();
    if takes_input {
        pass_keys(stdin(), relay.inputs(), Watch::new(args.detach_keys), leave);
    } else {
        drop(leave);
    }
    let left = async {
        if leaves.await.is_err() {
            pending::<()>().await;
        }
    };
    if let Some(size) = terminal_size() {
        // Refused when the container has ended: the answers tell.
        let _ = relay.inputs().send(relay_input::Kind::Resize(size)).await;
    }
    let answer = converse(&mut relay, None, window_changes(true)?, left).await;
    drop(raw);
    match answer? {
        Some(code) => ended(code),
        None => {
            relay.leave().await;
            // The cursor is wherever the container has it.
            output::talk(&format!("\ndetached from {}, which goes on", opened.task))
        }
    }
}

fn ended(code: i32) -> Result<(), CliError> {
    if code == 0 { Ok(()) } else { Err(CliError::Ended { code: u8::try_from(code).unwrap_or(u8::MAX) }) }
}

/// Prints what comes until the container has ended; the answer is its exit code, or `None` when the user has left.
async fn converse(
    relay: &mut Relay,
    mut interrupts: Option<Signal>,
    mut resized: Option<Signal>,
    left: impl Future<Output = ()>,
) -> Result<Option<i32>, CliError> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let inputs = relay.inputs();
    let mut left = pin!(left);
    loop {
        let kind = tokio::select! {
            kind = relay.next() => kind?,
            () = next(&mut interrupts) => {
                // Refused when the container has ended: the answers tell.
                let _ = inputs.send(relay_input::Kind::Signal("SIGINT".to_owned())).await;
                continue;
            }
            () = next(&mut resized) => {
                if let Some(size) = terminal_size() {
                    let _ = inputs.send(relay_input::Kind::Resize(size)).await;
                }
                continue;
            }
            () = &mut left => return Ok(None),
        };
        match kind {
            Some(relay_output::Kind::Stdout(data)) => print(&mut out, &data).await?,
            Some(relay_output::Kind::Stderr(data)) => print(&mut err, &data).await?,
            Some(relay_output::Kind::Exit(v1::RelayExit { code })) => return Ok(Some(code)),
            Some(_) => {}
            None => return Err(relay.ended()),
        }
    }
}

/// Sends what is typed until the user leaves. One thread reads and never waits for the container, so that the keys that leave are heard also
/// when that does not read its terminal; another sends.
fn pass_keys(mut terminal: impl Read + Send + 'static, inputs: Inputs, mut keys: Watch, leave: oneshot::Sender<()>) {
    let ahead = Arc::new(TypedAhead::default());
    let typed_ahead = Arc::clone(&ahead);
    thread::spawn(move || {
        while let Some(bytes) = ahead.take() {
            if inputs.send_blocking(relay_input::Kind::Data(bytes)).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        let mut buffer = vec![0; KEYS_BYTES_MAX];
        loop {
            let typed = match terminal.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A terminal that has gone; so will this program, by its signal.
                Ok(0) | Err(_) => return typed_ahead.end(),
                Ok(count) => keys.handle(&buffer[..count]),
            };
            if !typed_ahead.add(&typed.pass_on) {
                // As a terminal does whose own queue is full (termios(3), IMAXBEL). Without a terminal nobody hears it.
                let _ = std::io::stderr().write_all(b"\x07");
            }
            if typed.leaves {
                typed_ahead.end();
                // Who waits for it may have heard of the container's end instead.
                let _ = leave.send(());
                return;
            }
        }
    });
}

/// What was typed and is not sent yet.
#[derive(Debug, Default)]
struct TypedAhead {
    keys: Mutex<Ahead>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Ahead {
    bytes: Vec<u8>,
    has_ended: bool,
}

impl TypedAhead {
    /// Keeps what there is room for as a whole, and says whether there is.
    fn add(&self, bytes: &[u8]) -> bool {
        let mut ahead = self.lock();
        let fits = ahead.bytes.len() + bytes.len() <= AHEAD_BYTES_MAX;
        if fits {
            ahead.bytes.extend(bytes);
            self.changed.notify_one();
        }
        fits
    }

    /// No more is typed.
    fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_one();
    }

    /// Waits for what comes next, no more than a frame holds; `None` at the end.
    fn take(&self) -> Option<Vec<u8>> {
        let waits = |ahead: &mut Ahead| ahead.bytes.is_empty() && !ahead.has_ended;
        let mut ahead = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        let count = ahead.bytes.len().min(KEYS_BYTES_MAX);
        let bytes: Vec<u8> = ahead.bytes.drain(..count).collect();
        (!bytes.is_empty()).then_some(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Ahead> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(kind: SignalKind) -> Result<Signal, CliError> {
    signal(kind).map_err(|error| CliError::refused(format!("watch signals: {error}"), ""))
}

/// `pause TASK|SERVICE` and `unpause TASK|SERVICE`; of a service, all tasks that run.
pub async fn pause(mut session: Session, args: Pause, resume: bool) -> Result<(), CliError> {
    for target in args.targets {
        let of_service = session.list(Kind::Task, "", &target).await?.into_iter().filter_map(|object| match object {
            Object::Task(task) if task.status.state == TaskState::Running => Some(task.id.to_string()),
            _ => None,
        });
        let tasks: Vec<String> = of_service.collect();
        for task in if tasks.is_empty() { vec![target] } else { tasks } {
            let mut relay = Relay::open(&mut session, &task, "", relay_open::Kind::Pause(v1::RelayPause { resume })).await?;
            let opened = relay.opened().await?;
            match relay.next().await? {
                Some(relay_output::Kind::Exit(_)) => {
                    output::talk(&format!("{} on {}: {}", opened.task, opened.node, if resume { "goes on" } else { "paused" }))?;
                }
                _ => return Err(relay.ended()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;
    use crate::detach_keys::DEFAULT;

    /// Types the lines into a container that reads nothing, and then leaves it; what it is sent once it reads.
    async fn left_after(lines: usize) -> Vec<u8> {
        let typed = [b"0123456789abcdef\r".repeat(lines), b"\x10\x11".to_vec()].concat();
        let (sender, mut frames) = mpsc::channel(1);
        let (leave, leaves) = oneshot::channel();
        pass_keys(std::io::Cursor::new(typed), Inputs(sender), Watch::new(DEFAULT.parse().expect("keys")), leave);
        let left = tokio::time::timeout(Duration::from_secs(20), leaves).await;
        left.expect("it is left though nothing is read").expect("the keys were typed");
        let mut sent = Vec::new();
        while let Some(v1::RelayInput { kind: Some(relay_input::Kind::Data(bytes)) }) = frames.recv().await {
            sent.extend(bytes);
        }
        sent
    }

    #[tokio::test]
    async fn a_container_that_reads_nothing_is_left_by_the_keys_all_the_same() {
        assert_eq!(left_after(1000).await, b"0123456789abcdef\r".repeat(1000));
    }

    #[tokio::test]
    async fn what_is_typed_ahead_of_it_has_a_bound() {
        let sent = left_after(100_000).await;
        // What fits, two frames that are on their way, and the last piece, which may fit after a lost one.
        assert!((AHEAD_BYTES_MAX - KEYS_BYTES_MAX..=AHEAD_BYTES_MAX + 3 * KEYS_BYTES_MAX).contains(&sent.len()), "{}", sent.len());
    }
}
