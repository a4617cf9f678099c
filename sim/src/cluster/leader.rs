//! The managers' end: a brain on whoever leads, driven as `drive::shell` drives it, and the agents' sessions as `rpc::dispatcher` holds
//! them.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rand::Rng;
use rcluster_api::error::ErrorCode;
use rcluster_api::id::NodeId;
use rcluster_manager::core::dispatch::leave::Leave;
use rcluster_manager::core::dispatch::netview::Networks;
use rcluster_manager::core::dispatch::told::Told;
use rcluster_manager::core::node::liveness::Timing;
use rcluster_manager::core::state::State;
use rcluster_manager::drive::{Brain, BrainEvent, Effect, Moment};
use rcluster_manager::store::{ProposeError, RoleKind};

use super::session::{Down, Packet, Up};
use super::users::Asked;
use super::{Cluster, Event, Here};
use crate::check::Violation;
use crate::host::{Host, Process};

/// What a session waits for an answer at most, in heartbeats; as the dispatcher says.
const SESSION_TIMEOUT_BEATS: u64 = 2;
/// More turns at one time are a loop.
const TURNS_AT_ONCE_MAX: usize = 100;

type Proposal = Pin<Box<dyn Future<Output = Result<u64, ProposeError>>>>;

/// A manager's end of a session.
struct End {
    node: NodeId,
    told: Told,
    heard_us: u64,
}

/// A term on a host.
pub struct Lead {
    term: u64,
    life: u64,
    brain: Brain<Asked, u64>,
    proposal: Option<Proposal>,
    ends: BTreeMap<u64, End>,
    leave: Leave,
    /// Something has come in since the last turn.
    is_due: bool,
    /// The revision that the last turn saw, and the one that the nodes were told of.
    seen: u64,
    told: u64,
    /// More tasks are released than the nodes were told of.
    releases: bool,
    /// When it is woken next.
    wakes_us: u64,
}

fn moment(host: usize, at: &Host, now_us: u64, skew_ms: i64) -> Moment {
    let skew_ms = if host.is_multiple_of(2) { skew_ms } else { -skew_ms };
    Moment { monotonic: at.clock.show(now_us), unix_ms: Cluster::unix_ms(now_us, skew_ms) }
}

impl Cluster {
    /// Whoever leads has a brain; called after each round of a host's store.
    pub fn look(&mut self, host: usize, here: &mut Here<'_>) -> Result<(), Violation> {
        self.check_commits(here)?;
        let life = here.hosts[host].life;
        let role = here.hosts[host].process.as_ref().map(|process| process.store.role().borrow().clone());
        let leads = role.filter(|role| role.kind == RoleKind::Leader).map(|role| role.term);
        if let Some(lead) = self.leads.get(&host)
            && (lead.life != life || leads != Some(lead.term))
        {
            self.dethrone(host, lead.life == life, here);
        }
        if let (Some(term), None, Some(process)) = (leads, self.leads.get(&host), &here.hosts[host].process) {
            here.tell(|| format!("{} has a brain in term {term}", here.hosts[host].name));
            self.counts.brains += 1;
            let (store, now) = (&process.store, moment(host, &here.hosts[host], here.now_us, self.plan.skew_ms));
            let brain = Brain::new(store.state(), store.status().answered_by, term, Timing::default(), now);
            let ends = BTreeMap::new();
            let (leave, releases) = (Leave::default(), false);
            let lead =
                Lead { term, life, brain, proposal: None, ends, leave, is_due: true, seen: 0, told: 0, releases, wakes_us: u64::MAX };
            self.leads.insert(host, lead);
        }
        self.think(host, here)
    }

    /// A term is over; whether the process lives on and tells its agents.
    fn dethrone(&mut self, host: usize, lives: bool, here: &Here<'_>) {
        let Some(lead) = self.leads.remove(&host) else { return };
        here.tell(|| format!("{} leads no more in term {}", here.hosts[host].name, lead.term));
        for session in lead.ends.into_keys() {
            // A host that has lost its power closes no connection.
            if lives || self.chance.random_bool(0.5) {
                self.send(session, Packet::Down(Down::End), here);
            }
        }
    }

    /// A host's process has ended.
    pub fn lost(&mut self, host: usize, here: &Here<'_>) {
        self.dethrone(host, false, here);
    }

    pub(super) fn wake(&mut self, host: usize, life: u64, here: &mut Here<'_>) -> Result<(), Violation> {
        if let Some(lead) = self.leads.get_mut(&host).filter(|lead| lead.life == life) {
            if lead.wakes_us <= here.now_us {
                lead.wakes_us = u64::MAX;
            }
            return self.think(host, here);
        }
        Ok(())
    }

    /// Tells a brain something.
    pub(super) fn tell_brain(&mut self, host: usize, event: BrainEvent<Asked, u64>, here: &Here<'_>) {
        let now = moment(host, &here.hosts[host], here.now_us, self.plan.skew_ms);
        let Some(lead) = self.leads.get_mut(&host) else { return };
        lead.brain.take(now, event);
        lead.is_due = true;
        let life = lead.life;
        self.later(here.now_us, Event::Wake { host, life });
    }

    /// What the shell of a brain does, up to where it waits.
    fn think(&mut self, host: usize, here: &mut Here<'_>) -> Result<(), Violation> {
        let at = &here.hosts[host];
        let Some(process) = &at.process else { return Ok(()) };
        if at.frozen_until_us > here.now_us {
            let Some(lead) = self.leads.get(&host) else { return Ok(()) };
            let event = Event::Wake { host, life: lead.life };
            self.later(at.frozen_until_us, event);
            return Ok(());
        }
        for _ in 0..TURNS_AT_ONCE_MAX {
            let Some(effects) = self.turn(host, process, here) else { return self.settle(host, process, here) };
            for effect in effects {
                self.carry_effect(host, process, effect, here)?;
            }
        }
        Err(Violation(format!("the brain on {} goes in a circle", at.name)))
    }

    /// One turn of a brain, or what has become of its proposal; `None` when it has to wait.
    fn turn(&mut self, host: usize, process: &Process, here: &Here<'_>) -> Option<Vec<Effect<Asked, u64>>> {
        let now = moment(host, &here.hosts[host], here.now_us, self.plan.skew_ms);
        let lead = self.leads.get_mut(&host)?;
        if let Some(proposal) = &mut lead.proposal {
            let Poll::Ready(outcome) = proposal.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { return None };
            lead.proposal = None;
            return Some(lead.brain.proposed(now, outcome));
        }
        let state = process.store.state();
        let is_due = lead.is_due || state.revision() != lead.seen || lead.brain.wake_at().is_some_and(|at| at <= now.monotonic);
        if !is_due || lead.brain.is_over() {
            return None;
        }
        (lead.is_due, lead.seen) = (false, state.revision());
        Some(lead.brain.turn(now, state, self.chance.random()))
    }

    fn carry_effect(&mut self, host: usize, process: &Process, effect: Effect<Asked, u64>, here: &mut Here<'_>) -> Result<(), Violation> {
        match effect {
            Effect::Propose(transaction) => {
                let store = process.store.clone();
                if let Some(lead) = self.leads.get_mut(&host) {
                    lead.proposal = Some(Box::pin(async move { store.propose(transaction).await }));
                }
                self.asked.insert(host);
                Ok(())
            }
            Effect::Answer(asked, outcome, _) => self.answered(&asked, outcome, here),
            Effect::Registered(session, Err(refusal)) => {
                // As the agent takes the codes.
                let is_final = matches!(refusal.code, ErrorCode::Invalid | ErrorCode::Forbidden);
                let down = if is_final { Down::Refused } else { Down::End };
                self.send(session, Packet::Down(down), here);
                Ok(())
            }
            Effect::Registered(session, Ok(())) => {
                let managers = process.store.status().members.into_iter().map(|member| member.addr).collect();
                let Some(agent) = self.sessions.get(&session).map(|connection| connection.agent) else { return Ok(()) };
                let (node, timing) = (self.agents[agent].id(), Timing::default());
                let welcome =
                    Down::Welcome { heartbeat_ms: timing.heartbeat_ms, timeout_ms: timing.heartbeat_ms * SESSION_TIMEOUT_BEATS, managers };
                self.send(session, Packet::Down(welcome), here);
                if let Some(lead) = self.leads.get_mut(&host) {
                    lead.leave.begin(&node, session);
                    lead.ends.insert(session, End { node, told: Told::default(), heard_us: here.now_us });
                    // It is told all that there is.
                    lead.told = 0;
                }
                Ok(())
            }
        }
    }

    /// Tells the nodes what has changed, and says when the brain is to be woken.
    fn settle(&mut self, host: usize, process: &Process, here: &Here<'_>) -> Result<(), Violation> {
        let (state, silence_us) = (process.store.state(), Timing::default().down_ms * 1000);
        let Some(lead) = self.leads.get_mut(&host) else { return Ok(()) };
        lead.ends.retain(|session, end| {
            let stays = end.heard_us + silence_us >= here.now_us;
            if !stays {
                lead.leave.end(&end.node, *session);
            }
            stays
        });
        let mut news = Vec::new();
        if lead.told != state.revision() {
            lead.told = state.revision();
            let networks = networks(&mut self.networks, &state);
            for (session, end) in &mut lead.ends {
                news.extend(end.told.news(&state, networks, &end.node, lead.term).into_iter().map(|kind| (*session, kind)));
                lead.leave.compared(&end.node, *session, networks, end.told.view());
            }
            // A node that has connected anew is also told of those that were released before.
            lead.releases = true;
        }
        if std::mem::take(&mut lead.releases) {
            for (session, end) in &mut lead.ends {
                news.extend(end.told.release(lead.leave.released(&end.node), lead.term).map(|kind| (*session, kind)));
            }
        }
        if let Some(wake_at) = lead.brain.wake_at() {
            let clock = &here.hosts[host].clock;
            let at_us = here.now_us + clock.lasts(wake_at.saturating_sub(clock.show(here.now_us))) + 1;
            if at_us < lead.wakes_us {
                lead.wakes_us = at_us;
                let life = lead.life;
                self.out.push((at_us, Event::Wake { host, life }));
            }
        }
        for (session, kind) in news {
            self.send(session, Packet::Down(Down::News(Box::new(kind))), here);
        }
        Ok(())
    }

    /// What an agent says has arrived.
    pub(super) fn hear(&mut self, session: u64, up: Up, here: &mut Here<'_>) -> Result<(), Violation> {
        let Some((host, life)) = self.sessions.get(&session).map(|connection| (connection.host, connection.life)) else { return Ok(()) };
        let at = &here.hosts[host];
        let Some(process) = at.process.as_ref().filter(|_| at.life == life) else {
            // Nobody listens there; a host without power does not even say that.
            if self.chance.random_bool(0.5) {
                self.send(session, Packet::Down(Down::End), here);
            }
            return Ok(());
        };
        if at.frozen_until_us > here.now_us {
            self.later(at.frozen_until_us, Event::Arrive { session, packet: Packet::Up(up) });
            return Ok(());
        }
        if let Up::Register(registration, reports) = up {
            if !self.leads.contains_key(&host) {
                let leader = process.store.role().borrow().leader.clone();
                self.send(session, Packet::Down(Down::Redirect(leader.map(|leader| leader.addr))), here);
                return Ok(());
            }
            self.tell_brain(host, BrainEvent::Register { registration, reports, from: session }, here);
            return Ok(());
        }
        let at = at.clock.show(here.now_us);
        let Some(end) = self.leads.get_mut(&host).and_then(|lead| lead.ends.get_mut(&session)) else { return Ok(()) };
        end.heard_us = here.now_us;
        let node = end.node.clone();
        self.tell_brain(host, BrainEvent::Heard { node: node.clone(), at }, here);
        match up {
            Up::Beat(beat) => self.send(session, Packet::Down(Down::Ack(beat)), here),
            Up::Reports(reports) => self.tell_brain(host, BrainEvent::Reports { node, reports }, here),
            Up::Applied(mark) => {
                if let Some(lead) = self.leads.get_mut(&host) {
                    lead.releases |= lead.leave.acknowledged(&node, session, mark);
                }
            }
            Up::Register(..) => {}
            Up::Close => {
                if let Some(lead) = self.leads.get_mut(&host) {
                    lead.ends.remove(&session);
                    lead.leave.end(&node, session);
                }
                self.sessions.remove(&session);
            }
        }
        Ok(())
    }

    /// A host that has a brain.
    pub(super) fn any_lead(&mut self) -> Option<usize> {
        let hosts: Vec<usize> = self.leads.keys().copied().collect();
        (!hosts.is_empty()).then(|| hosts[self.chance.random_range(0..hosts.len())])
    }

    /// How the brain that leads sees it: whether all is done that it has to do.
    pub(super) fn check_lead(&self, host: usize) -> Result<(), String> {
        let lead = self.leads.get(&host).ok_or("nobody has a brain")?;
        let known: Vec<&NodeId> = lead.ends.values().map(|end| &end.node).collect();
        match self.agents.iter().find(|agent| !known.contains(&&agent.id())) {
            Some(agent) => Err(format!("{} has no session with the leader", agent.name)),
            None => Ok(()),
        }
    }
}

/// The networks of a state, made once for it.
fn networks<'a>(kept: &'a mut Option<Arc<Networks>>, state: &State) -> &'a Arc<Networks> {
    if let Some(known) = kept.as_mut().filter(|known| known.revision() != state.revision()) {
        *known = Arc::new(Networks::after(Some(&**known), state));
    }
    kept.get_or_insert_with(|| Arc::new(Networks::new(state)))
}
