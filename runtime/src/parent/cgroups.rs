//! Makes, fills, empties and removes the cgroups that `core/cgroup` planned.
//!
//! Out: one descriptor per group for the child to join by. Never touches a cgroup outside the plan or the record.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::core::cgroup::{CgroupPlan, Group, Version, Write};
use crate::core::signal;
use crate::core::update::Change;
use crate::{kernel_file, sys};

const RACES_MAX: usize = 16;
const POLL: Duration = Duration::from_millis(2);

/// The directories above the groups that are not there yet, highest first.
pub fn missing_parents(plan: &CgroupPlan) -> Vec<PathBuf> {
    let mut missing = Vec::new();
    for group in &plan.groups {
        let above = group.directory.ancestors().skip(1).take_while(|above| *above != group.hierarchy.mount_point);
        let mut above: Vec<PathBuf> = above.filter(|above| !above.exists()).map(Path::to_owned).collect();
        above.reverse();
        missing.extend(above);
    }
    missing
}

/// The joined cgroups: a file per group to write `0` into, and the directory for `CLONE_INTO_CGROUP`.
#[derive(Debug)]
pub struct Joins {
    pub files: Vec<OwnedFd>,
    pub unified: Option<(usize, OwnedFd)>,
}

/// Makes the groups and sets their limits.
pub fn make(plan: &CgroupPlan) -> Result<Joins> {
    let mut joins = Joins { files: Vec::new(), unified: None };
    for (place, group) in plan.groups.iter().enumerate() {
        make_directory(group)?;
        if group.hierarchy.controllers.iter().any(|name| name == "cpuset") {
            inherit_cpuset(group)?;
        }
        set_all(&group.directory, &group.writes)?;
        let file = match group.hierarchy.version {
            Version::V1 => "tasks",
            Version::V2 => {
                let directory = File::open(&group.directory).with_context(|| format!("open {}", group.directory.display()))?;
                if !group.device_filter.is_empty() {
                    sys::attach_device_filter(directory.as_fd(), &group.device_filter)
                        .context("linux.resources.devices: attach the device filter")?;
                }
                joins.unified = Some((place, directory.into()));
                "cgroup.procs"
            }
        };
        let path = group.directory.join(file);
        let file = OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
        joins.files.push(file.into());
    }
    Ok(joins)
}

/// Opens groups that exist, to be joined.
pub fn open(groups: &[PathBuf]) -> Result<Joins> {
    let mut joins = Joins { files: Vec::new(), unified: None };
    for (place, group) in groups.iter().enumerate() {
        let open = |file: &str| OpenOptions::new().write(true).open(group.join(file));
        let opened = match open("tasks") {
            // Version 2 has no such file.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let directory = File::open(group).with_context(|| format!("open cgroup {}", group.display()))?;
                joins.unified = Some((place, directory.into()));
                open("cgroup.procs")
            }
            opened => opened,
        };
        joins.files.push(opened.with_context(|| format!("open cgroup {}", group.display()))?.into());
    }
    Ok(joins)
}

/// Changes the limits of groups that exist.
pub fn change(changes: &[Change]) -> Result<()> {
    for change in changes {
        let mount_point = &change.hierarchy.mount_point;
        let mut above: Vec<&Path> = change.directory.ancestors().skip(1).take_while(|above| above.starts_with(mount_point)).collect();
        above.reverse();
        for directory in above {
            enable(directory, &change.enable).with_context(|| format!("enable controllers in {}", directory.display()))?;
        }
        set_all(&change.directory, &change.writes)?;
    }
    Ok(())
}

/// Removes groups that are empty and have none below; whether all are gone.
pub fn remove_empty(groups: &[PathBuf]) -> bool {
    groups.iter().all(|group| fs::remove_dir(group).or_else(ignore_missing).is_ok())
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Removes groups that are empty or about to be, and then those parents that nobody else uses. Goes on after an error.
pub fn remove(groups: &[PathBuf], parents: &[PathBuf], wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait;
    let mut failed = Vec::new();
    for group in groups {
        if let Err(error) = remove_tree(group, deadline) {
            failed.push(format!("{}: {error}", group.display()));
        }
    }
    for parent in parents.iter().rev() {
        // Another container may live there by now.
        let _ = fs::remove_dir(parent);
    }
    if failed.is_empty() { Ok(()) } else { Err(anyhow!("remove cgroups: {}", failed.join("; "))) }
}

/// Every process in a group and below.
pub fn processes(group: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = kernel_file::read(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect();
    for below in children(group) {
        found.extend(processes(&below));
    }
    found
}

/// Kills everything in the groups until they are empty.
pub fn kill_all(groups: &[PathBuf], wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        let mut left = 0;
        for group in groups {
            // Version 2 kills the whole group at once (cgroup-v2.rst, "cgroup.kill"); frozen tasks of version 1 die only when thawed.
            let _ = fs::write(group.join("cgroup.kill"), "1");
            let _ = fs::write(group.join("freezer.state"), "THAWED");
            let processes = processes(group);
            left += processes.len();
            processes.into_iter().for_each(|pid| signal_process(pid, group, signal::KILL));
        }
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{left} processes of the container still live after {} s of SIGKILL", wait.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// Sends a signal to every process of the first group that has any.
pub fn signal_all(groups: &[PathBuf], signal: i32) {
    for group in groups {
        let processes = processes(group);
        if !processes.is_empty() {
            processes.into_iter().for_each(|pid| signal_process(pid, group, signal));
            return;
        }
    }
}

/// Signals a process only if it is still in the group once it is held by a descriptor.
fn signal_process(pid: i32, group: &Path, signal: i32) {
    let Some(raw) = rustix::process::Pid::from_raw(pid) else { return };
    let Ok(pidfd) = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) else { return };
    if processes(group).contains(&pid) {
        // It may end at any time: then there is nothing left to signal.
        let _ = sys::send_signal(pidfd.as_fd(), signal);
    }
}

fn make_directory(group: &Group) -> Result<()> {
    let directory = &group.directory;
    let below = directory.strip_prefix(&group.hierarchy.mount_point).unwrap_or(directory);
    for _ in 0..RACES_MAX {
        let mut at = group.hierarchy.mount_point.clone();
        let mut is_new = false;
        let made = below.components().try_for_each(|component| {
            enable(&at, &group.enable)?;
            at.push(component);
            let made = fs::create_dir(&at);
            is_new = made.is_ok();
            match made {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                made => made,
            }
        });
        match made {
            // Another container's end took an empty parent away.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("linux.cgroupsPath: make {}", at.display())),
            Ok(()) if is_new || processes(directory).is_empty() => return Ok(()),
            Ok(()) => bail!("linux.cgroupsPath: {} holds processes: give this container a cgroup of its own", directory.display()),
        }
    }
    bail!("linux.cgroupsPath: {} is taken away again and again", directory.display())
}

/// Makes controllers usable in the groups below (cgroup-v2.rst, "Controlling Controllers").
fn enable(above: &Path, controllers: &[String]) -> io::Result<()> {
    if controllers.is_empty() {
        return Ok(());
    }
    let enabled = kernel_file::read(above.join("cgroup.subtree_control"))?;
    for controller in controllers.iter().filter(|name| !enabled.split_whitespace().any(|other| other == name.as_str())) {
        fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

/// A new cpuset of version 1 has no processors and no memory, and no process can join it (cgroup-v1/cpusets.rst).
fn inherit_cpuset(group: &Group) -> Result<()> {
    ["cpuset.cpus", "cpuset.mems"]
        .into_iter()
        .try_for_each(|file| fill_cpuset(&group.directory, &group.hierarchy.mount_point, file).map(drop))
}

/// What the file of a group holds, taken from the nearest group above that has something in it.
fn fill_cpuset(directory: &Path, top: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    let own = kernel_file::read(&path).with_context(|| format!("read {}", path.display()))?;
    let above = directory.parent().filter(|_| directory != top && own.trim().is_empty());
    let Some(above) = above else { return Ok(own) };
    let inherited = fill_cpuset(above, top, file)?;
    fs::write(&path, inherited.trim()).with_context(|| format!("write {}", path.display()))?;
    Ok(inherited)
}

/// Makes the writes in order; a file that several of them go to, one after the other, is opened once.
fn set_all(directory: &Path, writes: &[Write]) -> Result<()> {
    let mut opened = None;
    writes.iter().try_for_each(|write| set(directory, write, &mut opened))
}

fn set(directory: &Path, write: &Write, opened: &mut Option<(PathBuf, File)>) -> Result<()> {
    let Write { file, value, field, instead, at_least, read_back } = write;
    let (file, value) = match instead {
        Some((other, value)) if !directory.join(file).exists() => (other, value),
        _ => (file, value),
    };
    if let Some(used) = at_least.map(|used| directory.join(used)) {
        let text = kernel_file::read(&used).with_context(|| format!("{field}: read {}", used.display()))?;
        let (used, limit) = (text.trim().parse::<u64>().unwrap_or(0), value.parse::<u64>().unwrap_or(u64::MAX));
        if limit < used {
            bail!("{field}: {limit} is below the {used} bytes in use, and linux.resources.memory.checkBeforeUpdate is set");
        }
    }
    let path = directory.join(file);
    write_lines(&path, value, opened).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::NotFound => " (this kernel does not account it: leave the field out)",
            _ => "",
        };
        anyhow!("{field}: write {value:?} to {}: {error}{why}", path.display())
    })?;
    let kept = || kernel_file::read(&path).with_context(|| format!("{field}: read {}", path.display()));
    if *read_back && kept()?.trim() != value {
        bail!("{field}: this kernel takes {value} in {} and does not keep it: leave the field out", path.display());
    }
    Ok(())
}

/// The kernel takes one line a write.
fn write_lines(path: &Path, value: &str, opened: &mut Option<(PathBuf, File)>) -> io::Result<()> {
    if opened.as_ref().is_none_or(|(at, _)| at != path) {
        *opened = Some((path.to_owned(), OpenOptions::new().write(true).open(path)?));
    }
    let Some((_, file)) = opened else { return Ok(()) };
    value.split('\n').filter(|line| !line.is_empty()).try_for_each(|line| file.write_all(line.as_bytes()))
}

fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove_tree(group: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // A process that has just died, or groups the container made below.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                for below in children(group) {
                    remove_tree(&below, deadline)?;
                }
                std::thread::sleep(POLL);
            }
            removed => return removed,
        }
    }
}
