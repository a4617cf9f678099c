//! Whether a node is ready, suspect or down, from when it was last heard.
//!
//! In: beats, with the time of a monotonic clock. Out: the nodes whose state should change. A new leader has heard nobody: it gives
//! everyone the time that agents need to find it before it judges. So does one that stood still, from which agents have gone meanwhile: what it
//! finds of them when it goes on may be of sessions that they have given up. Never: judges by a wall clock, or takes its own pauses for silence.

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
    /// What a new leader adds before it judges a node that it has not heard yet, and one that stood still for each.
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
    /// Until then nodes may still be on their way back to this leader, which stood still.
    sought_until_ms: u64,
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
        Self { timing, started_ms: now_ms, heard_ms: BTreeMap::new(), sought_until_ms: 0 }
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
        self.sought_until_ms = now_ms + self.timing.down_ms + self.timing.grace_ms;
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
        // What it was silent counts, however often this leader stands still: who is gone is judged in the end.
        let is_sought = now_ms < self.sought_until_ms && silent < self.timing.down_ms + self.timing.grace_ms;
        let next = [self.timing.suspect_ms, self.timing.down_ms, self.timing.down_ms + self.timing.grace_ms].map(|silence| heard + silence);
        let next = next.into_iter().chain([self.sought_until_ms]).filter(|at_ms| *at_ms > now_ms).min();
        *ask_again_ms = next.map_or(*ask_again_ms, |next| next.min(*ask_again_ms));
        let beats = silent / self.timing.heartbeat_ms;
        if silent >= self.timing.down_ms && !is_sought {
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
    fn who_stood_still_gives_nodes_the_time_to_come_back_and_judges_who_is_gone_however_often_it_does() {
        let timing = Timing::default();
        let mut liveness = Liveness::new(timing, 0);
        liveness.heard(&"n1".into(), 1000);
        let judged = |liveness: &Liveness, now| liveness.judge(&state_with_node(NodeState::Ready), now).0.pop().map(|j| j.state);
        liveness.excuse(16_000, 17_500);
        // What n1 said while nobody listened, in a session that it has given up by now.
        liveness.heard(&"n1".into(), 17_400);
        assert_eq!((judged(&liveness, 20_400), judged(&liveness, 27_399)), (Some(NodeState::Suspect), Some(NodeState::Suspect)));
        assert_eq!(judged(&liveness, 27_400), Some(NodeState::Down));
        let again = liveness.judge(&state_with_node(NodeState::Suspect), 26_900).1;
        assert_eq!(again, 27_400, "it is asked again when it is to be judged");
        // Back in time, it is judged as ever.
        liveness.heard(&"n1".into(), 25_000);
        assert_eq!((judged(&liveness, 27_499), judged(&liveness, 28_000)), (Some(NodeState::Suspect), Some(NodeState::Down)));
        // Standing still for two of every five seconds.
        let mut heard = Liveness::new(timing, 0);
        heard.heard(&"n1".into(), 0);
        let downs: Vec<u64> = (1..8)
            .map(|turn| turn * 5_000)
            .filter(|now| {
                heard.excuse(2_000, *now);
                judged(&heard, *now) == Some(NodeState::Down)
            })
            .collect();
        assert_eq!(downs.first(), Some(&20_000), "after twelve seconds of listening");
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
