//! Processes that end with what started them, and addresses that nobody else has.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};

/// A process; it is killed when this goes.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its resident memory.
    pub fn rss_kib(&self) -> Result<u32> {
        rss_kib(self.0.id())
    }
}

/// The resident memory of a process.
pub fn rss_kib(pid: u32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// What a process has had of the processors, in user and kernel mode, in steps of 10 ms (proc_pid_stat(5), `utime` and `stime`).
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name may hold anything; what follows its last parenthesis does not.
    let fields = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: Result<Vec<u64>, _> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect();
    Ok(Duration::from_millis(ticks?.iter().sum::<u64>() * 10))
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An address of 127.0.0.0/8.
pub fn loopback() -> String {
    let [a, b, c] = rand::random::<[u8; 3]>();
    Ipv4Addr::new(127, a.clamp(1, 250), b, c.clamp(1, 250)).to_string()
}
