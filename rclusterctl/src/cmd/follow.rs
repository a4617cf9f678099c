//! Waiting for what was asked for: a rollout to converge, objects to go. Ends at a deadline, and at Ctrl-C without harm to the cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use rcluster_api::object::Kind;
use rcluster_api::resource::Millis;
use rcluster_api::wire::v1;
use rcluster_base::scope::Scope;
use rcluster_deploy::watch::{Blame, Picture, Rollout, Tally, TaskLine, Verdict};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::CliError;
use crate::output::progress::Progress;
use crate::output::{self, rows};
use crate::session::{Change, Session, Watch};

/// How often the time on a terminal moves.
const REDRAW: Duration = Duration::from_millis(200);
/// Changes that wait to be judged.
const CHANGES_MAX: usize = 64;
/// Log lines shown of a failing task.
const LOG_LINES: u32 = 10;
/// How long those are waited for.
const LOG_PATIENCE: Duration = Duration::from_secs(3);
/// Reasons told at most when time is up.
const REASONS_MAX: usize = 5;

/// How the waiting is called and when it ends.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    pub verb: &'static str,
    pub timeout: Millis,
}

/// Something to react to.
enum Event {
    Change(Result<Change, CliError>),
    Wake,
    Deadline,
    Interrupt,
}

/// A watch in a task of its own, so that waiting for other things does not disturb it.
struct Follower {
    changes: mpsc::Receiver<Result<Change, CliError>>,
    /// One for all waits: what came between two of them is not lost.
    interrupts: Signal,
    deadline: Instant,
    _scope: Scope,
}

impl Follower {
    fn start(watch: Watch, deadline: Instant) -> Result<Self, CliError> {
        let interrupts = interrupts()?;
        let (sender, changes) = mpsc::channel(CHANGES_MAX);
        let mut scope = Scope::new();
        scope.spawn(forward(watch, sender));
        Ok(Self { changes, interrupts, deadline, _scope: scope })
    }

    async fn next(&mut self, wake_at: Option<Instant>) -> Event {
        let wake_at = wake_at.unwrap_or(self.deadline).min(self.deadline);
        tokio::select! {
            biased;
            Some(()) = self.interrupts.recv() => Event::Interrupt,
            change = self.changes.recv() => match change {
                Some(change) => Event::Change(change),
                None => Event::Change(Err(CliError::refused("the watch ended by itself", ""))),
            },
            () = sleep_until(wake_at) => if wake_at >= self.deadline { Event::Deadline } else { Event::Wake },
        }
    }

    /// A change with those that have come meanwhile, to be judged together: a large rollout changes faster than it is judged. No more than wait
    /// at a time, so that the deadline and Ctrl-C are seen however fast they come.
    fn and_more(&mut self, change: Result<Change, CliError>) -> Vec<Result<Change, CliError>> {
        let mut changes = vec![change];
        while changes.len() <= CHANGES_MAX
            && let Ok(change) = self.changes.try_recv()
        {
            changes.push(change);
        }
        changes
    }
}

/// Ctrl-C from now on.
pub fn interrupts() -> Result<Signal, CliError> {
    signal(SignalKind::interrupt()).map_err(|error| CliError::refused(format!("wait for Ctrl-C: {error}"), ""))
}

async fn forward(mut watch: Watch, sender: mpsc::Sender<Result<Change, CliError>>) {
    loop {
        let change = watch.next().await;
        let ends = change.is_err();
        if sender.send(change).await.is_err() || ends {
            return;
        }
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn interrupted(verb: &str) -> CliError {
    CliError::Interrupted {
        message: format!("no longer followed: the {verb} goes on in the cluster"),
        hint: "see rclusterctl ps".to_owned(),
    }
}

/// Follows services since the transaction `revision` until they have converged; the time taken.
pub async fn rollout(session: Session, services: &BTreeSet<String>, revision: u64, ending: Ending) -> Result<u64, CliError> {
    let started = Instant::now();
    let terminal = output::talks_to_terminal();
    let target = session.target().clone();
    let watch = session.watch(&[Kind::Service, Kind::Task, Kind::Node]);
    let mut follower = Follower::start(watch, started + ending.timeout.duration())?;
    let mut rollout = Rollout::new(services.iter().cloned(), revision);
    let mut progress = Progress::new(terminal);
    let mut picture = Picture::default();
    let mut synced = false;
    loop {
        let mut wake_at = terminal.then(|| Instant::now() + REDRAW);
        if synced {
            let verdict = rollout.observe(&picture, elapsed_ms(started));
            let (lines, tallies) = (rollout.lines(&picture), rollout.tallies(&picture));
            output::talk_raw(&progress.draw(&lines, &tallies, elapsed_ms(started)))?;
            match verdict {
                Verdict::Converged => return Ok(elapsed_ms(started)),
                Verdict::Failed(blame) => return Err(failed(Session::new(target), ending.verb, blame).await?),
                Verdict::Gone { service } => {
                    return Err(CliError::refused(format!("service {service} was removed while its {} was followed", ending.verb), ""));
                }
                Verdict::Progress { wake_at_ms } => {
                    let settled = wake_at_ms.map(|at| started + Duration::from_millis(at));
                    wake_at = [wake_at, settled].into_iter().flatten().min();
                }
            }
        }
        match follower.next(wake_at).await {
            Event::Change(change) => {
                for change in follower.and_more(change) {
                    let change = change?;
                    synced = change.synced;
                    if change.fresh {
                        picture = Picture::default();
                    }
                    picture.update(change.revision, change.puts, change.deletes);
                }
            }
            Event::Wake => {}
            Event::Deadline => return Err(late(ending, &rollout.lines(&picture), &rollout.tallies(&picture))),
            Event::Interrupt => return Err(interrupted(ending.verb)),
        }
    }
}

/// Why time is up, with the reasons of tasks that do not run.
fn late(ending: Ending, lines: &[TaskLine], tallies: &[Tally]) -> CliError {
    let behind: Vec<&Tally> = tallies.iter().filter(|tally| tally.is_behind()).collect();
    let mut standing: Vec<String> =
        behind.iter().take(REASONS_MAX).map(|tally| format!("{} {}/{}", tally.service, tally.running, tally.wanted)).collect();
    if behind.is_empty() {
        standing.push("all tasks run, not yet long enough to be relied on".to_owned());
    } else if behind.len() > REASONS_MAX {
        standing.push(format!("and {} services more", behind.len() - REASONS_MAX));
    }
    let mut message = format!("the {} has not converged within {}: {}", ending.verb, ending.timeout, standing.join(", "));
    for line in lines.iter().filter(|line| !line.serves).take(REASONS_MAX) {
        let reason = if line.message.is_empty() { String::new() } else { format!(": {}", line.message) };
        message.push_str(&format!("\n  {} is {}{reason}", line.name, line.state));
    }
    CliError::TimedOut { message, hint: "it goes on in the cluster: see rclusterctl ps, or wait longer with --timeout".to_owned() }
}

/// Shows the last log lines of the task to blame, and says what failed.
async fn failed(session: Session, verb: &str, blame: Blame) -> Result<CliError, CliError> {
    let lines = last_log_lines(session, &blame.task_id).await;
    if !lines.is_empty() {
        output::talk(&format!("last log lines of {}:", blame.task))?;
        lines.iter().try_for_each(|line| output::talk(&format!("  {}", output::table::one_line(line))))?;
    }
    let on = if blame.node.is_empty() { String::new() } else { format!(" on {}", blame.node) };
    Ok(CliError::refused(
        format!("the {verb} of {} fails: task {}{on} {}", blame.service, blame.task, blame.reason),
        format!("see rclusterctl logs {} and rclusterctl ps {} -a", blame.task, blame.service),
    ))
}

/// What can be had of them in a short time: they are an extra to an error that is told anyway.
async fn last_log_lines(mut session: Session, task_id: &str) -> Vec<String> {
    let request = v1::LogsRequest { target: task_id.to_owned(), follow: false, tail: LOG_LINES, since_ms: 0 };
    let mut lines = Vec::new();
    let read = async {
        let mut stream = session
            .call(|mut client| {
                let request = request.clone();
                async move { client.logs(request).await }
            })
            .await?;
        while let Some(line) = stream.message().await.map_err(|status| CliError::from(rcluster_api::error::ApiError::from(status)))? {
            lines.push(if line.problem.is_empty() { line.text } else { format!("({})", line.problem) });
        }
        Ok::<(), CliError>(())
    };
    match timeout(LOG_PATIENCE, read).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => lines.push(format!("(no more: {error})")),
        Err(_) => lines.push(format!("(no more within {} s)", LOG_PATIENCE.as_secs())),
    }
    lines
}

/// Waits until none of the objects is left; the time taken.
pub async fn until_gone(
    session: Session,
    ids: &BTreeSet<(Kind, String)>,
    revision: u64,
    timeout: Millis,
    what: &str,
) -> Result<u64, CliError> {
    let started = Instant::now();
    let kinds: BTreeSet<Kind> = ids.iter().map(|(kind, _)| *kind).collect();
    let watch = session.watch(&kinds.into_iter().collect::<Vec<_>>());
    let mut follower = Follower::start(watch, started + timeout.duration())?;
    let mut left: BTreeSet<(Kind, String)> = BTreeSet::new();
    let mut seen = 0;
    loop {
        match follower.next(None).await {
            Event::Change(change) => {
                let change = change?;
                if change.fresh {
                    left.clear();
                }
                left.extend(change.puts.iter().map(|object| (object.kind(), object.id().to_owned())).filter(|id| ids.contains(id)));
                for id in &change.deletes {
                    left.remove(id);
                }
                seen = change.revision.max(seen);
                if change.synced && seen >= revision && left.is_empty() {
                    return Ok(elapsed_ms(started));
                }
            }
            Event::Wake => {}
            Event::Deadline => {
                return Err(CliError::TimedOut {
                    message: format!("{what}: not gone within {}", rows::seconds(timeout.0)),
                    hint: "its tasks may still be stopping: see rclusterctl ps".to_owned(),
                });
            }
            Event::Interrupt => return Err(interrupted("removal")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(running: &[usize]) -> String {
        let tally = |(nth, running): (usize, &usize)| Tally {
            service: format!("s{nth}"),
            running: *running,
            wanted: 1,
            leaving: 0,
            complete: *running == 1,
        };
        let tallies: Vec<Tally> = running.iter().enumerate().map(tally).collect();
        late(Ending { verb: "deploy", timeout: Millis(3_000) }, &[], &tallies).to_string()
    }

    #[test]
    fn when_time_is_up_the_services_that_are_behind_are_told() {
        assert_eq!(told(&[1, 0, 1]), "the deploy has not converged within 3s: s1 0/1");
        assert_eq!(told(&[0; 7]), "the deploy has not converged within 3s: s0 0/1, s1 0/1, s2 0/1, s3 0/1, s4 0/1, and 2 services more");
        assert_eq!(told(&[1]), "the deploy has not converged within 3s: all tasks run, not yet long enough to be relied on");
    }
}
