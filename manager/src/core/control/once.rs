//! Requests that take effect once, however often they are sent: the second time they get the first answer.
//!
//! In: a key that the caller has chosen, and the digest of the request. Out: what the request changes with its answer, to be written
//! together; or the answer of before. Never: an answer to a request that was refused, as nothing was changed, or one that holds a secret.

use rcluster_api::error::{ApiError, ErrorCode};
use serde::{Deserialize, Serialize};

use super::{Answer, Applied, Request};
use crate::core::plan::{ChangeSet, Ctx};
use crate::core::state::{Answered, PENDING, State};

/// Characters of a key at most.
pub const KEY_LENGTH_MAX: usize = 128;

/// A request's key, of one caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    id: String,
    digest: String,
}

impl Key {
    /// The key `key` of `caller`, for a request with this digest.
    pub fn new(caller: &str, key: &str, digest: String) -> Result<Self, ApiError> {
        if key.is_empty() || key.len() > KEY_LENGTH_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ApiError::new(ErrorCode::Invalid, "the idempotency key is empty, too long or not printable")
                .field("idempotency-key")
                .hint(format!("choose 1 to {KEY_LENGTH_MAX} characters by chance, such as a UUID, for each change")));
        }
        Ok(Self { id: format!("{caller}/{key}"), digest })
    }
}

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
enum Kept {
    Applied(Vec<Applied>),
    Removed,
    Scaled { replicas_before: u32 },
    NodeUpdated,
    Done,
}

fn keep(answer: &Answer) -> Option<Kept> {
    match answer {
        Answer::Applied(applied) => Some(Kept::Applied(applied.clone())),
        Answer::Removed => Some(Kept::Removed),
        Answer::Scaled { replicas_before } => Some(Kept::Scaled { replicas_before: *replicas_before }),
        Answer::NodeUpdated => Some(Kept::NodeUpdated),
        Answer::Done => Some(Kept::Done),
        Answer::ManagerAdded(_) | Answer::UserCreated(_) | Answer::Again { .. } => None,
    }
}

/// Decides what a request changes that was made under a key.
pub(super) fn once(state: &State, key: Key, request: Request, ctx: &mut Ctx) -> Result<(ChangeSet, Answer), ApiError> {
    if let Some(answered) = state.answers().get(&key.id) {
        if answered.digest != key.digest {
            return Err(ApiError::new(ErrorCode::Conflict, "the idempotency key was used for another request")
                .field("idempotency-key")
                .hint("choose a new key for each change; the same one only to send the same change again"));
        }
        let again = again(answered).ok_or_else(|| ApiError::new(ErrorCode::Internal, "the answer that is kept cannot be read"))?;
        return Ok((ChangeSet::default(), again));
    }
    let (mut changes, answer) = super::answer(state, request, ctx)?;
    let kept = keep(&answer).and_then(|kept| serde_json::to_string(&kept).ok());
    changes.answered = kept.map(|answer| Answered { id: key.id, digest: key.digest, answer, ..Answered::default() });
    Ok((changes, answer))
}

fn again(answered: &Answered) -> Option<Answer> {
    let answer = match serde_json::from_str(&answered.answer).ok()? {
        Kept::Applied(applied) => Answer::Applied(applied),
        Kept::Removed => Answer::Removed,
        Kept::Scaled { replicas_before } => Answer::Scaled { replicas_before },
        Kept::NodeUpdated => Answer::NodeUpdated,
        Kept::Done => Answer::Done,
    };
    let revision = (answered.revision != PENDING).then_some(answered.revision);
    Some(Answer::Again { revision, answer: Box::new(answer) })
}

impl Answer {
    /// What a caller is told who was answered in the commit `revision`.
    #[must_use]
    pub fn at(self, revision: u64) -> (u64, Self) {
        match self {
            Self::Again { revision: before, answer } => answer.at(before.unwrap_or(revision)),
            Self::Applied(mut applied) => {
                let changed = applied.iter_mut().filter(|one| one.outcome != super::Outcome::Unchanged);
                changed.for_each(|one| one.version = revision);
                (revision, Self::Applied(applied))
            }
            Self::Removed | Self::Scaled { .. } | Self::NodeUpdated | Self::ManagerAdded(_) | Self::UserCreated(_) | Self::Done => {
                (revision, self)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rcluster_api::spec::{NetworkSpec, Spec};

    use super::super::{Outcome, decide};
    use super::*;
    use crate::core::plan::stage;
    use crate::core::state::{Draft, decode_snapshot, decode_transaction, encode_snapshot, encode_transaction};

    fn apply(key: &str, digest: &str, name: &str) -> Request {
        let key = Key::new("u1", key, digest.to_owned()).unwrap();
        let network = NetworkSpec { name: name.to_owned(), ..serde_json::from_str("{}").unwrap() };
        Request::Once { key, request: Box::new(Request::Apply(vec![(Spec::Network(network), 0)])) }
    }

    /// Decides on these, one after the other, in one transaction.
    fn commit(state: &mut State, requests: Vec<Request>) -> Vec<Result<(u64, Answer), ApiError>> {
        let mut ctx = Ctx::new(1, state.revision());
        let mut draft = Draft::new(state.clone(), ctx.now_ms);
        let mut answers = Vec::new();
        for request in requests {
            answers.push(decide(draft.state(), request, &mut ctx).map(|(changes, answer)| {
                stage(&mut draft, changes, &mut ctx);
                answer
            }));
        }
        let transaction = decode_transaction(encode_transaction(&draft.into_transaction())).unwrap();
        let revision = state.revision() + 1;
        if !transaction.changes.is_empty() {
            state.apply(revision, &transaction).unwrap();
        }
        answers.into_iter().map(|answer| answer.map(|answer| answer.at(revision))).collect()
    }

    #[test]
    fn the_second_time_the_first_answer_is_given() {
        let mut state = State::new("c".to_owned());
        let first = commit(&mut state, vec![apply("k", "d", "a")]).remove(0).unwrap();
        let (revision, Answer::Applied(applied)) = &first else { panic!("{first:?}") };
        assert_eq!((*revision, applied[0].outcome, applied[0].version), (1, Outcome::Created, 1));
        commit(&mut state, vec![apply("l", "e", "b")]).remove(0).unwrap();
        // What another manager has as a snapshot knows it too.
        let mut state = decode_snapshot(&encode_snapshot(&state)).unwrap();
        assert_eq!(commit(&mut state, vec![apply("k", "d", "a")]).remove(0).unwrap(), first);
        assert_eq!(state.revision(), 2, "nothing was written");
        // In one transaction.
        let both = commit(&mut state, vec![apply("m", "d", "c"), apply("m", "d", "c")]);
        assert_eq!(both[0], both[1]);
        assert_eq!(both[0].as_ref().unwrap().0, 3);
        assert_eq!(state.networks().len(), 3);
    }

    #[test]
    fn a_key_is_for_one_request_of_one_caller() {
        let mut state = State::new("c".to_owned());
        commit(&mut state, vec![apply("k", "d", "a")]).remove(0).unwrap();
        let refused = commit(&mut state, vec![apply("k", "other", "a")]).remove(0).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (ErrorCode::Conflict, "the idempotency key was used for another request"));
        let theirs = Request::Once { key: Key::new("u2", "k", "e".into()).unwrap(), request: Box::new(Request::Apply(vec![])) };
        assert!(commit(&mut state, vec![theirs]).remove(0).is_ok());
        for key in ["", "with space", "\u{e9}", &"x".repeat(129)] {
            assert_eq!(Key::new("u", key, String::new()).unwrap_err().code, ErrorCode::Invalid);
        }
    }

    #[test]
    fn a_refusal_is_not_kept() {
        let mut state = State::new("c".to_owned());
        assert!(commit(&mut state, vec![apply("k", "d", "Not A Name")]).remove(0).is_err());
        assert!(commit(&mut state, vec![apply("k", "d", "a")]).remove(0).is_ok());
    }
}
