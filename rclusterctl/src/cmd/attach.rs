//! `attach`: what a container writes from now on, and what is written to it; `pause` and `unpause`: freezes a task, and lets it go on.

use std::future::pending;
use std::io::{ErrorKind, IsTerminal, Read, stdin};
use std::pin::pin;
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
        pass_keys(relay.inputs(), Watch::new(args.detach_keys), leave);
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

/// Sends what is typed, from a thread of its own, until the user leaves.
fn pass_keys(inputs: Inputs, mut keys: Watch, leave: oneshot::Sender<()>) {
    thread::spawn(move || {
        let mut buffer = vec![0; KEYS_BYTES_MAX];
        loop {
            let typed = match stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A terminal that has gone; so will this program, by its signal.
                Ok(0) | Err(_) => return,
                Ok(count) => keys.handle(&buffer[..count]),
            };
            if !typed.pass_on.is_empty() && inputs.send_blocking(relay_input::Kind::Data(typed.pass_on)).is_err() {
                return;
            }
            if typed.leaves {
                drop(inputs);
                // Who waits for it may have heard of the container's end instead.
                let _ = leave.send(());
                return;
            }
        }
    });
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
