//! What goes wrong, and when it is over.

use rand::Rng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rcluster_api::cluster::ManagerRole;

use crate::check::Violation;
use crate::disk::Left;
use crate::network::exponential;
use crate::plan::Fault;
use crate::world::{Event, World};

/// A disk that is slow takes so much longer.
const SLOWNESS: u64 = 50;
/// Shortest time that a disk hangs.
const HANG_LEAST_US: u64 = 500_000;
/// Writes before the one that fails.
const WRITES_MAX: u64 = 20;
/// After so long a leader has seen that a manager is gone.
const UNSEEN_US: u64 = 3_000_000;
/// How far a clock jumps ahead.
const JUMP_MAX_US: u64 = 5_000_000;

/// Mean time between two faults of a lull.
const LULL_FAULT_EVERY_US: u64 = 240_000_000;

/// What is over after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Cut(u64),
    SlowDisk(usize),
    FullDisk(usize),
}

impl World {
    /// The next fault of this seed.
    pub fn strike(&mut self) -> Result<(), Violation> {
        if self.is_calm {
            return Ok(());
        }
        let every_us = if self.is_lull { LULL_FAULT_EVERY_US } else { self.plan.fault_every_us };
        let next_us = exponential(&mut self.chances.faults, every_us).max(1_000);
        let burst = self.left;
        self.queue.push(self.now_us + next_us, Event::Strike(burst));
        let Some(fault) = self.plan.faults.choose(&mut self.chances.faults).copied() else { return Ok(()) };
        let lasts_us = self.chances.faults.random_range(1_000..=self.plan.fault_lasts_us);
        let until_us = self.now_us + lasts_us;
        let hosts = self.hosts.len();
        let host = self.chances.faults.random_range(0..hosts);
        self.tell(|| format!("{fault:?} h{host} for {} ms", lasts_us / 1000));
        match fault {
            Fault::Crash => self.crash(host, lasts_us)?,
            Fault::CrashAtWrite | Fault::FailedSync => {
                let writes = self.chances.faults.random_range(0..WRITES_MAX);
                let left = if self.chances.faults.random_bool(0.5) { Left::Nothing } else { Left::Everything };
                if let Some(manager) = &self.hosts[host].manager {
                    if fault == Fault::FailedSync { manager.disk.fail_sync(left) } else { manager.disk.fail_in(writes, left) }
                }
            }
            Fault::SlowDisk => {
                if let Some(manager) = &self.hosts[host].manager {
                    manager.disk.set_write_us(self.plan.write_us * SLOWNESS);
                    self.queue.push(until_us, Event::Over(Over::SlowDisk(host)));
                }
            }
            Fault::HangingDisk => self.hang(host),
            Fault::FullDisk => {
                if let Some(manager) = &self.hosts[host].manager {
                    manager.disk.set_full(true);
                    self.queue.push(until_us, Event::Over(Over::FullDisk(host)));
                }
            }
            Fault::Partition => {
                let here: Vec<bool> = (0..hosts).map(|_| self.chances.faults.random_bool(0.5)).collect();
                let links = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
                let links = links.filter(|(from, to)| here[*from] != here[*to]).collect();
                self.cut(links, until_us);
            }
            Fault::OneWay => {
                let to = self.chances.faults.random_range(0..hosts);
                let all = self.chances.faults.random_bool(0.3);
                let links = if all { (0..hosts).map(|to| (host, to)).collect() } else { vec![(host, to)] };
                self.cut(links, until_us);
            }
            Fault::Clog => {
                let to = self.chances.faults.random_range(0..hosts);
                self.network.clog((host, to), until_us);
            }
            Fault::Pause => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.busy_until_us = process.busy_until_us.max(until_us);
                    self.hosts[host].frozen_until_us = until_us;
                }
            }
            Fault::Drift => {
                let rate = self.chances.faults.random_range(800_000..=1_250_000);
                let now_us = self.now_us;
                self.hosts[host].clock.set_rate(now_us, rate);
            }
            Fault::ClockJump => {
                let by_us = self.chances.faults.random_range(0..JUMP_MAX_US);
                self.hosts[host].clock.jump(self.now_us, by_us);
            }
            Fault::Transfer => {
                let ids = (0..hosts).filter_map(|at| self.hosts[at].id());
                let to = ids.choose(&mut self.chances.faults);
                if let (Some(leader), Some(to)) = (self.leader(), to) {
                    if let Some(process) = &self.hosts[leader].process {
                        process.store.transfer_leadership(to);
                    }
                    self.wake(leader)?;
                }
            }
            Fault::Restart => self.stop(host)?,
            Fault::Join => self.add_host()?,
            Fault::Move => self.move_manager()?,
            // Nobody knows at once of a disk that is lost: one who then takes away another manager loses the quorum.
            Fault::Leave | Fault::ChangeRole if self.now_us < self.wiped_us + UNSEEN_US => {}
            Fault::Leave => self.remove_manager()?,
            Fault::ChangeRole => self.change_role()?,
            Fault::Wipe => {
                if self.may_lose(host) {
                    self.lose_disk(host)?;
                }
            }
            Fault::Rot => {
                let rots = self.may_lose(host) && self.hosts[host].manager.as_ref().is_some_and(|manager| manager.disk.rot());
                if rots {
                    self.wiped_us = self.now_us;
                    // Whether it is started again or is not up, what it finds is seen at its start.
                    self.end(host)?;
                    self.start(host)?;
                }
            }
        }
        Ok(())
    }

    /// The disk of a host hangs, half the time the leader's. One at a time: a cluster of which nothing works for long proves little.
    fn hang(&mut self, host: usize) {
        let now_us = self.now_us;
        if self.hosts.iter().filter_map(|host| host.process.as_ref()).any(|process| process.hangs(now_us)) {
            return;
        }
        let lasts_us = self.chances.faults.random_range(HANG_LEAST_US..=self.plan.hang_us);
        let leader = self.leader().filter(|_| self.chances.faults.random_bool(0.5));
        let host = leader.unwrap_or(host);
        self.tell(|| format!("the disk of h{host} hangs for {} ms", lasts_us / 1000));
        if let Some(process) = &mut self.hosts[host].process {
            process.hang(now_us + lasts_us);
        }
    }

    fn cut(&mut self, links: Vec<(usize, usize)>, until_us: u64) {
        self.cuts += 1;
        self.network.cut(self.cuts, links);
        self.queue.push(until_us, Event::Over(Over::Cut(self.cuts)));
    }

    /// A fault ends.
    pub fn end_fault(&mut self, over: Over) {
        match over {
            Over::Cut(number) => self.network.mend(number),
            Over::SlowDisk(host) => {
                if let Some(manager) = &self.hosts[host].manager {
                    manager.disk.set_write_us(self.plan.write_us);
                }
            }
            Over::FullDisk(host) => {
                if let Some(manager) = &self.hosts[host].manager {
                    manager.disk.set_full(false);
                }
            }
        }
    }

    /// Whether the disk of a host may be lost. What no quorum survives is not asked of the store: only one disk at a time, only of managers
    /// that are settled, and only where those that vote are still enough without it.
    fn may_lose(&self, host: usize) -> bool {
        let Some(id) = self.hosts[host].id() else { return false };
        let Some(leader) = self.leader() else { return false };
        let Some(process) = &self.hosts[leader].process else { return false };
        let raft = process.node.raft();
        let configuration = raft.store().configuration();
        let managers = self.checker.latest().managers();
        let wanted = managers.values().filter(|manager| manager.role == ManagerRole::Voter).map(|manager| manager.raft_id);
        let (mut wanted, mut voters): (Vec<u64>, Vec<u64>) = (wanted.collect(), configuration.voters.clone());
        wanted.sort_unstable();
        voters.sort_unstable();
        let settled = configuration.voters_outgoing.is_empty() && wanted == voters && raft.raft_log.committed == raft.raft_log.last_index();
        let kept = |id: &u64| self.hosts.iter().any(|host| host.id() == Some(*id));
        let all_kept = managers.values().all(|manager| kept(&manager.raft_id) && manager.role != ManagerRole::Leaving);
        let enough = !voters.contains(&id) || voters.len() >= 3;
        settled && all_kept && enough && host != leader
    }

    /// A disk is lost for good, and its host joins again.
    pub fn lose_disk(&mut self, host: usize) -> Result<(), Violation> {
        self.tell(|| format!("the disk of h{host} is lost"));
        self.wiped_us = self.now_us;
        self.end(host)?;
        self.hosts[host].manager = None;
        self.hosts[host].joining = true;
        self.join(host)
    }
}
