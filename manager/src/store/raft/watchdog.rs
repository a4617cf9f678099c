//! Watches a leader's owner thread, which a disk that hangs keeps for as long as it hangs.
//!
//! Raft alone is right meanwhile: the leader falls silent, the others elect one. But everything else in this manager would go on for a
//! leader that is none, and hear agents whose silence the new one counts. So its role is withdrawn, and when the thread comes back, it
//! leads in that term no more: what it had under way is not known to those who begin anew.
//!
//! In: when the owner works and waits. Out: the role and the status, of a leader that does not come back, as a follower's without a leader.
//! Never: takes the lead from the only voter, whom nobody could replace.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tracing::error;

use super::Environment;
use super::thread::Process;
use crate::store::{ClusterStatus, RaftTiming, Role, RoleKind};

/// So many times the silence after which others stand for election: one of them leads by then, if one can.
const ELECTIONS: u32 = 4;

/// What the owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Waits,
    Works {
        since: Duration,
    },
    /// It works still, and leads no more.
    Withdrawn {
        since: Duration,
    },
}

/// Shared by the owner and who watches it.
#[derive(Debug)]
pub struct Watchdog {
    patience: Duration,
    role: watch::Sender<Role>,
    status: Arc<ArcSwap<ClusterStatus>>,
    owner: Mutex<Owner>,
}

impl Watchdog {
    /// Of the owner that publishes through these.
    pub fn new(timing: RaftTiming, role: watch::Sender<Role>, status: Arc<ArcSwap<ClusterStatus>>) -> Self {
        Self { patience: timing.silence().saturating_mul(ELECTIONS), role, status, owner: Mutex::new(Owner::Waits) }
    }

    /// The owner has something to do, or has had.
    pub fn works(&self, now: Duration) {
        let mut owner = self.owner();
        if *owner == Owner::Waits {
            *owner = Owner::Works { since: now };
        }
    }

    /// The owner has done it. Since when it was at it, if it was withdrawn meanwhile.
    pub fn done(&self) -> Option<Duration> {
        match std::mem::replace(&mut *self.owner(), Owner::Waits) {
            Owner::Withdrawn { since } => Some(since),
            Owner::Waits | Owner::Works { .. } => None,
        }
    }

    /// Withdraws a leader that has worked for too long.
    pub fn look(&self, now: Duration) {
        let mut owner = self.owner();
        let Owner::Works { since } = *owner else { return };
        let (late, status) = (now.saturating_sub(since), self.status.load());
        if late < self.patience || self.role.borrow().kind != RoleKind::Leader || status.configuration.voters.len() < 2 {
            return;
        }
        *owner = Owner::Withdrawn { since };
        // The owner publishes no role before it has said that it is done, for which it waits for this.
        self.status.store(Arc::new(without_leader(&status)));
        self.role.send_modify(|role| (role.kind, role.leader) = (RoleKind::Follower, None));
        error!(late_ms = late.as_millis(), "the disk of this manager's log does not answer: another is to lead; look at the disk");
    }

    /// What is in it is whole also when a thread has died with the lock.
    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn without_leader(status: &ClusterStatus) -> ClusterStatus {
    let mut status = status.clone();
    status.leader.clear();
    let own = status.own;
    for member in status.members.iter_mut().filter(|member| member.id == own) {
        RoleKind::Follower.as_str().clone_into(&mut member.role);
    }
    status
}

/// Watches until the owner's thread has ended, which lets go of the sender.
pub fn run(watchdog: &Watchdog, ended: &Receiver<()>, clock: Process) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(watchdog.patience / ELECTIONS) {
        watchdog.look(clock.now());
    }
}
