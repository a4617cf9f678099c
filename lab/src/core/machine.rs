//! How a lab's hosts live: what is asked, told and found out goes in, what is to be done comes out.
//!
//! ```text
//!            Boot            Unshared→Plug, Ready→images, daemons
//!    Off ───────────► Booting ───────────► Up ◄──► Paused
//!     ▲                  │                  │         │
//!     └─ Died, Clear ── Dying ◄─ CutPower ──┴─────────┘
//! ```
//!
//! A request that takes time is kept until what it asked for is so, or cannot become so. Never: a look at the machine, a clock.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::path::PathBuf;

use super::plan::{HostPlan, LabPlan, Target, log_file};
use crate::protocol::{DaemonState, DaemonStatus, Exit, HostCommand, HostEvent, HostState, HostStatus, LabStatus, Reply, Request};

/// A connection of a command.
pub type Client = u64;

/// The connection of the command that started the lab; until it says `Keep`, the lab goes when it goes.
pub const STARTER: Client = 0;

/// The name under which an image is loaded, as if it were a daemon.
const LOADER: &str = "image-load";

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The lab is to come up.
    Begin,
    Asked {
        by: Client,
        request: Request,
    },
    /// A command has gone.
    Left {
        by: Client,
    },
    Said {
        host: String,
        event: HostEvent,
    },
    /// A host's init has ended, and with it everything on the host.
    Died {
        host: String,
    },
    /// A host cannot be brought up.
    Failed {
        host: String,
        why: String,
    },
    /// Everything has to go.
    End {
        why: String,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Make the host's cgroups and start its init.
    Boot(String),
    /// Plug in the host's link.
    Plug(String),
    Tell(String, HostCommand),
    /// Cut the link, then SIGKILL the init; what is frozen has to be thawed to die.
    CutPower(String),
    /// Remove the link and the cgroups of a host that has died.
    Clear(String),
    /// Freeze, or thaw, all processes; then answer.
    Freeze {
        by: Client,
        hosts: Vec<String>,
        on: bool,
    },
    /// Answer when done.
    Cut {
        by: Client,
        host: String,
        other: Option<String>,
    },
    /// Answer when done.
    Heal {
        by: Client,
        host: Option<String>,
        other: Option<String>,
    },
    /// Answer with the status.
    Tally(Client),
    Reply(Client, Reply),
    /// Every host is off: remove what is left, answer these, end.
    Finish(Vec<Client>),
}

/// Where a host is between off and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    Off,
    Booting,
    Up,
    Paused,
    Dying,
}

/// What a daemon does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    Off,
    Running(i32),
    Exited(Exit),
}

impl Life {
    fn word(&self) -> String {
        match self {
            Self::Off => "not started".to_owned(),
            Self::Running(pid) => format!("running ({pid})"),
            Self::Exited(end) => format!("exited ({})", end.how),
        }
    }

    fn state(&self) -> (DaemonState, i32) {
        match self {
            Self::Off => (DaemonState::Off, 0),
            Self::Running(pid) => (DaemonState::Running, *pid),
            Self::Exited(end) => (DaemonState::Exited(end.how.clone()), 0),
        }
    }
}

#[derive(Debug, Clone)]
struct Host {
    plan: HostPlan,
    power: Power,
    daemons: BTreeMap<&'static str, Life>,
    /// Images that its disk still lacks, the first one being loaded.
    images: VecDeque<PathBuf>,
    /// Why it is off, if nobody asked for that.
    failure: Option<String>,
}

/// What a command waits for.
#[derive(Debug, Clone)]
enum Awaited {
    Started,
    Killed,
}

#[derive(Debug, Clone)]
struct Waiting {
    by: Client,
    what: Awaited,
    targets: Vec<Target>,
}

/// All hosts of a lab.
#[derive(Debug)]
pub struct Machine {
    plan: LabPlan,
    hosts: BTreeMap<String, Host>,
    waiting: Vec<Waiting>,
    /// Whether it stays when the command that started it goes.
    kept: bool,
    /// Why everything is going, once it is.
    ending: Option<String>,
    /// Who is told that everything has gone.
    mourners: Vec<Client>,
    finished: bool,
}

impl Machine {
    /// All hosts are off.
    pub fn new(plan: LabPlan) -> Self {
        let host = |host: &HostPlan| {
            let runs_containers = host.role.daemons().contains(&"agent");
            let daemons = host.role.daemons().iter().map(|daemon| (*daemon, Life::Off)).collect();
            let images = if runs_containers { plan.images.iter().cloned().collect() } else { VecDeque::new() };
            (host.name.clone(), Host { plan: host.clone(), power: Power::Off, daemons, images, failure: None })
        };
        let hosts = plan.hosts.iter().map(host).collect();
        Self { plan, hosts, waiting: Vec::new(), kept: false, ending: None, mourners: Vec::new(), finished: false }
    }

    /// The plan.
    pub fn plan(&self) -> &LabPlan {
        &self.plan
    }

    /// Hosts that have begun to boot and are not up yet, images that are being loaded not counted.
    pub fn booting(&self) -> Vec<String> {
        self.hosts.values().filter(|host| host.power == Power::Booting).map(|host| host.plan.name.clone()).collect()
    }

    /// The hosts as far as they are known here: not their PIDs, nor what is cut.
    pub fn status(&self, supervisor_pid: i32) -> LabStatus {
        let one = |plan: &HostPlan| {
            let host = self.hosts.get(&plan.name)?;
            let daemon = |(name, life): (&&str, &Life)| {
                let (state, pid) = life.state();
                DaemonStatus { name: (*name).to_owned(), state, pid }
            };
            let order = plan.role.daemons().iter().filter_map(|name| host.daemons.get_key_value(name));
            Some(HostStatus {
                name: plan.name.clone(),
                role: plan.role,
                addr: plan.addr,
                state: match host.power {
                    Power::Off | Power::Dying | Power::Booting => HostState::Off,
                    Power::Up => HostState::Up,
                    Power::Paused => HostState::Paused,
                },
                message: host.failure.clone().unwrap_or_default(),
                cut: false,
                init_pid: 0,
                daemons: order.map(daemon).collect(),
            })
        };
        LabStatus {
            name: self.plan.name.clone(),
            supervisor_pid,
            managers: self.plan.managers(),
            hosts: self.plan.hosts.iter().filter_map(one).collect(),
            cuts: Vec::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: Input) -> Vec<Deed> {
        let mut deeds = Vec::new();
        match input {
            Input::Begin => {
                let names: Vec<String> = self.plan.hosts.iter().map(|host| host.name.clone()).collect();
                let targets = names.iter().map(|host| Target { host: host.clone(), daemon: None }).collect();
                self.waiting.push(Waiting { by: STARTER, what: Awaited::Started, targets });
                names.iter().for_each(|name| self.boot(name, &mut deeds));
            }
            Input::Asked { by, request } => self.asked(by, request, &mut deeds),
            Input::Left { by } => {
                self.waiting.retain(|waiting| waiting.by != by);
                if by == STARTER && !self.kept {
                    self.end("the command that was making the lab has gone", &mut deeds);
                }
            }
            Input::Said { host, event } => self.said(&host, event, &mut deeds),
            Input::Died { host } => self.died(&host, &mut deeds),
            Input::Failed { host, why } => self.failed(&host, why, &mut deeds),
            Input::End { why } => self.end(&why, &mut deeds),
        }
        self.settle(&mut deeds);
        deeds
    }

    /// A freezer has done its work on these hosts.
    pub fn frozen(&mut self, hosts: &[String], on: bool) {
        for name in hosts {
            if let Some(host) = self.hosts.get_mut(name) {
                host.power = if on { Power::Paused } else { Power::Up };
            }
        }
    }

    fn asked(&mut self, by: Client, request: Request, deeds: &mut Vec<Deed>) {
        if let Some(why) = self.ending.clone().filter(|_| request != Request::Down) {
            deeds.push(Deed::Reply(by, Reply::Refused(format!("lab {} is going down: {why}", self.plan.name))));
            return;
        }
        let done = match request {
            Request::Keep if by == STARTER => {
                self.kept = true;
                deeds.push(Deed::Reply(by, Reply::Done));
                Ok(())
            }
            Request::Keep => Err("only the command that made the lab can say that it stays".to_owned()),
            Request::Status => {
                deeds.push(Deed::Tally(by));
                Ok(())
            }
            Request::Down => {
                self.mourners.push(by);
                self.end("it was asked to", deeds);
                Ok(())
            }
            Request::Kill { targets } => self.kill(by, &targets, deeds),
            Request::Start { targets } => self.start(by, &targets, deeds),
            Request::Pause { hosts } => self.freeze(by, hosts, true, deeds),
            Request::Resume { hosts } => self.freeze(by, hosts, false, deeds),
            Request::Cut { host, other } => {
                self.check_pair(Some(&host), other.as_deref()).map(|()| deeds.push(Deed::Cut { by, host, other }))
            }
            Request::Heal { host, other } => {
                let checked = self.check_pair(host.as_deref(), other.as_deref());
                checked.map(|()| deeds.push(Deed::Heal { by, host, other }))
            }
        };
        if let Err(why) = done {
            deeds.push(Deed::Reply(by, Reply::Refused(why)));
        }
    }

    fn check_pair(&self, host: Option<&str>, other: Option<&str>) -> Result<(), String> {
        for name in [host, other].into_iter().flatten() {
            self.plan.host(name).map_err(|error| error.to_string())?;
        }
        match (host, other) {
            (Some(host), Some(other)) if host == other => Err(format!("{host} cannot be cut off from itself; name two hosts, or one")),
            (None, Some(_)) => Err("a pair needs both hosts".to_owned()),
            _ => Ok(()),
        }
    }

    fn targets(&self, texts: &[String]) -> Result<Vec<Target>, String> {
        texts.iter().map(|text| self.plan.target(text).map_err(|error| error.to_string())).collect()
    }

    fn host(&self, name: &str) -> Result<&Host, String> {
        self.hosts.get(name).ok_or_else(|| format!("there is no host {name}"))
    }

    /// Takes no target when one of them does not fit.
    fn kill(&mut self, by: Client, texts: &[String], deeds: &mut Vec<Deed>) -> Result<(), String> {
        let targets = self.targets(texts)?;
        for target in &targets {
            let (host, name) = (self.host(&target.host)?, &target.host);
            match target.daemon {
                None if matches!(host.power, Power::Off | Power::Dying) => return Err(format!("{name} is off already")),
                None => {}
                Some(daemon) => {
                    check_up(host)?;
                    let life = host.daemons.get(daemon).unwrap_or(&Life::Off);
                    if !matches!(life, Life::Running(_)) {
                        return Err(format!("{daemon} of {name} does not run: it is {}", life.word()));
                    }
                }
            }
        }
        for target in &targets {
            match target.daemon {
                None => self.cut_power(&target.host, deeds),
                Some(daemon) => deeds.push(Deed::Tell(target.host.clone(), HostCommand::Kill { daemon: daemon.to_owned() })),
            }
        }
        self.waiting.push(Waiting { by, what: Awaited::Killed, targets });
        Ok(())
    }

    fn start(&mut self, by: Client, texts: &[String], deeds: &mut Vec<Deed>) -> Result<(), String> {
        let targets = self.targets(texts)?;
        for target in &targets {
            let (host, name) = (self.host(&target.host)?, &target.host);
            match target.daemon {
                None if host.power != Power::Off => {
                    return Err(format!("{name} is {}; only a host that is off can be started", power_word(host.power)));
                }
                None => {}
                Some(daemon) => {
                    check_up(host)?;
                    if let Some(life @ Life::Running(_)) = host.daemons.get(daemon) {
                        return Err(format!("{daemon} of {name} is {}; kill it first", life.word()));
                    }
                }
            }
        }
        for target in &targets {
            match target.daemon {
                None => self.boot(&target.host, deeds),
                Some(daemon) => self.spawn(&target.host, daemon, deeds),
            }
        }
        self.waiting.push(Waiting { by, what: Awaited::Started, targets });
        Ok(())
    }

    fn freeze(&mut self, by: Client, hosts: Vec<String>, on: bool, deeds: &mut Vec<Deed>) -> Result<(), String> {
        for name in &hosts {
            let plan = self.plan.host(name).map_err(|error| error.to_string())?;
            let power = self.host(&plan.name)?.power;
            if power != (if on { Power::Up } else { Power::Paused }) {
                let needed = if on { "only a host that is up can be paused" } else { "only a paused host can be resumed" };
                return Err(format!("{name} is {}; {needed}", power_word(power)));
            }
        }
        deeds.push(Deed::Freeze { by, hosts, on });
        Ok(())
    }

    fn boot(&mut self, name: &str, deeds: &mut Vec<Deed>) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.power = Power::Booting;
            host.failure = None;
            deeds.push(Deed::Boot(name.to_owned()));
        }
    }

    fn cut_power(&mut self, name: &str, deeds: &mut Vec<Deed>) {
        if let Some(host) = self.hosts.get_mut(name)
            && !matches!(host.power, Power::Off | Power::Dying)
        {
            deeds.push(Deed::CutPower(name.to_owned()));
            host.power = Power::Dying;
        }
    }

    fn spawn(&mut self, name: &str, daemon: &'static str, deeds: &mut Vec<Deed>) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.daemons.insert(daemon, Life::Off);
            let words = self.plan.command(&host.plan, daemon);
            let log = log_file(&self.plan.name, name, daemon).to_string_lossy().into_owned();
            deeds.push(Deed::Tell(name.to_owned(), HostCommand::Spawn { daemon: daemon.to_owned(), words, log }));
        }
    }

    /// Loads the next image, or starts what waits for the last.
    fn load_or_run(&mut self, name: &str, deeds: &mut Vec<Deed>) {
        let Some(host) = self.hosts.get(name) else { return };
        match host.images.front() {
            Some(image) => {
                let words = self.plan.load_command(&host.plan, image);
                let log = log_file(&self.plan.name, name, LOADER).to_string_lossy().into_owned();
                deeds.push(Deed::Tell(name.to_owned(), HostCommand::Spawn { daemon: LOADER.to_owned(), words, log }));
            }
            None => {
                for daemon in host.plan.role.daemons() {
                    if *daemon != "netd" {
                        self.spawn(name, daemon, deeds);
                    }
                }
            }
        }
    }

    fn said(&mut self, name: &str, event: HostEvent, deeds: &mut Vec<Deed>) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        if host.power == Power::Dying || host.power == Power::Off {
            return;
        }
        match event {
            HostEvent::Unshared => {
                deeds.push(Deed::Plug(name.to_owned()));
                deeds.push(Deed::Tell(name.to_owned(), HostCommand::Furnish));
            }
            HostEvent::Ready => {
                host.power = Power::Up;
                if host.daemons.contains_key("netd") {
                    self.spawn(name, "netd", deeds);
                }
                self.load_or_run(name, deeds);
            }
            HostEvent::Spawned { daemon, pid } => {
                if let Some(life) = host.daemons.get_mut(daemon.as_str()) {
                    *life = Life::Running(pid);
                }
            }
            HostEvent::Exited { daemon, end } if daemon == LOADER => {
                if end.how == "code 0" {
                    host.images.pop_front();
                    self.load_or_run(name, deeds);
                } else {
                    let image = host.images.front().map(|image| image.display().to_string()).unwrap_or_default();
                    self.failed(name, format!("loading image {image} ended with {}", told(&end)), deeds);
                }
            }
            HostEvent::Exited { daemon, end } => {
                if let Some(life) = host.daemons.get_mut(daemon.as_str()) {
                    *life = Life::Exited(end);
                }
            }
            HostEvent::Failed { why } => self.failed(name, why, deeds),
        }
    }

    fn failed(&mut self, name: &str, why: String, deeds: &mut Vec<Deed>) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.failure = Some(why);
            if host.power == Power::Off {
                return;
            }
        }
        self.cut_power(name, deeds);
    }

    fn died(&mut self, name: &str, deeds: &mut Vec<Deed>) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        if host.power != Power::Dying && host.failure.is_none() {
            host.failure = Some("its init ended although nobody cut its power".to_owned());
        }
        host.power = Power::Off;
        host.daemons.values_mut().for_each(|life| *life = Life::Off);
        deeds.push(Deed::Clear(name.to_owned()));
    }

    fn end(&mut self, why: &str, deeds: &mut Vec<Deed>) {
        if self.ending.is_none() {
            self.ending = Some(why.to_owned());
            let names: Vec<String> = self.hosts.keys().cloned().collect();
            names.iter().for_each(|name| self.cut_power(name, deeds));
        }
    }

    /// Answers who has what they wait for, or cannot get it.
    fn settle(&mut self, deeds: &mut Vec<Deed>) {
        let waiting = std::mem::take(&mut self.waiting);
        for waiter in waiting {
            let answer = match self.ending.clone() {
                Some(why) => Some(Err(format!("lab {} is going down: {why}", self.plan.name))),
                None => self.outcome(&waiter),
            };
            match answer {
                None => self.waiting.push(waiter),
                Some(Ok(())) => deeds.push(Deed::Reply(waiter.by, Reply::Done)),
                Some(Err(why)) => {
                    deeds.push(Deed::Reply(waiter.by, Reply::Refused(why.clone())));
                    if waiter.by == STARTER {
                        self.end(&why, deeds);
                    }
                }
            }
        }
        let all_off = self.hosts.values().all(|host| host.power == Power::Off);
        if self.ending.is_some() && all_off && !self.finished {
            self.finished = true;
            deeds.push(Deed::Finish(std::mem::take(&mut self.mourners)));
        }
    }

    fn outcome(&self, waiter: &Waiting) -> Option<Result<(), String>> {
        let mut all_done = true;
        for target in &waiter.targets {
            match self.one_outcome(&waiter.what, target) {
                Some(Ok(())) => {}
                None => all_done = false,
                Some(Err(why)) => return Some(Err(why)),
            }
        }
        all_done.then_some(Ok(()))
    }

    fn one_outcome(&self, what: &Awaited, target: &Target) -> Option<Result<(), String>> {
        let host = self.hosts.get(&target.host)?;
        let name = &target.host;
        match (what, target.daemon) {
            (Awaited::Killed, None) => (host.power == Power::Off).then_some(Ok(())),
            (Awaited::Killed, Some(daemon)) => {
                let runs = matches!(host.daemons.get(daemon), Some(Life::Running(_)));
                (!runs).then_some(Ok(()))
            }
            (Awaited::Started, daemon) => {
                if let Some(why) = &host.failure {
                    return Some(Err(format!("host {name}: {why}")));
                }
                if host.power == Power::Off || host.power == Power::Dying {
                    return Some(Err(format!("the power of {name} was cut")));
                }
                let wanted = host.daemons.iter().filter(|(known, _)| daemon.is_none_or(|daemon| daemon == **known));
                let mut all_run = host.power == Power::Up || host.power == Power::Paused;
                for (known, life) in wanted {
                    match life {
                        Life::Running(_) => {}
                        Life::Off => all_run = false,
                        Life::Exited(end) => return Some(Err(format!("{known} of {name} ended with {}", told(end)))),
                    }
                }
                all_run.then_some(Ok(()))
            }
        }
    }
}

fn check_up(host: &Host) -> Result<(), String> {
    match host.power {
        Power::Up => Ok(()),
        other => Err(format!("{} is {}; its daemons can be killed and started only while it is up", host.plan.name, power_word(other))),
    }
}

fn power_word(power: Power) -> &'static str {
    match power {
        Power::Off | Power::Dying => "off",
        Power::Booting => "booting",
        Power::Up => "up",
        Power::Paused => "paused",
    }
}

fn told(end: &Exit) -> String {
    if end.last_words.is_empty() { end.how.clone() } else { format!("{}:\n{}", end.how, end.last_words) }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
