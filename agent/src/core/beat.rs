//! One session's beats and news.
//!
//! In: what was sent and answered, with the time of a monotonic clock. Out: when the session is lost, and what the manager has not been
//! told yet. Never: takes an answer for later than its question.

use std::collections::VecDeque;
use std::time::Duration;

use rcluster_api::id::TaskId;
use rcluster_api::object::TaskStatus;

use super::owner::Statuses;

/// Until the manager has said how long it may be silent.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// No manager is given up sooner.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// The beats of a session.
#[derive(Debug)]
pub struct Beats {
    timeout: Duration,
    sequence: u64,
    /// Beats without an answer yet: number and time of sending.
    unanswered: VecDeque<(u64, Duration)>,
    deadline: Duration,
}

impl Beats {
    /// Of a session that begins.
    pub fn new(now: Duration) -> Self {
        Self { timeout: TIMEOUT, sequence: 0, unanswered: VecDeque::new(), deadline: now + TIMEOUT }
    }

    /// The manager has said how long it may be silent.
    pub fn welcomed(&mut self, timeout: Duration, now: Duration) {
        self.timeout = timeout.max(TIMEOUT_MIN);
        self.deadline = now + self.timeout;
    }

    /// The number of a beat that is sent now.
    pub fn send(&mut self, now: Duration) -> u64 {
        self.sequence += 1;
        self.unanswered.push_back((self.sequence, now));
        self.sequence
    }

    /// A beat was answered: the manager was there when it was sent, or later.
    pub fn answered(&mut self, sequence: u64) {
        while let Some((_, sent)) = self.unanswered.pop_front_if(|(beat, _)| *beat <= sequence) {
            self.deadline = sent + self.timeout;
        }
    }

    /// When the session is given up unless an answer comes.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The silence after which it is given up.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// What the manager has not been told yet; from now on it counts as told.
pub fn news(told: &mut Statuses, statuses: &Statuses) -> Vec<(TaskId, TaskStatus)> {
    let news: Vec<(TaskId, TaskStatus)> =
        statuses.iter().filter(|(id, status)| told.get(id) != Some(status)).map(|(id, status)| (id.clone(), status.clone())).collect();
    told.retain(|id, _| statuses.contains_key(id));
    told.extend(news.iter().cloned());
    news
}
