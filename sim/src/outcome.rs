//! How a seed went.

use std::fmt;
use std::time::Duration;

use crate::cluster::Counts;

/// How a seed went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Of all that happened.
    pub hash: u64,
    pub simulated: Duration,
    /// Of that, what was no lull.
    pub busy: Duration,
    pub events: u64,
    /// Terms in which someone led.
    pub terms: usize,
    /// Entries committed.
    pub entries: u64,
    /// Writes that were confirmed.
    pub writes: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// Pieces that watchers were told, and how often one was refused as too old.
    pub watched: (usize, usize),
    /// Leaders whose disk hung, and from whom the watchdog has taken the role.
    pub withdrawn: usize,
    /// From the end of the faults until all was well.
    pub recovery: Duration,
    /// What was done around the stores.
    pub cluster: Option<Counts>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hash, simulated, busy, events, terms, entries, writes, reads, watched, withdrawn, recovery, cluster } = self;
        write!(
            formatter,
            "{} s, {} of them busy, {events} events, {terms} terms, {withdrawn} withdrawn, {entries} entries, {writes} writes, {reads} reads, \
             {} watched, {} too old, ",
            simulated.as_secs(),
            busy.as_secs(),
            watched.0,
            watched.1
        )?;
        if let Some(Counts { brains, requests, starts, sessions, troubles, downs }) = cluster {
            write!(
                formatter,
                "{brains} brains, {requests} requests, {starts} starts, {sessions} sessions, {troubles} troubles, {downs} downs, "
            )?;
        }
        write!(formatter, "well after {} ms, hash {hash:016x}", recovery.as_millis())
    }
}
