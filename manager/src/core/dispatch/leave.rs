//! Decides which tasks that are to stop need not wait any longer: nobody sends to them any more.
//!
//! In: the networks, when each task was first seen unwanted, and what the nodes have confirmed of their views. Out: the tasks that are
//! released. Never: releases a task before every node that could send to it, and is not down, holds a view from after the change. How long a
//! task waits at most is its agent's business: a node that does not answer is not waited for here, the agent's patience ends.
//!
//! ```text
//!   a task is unwanted in revision r ─► every view from r on says LEAVING ─► each sender's netd holds it ─► Released ─► SIGTERM
//!                                                                          └► or `leave` is over ─────────────────────┘
//! ```
//!
//! Views that do not differ are not sent. So what a node holds is not the view that it confirmed last but the last one with which what it
//! has was compared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rcluster_api::id::{NodeId, TaskId};

use super::netview::Networks;

/// Which view: (term, revision). A later one is greater.
pub type Mark = (u64, u64);

/// What a node holds of the views of one session.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// The last view that it was sent.
    sent: Option<Mark>,
    /// The view that its netd has told of last.
    acked: Mark,
    /// The last revision whose view was compared with what was sent; it differs in nothing.
    compared: u64,
    /// Every change up to this revision is in force there.
    holds: u64,
}

impl Held {
    /// What the node is to see of `revision` is in the view `sent`, if any was sent yet.
    pub fn compared(&mut self, revision: u64, sent: Option<Mark>) {
        (self.compared, self.sent) = (revision, sent);
        self.settle();
    }

    /// Its netd holds this view; an older one than before when it was started anew with what it remembered.
    pub fn acknowledged(&mut self, mark: Mark) {
        if mark < self.acked {
            let is_of_term = self.sent.is_some_and(|(term, _)| term == mark.0);
            self.holds = if is_of_term { self.holds.min(mark.1) } else { 0 };
        }
        self.acked = mark;
        self.settle();
    }

    fn settle(&mut self) {
        if self.sent.is_some_and(|sent| self.acked >= sent) {
            self.holds = self.compared;
        }
    }

    /// Every change up to this revision is in force there; 0: nothing is known.
    pub fn holds(&self) -> u64 {
        self.holds
    }
}

/// What is known of one node.
#[derive(Debug)]
struct Sender {
    session: u64,
    held: Held,
}

/// A leader's memory of who still sends to tasks that are to stop. It begins with nothing known of any node.
#[derive(Debug, Default)]
pub struct Leave {
    networks: Option<Arc<Networks>>,
    /// The revision in which each task that is to stop was first seen so.
    since: BTreeMap<TaskId, u64>,
    senders: BTreeMap<NodeId, Sender>,
    released: BTreeSet<TaskId>,
}

impl Leave {
    /// A node has opened a session, which takes the place of its older ones; nothing is known of what it holds.
    pub fn begin(&mut self, node: &NodeId, session: u64) {
        self.senders.insert(node.clone(), Sender { session, held: Held::default() });
    }

    /// A session has ended; a newer one of the same node stays.
    pub fn end(&mut self, node: &NodeId, session: u64) {
        if self.senders.get(node).is_some_and(|sender| sender.session == session) {
            self.senders.remove(node);
        }
    }

    /// What the node is to see of these networks is in the view `sent` of the session. Answers whether more tasks are released than before.
    pub fn compared(&mut self, node: &NodeId, session: u64, networks: &Arc<Networks>, sent: Option<Mark>) -> bool {
        if self.networks.as_ref().is_none_or(|known| known.revision() < networks.revision()) {
            self.see(networks);
        }
        if let Some(held) = self.held(node, session) {
            held.compared(networks.revision(), sent);
        }
        self.judge()
    }

    /// The node's netd holds this view. Answers whether more tasks are released than before.
    pub fn acknowledged(&mut self, node: &NodeId, session: u64, mark: Mark) -> bool {
        let Some(held) = self.held(node, session) else { return false };
        held.acknowledged(mark);
        self.judge()
    }

    /// The tasks of the node that need not wait any longer.
    pub fn released(&self, node: &NodeId) -> BTreeSet<TaskId> {
        let Some(networks) = &self.networks else { return BTreeSet::new() };
        let is_of_node = |task: &&TaskId| networks.leaving().get(*task).is_some_and(|leaving| leaving.node == *node);
        self.released.iter().filter(is_of_node).cloned().collect()
    }

    fn held(&mut self, node: &NodeId, session: u64) -> Option<&mut Held> {
        self.senders.get_mut(node).filter(|sender| sender.session == session).map(|sender| &mut sender.held)
    }

    fn see(&mut self, networks: &Arc<Networks>) {
        self.since.retain(|task, _| networks.leaving().contains_key(task));
        self.released.retain(|task| networks.leaving().contains_key(task));
        for task in networks.leaving().keys().filter(|task| !self.released.contains(*task)) {
            self.since.entry(task.clone()).or_insert_with(|| networks.revision());
        }
        self.networks = Some(networks.clone());
    }

    /// Releases what can be released; who was released once stays so, whoever comes later sees the task leaving from the start.
    fn judge(&mut self) -> bool {
        let Some(networks) = &self.networks else { return false };
        let holds = |node: &NodeId| self.senders.get(node).map_or(0, |sender| sender.held.holds());
        let more = released(networks, &self.since, holds);
        self.since.retain(|task, _| !more.contains(task));
        let any = !more.is_empty();
        self.released.extend(more);
        any
    }
}

/// The tasks, of those first seen unwanted in these revisions, to which nobody sends any more.
fn released(networks: &Networks, since: &BTreeMap<TaskId, u64>, holds: impl Fn(&NodeId) -> u64) -> BTreeSet<TaskId> {
    let is_released = |task: &TaskId, since: u64| {
        let Some(leaving) = networks.leaving().get(task) else { return false };
        networks.senders(leaving).all(|node| holds(node) >= since)
    };
    since.iter().filter(|(task, since)| is_released(task, **since)).map(|(task, _)| task.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node hears `sent REVISION`, `same REVISION` and `ack REVISION`; what it is known to hold after each.
    fn check(heard: &str, expected: &str) {
        let (mut held, mut sent) = (Held::default(), None);
        let holds = heard.split(", ").map(|event| {
            let (what, revision) = event.split_once(' ').expect("two words");
            let revision = revision.parse().expect("a number");
            match what {
                "sent" => {
                    sent = Some((7, revision));
                    held.compared(revision, sent);
                }
                "same" => held.compared(revision, sent),
                "ack" => held.acknowledged((7, revision)),
                "old" => held.acknowledged((6, revision)),
                other => panic!("{other}"),
            }
            held.holds().to_string()
        });
        assert_eq!(holds.collect::<Vec<_>>().join(" "), expected, "{heard}");
    }

    #[test]
    fn a_node_holds_what_was_compared_with_the_view_that_it_has_confirmed() {
        check("sent 10, ack 10, same 11, same 12", "0 10 11 12");
        check("sent 10, ack 10, sent 11, same 12, ack 11", "0 10 10 10 12");
        check("sent 10, sent 11, ack 10, ack 11", "0 0 0 11");
        check("old 9, sent 10, same 12, ack 10", "0 0 0 12");
    }

    #[test]
    fn a_netd_that_was_started_anew_holds_no_more_than_it_remembered() {
        check("sent 10, ack 10, same 20, sent 30, ack 30, ack 10, same 31, ack 30", "0 10 20 20 30 10 10 31");
        check("sent 10, ack 10, same 20, old 9, ack 10", "0 10 20 0 20");
    }
}
