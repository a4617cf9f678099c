//! Runs a brain in a manager: gives it the clock, what comes in and the tables, and carries out what it wants.

use std::collections::VecDeque;
use std::time::Instant;

use rcluster_api::error::ApiError;
use rcluster_base::clock::unix_ms;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;

use super::brain::{self, Brain, Effect, Ground, Moment, Outcome};
use crate::core::node::liveness::Timing;
use crate::core::state::Transaction;
use crate::store::Store;

/// Most events that are taken into one plan.
const BATCH_MAX: usize = 1024;

/// Where the answer to a user goes.
pub type UserReply = oneshot::Sender<(Outcome, Ground)>;
/// Where the answer to an agent goes.
pub type AgentReply = oneshot::Sender<Result<(), ApiError>>;
/// What the brain is told.
pub type Event = brain::Event<UserReply, AgentReply>;

/// The loop around a brain.
#[derive(Debug)]
pub struct Shell {
    store: Store,
    inbox: mpsc::Receiver<Event>,
    revisions: watch::Receiver<u64>,
    /// Origin of the brain's monotonic time.
    began: Instant,
    brain: Brain<UserReply, AgentReply>,
}

impl Shell {
    /// A brain for the term `number`, which began at `began`.
    pub fn new(store: Store, number: u64, timing: Timing, began: Instant, inbox: mpsc::Receiver<Event>) -> Self {
        let revisions = store.revisions();
        let brain = Brain::new(store.state(), store.status().answered_by, number, timing, moment(began));
        Self { store, inbox, revisions, began, brain }
    }

    /// Runs until the term is over.
    pub async fn run(mut self) {
        loop {
            // Who has given up is told nothing any more: what is not begun is not done either.
            self.brain.retain(|user| !user.is_closed());
            let (now, state) = (moment(self.began), self.store.state());
            let effects = tokio::task::block_in_place(|| self.brain.turn(now, state, rand::random()));
            self.carry_out(effects).await;
            if self.brain.is_over() {
                return;
            }
            self.wait().await;
        }
    }

    async fn carry_out(&mut self, effects: Vec<Effect<UserReply, AgentReply>>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            if let Some(transaction) = tell(effect) {
                let outcome = self.store.propose(transaction).await;
                effects.extend(self.brain.proposed(moment(self.began), outcome));
            }
        }
    }

    /// Waits for something to do, then takes in all that is there.
    async fn wait(&mut self) {
        let wake_at = tokio::time::Instant::from_std(self.began + self.brain.wake_at().unwrap_or_default());
        tokio::select! {
            event = self.inbox.recv() => {
                if let Some(event) = event {
                    self.brain.take(moment(self.began), event);
                }
            }
            changed = self.revisions.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            () = sleep_until(wake_at) => {}
        }
        for _ in 0..BATCH_MAX {
            let Ok(event) = self.inbox.try_recv() else { break };
            self.brain.take(moment(self.began), event);
        }
    }
}

/// What was not begun is not carried out, and whoever leads then may be asked: that is told also when the shell is ended from outside.
impl Drop for Shell {
    fn drop(&mut self) {
        self.inbox.close();
        while let Ok(event) = self.inbox.try_recv() {
            self.brain.take(moment(self.began), event);
        }
        for effect in self.brain.end() {
            tell(effect);
        }
    }
}

/// Answers whoever asked; one that has gone does not need it. Gives back what is to be proposed.
fn tell(effect: Effect<UserReply, AgentReply>) -> Option<Transaction> {
    match effect {
        Effect::Propose(transaction) => return Some(transaction),
        Effect::Answer(user, outcome, ground) => drop(user.send((outcome, ground))),
        Effect::Registered(agent, outcome) => drop(agent.send(outcome)),
    }
    None
}

fn moment(began: Instant) -> Moment {
    Moment { monotonic: began.elapsed(), unix_ms: unix_ms() }
}
