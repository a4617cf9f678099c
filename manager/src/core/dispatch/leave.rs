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
//! A task is looked at when it is new, and when the one node holds more that it is known to wait for: not with each beat of every node.
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

/// A task that is to stop and is sent to still.
#[derive(Debug)]
struct Wait {
    /// The revision in which it was first seen so.
    since: u64,
    /// One of the nodes that may send to it: as long as it holds no view from then on, the others need not be asked. `None`: not looked for yet.
    node: Option<NodeId>,
}

/// A leader's memory of who still sends to tasks that are to stop. It begins with nothing known of any node.
#[derive(Debug, Default)]
pub struct Leave {
    networks: Option<Arc<Networks>>,
    waits: BTreeMap<TaskId, Wait>,
    /// The same tasks by the node that they wait for.
    waits_for: BTreeMap<NodeId, BTreeSet<TaskId>>,
    senders: BTreeMap<NodeId, Sender>,
    /// By the node that they are on.
    released: BTreeMap<NodeId, BTreeSet<TaskId>>,
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
        let is_news = self.networks.as_ref().is_none_or(|known| known.revision() < networks.revision());
        let seen = is_news && self.see(networks);
        let heard = self.hear(node, session, |held| held.compared(networks.revision(), sent));
        seen || heard
    }

    /// The node's netd holds this view. Answers whether more tasks are released than before.
    pub fn acknowledged(&mut self, node: &NodeId, session: u64, mark: Mark) -> bool {
        self.hear(node, session, |held| held.acknowledged(mark))
    }

    /// The tasks of the node that need not wait any longer.
    pub fn released(&self, node: &NodeId) -> BTreeSet<TaskId> {
        self.released.get(node).cloned().unwrap_or_default()
    }

    /// Something is known of what a node holds; looks at those who wait for it if it holds more than before.
    fn hear(&mut self, node: &NodeId, session: u64, what: impl FnOnce(&mut Held)) -> bool {
        let Some(sender) = self.senders.get_mut(node).filter(|sender| sender.session == session) else { return false };
        let before = sender.held.holds();
        what(&mut sender.held);
        sender.held.holds() > before && self.judge(self.waits_for.get(node).cloned().unwrap_or_default())
    }

    /// Looks at the tasks that are to stop and were not before, and at those that wait for a node that does not send to them any more.
    fn see(&mut self, networks: &Arc<Networks>) -> bool {
        let leaving = networks.leaving();
        let gone: Vec<TaskId> = self.waits.keys().filter(|task| !leaving.contains_key(*task)).cloned().collect();
        for task in gone {
            self.end_wait(&task);
        }
        self.released.values_mut().for_each(|released| released.retain(|task| leaving.contains_key(task)));
        self.released.retain(|_, released| !released.is_empty());
        let mut open = BTreeSet::new();
        for (task, leaving) in leaving {
            // Who was released once stays so: whoever comes later sees the task leaving from the start.
            if self.released.get(&leaving.node).is_some_and(|released| released.contains(task)) {
                continue;
            }
            let wait = self.waits.entry(task.clone()).or_insert_with(|| Wait { since: networks.revision(), node: None });
            if wait.node.as_ref().is_none_or(|node| !networks.is_sender(node, leaving)) {
                open.insert(task.clone());
            }
        }
        self.networks = Some(networks.clone());
        self.judge(open)
    }

    /// Releases those of these tasks that nobody sends to any more; the others wait for the next who does.
    fn judge(&mut self, tasks: BTreeSet<TaskId>) -> bool {
        let Some(networks) = self.networks.clone() else { return false };
        let mut any = false;
        for task in tasks {
            let (Some(leaving), Some(Wait { since, node })) = (networks.leaving().get(&task), self.end_wait(&task)) else { continue };
            let holds = |node: &NodeId| self.senders.get(node).map_or(0, |sender| sender.held.holds());
            let next = networks.senders(leaving, node.as_ref()).find(|node| holds(node) < since);
            match next {
                Some(node) => {
                    self.waits_for.entry(node.clone()).or_default().insert(task.clone());
                    self.waits.insert(task, Wait { since, node: Some(node.clone()) });
                }
                None => {
                    self.released.entry(leaving.node.clone()).or_default().insert(task);
                    any = true;
                }
            }
        }
        any
    }

    fn end_wait(&mut self, task: &TaskId) -> Option<Wait> {
        let wait = self.waits.remove(task)?;
        if let Some(node) = &wait.node
            && let Some(tasks) = self.waits_for.get_mut(node)
        {
            tasks.remove(task);
            if tasks.is_empty() {
                self.waits_for.remove(node);
            }
        }
        Some(wait)
    }
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
