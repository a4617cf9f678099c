//! What a seed does: which faults there are and how hard, how the store is tuned, how busy its users are.
//!
//! Each seed has a random part of the faults: one that is always there would hide what happens without it.

use std::time::Duration;

use rand::Rng;
use rcluster_manager::store::{RaftTiming, StoreConfig};

use crate::chance::{Chance, stream};
use crate::cluster;

/// Longest time that a disk hangs.
const HANG_US: u64 = 6_000_000;
/// The same of a cluster: long enough for another leader to judge nodes that stay with the one whose disk hangs.
const CLUSTER_HANG_US: u64 = 25_000_000;

/// A kind of fault or deed that is drawn again and again while a seed's faults are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies, at once.
    Crash,
    /// The process dies in one of its next writes, before or after the write is on the disk.
    CrashAtWrite,
    /// A write fails, and is on the disk or is not.
    FailedSync,
    /// Writes take long for a while.
    SlowDisk,
    /// A round ends late, as of a write that takes seconds; the rest of its process goes on.
    HangingDisk,
    /// No room for a while, for snapshots or another segment of the log.
    FullDisk,
    /// The hosts fall into two parts that do not reach each other.
    Partition,
    /// One host does not reach another, which reaches it.
    OneWay,
    /// A link holds back all messages for a while.
    Clog,
    /// The process does not run for a while.
    Pause,
    /// The host's clock goes faster or slower.
    Drift,
    /// The host's clock jumps ahead.
    ClockJump,
    /// The leader is asked to hand over.
    Transfer,
    /// The process is asked to stop, and is started again.
    Restart,
    /// A new manager joins.
    Join,
    /// A manager is removed.
    Leave,
    /// A manager is to vote, or not to vote.
    ChangeRole,
    /// A manager moves to another address.
    Move,
    /// A disk is lost with all that is on it; the host joins again.
    Wipe,
    /// A bit of a manager's log turns: it refuses to start, and its host joins again with an empty disk.
    Rot,
}

impl Fault {
    /// All but those that have a stream of chance of their own.
    const ALL: [Self; 19] = [
        Self::Crash,
        Self::CrashAtWrite,
        Self::FailedSync,
        Self::SlowDisk,
        Self::FullDisk,
        Self::Partition,
        Self::OneWay,
        Self::Clog,
        Self::Pause,
        Self::Drift,
        Self::ClockJump,
        Self::Transfer,
        Self::Restart,
        Self::Join,
        Self::Leave,
        Self::ChangeRole,
        Self::Move,
        Self::Wipe,
        Self::Rot,
    ];
}

/// All that a seed decides before it begins.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub hosts: usize,
    pub clients: usize,
    /// How long the faults are on and the users busy, in all.
    pub busy_us: u64,
    /// So many times: the parts of that time.
    pub bursts: u64,
    /// Between two bursts there is a lull: of this length at the mean, with few faults and little to do.
    pub lull_us: u64,
    /// Bytes of a segment of the managers' own log; none: a log in memory.
    pub segment_bytes: Option<u64>,
    /// Whether that log is sealed.
    pub sealed: bool,
    pub faults: Vec<Fault>,
    /// Mean time between two of them.
    pub fault_every_us: u64,
    /// Longest time that one of them lasts.
    pub fault_lasts_us: u64,
    /// Longest time that a disk hangs.
    pub hang_us: u64,
    /// Mean time of a client between two requests.
    pub think_us: u64,
    /// Part of the requests that are reads.
    pub reads: f64,
    pub keys: usize,
    pub watchers: usize,
    /// Mean time from a commit until a manager's end of a watch takes it up: one whose reader is slow waits for it.
    pub watch_lag_us: u64,
    /// Shortest way of a message, and the mean of what comes on top.
    pub latency_us: (u64, u64),
    pub loss: f64,
    pub duplication: f64,
    /// Messages overtake each other.
    pub reordering: bool,
    /// Mean time from a message's arrival to the round that takes it in, with all that have arrived by then; 0: each its own round.
    pub batching_us: u64,
    /// Inputs that one round takes in.
    pub batch_max: usize,
    /// Mean of a write's time.
    pub write_us: u64,
    pub timing: RaftTiming,
    pub snapshot_entries: u64,
    pub snapshot_bytes: u64,
    pub trailing_entries: u64,
    /// What is around the stores, if anything is.
    pub cluster: Option<cluster::Plan>,
}

fn one_of<T: Copy>(chance: &mut Chance, choices: &[T]) -> T {
    choices[chance.random_range(0..choices.len())]
}

impl Plan {
    /// The plan of `seed`.
    pub fn draw(seed: u64) -> Self {
        let chance = &mut stream(seed, "plan");
        let share = one_of(chance, &[0.0, 0.15, 0.3, 0.5, 0.8]);
        let usual = RaftTiming::default();
        let timing = match chance.random_range(0..4) {
            0 => RaftTiming { stagger: 1, slack: 0, ..usual },
            1 => RaftTiming { tick: Duration::from_millis(100), heartbeat: 1, election: 5, slack: 1, stagger: 2 },
            _ => usual,
        };
        let fault_every_us = one_of(chance, &[300_000, 1_000_000, 3_000_000, 10_000_000]);
        let bursts = chance.random_range(2..=6);
        let segment_bytes = chance.random_bool(0.3).then(|| one_of(chance, &[4 << 10, 16 << 10, 64 << 10]));
        // Snapshots of the managers' own log are files that are really synced.
        let snapshot_entries = if segment_bytes.is_some() { &[30, 200, 10_000][..] } else { &[1, 5, 30, 200, 10_000] };
        // So that at most a few are on at a time: a cluster of which nothing works for long proves little.
        let fault_lasts_us = fault_every_us * one_of(chance, &[1, 3, 10, 30]) / 5;
        let (watching, hanging) = (&mut stream(seed, "watches"), &mut stream(seed, "hangs"));
        let hangs = hanging.random_bool(share).then_some(Fault::HangingDisk);
        Self {
            seed,
            hosts: one_of(chance, &[1, 2, 3, 3, 3, 3, 4, 5, 5]),
            clients: chance.random_range(1..=5),
            busy_us: chance.random_range(20..=80) * 1_000_000,
            bursts,
            lull_us: chance.random_range(40..=75) * 60_000_000 / (bursts - 1),
            segment_bytes,
            sealed: chance.random_bool(0.5),
            faults: Fault::ALL.into_iter().filter(|_| chance.random_bool(share)).chain(hangs).collect(),
            fault_every_us,
            fault_lasts_us,
            hang_us: HANG_US,
            think_us: one_of(chance, &[20_000, 100_000, 300_000, 1_000_000]),
            reads: one_of(chance, &[0.0, 0.2, 0.5, 0.9]),
            keys: one_of(chance, &[1, 4, 16, 64]),
            watchers: one_of(watching, &[0, 1, 1, 2, 3]),
            watch_lag_us: one_of(watching, &[0, 1_000, 50_000, 1_000_000]),
            latency_us: (one_of(chance, &[50, 500, 5_000]), one_of(chance, &[10, 200, 3_000, 30_000])),
            loss: one_of(chance, &[0.0, 0.0, 0.01, 0.1, 0.25]),
            duplication: one_of(chance, &[0.0, 0.0, 0.01, 0.2]),
            reordering: chance.random_bool(0.4),
            batching_us: one_of(chance, &[0, 0, 100, 2_000]),
            batch_max: one_of(chance, &[1, 4, 1024]),
            write_us: one_of(chance, &[10, 100, 2_000, 10_000]),
            timing,
            snapshot_entries: one_of(chance, snapshot_entries),
            snapshot_bytes: one_of(chance, &[500, 20_000, 64 << 20]),
            trailing_entries: one_of(chance, &[0, 1, 10, 1_000]),
            cluster: None,
        }
    }

    /// The plan of `seed` with brains, agents and users around the stores; no clients write past the brains, and the managers stay who
    /// they are.
    pub fn draw_cluster(seed: u64) -> Self {
        let plan = Self::draw(seed);
        let chance = &mut stream(seed, "cluster world");
        // Of every second seed a disk hangs, of some of them alone: other faults hide what comes of it.
        let hangs = stream(seed, "cluster hangs").random_bool(0.5).then_some(Fault::HangingDisk);
        let others = [Fault::Join, Fault::Leave, Fault::ChangeRole, Fault::Move, Fault::Wipe, Fault::Rot, Fault::HangingDisk];
        let faults: Vec<Fault> = plan.faults.into_iter().filter(|fault| !others.contains(fault)).chain(hangs).collect();
        let cluster = cluster::Plan::draw(seed);
        Self {
            hosts: one_of(chance, &[1, 3, 3, 3, 5]),
            clients: 0,
            busy_us: chance.random_range(60..=180) * 1_000_000,
            bursts: 1,
            segment_bytes: None,
            faults,
            hang_us: CLUSTER_HANG_US,
            cluster: Some(cluster),
            ..plan
        }
    }

    /// Without lulls: all of it is busy.
    #[must_use]
    pub fn busy(self) -> Self {
        Self { bursts: 1, ..self }
    }

    /// With its logs in memory, whatever it has drawn.
    #[must_use]
    pub fn in_memory(self) -> Self {
        Self { segment_bytes: None, ..self }
    }

    /// The store's configuration, but for who it is.
    pub fn tune(&self, config: &mut StoreConfig) {
        config.timing = self.timing;
        config.snapshot_entries = self.snapshot_entries;
        config.snapshot_bytes = self.snapshot_bytes;
        config.trailing_entries = self.trailing_entries;
    }
}
