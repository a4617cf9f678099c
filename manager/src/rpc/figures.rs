//! What is counted of calls and connections.

use std::time::Duration;

use super::auth::Peer;
use super::methods::{METHODS, Method, OUTCOMES};
use crate::meter::{Counter, Gauge, Histogram, There};
use rcluster_api::identity::Part;

/// Who connects: a part of the cluster, one without a certificate, or anyone in plain text.
pub const PARTS: [&str; 5] = ["manager", "agent", "user", "nobody", "plain"];

/// Counts calls and connections.
#[derive(Debug)]
pub struct Figures {
    calls: [Calls; METHODS],
    connections: [Gauge; PARTS.len()],
    /// Connections that were accepted.
    pub accepted: Counter,
    /// Those of which nothing came: no TLS, an unknown authority, an expired certificate, or too slow.
    pub handshakes_failed: Counter,
    /// Calls and connections that were refused because their callers had or made too many.
    pub limited: Counter,
    /// Streams of changes that are open.
    pub watches: Gauge,
    /// Streams of logs.
    pub logs: Gauge,
    /// Conversations with containers and nodes.
    pub relays: Gauge,
}

/// The calls of one method.
#[derive(Debug, Default)]
pub struct Calls {
    outcomes: [Counter; OUTCOMES.len()],
    /// From a call's headers to the head of its answer.
    pub took: Histogram,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            calls: std::array::from_fn(|_| Calls::default()),
            connections: Default::default(),
            accepted: Counter::default(),
            handshakes_failed: Counter::default(),
            limited: Counter::default(),
            watches: Gauge::default(),
            logs: Gauge::default(),
            relays: Gauge::default(),
        }
    }
}

impl Figures {
    /// A call was answered, or its caller has gone; `outcome`: a place in [`OUTCOMES`].
    pub fn answered(&self, method: Method, outcome: usize, took: Duration) {
        let calls = &self.calls[method.number()];
        calls.outcomes[outcome].count();
        calls.took.observe(took);
    }

    /// A connection that is there until what is returned goes.
    pub fn connected(&self, peer: &Peer) -> There {
        let part = match peer {
            Peer::Certificate(identity) => match identity.part {
                Part::Manager => 0,
                Part::Agent => 1,
                Part::User => 2,
            },
            Peer::Nobody => 3,
            Peer::Plain => 4,
        };
        self.connections[part].there()
    }

    /// How many connections there are, by who is at the other end.
    pub fn connections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        PARTS.into_iter().zip(self.connections.iter().map(Gauge::value))
    }

    /// The methods that were called.
    pub fn calls(&self) -> impl Iterator<Item = (String, &Calls)> {
        let called = Method::all().map(|method| (method, &self.calls[method.number()]));
        called.filter(|(_, calls)| calls.outcomes().next().is_some()).map(|(method, calls)| (method.name(), calls))
    }
}

impl Calls {
    /// How calls ended, and how many did.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().zip(self.outcomes.iter().map(Counter::value)).filter(|(_, count)| *count > 0)
    }
}
