//! Whether and when a slot whose task ended is filled again.
//!
//! The first restart is at once; in a row of restarts the delay doubles from `delay` to `delay_max`, with jitter of up to a fifth. A task
//! that ran for `window` ends the row.

use rand::Rng;
use rcluster_api::object::Task;
use rcluster_api::spec::{RestartCondition, RestartPolicy};
use rcluster_api::task::TaskState;

/// What becomes of a slot after its newest task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A new task, started no earlier than this Unix time (0: at once), with these counts.
    Restart { start_after_ms: u64, restarts: u32, restarts_in_window: u32, window_start_ms: u64 },
    /// The policy says that the slot stays empty.
    Stay,
}

/// Decides for a slot whose newest task is `ended`.
pub fn verdict(ended: &Task, policy: &RestartPolicy, now_ms: u64, rng: &mut impl Rng) -> Verdict {
    if !ended.is_wanted() || ended.status.state == TaskState::Orphaned {
        return Verdict::Restart {
            start_after_ms: 0,
            restarts: ended.restarts,
            restarts_in_window: ended.restarts_in_window,
            window_start_ms: ended.window_start_ms,
        };
    }
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => ended.status.state.is_failure(),
        RestartCondition::None => false,
    };
    if !wanted {
        return Verdict::Stay;
    }
    let row = if ran_for_ms(ended) >= policy.window.0 { 0 } else { ended.restarts_in_window };
    if policy.max_attempts.is_some_and(|most| row >= most) {
        return Verdict::Stay;
    }
    let delay_ms = delay_ms(row, ended.status.state == TaskState::Rejected, policy, rng);
    Verdict::Restart {
        start_after_ms: if delay_ms == 0 { 0 } else { now_ms.saturating_add(delay_ms) },
        restarts: ended.restarts.saturating_add(1),
        restarts_in_window: row.saturating_add(1),
        window_start_ms: if row == 0 { now_ms } else { ended.window_start_ms },
    }
}

/// How long the task's containers ran.
fn ran_for_ms(task: &Task) -> u64 {
    let started = task.status.containers.iter().map(|container| container.started_at_ms).filter(|at| *at > 0).max();
    started.map_or(0, |started| task.status.since_ms.saturating_sub(started))
}

/// The delay before the restart that follows `row` others; a refused task never comes back at once.
fn delay_ms(row: u32, rejected: bool, policy: &RestartPolicy, rng: &mut impl Rng) -> u64 {
    let step = if rejected { row + 1 } else { row };
    if step == 0 {
        return 0;
    }
    let doubled = policy.delay.0.saturating_mul(1u64.checked_shl(step - 1).unwrap_or(u64::MAX)).min(policy.delay_max.0);
    doubled - rng.random_range(0..=doubled / 5)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rcluster_api::resource::Millis;

    use super::*;

    #[test]
    fn delays_start_at_nothing_and_double_to_the_cap() {
        let policy = RestartPolicy { delay: Millis(1000), delay_max: Millis(4000), ..RestartPolicy::default() };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(delay_ms(0, false, &policy, &mut rng), 0);
        for (row, most) in [(1, 1000), (2, 2000), (3, 4000), (9, 4000), (200, 4000)] {
            let delay = delay_ms(row, false, &policy, &mut rng);
            assert!((most - most / 5..=most).contains(&delay), "{delay} after {row}");
        }
        assert!(delay_ms(0, true, &policy, &mut rng) >= 800);
    }
}
