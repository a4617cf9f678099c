//! `lab`: makes labs, breaks their hosts, and keeps a context for each. What a lab is stands in `rcluster_lab`.

use std::thread;
use std::time::Duration;

use rcluster_api::object::{Kind, NodeState, Object, Task};
use rcluster_api::resource::Millis;
use rcluster_api::tls::Credentials;
use rcluster_lab::{DaemonState, DaemonStatus, HostState, Lab, LabError, UpOptions};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::block_on;
use super::follow::interrupts;
use crate::args::{Global, LabCommand, LabExec, LabUp};
use crate::config::{self, Config, Context, Target};
use crate::error::CliError;
use crate::output::rows::seconds;
use crate::output::table::Table;
use crate::output::{self, Out};
use crate::session::Session;

/// The lab's name when none is given and the current context is no lab's.
const DEFAULT_NAME: &str = "lab";
const DEFAULT_MANAGERS: usize = 3;
/// How often the cluster is asked whether it is ready.
const POLL: Duration = Duration::from_millis(50);

/// `lab …`.
pub fn run(command: LabCommand, global: &Global, out: Out) -> Result<(), CliError> {
    match command {
        LabCommand::Up(args) => up(args, global, out),
        LabCommand::Status(lab) => status(&open(lab.name, global)?, out),
        LabCommand::Kill(args) => at_once(&open(args.lab.name, global)?, args.hosts, Lab::kill, "killed"),
        LabCommand::Start(args) => at_once(&open(args.lab.name, global)?, args.hosts, Lab::start, "started"),
        LabCommand::Pause(args) => at_once(&open(args.lab.name, global)?, args.hosts, Lab::pause, "frozen"),
        LabCommand::Resume(args) => at_once(&open(args.lab.name, global)?, args.hosts, Lab::resume, "runs on"),
        LabCommand::Cut { lab, host, other } => {
            let from = other.as_deref().map_or_else(|| "all others".to_owned(), str::to_owned);
            open(lab.name, global)?.cut(host.clone(), other)?;
            output::talk(&format!("{host}: cut off from {from}"))
        }
        LabCommand::Heal(lab) => {
            open(lab.name, global)?.heal()?;
            output::talk("every cut is mended")
        }
        LabCommand::Exec(args) => exec(args, global),
        LabCommand::Logs { lab, host, process } => output::data(&open(lab.name, global)?.logs(&host, process.as_deref())?),
        LabCommand::Down(lab) => down(&name(lab.name, global)?),
    }
}

/// What is done to all the hosts at once, or to none of them.
fn at_once(lab: &Lab, hosts: Vec<String>, act: impl Fn(&Lab, Vec<String>) -> Result<(), LabError>, done: &str) -> Result<(), CliError> {
    let names = hosts.join(", ");
    act(lab, hosts)?;
    output::talk(&format!("{names}: {done}"))
}

/// The lab that is meant: the one named, else that of the context, else [`DEFAULT_NAME`].
fn name(given: Option<String>, global: &Global) -> Result<String, CliError> {
    if let Some(name) = given {
        return Ok(name);
    }
    let config = config::load()?;
    let context = global.context.as_deref().or(config.current.as_deref());
    let lab = match context {
        Some(context) => config::named(&config, context)?.lab.clone(),
        None => None,
    };
    Ok(lab.unwrap_or_else(|| DEFAULT_NAME.to_owned()))
}

fn open(given: Option<String>, global: &Global) -> Result<Lab, CliError> {
    Ok(Lab::open(&name(given, global)?)?)
}

/// Enters the wire on which a lab's managers stand, with this thread alone.
pub fn enter(lab: &str) -> Result<(), CliError> {
    Ok(Lab::open(lab)?.enter_wire()?)
}

/// Runs something that talks to a lab's managers in a thread of its own, which enters the wire; this one stays where it is.
fn on_wire<T: Send>(
    lab: &Lab,
    credentials: Option<Credentials>,
    verb: impl AsyncFnOnce(Session) -> Result<T, CliError> + Send,
) -> Result<T, CliError> {
    let context = Some(context_name(lab.name()));
    let target = Target { context, managers: lab.managers()?, lab: Some(lab.name().to_owned()), credentials };
    let call = || {
        lab.enter_wire()?;
        block_on(verb(Session::new(target)))
    };
    thread::scope(|scope| scope.spawn(call).join()).unwrap_or_else(|_| Err(CliError::refused("talking to the lab's managers panicked", "")))
}

/// Who the lab's first administrator is, as its first manager wrote it; that is not renewed.
fn first_credentials(lab: &Lab) -> Result<Option<Credentials>, CliError> {
    Ok(config::access(&lab.access_file()?)?.credentials)
}

/// Who the user is in a lab that is up: as its context says, in which credentials are renewed, unless it was given up.
fn credentials(lab: &Lab) -> Result<Option<Credentials>, CliError> {
    let context = config::load()?.contexts.remove(&context_name(lab.name()));
    match context.filter(|context| context.lab.as_deref() == Some(lab.name())) {
        Some(context) => Ok(context.credentials),
        None => first_credentials(lab),
    }
}

fn context_name(lab: &str) -> String {
    if lab.starts_with("lab") { lab.to_owned() } else { format!("lab-{lab}") }
}

/// What `lab up -o json` prints.
#[derive(Debug, Serialize)]
struct UpReport<'a> {
    lab: &'a str,
    context: String,
    managers: Vec<String>,
    ready_ms: u64,
}

fn manager_count(global: &Global) -> Result<usize, CliError> {
    match global.managers.as_slice() {
        [] => Ok(DEFAULT_MANAGERS),
        [count] if count.parse::<usize>().is_ok_and(|count| count > 0) => Ok(count.parse().unwrap_or(DEFAULT_MANAGERS)),
        _ => Err(CliError::usage(format!("--managers {}: how many managers is the lab to have?", global.managers.join(",")), "1, 3 or 5")),
    }
}

fn up(args: LabUp, global: &Global, out: Out) -> Result<(), CliError> {
    let (managers, agents, timeout) = (manager_count(global)?, args.agents, args.timeout);
    let name = args.lab.name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
    // Read before anything is touched, so that a broken file refuses the lab instead of leaving one without a context.
    not_taken(&config::load()?, &name)?;
    let started = Instant::now();
    let options = UpOptions {
        name,
        managers,
        agents,
        images: args.images,
        labels: args.labels,
        certificate_ttl: args.certificate_ttl.map(|ttl| ttl.to_string()),
        owner_pid: args.owner_pid,
        bin_dir: config::bin_dir(),
    };
    let starting = rcluster_lab::up(options)?;
    stage(started, &format!("hosts are up: {managers} managers, {agents} nodes"))?;
    let ready = first_credentials(starting.lab()).and_then(|credentials| {
        on_wire(starting.lab(), credentials, async move |session| wait_ready(session, managers, agents, started, timeout).await)
    });
    if let Err(error) = ready {
        starting.give_up()?;
        return Err(error);
    }
    let lab = starting.keep()?;
    let context = remember(&lab)?;
    let ready_ms = elapsed_ms(started);
    if out.is_table() {
        return output::data(&format!("lab {} is up in {}; context {context} is current\n", lab.name(), seconds(ready_ms)));
    }
    out.value(&UpReport { lab: lab.name(), context, managers: lab.managers()?, ready_ms })
}

fn stage(started: Instant, what: &str) -> Result<(), CliError> {
    output::talk(&format!("{:>7}  {what}", seconds(elapsed_ms(started))))
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Waits until a manager leads, all are reachable, and all nodes are ready.
async fn wait_ready(mut session: Session, managers: usize, agents: usize, started: Instant, timeout: Millis) -> Result<(), CliError> {
    let deadline = started + timeout.duration();
    let mut leader_told = false;
    let mut interrupts = interrupts()?;
    loop {
        let seen = tokio::select! {
            Some(()) = interrupts.recv() => {
                return Err(CliError::Interrupted { message: "interrupted: the lab is taken down".to_owned(), hint: String::new() });
            }
            seen = look(&mut session) => seen,
        };
        let standing = match seen {
            Ok(seen) => {
                if !seen.leader.is_empty() && !leader_told {
                    stage(started, &format!("{} leads", seen.leader))?;
                    leader_told = true;
                }
                if !seen.leader.is_empty() && seen.voters == managers && seen.ready == agents {
                    return stage(started, "all nodes are ready");
                }
                format!("{} of {managers} managers take part, {} of {agents} nodes are ready", seen.voters, seen.ready)
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(CliError::TimedOut {
                message: format!("the lab is not ready within {timeout}, and was taken down: {standing}"),
                hint: "give it more time with --timeout".to_owned(),
            });
        }
        sleep(POLL).await;
    }
}

struct Seen {
    leader: String,
    /// Managers that vote and can be reached.
    voters: usize,
    ready: usize,
}

async fn look(session: &mut Session) -> Result<Seen, CliError> {
    let cluster = session.cluster().await?;
    let nodes = if cluster.leader.is_empty() { Vec::new() } else { session.list(Kind::Node, "", "").await? };
    Ok(Seen {
        leader: cluster.leader,
        voters: cluster.managers.iter().filter(|manager| manager.reachable && manager.voter).count(),
        ready: nodes.iter().filter(|node| matches!(node, Object::Node(node) if node.state == NodeState::Ready)).count(),
    })
}

/// Refuses a lab whose context would take the place of another's.
fn not_taken(config: &Config, lab: &str) -> Result<(), CliError> {
    let name = context_name(lab);
    match config.contexts.get(&name) {
        Some(context) if context.lab.as_deref() != Some(lab) => Err(CliError::refused(
            format!("the context {name}, which lab {lab} would have, is that of something else: {}", context.managers.join(", ")),
            format!("call the lab otherwise (--lab NAME), or give the context up: rclusterctl context rm {name}"),
        )),
        _ => Ok(()),
    }
}

/// Writes the lab's context and makes it current; its name.
fn remember(lab: &Lab) -> Result<String, CliError> {
    let mut config = config::load()?;
    let name = context_name(lab.name());
    let credentials = first_credentials(lab)?;
    let previous = config.current.take().filter(|current| *current != name);
    config.contexts.insert(name.clone(), Context { managers: lab.managers()?, credentials, lab: Some(lab.name().to_owned()), previous });
    config.current = Some(name.clone());
    config::save(&config)?;
    Ok(name)
}

/// Removes the contexts of a lab; the one that was current before is current again.
fn forget(config: &mut Config, lab: &str) -> bool {
    let of_lab: Vec<String> =
        config.contexts.iter().filter(|(_, context)| context.lab.as_deref() == Some(lab)).map(|(name, _)| name.clone()).collect();
    for name in &of_lab {
        let previous = config.contexts.remove(name).and_then(|context| context.previous);
        if config.current.as_ref() == Some(name) {
            config.current = previous.filter(|previous| config.contexts.contains_key(previous));
        }
    }
    !of_lab.is_empty()
}

fn down(name: &str) -> Result<(), CliError> {
    let started = Instant::now();
    let lab = Lab::open(name);
    let mut config = config::load()?;
    let known = forget(&mut config, name);
    if known {
        config::save(&config)?;
    }
    match lab {
        Ok(lab) => lab.down()?,
        Err(absent) => {
            let left = rcluster_lab::has_leftovers(name);
            rcluster_lab::clean_leftovers(name)?;
            if !known && !left {
                return Err(absent.into());
            }
            output::talk(&format!("lab {name} did not run any more; what it had left is gone"))?;
        }
    }
    output::talk(&format!("lab {name} is down in {}", seconds(elapsed_ms(started))))
}

/// Runs a command on a host, or inside a task's container there; ends with the command's exit code.
fn exec(args: LabExec, global: &Global) -> Result<(), CliError> {
    let LabExec { lab, task, container, host, command } = args;
    let lab = open(lab.name, global)?;
    let task = match task {
        Some(task) if rcluster_api::id::is_id(&task) => Some(task),
        Some(task) => Some(task_id(&lab, &task)?),
        None => None,
    };
    match rcluster_lab::exec(&lab, &host, task.as_deref(), container.as_deref(), &command)? {
        0 => Ok(()),
        code => Err(CliError::Ended { code: u8::try_from(code).unwrap_or(1) }),
    }
}

/// The id of the newest live task with a name.
fn task_id(lab: &Lab, name: &str) -> Result<String, CliError> {
    let wanted = name.to_owned();
    let found = on_wire(lab, credentials(lab)?, async move |mut session| session.list(Kind::Task, &wanted, "").await)?;
    let tasks = found.into_iter().filter_map(|object| match object {
        Object::Task(task) if task.is_live() => Some(task),
        _ => None,
    });
    let newest: Option<Box<Task>> = tasks.max_by_key(|task| task.stamp.created_at_ms);
    newest
        .map(|task| task.id.to_string())
        .ok_or_else(|| CliError::refused(format!("no live task is called {name}"), "`rclusterctl ps` lists them"))
}

/// A lab's hosts as a table or as they are.
fn status(lab: &Lab, out: Out) -> Result<(), CliError> {
    let status = lab.status()?;
    if !out.is_table() {
        return out.value(&status);
    }
    let mut table = Table::new(&["HOST", "ROLE", "ADDRESS", "STATE", "PROCESSES"]);
    for host in status.hosts {
        let state = match host.state {
            HostState::Up if host.cut => "cut off",
            HostState::Up => "up",
            HostState::Paused => "paused",
            HostState::Off => "off",
        };
        let process = |daemon: &DaemonStatus| match &daemon.state {
            DaemonState::Running => format!("{} ({})", daemon.name, daemon.pid),
            DaemonState::Exited(how) => format!("{} (ended: {how})", daemon.name),
            DaemonState::Off => format!("{} (off)", daemon.name),
        };
        let processes: Vec<String> = host.daemons.iter().map(process).collect();
        let role = if host.name.starts_with('m') { "manager" } else { "node" };
        table.row(vec![host.name, role.to_owned(), host.addr.to_string(), state.to_owned(), processes.join(", ")]);
    }
    let mut text = table.to_string();
    for (a, b) in status.cuts {
        text.push_str(&format!("{a} and {b} are cut off from each other\n"));
    }
    output::data(&text)
}
