//! Figures that are counted as things happen, for `/metrics`.
//!
//! Atomics alone: who counts never waits for who reads. A reader sees each figure as it is, not all of them of one moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of a histogram's buckets: from a sync into a disk's own memory to what a caller waits for at most.
const BOUNDS_US: [u64; 16] =
    [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000];
const BUCKETS: usize = BOUNDS_US.len() + 1;
const MICROSECONDS: f64 = 1e6;

/// A figure that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// It has happened once more.
    pub fn count(&self) {
        self.add(1);
    }

    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many of something there are now; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

/// Something that is there until this goes.
#[derive(Debug)]
pub struct There(Gauge);

impl Drop for There {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gauge {
    /// Counts one until what is returned goes.
    pub fn there(&self) -> There {
        self.0.fetch_add(1, Ordering::Relaxed);
        There(self.clone())
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something takes.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

/// A histogram as it was read; in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    pub sum: f64,
    pub count: u64,
    /// Upper bound and how many fell between it and the one before; the last has no bound.
    pub buckets: [(f64, u64); BUCKETS],
}

impl Histogram {
    /// It took so long.
    pub fn observe(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < took_us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    /// What was observed so far.
    pub fn times(&self) -> Times {
        let counts = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        let bound = |at: usize| BOUNDS_US.get(at).map_or(f64::INFINITY, |bound| seconds(*bound));
        Times {
            sum: seconds(self.sum_us.load(Ordering::Relaxed)),
            // Not counted apart, so that it is always the sum of the buckets.
            count: counts.iter().sum(),
            buckets: std::array::from_fn(|at| (bound(at), counts[at])),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "2^53 microseconds are 285 years")]
fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / MICROSECONDS
}

/// What a store counts.
#[derive(Debug, Default)]
pub struct StoreMeter {
    /// From a transaction that is to be proposed to word of its commit, with the wait for room among those in flight.
    pub proposals: Histogram,
    /// Those that became no revision, or of which that is not known.
    pub proposals_failed: Counter,
    /// Transactions that the tables have taken in.
    pub applied: Counter,
    /// Transactions that were committed and had no effect: an object had another version.
    pub conflicts: Counter,
    /// A batch of the log, with its sync.
    pub log_writes: Histogram,
    /// The sync alone.
    pub log_syncs: Histogram,
    pub log_bytes: Counter,
    /// Snapshots of the tables that were made here.
    pub snapshots_made: Counter,
    /// Those that were sent to another manager.
    pub snapshots_sent: Counter,
    /// Those that came from the leader and are the tables now.
    pub snapshots_installed: Counter,
}

impl StoreMeter {
    /// A transaction was committed, and has had effect or not.
    pub fn applied(&self, has_effect: bool) {
        if has_effect { self.applied.count() } else { self.conflicts.count() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_first_bucket_that_is_not_too_short() {
        let histogram = Histogram::default();
        for took_us in [0, 100, 101, 20_000_000] {
            histogram.observe(Duration::from_micros(took_us));
        }
        let Times { sum, count, buckets } = histogram.times();
        assert_eq!((count, buckets[0], buckets[1], buckets[16]), (4, (0.0001, 2), (0.0002, 1), (f64::INFINITY, 1)));
        assert!((sum - 20.000_201).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn what_is_there_is_counted_while_it_is() {
        let gauge = Gauge::default();
        let (one, two) = (gauge.there(), gauge.there());
        assert_eq!(gauge.value(), 2);
        drop(one);
        assert_eq!(gauge.value(), 1);
        drop(two);
        assert_eq!(gauge.value(), 0);
    }
}
