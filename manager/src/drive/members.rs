//! Brings Raft's configuration to what the objects of the managers say, one step after the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rcluster_api::cluster::{Manager, ManagerRole};
use tokio::time::timeout;
use tracing::{debug, info};

use super::Term;
use crate::core::control::Request;
use crate::core::members::{Standing, Step, departed, next};
use crate::core::state::State;
use crate::store::{ClusterStatus, MemberChange, Store};

/// How soon it is looked again while a change is on its way: how far a learner's log has come is no event.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How the leader sees the managers.
pub fn standing(status: &ClusterStatus) -> Standing {
    Standing {
        own: status.own,
        voters: status.configuration.voters.clone(),
        learners: status.configuration.learners.clone(),
        joint: status.configuration.joint,
        reachable: status.members.iter().filter(|member| member.reachable).map(|member| member.id).collect(),
        matched: status.members.iter().map(|member| (member.id, member.matched)).collect(),
        last: status.last,
        external: false,
    }
}

/// How the leader of `store` sees the managers.
pub fn standing_in(store: &Store) -> Standing {
    Standing { external: store.is_external(), ..standing(&store.status()) }
}

/// What is to be done about the members, as the leader sees them.
#[derive(Debug)]
pub struct Duty {
    /// The next step of Raft's configuration.
    pub step: Option<Step>,
    /// Some have left and are to be forgotten.
    pub forget: bool,
    /// The configuration is what the objects say: nothing is to be done until they change.
    pub is_settled: bool,
}

impl Duty {
    /// What is to be done for the managers of `state`.
    pub fn of(state: &State, seen: &Standing) -> Self {
        let managers = || state.managers().values().map(AsRef::as_ref);
        Self {
            // Without votes there is no configuration to bring along.
            step: next(managers(), seen).filter(|_| !seen.external),
            forget: departed(managers(), seen).next().is_some(),
            is_settled: is_settled(managers(), seen),
        }
    }
}

/// A step's changes, as the store takes them.
pub fn changes(learners: Vec<u64>, voters: Vec<u64>, removed: Vec<u64>) -> Vec<MemberChange> {
    let changes = learners.into_iter().map(MemberChange::Learner);
    let changes = changes.chain(voters.into_iter().map(MemberChange::Voter));
    changes.chain(removed.into_iter().map(MemberChange::Remove)).collect()
}

/// Runs while this manager leads.
pub async fn keep(store: Store, term: Arc<Term>) {
    let mut revisions = store.revisions();
    loop {
        revisions.borrow_and_update();
        let seen = standing_in(&store);
        let Duty { step, forget, is_settled } = Duty::of(&store.state(), &seen);
        match step {
            Some(Step::Change { learners, voters, removed }) => {
                info!(?learners, ?voters, ?removed, "changing the members");
                // What is refused is looked at again.
                if let Err(error) = store.change_members(changes(learners, voters, removed)).await {
                    debug!(%error, "the members do not change yet");
                }
            }
            Some(Step::HandOver(to)) => {
                info!(to, "handing leadership over: this manager is to vote no more");
                store.transfer_leadership(to);
            }
            None => {}
        }
        if forget && let Err(error) = term.request(Request::ForgetManagers { standing: seen }).await {
            debug!(%error, "those who have left are not forgotten yet");
        }
        if is_settled {
            if revisions.changed().await.is_err() {
                return;
            }
        } else if matches!(timeout(LOOK_AGAIN, revisions.changed()).await, Ok(Err(_))) {
            return;
        }
    }
}

fn is_settled<'a>(managers: impl Iterator<Item = &'a Manager>, seen: &Standing) -> bool {
    let (mut voters, mut learners) = (BTreeSet::new(), BTreeSet::new());
    for manager in managers {
        match manager.role {
            ManagerRole::Voter => voters.insert(manager.raft_id),
            ManagerRole::Standby => learners.insert(manager.raft_id),
            ManagerRole::Leaving => return false,
        };
    }
    !seen.joint && voters == seen.voters && learners == seen.learners
}
