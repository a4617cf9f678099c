//! `stats`: what containers use of their hosts; `top`: which processes they have.

use std::collections::BTreeMap;
use std::time::Duration;

use rcluster_api::object::{Kind, Object, Task};
use rcluster_api::resource::Bytes;
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1::{self, relay_open, relay_output};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::relay::Relay;
use crate::args::{Stats, Top};
use crate::error::CliError;
use crate::output::table::Table;
use crate::output::{self, Out};
use crate::session::Session;

const PERIOD: Duration = Duration::from_secs(1);
/// Clears a terminal and goes to its upper left corner (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// One container's use as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Usage {
    task: String,
    node: String,
    container: String,
    /// Of one processor: 100 is all of one.
    cpu_percent: f64,
    cpu_seconds: f64,
    memory_bytes: u64,
    /// `None`: none.
    memory_limit: Option<u64>,
    pids: u64,
    pids_limit: Option<u64>,
    /// The pod's: its containers share them.
    received_bytes: u64,
    sent_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

/// A process as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ProcessJson {
    container: String,
    pid: u32,
    pid_in_container: u32,
    parent_pid: u32,
    uid: u32,
    cpu_ms: u64,
    memory_bytes: u64,
    state: String,
    command: String,
}

/// What comes of one task.
enum News {
    Usage(Vec<Usage>),
    Ended { task: String, why: Option<CliError> },
}

/// `stats [SERVICE|TASK]`.
pub async fn stats(mut session: Session, out: Out, args: Stats) -> Result<(), CliError> {
    let tasks = running(&mut session, args.target.as_deref()).await?;
    let (sender, mut news) = mpsc::channel(tasks.len().max(1));
    let mut open = tasks.len();
    for task in tasks {
        let kind = relay_open::Kind::Stats(v1::RelayStats { follow: !args.no_stream });
        match Relay::open(&mut session, task.id.as_str(), "", kind).await {
            Ok(relay) => drop(tokio::spawn(follow(relay, task, sender.clone()))),
            Err(error @ CliError::Unreachable { .. }) => return Err(error),
            Err(why) => {
                open -= 1;
                complain(&task.name, Some(&why))?;
            }
        }
    }
    drop(sender);
    if open == 0 {
        return Err(CliError::refused("no statistics can be had", "see rclusterctl ps"));
    }
    let mut rows = BTreeMap::new();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            one = news.recv() => match one {
                Some(News::Usage(usage)) => rows.extend(usage.into_iter().map(|row| ((row.task.clone(), row.container.clone()), row))),
                Some(News::Ended { task, why }) => {
                    complain(&task, why.as_ref())?;
                    if !args.no_stream {
                        rows.retain(|(of, _), _| *of != task);
                    }
                }
                None => break,
            },
            _ = ticks.tick(), if !args.no_stream && !rows.is_empty() => print(out, rows.values(), true)?,
        }
    }
    if args.no_stream { print(out, rows.values(), false) } else { Ok(()) }
}

fn complain(task: &str, why: Option<&CliError>) -> Result<(), CliError> {
    why.map_or(Ok(()), |why| output::talk(&format!("{task}: {why}")))
}

/// The running tasks that are meant; all of them when nothing is named.
async fn running(session: &mut Session, target: Option<&str>) -> Result<Vec<Task>, CliError> {
    let objects = session.list(Kind::Task, "", "").await?;
    let tasks = objects.into_iter().filter_map(|object| match object {
        Object::Task(task) => Some(*task),
        _ => None,
    });
    let is_meant = |task: &Task| target.is_none_or(|name| task.service == name || task.name == name || task.id.as_str() == name);
    let mut tasks: Vec<Task> = tasks.filter(|task| is_meant(task) && task.status.state == TaskState::Running).collect();
    if tasks.is_empty() {
        let message = target.map_or_else(|| "no task runs".to_owned(), |name| format!("no task of {name} runs"));
        return Err(CliError::refused(message, "rclusterctl ps -a shows all tasks and what became of them"));
    }
    tasks.sort_by(|a, b| (&a.service, a.slot).cmp(&(&b.service, b.slot)));
    Ok(tasks)
}

/// Turns the samples of one task into rates.
async fn follow(mut relay: Relay, task: Task, news: mpsc::Sender<News>) {
    let mut before: Option<v1::RelayStatsSample> = None;
    let why = loop {
        match relay.next().await {
            Ok(Some(relay_output::Kind::Stats(now))) => {
                if let Some(before) = &before
                    && news.send(News::Usage(usage(&task, before, &now))).await.is_err()
                {
                    return;
                }
                before = Some(now);
            }
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    // Nobody waits for it any more.
    drop(news.send(News::Ended { task: task.name, why }).await);
}

fn usage(task: &Task, before: &v1::RelayStatsSample, now: &v1::RelayStatsSample) -> Vec<Usage> {
    let passed = now.at_ns.saturating_sub(before.at_ns).max(1);
    let total = |bytes: fn(&v1::InterfaceStats) -> u64| now.interfaces.iter().map(bytes).sum();
    let row = |one: &v1::ContainerStats| {
        let earlier = before.containers.iter().find(|earlier| earlier.container == one.container).map_or(one.cpu_ns, |one| one.cpu_ns);
        Usage {
            task: task.name.clone(),
            node: task.node.clone(),
            container: one.container.clone(),
            cpu_percent: rounded(one.cpu_ns.saturating_sub(earlier) as f64 * 100.0 / passed as f64),
            cpu_seconds: rounded(one.cpu_ns as f64 / 1e9),
            memory_bytes: one.memory_bytes,
            memory_limit: Some(one.memory_limit).filter(|limit| *limit > 0),
            pids: one.pids,
            pids_limit: Some(one.pids_limit).filter(|limit| *limit > 0),
            received_bytes: total(|interface| interface.received_bytes),
            sent_bytes: total(|interface| interface.sent_bytes),
            read_bytes: one.read_bytes,
            written_bytes: one.written_bytes,
        }
    };
    now.containers.iter().map(row).collect()
}

/// Two digits are all that a sample of a second is good for.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn print<'a>(out: Out, rows: impl Iterator<Item = &'a Usage>, again: bool) -> Result<(), CliError> {
    if !out.is_table() {
        return if again { rows.into_iter().try_for_each(|row| out.streamed(row)) } else { out.value(&rows.collect::<Vec<_>>()) };
    }
    let mut table = Table::new(&["TASK", "NODE", "CONTAINER", "CPU", "MEMORY", "LIMIT", "PIDS", "NET IN", "NET OUT", "READ", "WRITTEN"]);
    for row in rows {
        table.row(vec![
            row.task.clone(),
            row.node.clone(),
            row.container.clone(),
            format!("{:.1}%", row.cpu_percent),
            size(row.memory_bytes),
            row.memory_limit.map_or_else(|| "-".to_owned(), size),
            row.pids.to_string(),
            size(row.received_bytes),
            size(row.sent_bytes),
            size(row.read_bytes),
            size(row.written_bytes),
        ]);
    }
    let clear = if again && output::is_terminal() { CLEAR } else { "" };
    output::data(&format!("{clear}{table}"))
}

fn size(bytes: u64) -> String {
    Bytes(bytes).human()
}

/// `top TASK`.
pub async fn top(mut session: Session, out: Out, args: Top) -> Result<(), CliError> {
    let mut relay = Relay::open(&mut session, &args.target, "", relay_open::Kind::Top(v1::RelayTop {})).await?;
    relay.opened().await?;
    let Some(relay_output::Kind::Processes(v1::RelayProcesses { processes })) = relay.next().await? else { return Err(relay.ended()) };
    let processes: Vec<ProcessJson> = processes.into_iter().map(ProcessJson::from).collect();
    if !out.is_table() {
        return out.value(&processes);
    }
    let mut table = Table::new(&["CONTAINER", "PID", "IN CONTAINER", "PARENT", "UID", "STATE", "CPU", "MEMORY", "COMMAND"]);
    for one in processes {
        let ProcessJson { container, pid, pid_in_container, parent_pid, uid, cpu_ms, memory_bytes, state, command } = one;
        let seconds = cpu_ms as f64 / 1000.0;
        let numbers = [pid, pid_in_container, parent_pid, uid].map(|number| number.to_string());
        let [pid, pid_in_container, parent_pid, uid] = numbers;
        table.row(vec![container, pid, pid_in_container, parent_pid, uid, state, format!("{seconds:.2}s"), size(memory_bytes), command]);
    }
    output::data(&table.to_string())
}

impl From<v1::RelayProcess> for ProcessJson {
    fn from(process: v1::RelayProcess) -> Self {
        let v1::RelayProcess { container, pid, pid_in_container, parent_pid, uid, cpu_ms, memory_bytes, state, command } = process;
        Self { container, pid, pid_in_container, parent_pid, uid, cpu_ms, memory_bytes, state, command }
    }
}
