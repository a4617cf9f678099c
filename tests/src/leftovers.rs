//! What a lab leaves behind: processes, network namespaces, mounts, cgroups, links and directories that were not there before.
//!
//! What others do on the machine meanwhile does not count: other programs, other builds of ours, other tests in their temporary directories
//! and in cgroups named after them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// What there is of ours on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    items: BTreeSet<String>,
}

impl Inventory {
    /// Looks at the machine.
    pub fn take() -> Result<Self> {
        let mut items = BTreeSet::new();
        processes(&mut items)?;
        lines("mount", "/proc/self/mountinfo", |line| line.split(' ').nth(4).unwrap_or_default().to_owned(), &mut items)?;
        names("link", Path::new("/sys/class/net"), &mut items)?;
        names("netns", Path::new("/run/netns"), &mut items)?;
        names("lab", Path::new("/run/rcluster/labs"), &mut items)?;
        names("lab state", Path::new("/var/lib/rcluster/labs"), &mut items)?;
        for root in [Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/unified")] {
            names("cgroup", root, &mut items)?;
        }
        for controller in ["pids", "memory", "freezer", "cpu", "systemd"] {
            names(&format!("cgroup {controller}"), &Path::new("/sys/fs/cgroup").join(controller), &mut items)?;
        }
        Ok(Self { items })
    }

    /// The processes of one lab.
    pub fn processes_of(lab: &str) -> Result<Vec<String>> {
        Ok(Self::take()?.items.into_iter().filter(|item| item.starts_with("process ") && item.contains(lab)).collect())
    }

    /// An error that names everything of one lab that is there now.
    pub fn check_nothing_of(lab: &str) -> Result<()> {
        let left: Vec<String> = Self::take()?.items.into_iter().filter(|item| item.contains(lab)).collect();
        if left.is_empty() { Ok(()) } else { bail!("left behind: {}", left.join(", ")) }
    }

    /// An error that names everything which is there now and was not in `before`.
    pub fn check_nothing_new(before: &Self) -> Result<()> {
        let new: Vec<String> = Self::take()?.items.difference(&before.items).cloned().collect();
        if new.is_empty() { Ok(()) } else { bail!("left behind: {}", new.join(", ")) }
    }
}

/// Processes whose program is one of ours, and the network namespaces that they are in.
fn processes(items: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let entry = entry.context("list /proc")?;
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // A process may end while it is being looked at.
        let Ok(comm) = fs::read_to_string(entry.path().join("comm")) else { continue };
        if comm.starts_with("rcluster") || comm.trim() == "probe" {
            let ours = fs::read_link(entry.path().join("exe")).unwrap_or_default();
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let of_lab = cgroup.lines().find_map(|line| line.split("rcluster-lab-").nth(1)).unwrap_or_default();
            let words = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
            let by_a_test = ["demo", "bench", "codegen"].iter().any(|name| ours.ends_with(format!("rcluster-{name}")));
            let of_another_build = of_lab.is_empty() && std::env::var_os("RCLUSTER_BIN_DIR").is_some_and(|dir| !ours.starts_with(dir));
            if by_a_test || of_another_build {
                continue;
            }
            items.insert(format!("process {pid} ({}) {of_lab} {words}", comm.trim()));
            if let Ok(namespace) = fs::read_link(entry.path().join("ns/net")) {
                items.insert(format!("network namespace {}", namespace.display()));
            }
        }
    }
    Ok(())
}

/// Whether a name is that of another test's thing: its temporary directory, or its cgroup.
fn is_of_another_test(name: &str) -> bool {
    ["/tmp/", "/dev/shm/", "rt-test-", "rcluster-test-", "rcluster-engine-"].iter().any(|start| name.starts_with(start))
}

fn names(what: &str, dir: &Path, items: &mut BTreeSet<String>) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {}", dir.display())),
    };
    for entry in entries {
        let name = entry.with_context(|| format!("list {}", dir.display()))?.file_name();
        if !is_of_another_test(&name.to_string_lossy()) {
            items.insert(format!("{what} {}", name.to_string_lossy()));
        }
    }
    Ok(())
}

fn lines(what: &str, file: &str, field: impl Fn(&str) -> String, items: &mut BTreeSet<String>) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    items.extend(text.lines().map(field).filter(|item| !is_of_another_test(item)).map(|item| format!("{what} {item}")));
    Ok(())
}
