//! Whether a node is ready, suspect or down, from when it was last heard.
//!
//! In: beats, with the time of a monotonic clock. Out: the nodes whose state should change. A new leader has heard nobody: it gives
//! everyone the time that agents need to find it before it judges. Never: judges by a wall clock, or takes its own pauses for silence.

use std::collections::BTreeMap;

use rcluster_api::id::NodeId;
use rcluster_api::object::{Node, NodeState};

use crate::core::state::State;

/// How often agents beat, and how many missed beats mean what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat_ms: u64,
    /// Silence after which a node is suspect.
    pub suspect_ms: u64,
    /// Silence after which a node is down.
    pub down_ms: u64,
    /// What a new leader adds before it judges a node that it has not heard yet.
    pub grace_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 1000, suspect_ms: 2000, down_ms: 3000, grace_ms: 7000 }
    }
}

impl Timing {
    /// With the time that nodes are given until `until_ms`, by a clock that says `now_ms`, to find a cluster that was restored.
    pub fn awaiting(self, until_ms: u64, now_ms: u64) -> Self {
        Self { grace_ms: self.grace_ms.max(until_ms.saturating_sub(now_ms)), ..self }
    }
}

/// When each node was last heard by this leader.
#[derive(Debug)]
pub struct Liveness {
    timing: Timing,
    started_ms: u64,
    heard_ms: BTreeMap<NodeId, u64>,
}

/// A node's state as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub node: NodeId,
    pub state: NodeState,
    pub message: String,
}

impl Liveness {
    /// A leader that starts at `now_ms`.
    pub fn new(timing: Timing, now_ms: u64) -> Self {
        Self { timing, started_ms: now_ms, heard_ms: BTreeMap::new() }
    }

    /// Notes that a node was heard at `at_ms`.
    pub fn heard(&mut self, node: &NodeId, at_ms: u64) {
        let heard_ms = self.heard_ms.entry(node.clone()).or_insert(at_ms);
        *heard_ms = at_ms.max(*heard_ms);
    }

    /// Nobody was listening for `late_ms`, up to `now_ms`: that time is nobody's silence.
    pub fn excuse(&mut self, late_ms: u64, now_ms: u64) {
        self.started_ms = (self.started_ms + late_ms).min(now_ms);
        for heard_ms in self.heard_ms.values_mut() {
            *heard_ms = (*heard_ms + late_ms).min(now_ms);
        }
    }

    /// The nodes whose state in `state` is not what it should be, and when to ask again.
    pub fn judge(&self, state: &State, now_ms: u64) -> (Vec<Judgement>, u64) {
        let mut judgements = Vec::new();
        let mut ask_again_ms = now_ms + self.timing.heartbeat_ms;
        for node in state.nodes().values() {
            let (judged, message) = self.judge_one(node, now_ms, &mut ask_again_ms);
            if judged != node.state {
                judgements.push(Judgement { node: node.id.clone(), state: judged, message });
            }
        }
        (judgements, ask_again_ms)
    }

    fn judge_one(&self, node: &Node, now_ms: u64, ask_again_ms: &mut u64) -> (NodeState, String) {
        let Some(heard) = self.heard_ms.get(&node.id) else {
            let deadline = self.started_ms + self.timing.down_ms + self.timing.grace_ms;
            if now_ms < deadline {
                *ask_again_ms = (*ask_again_ms).min(deadline);
                return (node.state, node.message.clone());
            }
            return (NodeState::Down, "not heard since this leader began".to_owned());
        };
        let silent = now_ms.saturating_sub(*heard);
        for threshold in [self.timing.suspect_ms, self.timing.down_ms] {
            if silent < threshold {
                *ask_again_ms = (*ask_again_ms).min(heard + threshold);
                break;
            }
        }
        let beats = silent / self.timing.heartbeat_ms;
        if silent >= self.timing.down_ms {
            (NodeState::Down, format!("missed {beats} heartbeats"))
        } else if silent >= self.timing.suspect_ms {
            (NodeState::Suspect, format!("missed {} heartbeat{}", beats.max(1), if beats > 1 { "s" } else { "" }))
        } else {
            (NodeState::Ready, String::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use rcluster_api::object::{NodeDescription, Object};

    use super::*;
    use crate::core::state::{Change, Transaction};

    fn state_with_node(state: NodeState) -> State {
        let description = NodeDescription { name: "n1".to_owned(), ..NodeDescription::default() };
        let node = Node { state, ..Node::new("n1".into(), description, 1, 0) };
        let mut tables = State::new("test".to_owned());
        let changes = vec![Change::Put { expected: 0, object: Object::Node(node) }];
        tables.apply(1, &Transaction { at_ms: 0, changes }).unwrap();
        tables
    }

    #[test]
    fn silence_makes_a_node_suspect_then_down_and_a_beat_ready_again() {
        let mut liveness = Liveness::new(Timing::default(), 0);
        liveness.heard(&"n1".into(), 1000);
        let judged = |liveness: &Liveness, state, now| liveness.judge(&state_with_node(state), now).0.pop().map(|j| j.state);
        assert_eq!(judged(&liveness, NodeState::Ready, 2999), None);
        assert_eq!(judged(&liveness, NodeState::Ready, 3000), Some(NodeState::Suspect));
        assert_eq!(judged(&liveness, NodeState::Suspect, 4000), Some(NodeState::Down));
        liveness.heard(&"n1".into(), 4100);
        assert_eq!(judged(&liveness, NodeState::Down, 4200), Some(NodeState::Ready));
    }

    #[test]
    fn a_new_leader_waits_before_it_judges_a_node_it_has_not_heard() {
        let liveness = Liveness::new(Timing::default(), 0);
        let (judgements, again) = liveness.judge(&state_with_node(NodeState::Ready), 9_500);
        assert_eq!((judgements, again), (vec![], 10_000));
        assert_eq!(liveness.judge(&state_with_node(NodeState::Ready), 10_000).0[0].state, NodeState::Down);
        // A restored cluster waits for longer, by the wall clock.
        let liveness = Liveness::new(Timing::default().awaiting(50_000_000, 49_900_000), 0);
        assert_eq!(liveness.judge(&state_with_node(NodeState::Ready), 102_999).0, vec![]);
        assert_eq!(liveness.judge(&state_with_node(NodeState::Ready), 103_000).0[0].state, NodeState::Down);
        assert_eq!(Timing::default().awaiting(5, 10), Timing::default());
    }
}
