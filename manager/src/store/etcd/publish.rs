//! What the owner task lets everyone else see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rcluster_api::cluster::{Manager, ManagerRole};
use tokio::sync::watch;
use tracing::info;

use super::Shared;
use super::keys::LeaderRecord;
use crate::core::state::State;
use crate::store::{ClusterStatus, Configuration, Member, MemberStatus, Role, RoleKind, StoreConfig};

/// The public side of a node.
#[derive(Debug)]
pub struct Publisher {
    own: u64,
    name: String,
    state: Shared<State>,
    status: Shared<ClusterStatus>,
    revision: watch::Sender<u64>,
    role: watch::Sender<Role>,
}

/// The other ends.
#[derive(Debug)]
pub struct Seen {
    pub state: Shared<State>,
    pub status: Shared<ClusterStatus>,
    pub revisions: watch::Receiver<u64>,
    pub role: watch::Receiver<Role>,
}

/// What a node knows beside the tables.
#[derive(Debug)]
pub struct View<'a> {
    pub kind: RoleKind,
    pub term: u64,
    pub leader: Option<&'a LeaderRecord>,
    pub alive: &'a BTreeMap<u64, u64>,
}

impl Publisher {
    /// A publisher, and where it is read.
    pub fn new(config: &StoreConfig) -> (Self, Seen) {
        let (revision, revisions) = watch::channel(0);
        let (role_sender, role) = watch::channel(Role { term: 0, kind: RoleKind::Follower, leader: None });
        let (state, status): (Shared<State>, Shared<ClusterStatus>) = (Arc::default(), Arc::default());
        let seen = Seen { state: state.clone(), status: status.clone(), revisions, role };
        (Self { own: config.id, name: config.name.clone(), state, status, revision, role: role_sender }, seen)
    }

    /// The revision of the tables that were published.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The tables first, then word of them.
    pub fn publish_state(&self, state: &State) {
        self.state.store(Arc::new(state.clone()));
        let revision = state.revision();
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    /// The role and the standing of all.
    pub fn publish_view(&self, state: &State, view: &View<'_>) {
        let View { kind, term, leader, alive } = *view;
        let is_leader = |manager: &Manager| leader.is_some_and(|leader| leader.id == manager.raft_id);
        let managers = || state.managers().values().map(AsRef::as_ref);
        let leading =
            managers().find(|manager| is_leader(manager) && (kind == RoleKind::Leader || manager.raft_id != self.own)).map(member);
        let leader_name = leading.as_ref().map(|leader| leader.name.clone()).unwrap_or_default();
        self.publish_role(Role { term, kind, leader: leading });
        let status = |manager: &Manager| {
            let own = manager.raft_id == self.own;
            let role = match (own, is_leader(manager)) {
                (true, _) => kind,
                (false, true) => RoleKind::Leader,
                (false, false) => RoleKind::Follower,
            };
            let Member { id, name, addr } = member(manager);
            let reachable = own || alive.contains_key(&id);
            MemberStatus { id, name, addr, role: role.as_str().to_owned(), reachable, matched: 0, voter: true, write_us: 0 }
        };
        let mut members: Vec<MemberStatus> = managers().map(status).collect();
        members.sort_by_key(|member| member.id);
        let staying: BTreeSet<u64> =
            managers().filter(|manager| manager.role != ManagerRole::Leaving).map(|manager| manager.raft_id).collect();
        let revision = state.revision();
        self.status.store(Arc::new(ClusterStatus {
            term,
            committed: revision,
            applied: revision,
            leader: leader_name,
            members,
            answered_by: self.name.clone(),
            own: self.own,
            configuration: Configuration { voters: staying, ..Configuration::default() },
            last: revision,
        }));
    }

    fn publish_role(&self, role: Role) {
        let changed = self.role.send_if_modified(|known| {
            let changes = *known != role;
            known.clone_from(&role);
            changes
        });
        if changed {
            let leader = role.leader.map(|leader| leader.name).unwrap_or_default();
            info!(role = role.kind.as_str(), term = role.term, leader, "etcd");
        }
    }
}

fn member(manager: &Manager) -> Member {
    Member { id: manager.raft_id, name: manager.name.clone(), addr: manager.addr.clone() }
}
