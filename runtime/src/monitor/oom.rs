//! Whether the kernel killed anything in a container for want of memory.
//!
//! In: the container's process, of whatever runtime. Out: the count of `oom_kill` in its memory cgroup: `memory.events` of version 2
//! (cgroup-v2.rst), `memory.oom_control` of version 1 (cgroup-v1/memory.rst). The file is held open, so that it can be read as long as
//! the cgroup exists.

use std::fs::File;
use std::io::{Read, Seek};

use crate::core::cgroup::{Version, hierarchies};

/// The open counter.
#[derive(Debug)]
pub struct Counter(File);

impl Counter {
    /// Finds the memory cgroup of a process; `None` where it has none.
    pub fn open(pid: i32) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let hierarchies = hierarchies(&mounts, &groups);
        let v1 = hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == "memory"));
        let hierarchy = v1.or_else(|| hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2))?;
        let file = if v1.is_some() { "memory.oom_control" } else { "memory.events" };
        File::open(hierarchy.mount_point.join(&hierarchy.own).join(file)).ok().map(Self)
    }

    /// Whether it counts any.
    pub fn happened(mut self) -> bool {
        let mut text = String::new();
        // A cgroup that is gone tells nothing.
        let read = self.0.rewind().and_then(|()| self.0.read_to_string(&mut text));
        read.is_ok() && oom_kills(&text) > 0
    }
}

fn oom_kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count_alike() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 3\noom 1\noom_kill 0\noom_group_kill 0\n"), 0);
    }
}
