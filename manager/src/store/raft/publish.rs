//! What the owner thread lets everyone else see: tables, revision, role, status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use raft::{Raft, StateRole};
use tokio::sync::watch;
use tracing::info;

use super::Transport;
use super::log::LogStore;
use super::storage::Storage;
use crate::core::state::State;
use crate::store::{ClusterStatus, Member, MemberStatus, Role, RoleKind, StoreConfig};

/// A peer heard this recently is reachable.
const REACHABLE: Duration = Duration::from_secs(1);

/// The public side of a node.
#[derive(Debug)]
pub struct Publisher {
    own: u64,
    name: String,
    members: Vec<Member>,
    state: Arc<ArcSwap<State>>,
    status: Arc<ArcSwap<ClusterStatus>>,
    revision: watch::Sender<u64>,
    role: watch::Sender<Role>,
    heard: BTreeMap<u64, Instant>,
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
        let (own, name, members) = (config.id, config.name.clone(), config.members.clone());
        Self { own, name, members, state, status, revision, role, heard: BTreeMap::new() }
    }

    /// A member by id.
    pub fn member(&self, id: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// A message from `id` has come.
    pub fn hear(&mut self, id: u64, now: Instant) {
        self.heard.insert(id, now);
    }

    /// Whether `id` was heard lately.
    pub fn is_heard(&self, id: u64, now: Instant) -> bool {
        self.heard.get(&id).is_some_and(|at| now.duration_since(*at) < REACHABLE)
    }

    /// The tables first, then word of them.
    pub fn publish_state(&self, state: &State) {
        self.state.store(Arc::new(state.clone()));
        let revision = state.revision();
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    /// Whether the role is news.
    pub fn publish_role<L: LogStore>(&self, raft: &Raft<Storage<L>>) -> bool {
        let kind = role(raft);
        let leader = self.member(raft.leader_id).filter(|leader| kind == RoleKind::Leader || leader.id != self.own).cloned();
        let role = Role { term: raft.term, kind, leader };
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
    pub fn publish_status<L: LogStore>(&self, raft: &Raft<Storage<L>>, transport: &impl Transport, now: Instant) {
        let leads = raft.state == StateRole::Leader;
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
            }
        });
        self.status.store(Arc::new(ClusterStatus {
            term: raft.term,
            committed: raft.raft_log.committed,
            applied: raft.store().applied(),
            leader: self.member(raft.leader_id).map(|leader| leader.name.clone()).unwrap_or_default(),
            members: members.collect(),
            answered_by: self.name.clone(),
        }));
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
