//! Decides the next step of one task.
//!
//! In: the record of what was done so far, what is wanted, the time. Out: one step; its doing changes the record, and then the
//! question is asked anew. Never asks for a step that a record shows as done, so an agent that was killed anywhere goes on there.
//!
//! ```text
//! accepted ─► preparing ─► ready ─► starting ─► running ─┐
//!     │  pull, prepare: rootfs, network      │  create, start each container
//!     └────────── any failure, any exit, a wish to stop ─┴─► outcome ─► withdraw ─► await ─► stop ─► detach ─► report ─► clean ─► end
//! ```
//!
//! What still runs leaves this node's DNS first (withdraw). If it is only to stop, and serves until then, it is then left alone until the
//! managers know that no other node sends to it either, or the time that its service gives for that is over (await).

use rcluster_api::health::{Health, HealthCheck};
use rcluster_api::object::{ContainerStatus, Task, TaskStatus};
use rcluster_api::resource::Bytes;
use rcluster_api::task::TaskState;
use serde::{Deserialize, Serialize};

use super::reconcile::Wish;

/// What was done for a task so far; kept in the run directory, so that it lives exactly as long as the processes it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub state: TaskState,
    pub message: String,
    pub since_ms: u64,
    /// The images are on the node. Absent in records of before there was pulling, whose tasks had them.
    #[serde(default)]
    pub pulled: bool,
    /// Root file systems are mounted, the network is attached.
    pub prepared: bool,
    pub network: Network,
    pub containers: Vec<ContainerRecord>,
    /// How the task ends, once it is to end.
    pub outcome: Option<Outcome>,
    /// Out of this node's DNS. Records of before there was an order of leaving do without it.
    #[serde(default = "done")]
    pub withdrawn: bool,
    /// No node sends to it any more, or that was waited for long enough.
    #[serde(default = "done")]
    pub released: bool,
    /// Unix time at which that has been waited for long enough; set when it is withdrawn.
    #[serde(default)]
    pub stop_after_ms: u64,
    pub detached: bool,
    pub cleaned: bool,
}

fn done() -> bool {
    true
}

/// What netd answered, or nothing for a pod without networks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// Empty: the pod's first container makes a network namespace of its own.
    pub netns_path: String,
    pub dns: String,
    pub search: Vec<String>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub name: String,
    /// The runtime's name for it.
    pub id: String,
    pub phase: Phase,
    pub process: Option<Process>,
    pub monitor: Option<Process>,
    pub started_at_ms: u64,
    pub stop_signal: String,
    pub memory_limit: Option<u64>,
    pub exit: Option<Exit>,
    /// Whether and how its health is checked, by the spec and the image.
    #[serde(default)]
    pub healthcheck: Option<HealthCheck>,
    /// What its checks have shown so far; `None` also before the first.
    #[serde(default)]
    pub health: Health,
    /// What the check said that brought it about.
    #[serde(default)]
    pub health_output: String,
}

/// How far a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Absent,
    /// The runtime was about to be asked; there may be something or nothing.
    Creating,
    Created,
    Started,
    Ended,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to its start.
    pub start_ticks: u64,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exit {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    /// Why nothing is known of the end.
    pub problem: Option<String>,
}

/// How a task ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub state: TaskState,
    pub message: String,
}

/// The next thing to do for a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Report this state.
    Raise(TaskState),
    /// From now on the task ends, so.
    Conclude(Outcome),
    /// Bring the images to the node; may be broken off when the wish changes.
    Pull,
    Prepare,
    /// Nothing before this time, unless the wish changes.
    Wait {
        until_ms: u64,
    },
    Create(usize),
    Start(usize),
    /// Nothing until a container ends or the wish changes.
    Watch,
    /// Take it out of this node's DNS: nothing here is to begin anything with it any more.
    Withdraw,
    /// Leave it alone until no node sends to it any more, but not beyond this time; nor when a container ends, or the managers forget it.
    Await {
        until_ms: u64,
    },
    /// Stop whatever still runs.
    Stop,
    /// Give the network back.
    Detach,
    /// Report the outcome.
    Report(Outcome),
    /// Remove what is left on the node, but its logs.
    Clean,
    End,
}

impl Record {
    /// Of a task that was just taken on.
    pub fn new(task: &Task) -> Self {
        let containers = task.template.containers.iter().map(|spec| {
            let name = container_name(&spec.name, &task.service);
            ContainerRecord {
                id: format!("{}-{name}", task.id),
                name,
                phase: Phase::Absent,
                process: None,
                monitor: None,
                started_at_ms: 0,
                stop_signal: String::new(),
                memory_limit: spec.resources.limits.memory.map(|bytes| bytes.0),
                exit: None,
                healthcheck: None,
                health: Health::None,
                health_output: String::new(),
            }
        });
        Self {
            state: TaskState::Assigned,
            message: String::new(),
            since_ms: task.status.since_ms,
            pulled: false,
            prepared: false,
            network: Network::default(),
            containers: containers.collect(),
            outcome: None,
            withdrawn: task.networks.is_empty(),
            released: task.networks.is_empty() || task.leave_ms == 0,
            stop_after_ms: 0,
            detached: false,
            cleaned: false,
        }
    }

    /// What is reported to the managers.
    pub fn status(&self) -> TaskStatus {
        TaskStatus {
            state: self.state,
            message: self.message.clone(),
            since_ms: self.since_ms,
            containers: self.containers.iter().filter(|container| container.phase > Phase::Creating).map(ContainerRecord::status).collect(),
            ending: self.outcome.is_some(),
        }
    }

    /// Whether other nodes may be sending to it: every container runs that ever did.
    fn serves(&self) -> bool {
        self.containers.iter().any(|container| container.phase == Phase::Started)
            && self.containers.iter().all(|container| container.exit.is_none())
    }

    /// Whether nothing of the task is left but this record.
    pub fn has_ended(&self) -> bool {
        self.cleaned && self.state.is_terminal()
    }
}

impl ContainerRecord {
    /// Whether there may be processes of it.
    pub fn may_live(&self) -> bool {
        matches!(self.phase, Phase::Creating | Phase::Created | Phase::Started)
    }

    fn status(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            id: self.id.clone(),
            pid: if self.phase == Phase::Ended { None } else { self.process.map(|process| process.pid) },
            exit_code: self.exit.as_ref().and_then(|exit| exit.exit_code),
            oom_killed: self.exit.as_ref().is_some_and(|exit| exit.oom_killed),
            started_at_ms: self.started_at_ms,
            health: if self.phase == Phase::Started { self.health } else { Health::None },
            health_output: self.health_output.clone(),
        }
    }
}

/// A container's name: its own, or that of the service when the pod's only container has none.
pub fn container_name(name: &str, service: &str) -> String {
    if name.is_empty() { service.to_owned() } else { name.to_owned() }
}

/// The next step of a task.
pub fn next(record: &Record, start_after_ms: u64, wish: Wish, now_ms: u64) -> Step {
    match &record.outcome {
        Some(outcome) => wind_down(record, outcome, wish),
        None => climb(record, start_after_ms, wish, now_ms),
    }
}

fn climb(record: &Record, start_after_ms: u64, wish: Wish, now_ms: u64) -> Step {
    if wish != Wish::Run {
        return Step::Conclude(Outcome { state: TaskState::Shutdown, message: String::new() });
    }
    if let Some(outcome) = record.containers.iter().find_map(outcome_of) {
        return Step::Conclude(outcome);
    }
    let first = |phase| record.containers.iter().position(|container| container.phase <= phase);
    if record.state < TaskState::Accepted {
        Step::Raise(TaskState::Accepted)
    } else if record.state < TaskState::Preparing {
        Step::Raise(TaskState::Preparing)
    } else if !record.pulled && !record.prepared {
        Step::Pull
    } else if !record.prepared {
        Step::Prepare
    } else if record.state < TaskState::Ready {
        Step::Raise(TaskState::Ready)
    } else if record.state < TaskState::Starting && start_after_ms > now_ms {
        Step::Wait { until_ms: start_after_ms }
    } else if record.state < TaskState::Starting {
        Step::Raise(TaskState::Starting)
    } else if let Some(index) = first(Phase::Creating) {
        Step::Create(index)
    } else if let Some(index) = first(Phase::Created) {
        Step::Start(index)
    } else if record.state < TaskState::Running {
        Step::Raise(TaskState::Running)
    } else {
        Step::Watch
    }
}

fn wind_down(record: &Record, outcome: &Outcome, wish: Wish) -> Step {
    if record.containers.iter().any(ContainerRecord::may_live) {
        if !record.withdrawn && record.prepared {
            Step::Withdraw
        } else if !record.released && outcome.state == TaskState::Shutdown && wish != Wish::Remove && record.serves() {
            Step::Await { until_ms: record.stop_after_ms }
        } else {
            Step::Stop
        }
    } else if !record.detached {
        Step::Detach
    } else if !record.state.is_terminal() {
        Step::Report(outcome.clone())
    } else if !record.cleaned {
        Step::Clean
    } else {
        Step::End
    }
}

/// How the pod ends because of this container, if it has ended.
fn outcome_of(container: &ContainerRecord) -> Option<Outcome> {
    let name = &container.name;
    let failed = |message| Outcome { state: TaskState::Failed, message };
    let Some(exit) = &container.exit else {
        let why = Some(container.health_output.as_str()).filter(|output| !output.is_empty()).unwrap_or("the check failed without a word");
        return (container.health == Health::Unhealthy).then(|| failed(format!("container {name} is unhealthy: {why}")));
    };
    Some(if let Some(problem) = &exit.problem {
        failed(format!("container {name}: {problem}"))
    } else if exit.oom_killed {
        let limit = container.memory_limit.map(|limit| format!(" (limit {})", Bytes(limit).human())).unwrap_or_default();
        failed(format!("container {name} ran out of memory{limit}"))
    } else if let Some(signal) = exit.signal {
        failed(format!("container {name} was killed by {}", signal_name(signal)))
    } else {
        match exit.exit_code {
            Some(0) => Outcome { state: TaskState::Complete, message: format!("container {name} exited with code 0") },
            Some(code) => failed(format!("container {name} exited with code {code}")),
            None => failed(format!("container {name} ended, with what code is not known")),
        }
    })
}

/// `SIGKILL` for 9 and so on; numbers without a name of their own as they are.
fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT",
        "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let index = usize::try_from(signal).ok().and_then(|signal| signal.checked_sub(1));
    index.and_then(|index| NAMES.get(index)).map_or_else(|| format!("signal {signal}"), |name| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, phase: Phase) -> ContainerRecord {
        ContainerRecord {
            name: name.into(),
            id: format!("t-{name}"),
            phase,
            process: None,
            monitor: None,
            started_at_ms: 0,
            stop_signal: "SIGTERM".into(),
            memory_limit: Some(64 << 20),
            exit: None,
            healthcheck: None,
            health: Health::None,
            health_output: String::new(),
        }
    }

    fn fresh() -> Record {
        Record {
            state: TaskState::Assigned,
            message: String::new(),
            since_ms: 0,
            pulled: false,
            prepared: false,
            network: Network::default(),
            containers: vec![container("web", Phase::Absent), container("log", Phase::Absent)],
            outcome: None,
            withdrawn: false,
            released: false,
            stop_after_ms: 0,
            detached: false,
            cleaned: false,
        }
    }

    /// Does steps as the worker would, until one that waits or the end; returns their text.
    fn walk(record: &mut Record, start_after_ms: u64, wish: Wish) -> String {
        let mut text = Vec::new();
        loop {
            let step = next(record, start_after_ms, wish, 1_000);
            match &step {
                Step::Raise(state) => {
                    text.push(format!("raise {state}"));
                    record.state = *state;
                }
                Step::Conclude(outcome) => {
                    text.push(format!("conclude {}: {}", outcome.state, outcome.message));
                    record.outcome = Some(outcome.clone());
                }
                Step::Pull => record.pulled = true,
                Step::Prepare => record.prepared = true,
                Step::Create(index) => record.containers[*index].phase = Phase::Created,
                Step::Start(index) => record.containers[*index].phase = Phase::Started,
                Step::Withdraw => (record.withdrawn, record.stop_after_ms) = (true, 3_000),
                Step::Await { .. } => record.released = true,
                Step::Stop => record.containers.iter_mut().filter(|c| c.may_live()).for_each(|c| c.phase = Phase::Ended),
                Step::Detach => record.detached = true,
                Step::Report(outcome) => {
                    text.push(format!("report {}", outcome.state));
                    record.state = outcome.state;
                }
                Step::Clean => record.cleaned = true,
                Step::Wait { .. } | Step::Watch | Step::End => {}
            }
            match &step {
                Step::Raise(_) | Step::Conclude(_) | Step::Report(_) => {}
                other => text.push(format!("{other:?}").to_lowercase()),
            }
            if matches!(step, Step::Wait { .. } | Step::Watch | Step::End) {
                return text.join(", ");
            }
        }
    }

    #[test]
    fn a_task_climbs_to_running_creating_all_containers_before_it_starts_the_first() {
        let mut record = fresh();
        assert_eq!(
            walk(&mut record, 0, Wish::Run),
            "raise accepted, raise preparing, pull, prepare, raise ready, raise starting, create(0), create(1), start(0), start(1), \
             raise running, watch"
        );
    }

    #[test]
    fn a_task_that_is_held_back_is_prepared_and_then_waits() {
        let mut record = fresh();
        assert_eq!(
            walk(&mut record, 9_000, Wish::Run),
            "raise accepted, raise preparing, pull, prepare, raise ready, wait { until_ms: 9000 }"
        );
        assert!(walk(&mut record, 500, Wish::Run).starts_with("raise starting"));
    }

    #[test]
    fn stopping_goes_from_any_step_to_the_end() {
        let mut record = fresh();
        assert_eq!(walk(&mut record.clone(), 0, Wish::Stop), "conclude shutdown: , detach, report shutdown, clean, end");
        walk(&mut record, 0, Wish::Run);
        assert_eq!(
            walk(&mut record.clone(), 0, Wish::Stop),
            "conclude shutdown: , withdraw, await { until_ms: 3000 }, stop, detach, report shutdown, clean, end"
        );
        assert_eq!(walk(&mut record, 0, Wish::Remove), "conclude shutdown: , withdraw, stop, detach, report shutdown, clean, end");
    }

    #[test]
    fn only_what_serves_is_waited_for() {
        let mut running = fresh();
        walk(&mut running, 0, Wish::Run);
        let stopped = |change: fn(&mut Record)| {
            let mut record = running.clone();
            change(&mut record);
            walk(&mut record, 0, Wish::Stop)
        };
        let at_once = "conclude shutdown: , withdraw, stop, detach, report shutdown, clean, end";
        assert_eq!(stopped(|record| record.released = true), at_once, "the service gives no time, or the wait is over");
        assert_eq!(
            stopped(|record| (record.withdrawn, record.released) = (true, true)),
            "conclude shutdown: , stop, detach, report shutdown, clean, end",
            "it is on no network, or its record is of before there was an order"
        );
        let ended = |record: &mut Record| (record.containers[0].phase, record.containers[0].exit) = (Phase::Ended, Some(Exit::default()));
        assert_eq!(stopped(ended), at_once, "a pod of which a container has ended does not serve");
        let unstarted = |record: &mut Record| record.containers.iter_mut().for_each(|container| container.phase = Phase::Created);
        assert_eq!(stopped(unstarted), at_once, "nobody was sent to it");
    }

    #[test]
    fn that_it_will_end_is_in_the_report_from_the_outcome_on() {
        let mut record = fresh();
        walk(&mut record, 0, Wish::Run);
        assert!(!record.status().ending);
        record.outcome = Some(Outcome { state: TaskState::Shutdown, message: String::new() });
        assert_eq!((record.status().ending, record.status().state), (true, TaskState::Running));
    }

    #[test]
    fn a_record_of_before_there_was_an_order_of_leaving_is_read_as_having_left() {
        let mut value = serde_json::to_value(fresh()).expect("encode");
        let fields = value.as_object_mut().expect("an object");
        for field in ["withdrawn", "released", "stop_after_ms"] {
            fields.remove(field).expect("a field");
        }
        let old: Record = serde_json::from_value(value).expect("decode");
        assert_eq!((old.withdrawn, old.released, old.stop_after_ms), (true, true, 0));
    }

    #[test]
    fn a_container_that_ends_ends_the_pod_and_says_how() {
        let cases = [
            (Exit { exit_code: Some(0), ..Exit::default() }, "complete: container log exited with code 0"),
            (Exit { exit_code: Some(3), ..Exit::default() }, "failed: container log exited with code 3"),
            (Exit { exit_code: Some(137), signal: Some(9), ..Exit::default() }, "failed: container log was killed by SIGKILL"),
            (
                Exit { exit_code: Some(137), signal: Some(9), oom_killed: true, problem: None },
                "failed: container log ran out of memory (limit 64 MiB)",
            ),
            (Exit { problem: Some("its monitor was killed".into()), ..Exit::default() }, "failed: container log: its monitor was killed"),
        ];
        for (exit, expected) in cases {
            let mut record = fresh();
            walk(&mut record, 0, Wish::Run);
            record.containers[1].phase = Phase::Ended;
            record.containers[1].exit = Some(exit);
            let steps = walk(&mut record, 0, Wish::Run);
            assert!(steps.starts_with(&format!("conclude {expected}, withdraw, stop, detach, report")), "{steps}");
        }
    }

    #[test]
    fn an_unhealthy_container_ends_the_pod_and_says_why() {
        let mut record = fresh();
        walk(&mut record, 0, Wish::Run);
        (record.containers[0].health, record.containers[0].health_output) = (Health::Unhealthy, "GET /: 500".into());
        let steps = walk(&mut record, 0, Wish::Run);
        assert!(steps.starts_with("conclude failed: container web is unhealthy: GET /: 500, withdraw, stop, detach, report"), "{steps}");
    }

    #[test]
    fn a_record_read_back_at_any_point_leads_to_the_same_end() {
        let mut record = fresh();
        walk(&mut record, 0, Wish::Run);
        let text = serde_json::to_string(&record).expect("encode");
        let again: Record = serde_json::from_str(&text).expect("decode");
        assert_eq!(again, record);
        assert_eq!(next(&again, 0, Wish::Run, 0), Step::Watch);
    }
}
