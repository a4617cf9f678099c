//! Linearizable reads by ReadIndex: all that wait share one round, and a round that is not answered is asked again.
//!
//! raft-rs drops a read silently when the leader has not committed in its term, and a message may be lost: so nothing is asked before
//! it can be answered, and an unanswered round starts over with everyone who still waits.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::{RawNode, ReadState, StateRole, Storage};
use tokio::sync::oneshot;

/// Rounds at once; more reads wait and share the next.
const ROUNDS_MAX: usize = 4;
/// A round without an answer is asked again after this.
const RETRY: Duration = Duration::from_millis(300);

type Reply = oneshot::Sender<()>;

#[derive(Debug)]
struct Round {
    replies: Vec<Reply>,
    asked: Duration,
    /// What must be applied before the answer.
    index: Option<u64>,
}

/// The reads of one manager.
#[derive(Debug)]
pub struct Reads {
    /// Makes contexts unique among managers and their runs.
    prefix: [u8; 16],
    next: u64,
    waiting: Vec<Reply>,
    rounds: BTreeMap<u64, Round>,
}

impl Reads {
    /// No reads, of manager `id` in its run `run`.
    pub fn new(id: u64, run: u64) -> Self {
        Self { prefix: (u128::from(id) << 64 | u128::from(run)).to_be_bytes(), next: 0, waiting: Vec::new(), rounds: BTreeMap::new() }
    }

    /// A read that wants to know.
    pub fn push(&mut self, reply: Reply) {
        self.waiting.push(reply);
    }

    /// Asks for everyone who waits, when there is someone to ask.
    pub fn ask<S: Storage>(&mut self, raw: &mut RawNode<S>, now: Duration) {
        self.give_up(now);
        let answerable = match raw.raft.state {
            StateRole::Leader => raw.raft.commit_to_current_term(),
            StateRole::Follower => raw.raft.leader_id != raft::INVALID_ID,
            StateRole::Candidate | StateRole::PreCandidate => false,
        };
        let asking = self.rounds.values().filter(|round| round.index.is_none()).count();
        if self.waiting.is_empty() || !answerable || asking >= ROUNDS_MAX {
            return;
        }
        let number = self.next;
        self.next += 1;
        let replies = std::mem::take(&mut self.waiting);
        self.rounds.insert(number, Round { replies, asked: now, index: None });
        raw.read_index([self.prefix.as_slice(), &number.to_be_bytes()].concat());
    }

    /// A quorum has confirmed a round.
    pub fn confirm(&mut self, read: &ReadState) {
        let number = read.request_ctx.strip_prefix(self.prefix.as_slice()).and_then(|rest| rest.try_into().ok()).map(u64::from_be_bytes);
        if let Some(round) = number.and_then(|number| self.rounds.get_mut(&number)) {
            round.index = Some(read.index);
        }
    }

    /// Answers the reads whose index is applied. One that has given up does not need its answer.
    pub fn answer(&mut self, applied: u64) {
        for (_, round) in self.rounds.extract_if(.., |_, round| round.index.is_some_and(|index| index <= applied)) {
            for reply in round.replies {
                let _unread = reply.send(());
            }
        }
    }

    fn give_up(&mut self, now: Duration) {
        let overdue = |_: &u64, round: &mut Round| round.index.is_none() && now.saturating_sub(round.asked) >= RETRY;
        for (_, round) in self.rounds.extract_if(.., overdue) {
            self.waiting.extend(round.replies);
        }
        self.waiting.retain(|reply| !reply.is_closed());
    }
}
