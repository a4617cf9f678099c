//! The agents' sessions: the wires, and the agent's end.
//!
//! A wire is a stream as TCP makes it: in order, held back while the link carries nothing, and gone with its connection.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rand::Rng;
use rcluster_agent::core::beat::{Beats, news};
use rcluster_agent::core::owner::{Deed, Statuses};
use rcluster_api::id::TaskId;
use rcluster_api::object::{NodeDescription, TaskStatus};
use rcluster_api::resource::{Bytes, Cpus};
use rcluster_api::wire::v1::manager_message::Kind;
use rcluster_manager::core::dispatch::leave::Mark;
use rcluster_manager::core::node::register::Registration;

use super::{Cluster, Event, FIRST_AGENT, Here};
use crate::check::Violation;

/// How soon what was held back is tried again.
const AGAIN_US: u64 = 200_000;
/// How long an agent waits for a manager's first word.
const ANSWER_US: u64 = 2_000_000;
/// The pause after a manager that refuses the node.
const REFUSED_US: u64 = 5_000_000;
/// A session that ends sooner counts as one more attempt in vain.
const SHORT_US: u64 = 2_000_000;

/// What goes from an agent to a manager.
#[derive(Debug, Clone)]
pub enum Up {
    Register(Box<Registration>, Vec<(TaskId, TaskStatus)>),
    Beat(u64),
    Reports(Vec<(TaskId, TaskStatus)>),
    /// The view that the node holds.
    Applied(Mark),
    Close,
}

/// What goes back.
#[derive(Debug, Clone)]
pub enum Down {
    Welcome {
        heartbeat_ms: u64,
        timeout_ms: u64,
        managers: Vec<String>,
    },
    /// To the leader, if it is known.
    Redirect(Option<String>),
    Refused,
    Ack(u64),
    News(Box<Kind>),
    End,
}

#[derive(Debug, Clone)]
pub enum Packet {
    Up(Up),
    Down(Down),
}

/// One direction.
#[derive(Debug, Default)]
pub struct Wire {
    waiting: VecDeque<Packet>,
    is_moving: bool,
    /// When the last packet arrives.
    last_us: u64,
}

/// A connection of an agent with a manager's process.
#[derive(Debug)]
pub struct Session {
    pub agent: usize,
    pub host: usize,
    /// The process of the host that has it.
    pub life: u64,
    up: Wire,
    down: Wire,
    agent_gone: bool,
}

/// What an agent waits for.
#[derive(Debug, Clone, Copy)]
pub enum Timer {
    Seek { attempt: u64 },
    Beat { session: u64 },
    Deadline { session: u64 },
}

/// Where an agent is with its managers.
#[derive(Debug)]
pub enum Link {
    None,
    /// With what the manager is told at registration.
    Trying {
        session: u64,
        told: Statuses,
    },
    Open {
        session: u64,
        beats: Beats,
        told: Statuses,
        heartbeat_us: u64,
        begun_us: u64,
    },
}

/// How a session, or the attempt at one, has ended.
enum End {
    Lost,
    Redirected(String),
    Refused,
}

impl Cluster {
    /// Puts a packet on a session's wire.
    pub(super) fn send(&mut self, session: u64, packet: Packet, here: &Here<'_>) {
        let Some(connection) = self.sessions.get_mut(&session) else { return };
        let up = matches!(packet, Packet::Up(_));
        let wire = if up { &mut connection.up } else { &mut connection.down };
        wire.waiting.push_back(packet);
        if !std::mem::replace(&mut wire.is_moving, true) {
            self.later(here.now_us, Event::Move { session, up });
        }
    }

    /// The first packet of a wire goes on its way, if the link carries it.
    pub(super) fn carry(&mut self, session: u64, up: bool, here: &mut Here<'_>) {
        let Some(connection) = self.sessions.get_mut(&session) else { return };
        let (agent, host) = (FIRST_AGENT + connection.agent, connection.host);
        let link = if up { (agent, host) } else { (host, agent) };
        if here.network.is_cut(link) || here.network.is_cut((link.1, link.0)) || self.chance.random_bool(self.plan.loss) {
            if connection.agent_gone {
                // Nobody sends it again.
                self.sessions.remove(&session);
            } else {
                self.later(here.now_us + AGAIN_US, Event::Move { session, up });
            }
            return;
        }
        let wire = if up { &mut connection.up } else { &mut connection.down };
        let Some(packet) = wire.waiting.pop_front() else { return };
        let at_us = (here.now_us + here.network.latency()).max(wire.last_us);
        wire.last_us = at_us;
        wire.is_moving = !wire.waiting.is_empty();
        if wire.is_moving {
            self.later(here.now_us, Event::Move { session, up });
        }
        self.later(at_us, Event::Arrive { session, packet });
    }

    pub(super) fn arrive(&mut self, session: u64, packet: Packet, here: &mut Here<'_>) -> Result<(), Violation> {
        match packet {
            Packet::Up(up) => self.hear(session, up, here),
            Packet::Down(down) => {
                let Some(agent) =
                    self.sessions.get(&session).filter(|connection| !connection.agent_gone).map(|connection| connection.agent)
                else {
                    return Ok(());
                };
                self.listen(agent, session, down, here)
            }
        }
    }

    /// An agent looks for the leader, once more.
    fn seek(&mut self, agent: usize, here: &mut Here<'_>) {
        let Some(process) = &mut self.agents[agent].process else { return };
        process.attempts += 1;
        let (attempt, life) = (process.attempts, self.agents[agent].life);
        let Some(process) = &mut self.agents[agent].process else { return };
        let Some(address) = process.seek.turn() else {
            let pause_us = self.chance.random_range(50_000..=500_000);
            self.later(here.now_us + pause_us, Event::Timer { agent, life, timer: Timer::Seek { attempt } });
            return;
        };
        self.sessions_made += 1;
        let session = self.sessions_made;
        let statuses = process.statuses.clone();
        process.link = Link::Trying { session, told: statuses.clone() };
        let host = here.hosts.iter().position(|host| address.split(':').next() == Some(&host.name)).unwrap_or_default();
        let registration = Registration {
            id: self.agents[agent].id(),
            incarnation: self.agents[agent].incarnation,
            description: describe(agent),
            tasks: statuses.keys().cloned().collect(),
        };
        let connection =
            Session { agent, host, life: here.hosts[host].life, up: Wire::default(), down: Wire::default(), agent_gone: false };
        self.sessions.insert(session, connection);
        self.send(session, Packet::Up(Up::Register(Box::new(registration), statuses.into_iter().collect())), here);
        self.later(here.now_us + ANSWER_US, Event::Timer { agent, life, timer: Timer::Deadline { session } });
    }

    pub(super) fn ring(&mut self, agent: usize, life: u64, timer: Timer, here: &mut Here<'_>) -> Result<(), Violation> {
        if self.agents[agent].life != life {
            return Ok(());
        }
        let Some(process) = &mut self.agents[agent].process else { return Ok(()) };
        let now = Duration::from_micros(here.now_us);
        match (timer, &mut process.link) {
            (Timer::Seek { attempt }, Link::None) if attempt == process.attempts => self.seek(agent, here),
            (Timer::Deadline { session }, Link::Trying { session: current, .. }) if session == *current => {
                self.lose(agent, End::Lost, here)
            }
            (Timer::Deadline { session }, Link::Open { session: current, beats, .. }) if session == *current => {
                let deadline = beats.deadline();
                if deadline <= now {
                    here.tell(|| format!("n{} has no answer any more", agent + 1));
                    self.lose(agent, End::Lost, here);
                } else {
                    let at_us = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX);
                    self.later(at_us, Event::Timer { agent, life, timer });
                }
            }
            (Timer::Beat { session }, Link::Open { session: current, beats, heartbeat_us, .. }) if session == *current => {
                let (beat, heartbeat_us) = (beats.send(now), *heartbeat_us);
                self.send(session, Packet::Up(Up::Beat(beat)), here);
                self.later(here.now_us + heartbeat_us, Event::Timer { agent, life, timer });
            }
            _ => {}
        }
        Ok(())
    }

    /// The agent's end of a session is over.
    fn lose(&mut self, agent: usize, end: End, here: &mut Here<'_>) {
        let life = self.agents[agent].life;
        let Some(process) = &mut self.agents[agent].process else { return };
        let link = std::mem::replace(&mut process.link, Link::None);
        let (session, mut pause_us) = match link {
            Link::None => return,
            Link::Trying { session, .. } => (session, 0),
            Link::Open { session, begun_us, .. } => {
                let pause_us = if here.now_us - begun_us < SHORT_US { self.chance.random_range(50_000..=500_000) } else { 0 };
                (session, pause_us)
            }
        };
        match end {
            End::Lost => {}
            End::Redirected(leader) => process.seek.redirected(leader),
            End::Refused => pause_us = REFUSED_US,
        }
        process.attempts += 1;
        let attempt = process.attempts;
        self.send(session, Packet::Up(Up::Close), here);
        if let Some(connection) = self.sessions.get_mut(&session) {
            connection.agent_gone = true;
        }
        self.later(here.now_us + pause_us.max(1_000), Event::Timer { agent, life, timer: Timer::Seek { attempt } });
    }

    /// An agent's process has ended; whether its host lives and says so to the other end.
    pub(super) fn hang_up(&mut self, agent: usize, says_so: bool, here: &Here<'_>) {
        let Some(process) = &self.agents[agent].process else { return };
        let (Link::Trying { session, .. } | Link::Open { session, .. }) = process.link else { return };
        if says_so {
            self.send(session, Packet::Up(Up::Close), here);
        }
        if let Some(connection) = self.sessions.get_mut(&session) {
            connection.agent_gone = true;
        }
    }

    /// What a manager says.
    fn listen(&mut self, agent: usize, session: u64, down: Down, here: &mut Here<'_>) -> Result<(), Violation> {
        let life = self.agents[agent].life;
        let now = Duration::from_micros(here.now_us);
        let host = self.sessions.get(&session).map(|connection| connection.host).unwrap_or_default();
        let Some(process) = &mut self.agents[agent].process else { return Ok(()) };
        let is_current =
            matches!(&process.link, Link::Trying { session: current, .. } | Link::Open { session: current, .. } if *current == session);
        if !is_current {
            return Ok(());
        }
        match down {
            Down::Welcome { heartbeat_ms, timeout_ms, managers } => {
                let Link::Trying { told, .. } = std::mem::replace(&mut process.link, Link::None) else { return Ok(()) };
                process.seek.welcomed(&format!("{}:7400", here.hosts[host].name), &managers);
                let mut beats = Beats::new(now);
                beats.welcomed(Duration::from_millis(timeout_ms), now);
                let heartbeat_us = heartbeat_ms * 1000;
                process.link = Link::Open { session, beats, told, heartbeat_us, begun_us: here.now_us };
                self.counts.sessions += 1;
                for timer in [Timer::Beat { session }, Timer::Deadline { session }] {
                    self.later(here.now_us, Event::Timer { agent, life, timer });
                }
                self.report(agent, here);
            }
            Down::Redirect(Some(leader)) => self.lose(agent, End::Redirected(leader), here),
            Down::Refused => self.lose(agent, End::Refused, here),
            Down::Redirect(None) | Down::End => self.lose(agent, End::Lost, here),
            Down::Ack(beat) => {
                if let Link::Open { beats, .. } = &mut process.link {
                    beats.answered(beat);
                }
            }
            Down::News(kind) => return self.take_news(agent, session, *kind, here),
        }
        Ok(())
    }

    fn take_news(&mut self, agent: usize, session: u64, news: Kind, here: &mut Here<'_>) -> Result<(), Violation> {
        let Some(process) = &mut self.agents[agent].process else { return Ok(()) };
        match news {
            // A netd obeys at once.
            Kind::View(view) => self.send(session, Packet::Up(Up::Applied((view.term, view.revision))), here),
            Kind::Assignments(set) => {
                if process.owner.newer_than(&set).is_some() {
                    return Ok(());
                }
                let ids: BTreeSet<&str> = set.tasks.iter().filter_map(|task| task.meta.as_ref()).map(|meta| meta.id.as_str()).collect();
                process.released.retain(|id| ids.contains(id.as_str()));
                self.agents[agent].set = Some(set.clone());
                let deeds = self.take_set(agent, set, here);
                self.carry_out(agent, deeds, here)?;
            }
            Kind::Released(released) => {
                for id in released.task_ids.into_iter().map(TaskId::from) {
                    self.release(agent, &id, here)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The managers' whole set, as the owner takes it.
    pub(super) fn take_set(&mut self, agent: usize, set: rcluster_api::wire::v1::Assignments, here: &Here<'_>) -> Vec<Deed> {
        let skew_ms = self.agents[agent].skew_ms;
        let Some(process) = &mut self.agents[agent].process else { return Vec::new() };
        let (deeds, _) = process.owner.take(set, Self::unix_ms(here.now_us, skew_ms), &mut process.statuses);
        deeds
    }

    /// Tells the manager what it has not been told.
    pub(super) fn report(&mut self, agent: usize, here: &Here<'_>) {
        let Some(process) = &mut self.agents[agent].process else { return };
        let Link::Open { session, told, .. } = &mut process.link else { return };
        let (session, reports) = (*session, news(told, &process.statuses));
        if !reports.is_empty() {
            self.send(session, Packet::Up(Up::Reports(reports)), here);
        }
    }

    /// An agent that has just started begins to look for its managers.
    pub(super) fn begin_to_seek(&mut self, agent: usize, here: &mut Here<'_>) {
        self.seek(agent, here);
    }
}

fn describe(agent: usize) -> NodeDescription {
    NodeDescription {
        name: format!("n{}", agent + 1),
        addr: format!("10.0.0.{}", agent + 1),
        capacity: rcluster_api::object::Capacity { cpus: Cpus(64_000), memory: Bytes(1 << 40) },
        ..NodeDescription::default()
    }
}
