//! `pause` and `resume`: freezes all processes of a container and lets them go on (no verbs of the specification; runc's).
//!
//! Out: returns once every process stands still. Version 1 has a freezer cgroup (`freezer-subsystem.rst`), version 2 freezes any cgroup
//! (`cgroup-v2.rst`, "cgroup.freeze"); on a hybrid host version 1's is used, as by runc, so that each sees the other's doing.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::existing;
use crate::core::status::Status;
use crate::state::is_frozen;

const WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);

/// Stops every process of a container.
pub fn pause(root: &Path, id: &str) -> Result<()> {
    let (dir, _) = existing(root, id)?;
    let _lock = dir.lock()?;
    let (dir, record) = existing(root, id)?;
    match dir.status(&record)? {
        Status::Created | Status::Running => {}
        other => bail!("container {id} is {other}: only a created or running one can be paused"),
    }
    let freezer = Freezer::find(&record.cgroups).context(if record.cgroups.is_empty() {
        "the container has no cgroup that could be frozen: its user may make none, unless a freezer's or version 2's is given to that user"
    } else {
        "no cgroup of the container can be frozen: mount a freezer, or cgroup version 2"
    })?;
    freezer.freeze().map_err(|error| match freezer.thaw() {
        Ok(()) => error,
        Err(left) => error.context(format!("and it could not be resumed: {left:#}")),
    })
}

/// Lets every process of a container go on.
pub fn resume(root: &Path, id: &str) -> Result<()> {
    let (dir, _) = existing(root, id)?;
    let _lock = dir.lock()?;
    let (dir, record) = existing(root, id)?;
    match dir.status(&record)? {
        Status::Paused => thaw(&record.cgroups),
        other => bail!("container {id} is {other}, not paused"),
    }
}

/// Lets go on whatever is frozen.
pub fn thaw(groups: &[PathBuf]) -> Result<()> {
    groups
        .iter()
        .filter(|group| is_frozen(group) == Some(true))
        .filter_map(|group| Freezer::of(group))
        .try_for_each(|freezer| freezer.thaw())
}

/// A cgroup that can be frozen.
enum Freezer {
    V1(PathBuf),
    V2(PathBuf),
}

impl Freezer {
    fn find(groups: &[PathBuf]) -> Option<Self> {
        let found: Vec<Self> = groups.iter().filter_map(|group| Self::of(group)).collect();
        let first = found.iter().position(|freezer| matches!(freezer, Self::V1(_))).unwrap_or(0);
        found.into_iter().nth(first)
    }

    fn of(group: &Path) -> Option<Self> {
        if group.join("freezer.state").exists() {
            return Some(Self::V1(group.to_owned()));
        }
        group.join("cgroup.freeze").exists().then(|| Self::V2(group.to_owned()))
    }

    fn freeze(&self) -> Result<()> {
        match self {
            Self::V1(group) => freeze_v1(group),
            Self::V2(group) => {
                write(&group.join("cgroup.freeze"), "1")?;
                wait_frozen_v2(group)
            }
        }
    }

    fn thaw(&self) -> Result<()> {
        match self {
            Self::V1(group) => write(&group.join("freezer.state"), "THAWED"),
            Self::V2(group) => write(&group.join("cgroup.freeze"), "0"),
        }
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value} to {}", path.display()))
}

/// A process that is in the middle of fork(2) or of a signal keeps the state at FREEZING until the file is read or written again.
fn freeze_v1(group: &Path) -> Result<()> {
    let path = group.join("freezer.state");
    let deadline = Instant::now() + WAIT;
    loop {
        write(&path, "FROZEN")?;
        let state = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if state.trim() == "FROZEN" {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{}: still {} after {} s: a process is stuck in the kernel", path.display(), state.trim(), WAIT.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// The kernel wakes whoever polls for a change of the events.
fn wait_frozen_v2(group: &Path) -> Result<()> {
    let path = group.join("cgroup.events");
    let mut events = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let deadline = Instant::now() + WAIT;
    loop {
        let mut text = String::new();
        events.rewind().and_then(|()| events.read_to_string(&mut text)).with_context(|| format!("read {}", path.display()))?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("{}: not frozen after {} s: a process is stuck in the kernel", path.display(), WAIT.as_secs());
        }
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(std::io::Error::from(errno)).context("wait for the container to stand still"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::core::cgroup::{Version, hierarchies};

    /// A process in a cgroup of version 2; both go however the test ends.
    struct Sleeper(Child, PathBuf);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = fs::write(self.1.join("cgroup.freeze"), "0");
            let _ = self.0.kill();
            let _ = self.0.wait();
            let _ = fs::remove_dir(&self.1);
        }
    }

    /// On a hybrid host `pause` takes version 1's freezer: this is the other one.
    #[test]
    fn version_2_stands_still_when_freeze_returns() {
        let read = |path: &str| fs::read_to_string(path).unwrap();
        let found = hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let Some(unified) = found.iter().find(|hierarchy| hierarchy.version == Version::V2) else {
            std::io::Write::write_all(&mut std::io::stderr(), b"SKIPPED: no cgroup version 2 is mounted\n").unwrap();
            return;
        };
        let group = unified.mount_point.join(format!("rt-test-freeze-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap(), group);
        let group = &sleeper.1;
        fs::write(group.join("cgroup.procs"), sleeper.0.id().to_string()).unwrap();
        let freezer = Freezer::of(group).unwrap();
        assert!(matches!(freezer, Freezer::V2(_)));
        freezer.freeze().unwrap();
        assert_eq!(is_frozen(group), Some(true));
        thaw(std::slice::from_ref(group)).unwrap();
        assert_eq!(fs::read_to_string(group.join("cgroup.freeze")).unwrap().trim(), "0");
    }
}
