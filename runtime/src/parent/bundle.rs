//! Reads a bundle and the facts of this machine that its plan depends on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::{read_bounded, resctrl};
use crate::core::capability::CapabilitySet;
use crate::core::cgroup::{CgroupPlan, Hierarchy, Version, hierarchies};
use crate::core::check::{Container, Machine, Refusal, check, check_machine};
use crate::core::plan::{Plan, Privileges};
use crate::core::resctrl::ResctrlPlan;
use crate::core::spec::Spec;
use crate::core::{cgroup, limits, plan, spec};
use crate::state::{Record, StateDir};
use crate::{core, kernel_file};

/// The configuration's name, in a bundle and in a state directory.
pub const CONFIG: &str = "config.json";

/// A bundle that can be run.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute.
    pub path: PathBuf,
    /// As it was read.
    pub config: Vec<u8>,
    /// What is done in another way than the caller may think.
    pub remark: Option<String>,
    pub container: Container,
    pub cgroups: CgroupPlan,
    pub resctrl: Option<ResctrlPlan>,
    pub plan: Plan,
}

/// Reads, checks and plans; nothing is changed.
pub fn load(path: &Path, id: &str, systemd_cgroup: bool) -> Result<Bundle> {
    let path = fs::canonicalize(path).with_context(|| format!("open bundle {}", path.display()))?;
    let config = path.join(CONFIG);
    let file = fs::File::open(&config).with_context(|| format!("open {}", config.display()))?;
    let bytes = read_bounded(file).with_context(|| format!("read {}", config.display()))?;
    let mut spec = spec::parse(&bytes).map_err(|error| anyhow!("{}: {error}", config.display()))?;
    let remark = if systemd_cgroup { map_unit(&mut spec) } else { None };
    let container = checked(&path, &spec)?;
    if !container.root.is_dir() {
        bail!("root.path: {} is no directory: unpack the container's file system there", container.root.display());
    }
    let resctrl_root = container.intel_rdt.as_ref().and_then(|_| resctrl::mounted());
    check_machine(&container, machine(resctrl_root.is_some())).map_err(|refusals| refused(&path, &refusals))?;
    let mut hierarchies = observed_hierarchies()?;
    for hierarchy in &mut hierarchies {
        hierarchy.writable = may_make(&cgroup::directory(hierarchy, container.cgroups_path.as_deref(), id));
    }
    let unified = unified_controllers(&hierarchies);
    let privileges = privileges()?;
    let resources = limits::with_device_rules(&container.resources, &hierarchies, privileges);
    let cgroups = cgroup::plan(&hierarchies, &unified, container.cgroups_path.as_deref(), id, &resources)
        .map_err(|refusals| refused(&path, &refusals))?;
    let resctrl = match (&container.intel_rdt, resctrl_root) {
        (Some(asked), Some(root)) => {
            let observed = resctrl::observe(&root, asked, id);
            Some(core::resctrl::plan(asked, id, &observed).map_err(|refusal| refused(&path, &[refusal]))?)
        }
        _ => None,
    };
    let mut plan = plan::plan(&container, &cgroups, privileges);
    if let Some(resctrl) = &resctrl {
        let opened = cgroups.groups.len() + plan::joined(&container).count() + plan.trees.len();
        core::resctrl::join(&mut plan, &resctrl.record(), opened);
    }
    Ok(Bundle { path, config: bytes, remark, container, cgroups, resctrl, plan })
}

/// The configuration a container was created with, whatever became of its bundle since.
pub fn recorded(dir: &StateDir, record: &Record) -> Result<Spec> {
    let (path, bytes) = recorded_bytes(dir, record)?;
    let mut spec = spec::parse(&bytes).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    // What is recorded was not refused, so it was mapped.
    map_unit(&mut spec);
    Ok(spec)
}

/// Takes a unit of systemd's for the cgroup it would have; what was done, in words, if it was.
pub fn map_unit(spec: &mut Spec) -> Option<String> {
    let path = spec.linux.as_mut()?.cgroups_path.as_mut()?;
    let unit = std::mem::replace(path, cgroup::path_of_unit(path.to_str()?)?);
    Some(format!("--systemd-cgroup: {} is made as the cgroup {}, not as a unit of systemd", unit.display(), path.display()))
}

/// The same as plain JSON, with what this runtime knows nothing of.
pub fn recorded_json(dir: &StateDir, record: &Record) -> Result<Value> {
    let (path, bytes) = recorded_bytes(dir, record)?;
    serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
}

fn recorded_bytes(dir: &StateDir, record: &Record) -> Result<(PathBuf, Vec<u8>)> {
    let copy = dir.file(CONFIG);
    let path = if copy.exists() { copy } else { record.bundle.join(CONFIG) };
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok((path, bytes))
}

/// Checks a configuration; every refusal is told.
pub fn checked(bundle: &Path, spec: &Spec) -> Result<Container> {
    check(bundle, spec).map_err(|refusals| refused(bundle, &refusals))
}

/// Whether this user may make a directory: root by its privileges, any other where the nearest one above that exists is its own.
fn may_make(directory: &Path) -> bool {
    let above = || directory.ancestors().skip(1).find(|above| above.exists());
    rustix::process::geteuid().is_root() || above().is_some_and(|above| rustix::fs::access(above, rustix::fs::Access::WRITE_OK).is_ok())
}

/// What of this machine decides whether a field can be honoured.
fn machine(resctrl: bool) -> Machine {
    let enabled = kernel_file::read("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    Machine { apparmor: enabled.trim() == "Y", selinux: Path::new("/sys/fs/selinux/enforce").exists(), resctrl }
}

/// The cgroup hierarchies mounted here.
pub fn observed_hierarchies() -> Result<Vec<Hierarchy>> {
    let read = |path: &str| kernel_file::read(path).with_context(|| format!("read {path}"));
    Ok(hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
}

/// Each refusal on a line of its own.
pub fn refused(bundle: &Path, refusals: &[Refusal]) -> anyhow::Error {
    let lines: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
    anyhow!("{}: {}", bundle.join(CONFIG).display(), lines.join("\n  "))
}

/// The controllers that version 2 has here; with all of version 1 mounted, none.
pub fn unified_controllers(hierarchies: &[Hierarchy]) -> Vec<String> {
    let unified = hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2);
    let text = unified.and_then(|hierarchy| kernel_file::read(hierarchy.mount_point.join("cgroup.controllers")).ok());
    text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// The permitted and the bounding set of this process (proc_pid_status(5)).
pub fn privileges() -> Result<Privileges> {
    let status = kernel_file::read("/proc/self/status").context("read /proc/self/status")?;
    let set = |name: &str| {
        let text = status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        text.and_then(|text| u64::from_str_radix(text, 16).ok()).map(CapabilitySet).with_context(|| format!("/proc/self/status: no {name}"))
    };
    Ok(Privileges { held: set("CapPrm:")?, bounding: set("CapBnd:")? })
}
