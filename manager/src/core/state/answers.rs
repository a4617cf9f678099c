//! Answers to requests that were made under a key, so that who has not heard the answer can ask again.
//!
//! An answer is written in the transaction of the change that it tells of: both are there, or neither. Its text is for whoever made it;
//! the tables do not look into it.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

/// Answers that are kept at most.
pub const ANSWERS_MAX: usize = 10_000;
/// Their bytes, roughly.
pub const ANSWERS_BYTES_MAX: usize = 16 << 20;
/// How long one is kept: the time of the transactions, not of a clock.
pub const ANSWER_LIFE_MS: u64 = 24 * 60 * 60 * 1000;

/// The revision of an answer that is staged and not applied: it is the newest.
pub const PENDING: u64 = u64::MAX;

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answered {
    /// Whose, and the key.
    pub id: String,
    /// Of the request: another one does not get this answer.
    pub digest: String,
    pub answer: String,
    /// When it was made; like `revision`, set when it is applied.
    pub at_ms: u64,
    pub revision: u64,
}

impl Answered {
    fn bytes(&self) -> usize {
        const REST: usize = 128;
        REST + 2 * self.id.len() + self.digest.len() + self.answer.len()
    }
}

/// The latest answers.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    by_id: OrdMap<String, Arc<Answered>>,
    by_revision: OrdSet<(u64, String)>,
    bytes: usize,
}

impl Answers {
    /// The answer that was given under this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Answered>> {
        self.by_id.get(id)
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Answered>> {
        self.by_revision.iter().filter_map(|(_, id)| self.by_id.get(id))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Keeps one; the oldest go when there are too many, or when they are too old.
    pub(super) fn insert(&mut self, answered: Answered) {
        let now_ms = answered.at_ms;
        self.remove(&answered.id.clone());
        self.bytes += answered.bytes();
        self.by_revision.insert((answered.revision, answered.id.clone()));
        self.by_id.insert(answered.id.clone(), Arc::new(answered));
        while let Some((_, oldest)) = self.by_revision.get_min() {
            let is_old = self.by_id.get(oldest).is_none_or(|oldest| oldest.at_ms.saturating_add(ANSWER_LIFE_MS) < now_ms);
            if !is_old && self.by_id.len() <= ANSWERS_MAX && self.bytes <= ANSWERS_BYTES_MAX {
                return;
            }
            self.remove(&oldest.clone());
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some(gone) = self.by_id.remove(id) {
            self.by_revision.remove(&(gone.revision, gone.id.clone()));
            self.bytes -= gone.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(answers: &mut Answers, revision: u64, at_ms: u64, bytes: usize) {
        let answer = "x".repeat(bytes);
        answers.insert(Answered { id: format!("u/{revision}"), digest: String::new(), answer, at_ms, revision });
    }

    #[test]
    fn the_oldest_go_first() {
        let mut answers = Answers::default();
        for revision in 1..=ANSWERS_MAX as u64 + 2 {
            insert(&mut answers, revision, 1, 0);
        }
        assert_eq!((answers.len(), answers.get("u/2"), answers.get("u/3").is_some()), (ANSWERS_MAX, None, true));
        insert(&mut answers, 20_000, 2, ANSWERS_BYTES_MAX - 4096);
        assert!(answers.len() < 40 && answers.get("u/20000").is_some(), "{}", answers.len());
        insert(&mut answers, 20_001, ANSWER_LIFE_MS + 3, 0);
        assert_eq!(answers.iter().map(|answered| answered.revision).collect::<Vec<_>>(), [20_001]);
        insert(&mut answers, 20_002, ANSWER_LIFE_MS + 3, ANSWERS_BYTES_MAX);
        assert_eq!((answers.len(), answers.bytes), (0, 0), "one that is larger than all may be is not kept");
    }
}
