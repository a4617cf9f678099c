//! `attach`: what a container writes from now on, and what is written to it; `pause` and `unpause`: freezes a task, and lets it go on.

use rcluster_api::object::{Kind, Object};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1::{self, relay_input, relay_open, relay_output};
use tokio::signal::unix::{SignalKind, signal};

use super::exec::{pass_input, print};
use super::relay::Relay;
use crate::args::{Attach, Pause};
use crate::error::CliError;
use crate::output;
use crate::session::Session;

/// `attach TASK`: ends as the container does.
pub async fn attach(mut session: Session, args: Attach) -> Result<(), CliError> {
    let container = args.container.unwrap_or_default();
    let mut relay = Relay::open(&mut session, &args.target, &container, relay_open::Kind::Attach(v1::RelayAttach {})).await?;
    let opened = relay.opened().await?;
    if opened.stdin && !args.no_stdin {
        pass_input(relay.inputs());
    }
    let failed = |error| CliError::refused(format!("watch signals: {error}"), "");
    let mut interrupts = if args.sig_proxy { Some(signal(SignalKind::interrupt()).map_err(failed)?) } else { None };
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let inputs = relay.inputs();
    loop {
        let kind = tokio::select! {
            kind = relay.next() => kind?,
            () = interrupted(&mut interrupts) => {
                // Refused when the container has ended: the answers tell.
                let _ = inputs.send(relay_input::Kind::Signal("SIGINT".to_owned())).await;
                continue;
            }
        };
        match kind {
            Some(relay_output::Kind::Stdout(data)) => print(&mut out, &data).await?,
            Some(relay_output::Kind::Stderr(data)) => print(&mut err, &data).await?,
            Some(relay_output::Kind::Exit(v1::RelayExit { code: 0 })) => return Ok(()),
            Some(relay_output::Kind::Exit(v1::RelayExit { code })) => {
                return Err(CliError::Ended { code: u8::try_from(code).unwrap_or(u8::MAX) });
            }
            Some(_) => {}
            None => return Err(relay.ended()),
        }
    }
}

async fn interrupted(interrupts: &mut Option<tokio::signal::unix::Signal>) {
    match interrupts {
        Some(interrupts) => drop(interrupts.recv().await),
        None => std::future::pending().await,
    }
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
