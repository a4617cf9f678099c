//! Decides which report of a task stands.
//!
//! In: the status that stood and a new one. Out: the one that stands from now on, if that is a change. Never lowers a state: a
//! newer state replaces an older, the same state may get another message or other containers or turn out to end, and what is terminal
//! stays.

use rcluster_api::object::TaskStatus;

/// The status that replaces `current`, or `None` when `current` stands.
pub fn raise(current: Option<&TaskStatus>, next: TaskStatus) -> Option<TaskStatus> {
    let Some(current) = current else { return Some(next) };
    if next.state > current.state && !current.state.is_terminal() {
        return Some(next);
    }
    let differs = next.message != current.message || next.containers != current.containers || next.ending != current.ending;
    if next.state == current.state && differs {
        return Some(TaskStatus { since_ms: current.since_ms, ..next });
    }
    None
}

#[cfg(test)]
mod tests {
    use rcluster_api::task::TaskState;

    use super::*;

    fn status(state: TaskState, message: &str, since_ms: u64) -> TaskStatus {
        TaskStatus { state, message: message.into(), since_ms, containers: Vec::new(), ending: false }
    }

    #[test]
    fn for_all_pairs_the_state_that_stands_is_never_the_lower() {
        for before in TaskState::ALL {
            for after in TaskState::ALL {
                let stands = raise(Some(&status(before, "", 1)), status(after, "", 2)).map_or(before, |kept| kept.state);
                assert!(stands >= before, "{before} became {stands} by a report of {after}");
                assert!(!before.is_terminal() || stands == before, "{before} was final and became {stands}");
            }
        }
    }

    #[test]
    fn the_same_state_keeps_its_time_and_takes_the_new_message() {
        let kept = raise(Some(&status(TaskState::Running, "", 1)), status(TaskState::Running, "slow", 9)).expect("a change");
        assert_eq!((kept.since_ms, kept.message.as_str()), (1, "slow"));
        assert_eq!(raise(Some(&kept), kept.clone()), None);
        let ending = TaskStatus { ending: true, ..kept.clone() };
        assert_eq!(raise(Some(&kept), ending.clone()), Some(ending), "that it will end is told at once");
    }
}
