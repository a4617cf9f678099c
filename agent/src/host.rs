//! Facts of the host the agent runs on, and which boot of it this is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcluster_api::id::NodeId;
use rcluster_api::object::{Capacity, NodeDescription};
use rcluster_api::policy::NodePolicy;
use rcluster_api::resource::{Bytes, Cpus};
use rcluster_base::ledger;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::core::bundle::HostDevice;
use crate::place::Places;

/// The node's identity, kept on its disk, and its boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub node_id: NodeId,
    /// Rises each time the run directory is found empty, that is when the host has booted.
    pub incarnation: u64,
}

/// Reads the node's identity; makes it at the first start and counts the boot when this is the first start since.
/// `joined`: the id that its certificate gives it. A node that is another one than before begins without the last that the managers sent:
/// another cluster counts its own terms and revisions, and may be far below.
pub fn identify(places: &Places, joined: Option<String>) -> Result<Identity> {
    let kept: Option<Identity> = ledger::read(&places.node_file())?;
    let boot: Option<Identity> = ledger::read(&places.boot_file())?;
    let joined = joined.map(NodeId::from);
    let kept = kept.filter(|kept| joined.as_ref().is_none_or(|joined| kept.node_id == *joined));
    if let Some(kept) = &kept
        && boot.as_ref() == Some(kept)
    {
        return Ok(kept.clone());
    }
    let identity = match kept {
        Some(kept) => Identity { incarnation: kept.incarnation + 1, ..kept },
        None => Identity { node_id: joined.unwrap_or_else(|| NodeId::random(&mut rand::rng())), incarnation: 1 },
    };
    ledger::write(&places.node_file(), &identity)?;
    if boot.is_none_or(|boot| boot.node_id != identity.node_id) {
        for path in [places.assignments_file(), places.view_file()] {
            remove_if_there(&path).with_context(|| format!("remove {}, which was for another node", path.display()))?;
        }
    }
    // Last: who is killed before this finds the boot of the other node, and begins again.
    ledger::write(&places.boot_file(), &identity)?;
    Ok(identity)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// What the managers are told of the host.
pub fn describe(name: &str, addr: &str, labels: BTreeMap<String, String>, policy: NodePolicy) -> Result<NodeDescription> {
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism().context("count the processors")?.get();
    Ok(NodeDescription {
        name: name.to_owned(),
        addr: addr.to_owned(),
        capacity: Capacity { cpus: Cpus(u64::try_from(cpus)?.saturating_mul(1000)), memory: Bytes(memory_bytes()?) },
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        cgroup: cgroup_layout(&cgroup_mounts()?).to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels,
        policy,
        network: None,
    })
}

/// The device node at a path; `None` when there is something else.
pub fn device(path: &Path) -> io::Result<Option<HostDevice>> {
    let stat = rustix::fs::stat(path)?;
    let block = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => true,
        FileType::CharacterDevice => false,
        _ => return Ok(None),
    };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(Some(HostDevice { path: path.to_path_buf(), block, major, minor }))
}

/// Every device node in `/dev` and below, but for those that belong to a mount of a container's own.
pub fn devices() -> io::Result<Vec<HostDevice>> {
    const OWN: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console"];
    let mut found = Vec::new();
    let mut rest = vec![PathBuf::from("/dev")];
    while let Some(dir) = rest.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type()?;
            if OWN.iter().any(|own| path == Path::new(own)) || kind.is_symlink() {
                continue;
            }
            if kind.is_dir() {
                rest.push(path);
            } else {
                found.extend(device(&path)?);
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    pub path: PathBuf,
    pub v2: bool,
}

/// Every cgroup hierarchy that is mounted here.
pub fn cgroup_mounts() -> Result<Vec<CgroupMount>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(parse_mountinfo(&text))
}

/// When a process started, in clock ticks from boot: field 22 of `/proc/PID/stat`. `None` when there is no such process.
pub fn start_ticks(pid: u32) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        // ESRCH: it went while it was being read.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok()))
}

/// Removes a directory of cgroups that holds no process, in every hierarchy; what is not there is no error.
pub fn remove_cgroup(path: &str) -> Result<()> {
    for mount in cgroup_mounts()? {
        let dir = mount.path.join(path.trim_start_matches('/'));
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The names of the cgroups directly below `path`, in whichever hierarchy.
pub fn cgroups_in(path: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for mount in cgroup_mounts()? {
        let dir = mount.path.join(path.trim_start_matches('/'));
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            done => done.with_context(|| format!("list {}", dir.display()))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            if entry.path().is_dir() {
                names.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    Ok(names)
}

fn memory_bytes() -> Result<u64> {
    let path = Path::new("/proc/meminfo");
    let text = fs::read_to_string(path).context("read /proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kib.context("/proc/meminfo has no line MemTotal")?.saturating_mul(1024))
}

fn parse_mountinfo(text: &str) -> Vec<CgroupMount> {
    let mounts = text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let v2 = match after.split(' ').next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        Some(CgroupMount { path: PathBuf::from(before.split(' ').nth(4)?), v2 })
    });
    mounts.collect()
}

fn cgroup_layout(mounts: &[CgroupMount]) -> &'static str {
    match (mounts.iter().any(|mount| !mount.v2), mounts.iter().any(|mount| mount.v2)) {
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, _) => "v2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_cgroups_is_read_from_the_mounts() {
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let v2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:5 - cgroup2 cgroup2 rw\n";
        let other = "1 0 0:1 / / rw - ext4 /dev/vda rw\n";
        for (text, expected) in [(format!("{other}{v1}"), "v1"), (format!("{v1}{v2}"), "hybrid"), (format!("{other}{v2}"), "v2")] {
            assert_eq!(cgroup_layout(&parse_mountinfo(&text)), expected);
        }
    }

    #[test]
    fn a_boot_is_counted_once_and_an_empty_run_directory_is_a_new_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let places = Places { state: dir.path().join("state"), run: dir.path().join("run") };
        fs::create_dir_all(&places.state).expect("state");
        fs::create_dir_all(&places.run).expect("run");
        let first = identify(&places, None).expect("first start");
        assert_eq!((first.incarnation, identify(&places, None).expect("second start")), (1, first.clone()));
        fs::remove_file(places.boot_file()).expect("boot");
        let booted = identify(&places, None).expect("after a boot");
        assert_eq!((booted.node_id, booted.incarnation), (first.node_id, 2));
    }

    #[test]
    fn what_the_managers_sent_is_not_for_another_node() {
        let dir = tempfile::tempdir().expect("a directory");
        let places = Places { state: dir.path().to_path_buf(), run: dir.path().to_path_buf() };
        let sent = [places.assignments_file(), places.view_file()];
        let left = || sent.iter().filter(|path| path.exists()).count();
        identify(&places, Some("a".into())).expect("it joined");
        sent.iter().for_each(|path| fs::write(path, b"").expect("write"));
        identify(&places, Some("a".into())).expect("it is the same");
        assert_eq!(left(), 2);
        let other = identify(&places, Some("b".into())).expect("it joined another cluster");
        assert_eq!((other.node_id.as_str(), other.incarnation, left()), ("b", 1, 0));
    }

    #[test]
    fn a_process_has_a_start_and_a_free_number_none() {
        assert!(start_ticks(std::process::id()).expect("read").is_some());
        assert_eq!(start_ticks(u32::MAX).expect("read"), None);
    }
}
