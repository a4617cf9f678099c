//! Makes, joins, changes, reads and removes the groups of resctrl that `core/resctrl` decided on (the kernel's resctrl.rst).
//!
//! Out: a descriptor per group for a process to join by. Never touches a group outside the plan or the record.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::core::check::IntelRdt;
use crate::core::resctrl::{self, Files, Observed, ResctrlPlan, ResctrlRecord, joined};
use crate::kernel_file;
use crate::state::observe as observe_process;

const SCHEMATA: &str = "schemata";
const TASKS: &str = "tasks";

/// How groups come and go: by directories, which the kernel fills and empties.
pub trait Groups {
    fn make(&self, group: &Path) -> io::Result<()>;
    fn remove(&self, group: &Path) -> io::Result<()>;
}

/// The kernel's.
pub struct Mounted;

impl Groups for Mounted {
    fn make(&self, group: &Path) -> io::Result<()> {
        fs::create_dir(group)
    }

    fn remove(&self, group: &Path) -> io::Result<()> {
        fs::remove_dir(group)
    }
}

/// Where resctrl is mounted.
pub fn mounted() -> Option<PathBuf> {
    resctrl::mount_point(&kernel_file::read("/proc/self/mountinfo").ok()?)
}

/// What a plan depends on.
pub fn observe(root: &Path, asked: &IntelRdt, id: &str) -> Observed {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    Observed {
        root: root.to_owned(),
        schemata: Some(resctrl::group(root, asked, id))
            .filter(|group| group.is_dir())
            .map(|group| read(group.join(SCHEMATA)).unwrap_or_default()),
        mon_features: read(root.join("info/L3_MON/mon_features")).unwrap_or_default().lines().map(str::to_owned).collect(),
        bandwidth_step: read(root.join("info/MB/bandwidth_gran")).and_then(|text| text.trim().parse().ok()),
    }
}

/// Makes what is missing, and opens what is joined. The record says from then on what is there because of this container.
pub fn make(groups: &impl Groups, plan: &ResctrlPlan, record: &mut ResctrlRecord) -> Result<Vec<OwnedFd>> {
    let make = |group: &Path| groups.make(group).with_context(|| format!("linux.intelRdt: make the group {}", group.display()));
    if plan.is_new {
        // Another's, which came between: it is not to be undone.
        make(&plan.group).inspect_err(|_| record.is_made = false)?;
        write(&plan.root, &plan.group, &plan.lines)?;
    }
    if let Some(monitor) = &plan.monitor {
        make(monitor).inspect_err(|_| record.monitor = None)?;
    }
    open(record)
}

/// Opens the groups of a container for one more process.
pub fn open(record: &ResctrlRecord) -> Result<Vec<OwnedFd>> {
    let open = |group: &Path| {
        let tasks = group.join(TASKS);
        let opened = OpenOptions::new().write(true).open(&tasks);
        opened.map(OwnedFd::from).with_context(|| format!("linux.intelRdt: open {}", tasks.display()))
    };
    joined(&record.group, record.monitor.as_deref()).map(open).collect()
}

/// Writes new lines, or leaves all as it was.
pub fn update(record: &ResctrlRecord, lines: &[String]) -> Result<()> {
    let before = schemata(record)?;
    write(&record.root, &record.group, lines).map_err(|error| match restore(record, &before) {
        Ok(()) => error,
        Err(left) => error.context(format!("and not all could be put back: {left:#}")),
    })
}

/// The lines that hold now.
pub fn schemata(record: &ResctrlRecord) -> Result<Vec<String>> {
    let path = record.group.join(SCHEMATA);
    let text = fs::read_to_string(&path).with_context(|| format!("linux.intelRdt: read {}", path.display()))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

/// Writes lines that held before.
pub fn restore(record: &ResctrlRecord, lines: &[String]) -> Result<()> {
    write(&record.root, &record.group, lines)
}

/// The kernel takes whole lines only, and says in a file why it did not take one.
fn write(root: &Path, group: &Path, lines: &[String]) -> Result<()> {
    let path = group.join(SCHEMATA);
    for line in lines {
        let mut file = OpenOptions::new().write(true).open(&path).with_context(|| format!("linux.intelRdt: open {}", path.display()))?;
        file.write_all(format!("{line}\n").as_bytes()).map_err(|error| {
            let status = fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
            let why = status.trim();
            let why = if why.is_empty() || why == "ok" { error.to_string() } else { format!("{error}: {why}") };
            anyhow!("linux.intelRdt: write {line:?} to {}: {why}", path.display())
        })?;
    }
    Ok(())
}

/// Removes what was made for the container. A group with a name of its own stays as long as others live in it, who would lose it.
pub fn remove(groups: &impl Groups, record: &ResctrlRecord) -> Result<()> {
    let remove = |group: &Path| match groups.remove(group) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("linux.intelRdt: remove the group {}", group.display()))
        }
        _ => Ok(()),
    };
    record.monitor.as_deref().map_or(Ok(()), remove)?;
    if record.is_made && !(record.is_named && is_used(&record.group)) { remove(&record.group) } else { Ok(()) }
}

/// Whether a living process or a monitoring group is in it.
fn is_used(group: &Path) -> bool {
    let tasks = fs::read_to_string(group.join(TASKS)).unwrap_or_default();
    let lives = |pid: i32| observe_process(pid).is_some_and(|seen| !matches!(seen.state, 'Z' | 'X'));
    let monitors = fs::read_dir(group.join("mon_groups")).into_iter().flatten().count();
    monitors > 0 || tasks.lines().filter_map(|pid| pid.trim().parse().ok()).any(lives)
}

/// What `events` tells of it.
pub fn stats(record: &ResctrlRecord) -> serde_json::Value {
    let read = |base: &Path, names: &[&str]| {
        let file = |name: &&str| Some(((*name).to_owned(), fs::read_to_string(base.join(name)).ok()?));
        names.iter().filter_map(file).collect::<Files>()
    };
    let info = [
        "info/L3/cbm_mask",
        "info/L3/min_cbm_bits",
        "info/L3/num_closids",
        "info/MB/bandwidth_gran",
        "info/MB/delay_linear",
        "info/MB/min_bandwidth",
        "info/MB/num_closids",
        SCHEMATA,
    ];
    let data = record.monitor.as_deref().unwrap_or(&record.group).join("mon_data");
    let domains = fs::read_dir(&data).into_iter().flatten().filter_map(Result::ok).filter_map(|entry| {
        let files = read(&entry.path(), &["llc_occupancy", "mbm_total_bytes", "mbm_local_bytes"]);
        Some((entry.file_name().into_string().ok()?, files))
    });
    resctrl::stats(&read(&record.root, &info), &read(&record.group, &[SCHEMATA]), &domains.collect::<BTreeMap<_, _>>())
}

#[cfg(test)]
mod tests;
