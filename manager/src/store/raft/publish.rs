//! What the owner thread lets everyone else see: tables, revision, role, status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use imbl::OrdMap;
use raft::{Raft, StateRole};
use rcluster_api::cluster::Manager;
use rcluster_api::id::ManagerId;
use tokio::sync::watch;
use tracing::info;

use super::log::LogStore;
use super::storage::Storage;
use super::{Introduction, Transport, Watchdog};
use crate::core::state::State;
use crate::store::{ClusterStatus, Configuration, Member, MemberStatus, Role, RoleKind, StoreConfig};

/// Most managers that are known from what they say alone.
const INTRODUCED_MAX: usize = 16;
/// A peer heard this recently is reachable.
const REACHABLE: Duration = Duration::from_secs(1);

/// The public side of a node.
#[derive(Debug)]
pub struct Publisher {
    own: u64,
    name: String,
    /// By Raft id.
    members: Vec<Member>,
    /// Where they were taken from.
    managers: OrdMap<ManagerId, Arc<Manager>>,
    /// Those of which the tables do not know yet what they say themselves, by Raft id.
    introduced: BTreeMap<u64, Introduction>,
    state: Arc<ArcSwap<State>>,
    status: Arc<ArcSwap<ClusterStatus>>,
    revision: watch::Sender<u64>,
    role: watch::Sender<Role>,
    watchdog: Arc<Watchdog>,
    heard: BTreeMap<u64, Duration>,
    writes_us: BTreeMap<u64, u64>,
}

impl Publisher {
    /// Publishes through these.
    pub fn new(
        config: &StoreConfig,
        state: Arc<ArcSwap<State>>,
        status: Arc<ArcSwap<ClusterStatus>>,
        revision: watch::Sender<u64>,
        role: watch::Sender<Role>,
    ) -> Self {
        let (own, name, members) = (config.id, config.name.clone(), config.seeds.clone());
        let watchdog = Arc::new(Watchdog::new(config.timing, role.clone(), status.clone()));
        Self {
            own,
            name,
            members,
            managers: OrdMap::new(),
            introduced: BTreeMap::new(),
            state,
            status,
            revision,
            role,
            watchdog,
            heard: BTreeMap::new(),
            writes_us: BTreeMap::new(),
        }
    }

    /// Takes the role back from one who leads and does not come back to publish it.
    pub fn watchdog(&self) -> &Arc<Watchdog> {
        &self.watchdog
    }

    /// The managers as the tables have them, or say themselves where those are older; those known from joining until the tables have come.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Version of this manager's own object; 0 until the tables have come.
    pub fn version(&self) -> u64 {
        self.managers.values().find(|manager| manager.raft_id == self.own).map_or(0, |manager| manager.stamp.version)
    }

    /// A member by id.
    pub fn member(&self, id: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// A message from `id` has come.
    pub fn hear(&mut self, id: u64, now: Duration) {
        self.heard.insert(id, now);
    }

    /// `id` says how long its last write to the log took.
    pub fn hear_write(&mut self, id: u64, write_us: u64) {
        self.writes_us.insert(id, write_us);
    }

    /// Whether `id` was heard lately.
    pub fn is_heard(&self, id: u64, now: Duration) -> bool {
        self.heard.get(&id).is_some_and(|at| now.saturating_sub(*at) < REACHABLE)
    }

    /// The tables first, then word of them. True: there are other members now.
    pub fn publish_state(&mut self, state: &State) -> bool {
        self.state.store(Arc::new(state.clone()));
        let revision = state.revision();
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        let managers = state.managers();
        if managers.is_empty() || self.managers.ptr_eq(managers) {
            return false;
        }
        self.managers = managers.clone();
        let made = state.cluster().map_or(0, |cluster| cluster.managers_made);
        let managers = &self.managers;
        self.introduced.retain(|id, said| {
            let known = managers.values().find(|manager| manager.raft_id == *id);
            known.map_or(*id > made, |manager| manager.stamp.version < said.version)
        });
        self.gather()
    }

    /// A manager says where it is. True: there are other members now.
    pub fn introduce(&mut self, said: Introduction) -> bool {
        let id = said.member.id;
        let known = self.introduced.get(&id).map(|known| known.version);
        let news = known.map_or(self.introduced.len() < INTRODUCED_MAX, |known| known < said.version);
        if news {
            self.introduced.insert(id, said);
        }
        news && self.gather()
    }

    /// The members from the tables and from what they say themselves. True: they are others than before.
    fn gather(&mut self) -> bool {
        let member = |manager: &Arc<Manager>| Member { id: manager.raft_id, name: manager.name.clone(), addr: manager.addr.clone() };
        let known: Vec<Member> = match self.managers.is_empty() {
            true => self.members.clone(),
            false => self.managers.values().map(member).collect(),
        };
        let said = self.introduced.values().map(|said| said.member.clone());
        let members: BTreeMap<u64, Member> = known.into_iter().chain(said).map(|member| (member.id, member)).collect();
        let members: Vec<Member> = members.into_values().collect();
        let changed = self.members != members;
        self.members = members;
        changed
    }

    /// Whether the role is news.
    pub fn publish_role<L: LogStore>(&self, raft: &Raft<Storage<L>>) -> bool {
        let kind = role(raft);
        let leader = self.member(raft.leader_id).filter(|leader| kind == RoleKind::Leader || leader.id != self.own);
        {
            let known = self.role.borrow();
            // Nearly always: this is asked after each round.
            if (known.term, known.kind, known.leader.as_ref()) == (raft.term, kind, leader) {
                return false;
            }
        }
        let role = Role { term: raft.term, kind, leader: leader.cloned() };
        let changed = self.role.send_if_modified(|known| {
            let changes = *known != role;
            known.clone_from(&role);
            changes
        });
        if changed {
            let leader = role.leader.map(|leader| leader.name).unwrap_or_default();
            info!(role = kind.as_str(), term = role.term, leader, "raft");
        }
        changed
    }

    /// The cluster as it looks from here.
    pub fn publish_status<L: LogStore>(&self, raft: &Raft<Storage<L>>, transport: &impl Transport, now: Duration) {
        let leads = raft.state == StateRole::Leader;
        let configuration = configuration(raft);
        let members = self.members.iter().map(|member| {
            let own = member.id == self.own;
            let kind = match (own, member.id == raft.leader_id) {
                (true, _) => role(raft),
                (false, true) => RoleKind::Leader,
                (false, false) => RoleKind::Follower,
            };
            let among_followers = !leads && member.id != raft.leader_id;
            MemberStatus {
                id: member.id,
                name: member.name.clone(),
                addr: member.addr.clone(),
                role: kind.as_str().to_owned(),
                reachable: own || self.is_heard(member.id, now) || (among_followers && transport.is_connected(member.id)),
                matched: if leads { raft.prs().get(member.id).map_or(0, |progress| progress.matched) } else { 0 },
                voter: configuration.voters.contains(&member.id),
                write_us: self.writes_us.get(&member.id).copied().unwrap_or_default(),
            }
        });
        let members = members.collect();
        self.status.store(Arc::new(ClusterStatus {
            term: raft.term,
            committed: raft.raft_log.committed,
            applied: raft.store().applied(),
            leader: self.member(raft.leader_id).map(|leader| leader.name.clone()).unwrap_or_default(),
            members,
            answered_by: self.name.clone(),
            own: self.own,
            configuration,
            last: raft.raft_log.last_index(),
        }));
    }
}

fn configuration<L: LogStore>(raft: &Raft<Storage<L>>) -> Configuration {
    let state = raft.prs().conf().to_conf_state();
    Configuration {
        joint: !state.voters_outgoing.is_empty(),
        voters: state.voters.into_iter().collect(),
        learners: state.learners.into_iter().chain(state.learners_next).collect(),
    }
}

/// Leadership counts only once everything from before the term is applied here.
fn role<L: LogStore>(raft: &Raft<Storage<L>>) -> RoleKind {
    match raft.state {
        StateRole::Leader if raft.commit_to_current_term() && raft.store().applied() >= raft.raft_log.committed => RoleKind::Leader,
        StateRole::Leader | StateRole::Candidate | StateRole::PreCandidate => RoleKind::Candidate,
        StateRole::Follower => RoleKind::Follower,
    }
}
