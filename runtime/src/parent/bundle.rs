//! Reads a bundle and the facts of this machine that its plan depends on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::core::capability::CapabilitySet;
use crate::core::cgroup::{CgroupPlan, Hierarchy, Version, hierarchies};
use crate::core::check::{Container, Machine, Refusal, check, check_machine};
use crate::core::plan::{Plan, Privileges};
use crate::core::{cgroup, plan, spec};

const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// A bundle that can be run.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute.
    pub path: PathBuf,
    pub container: Container,
    pub cgroups: CgroupPlan,
    pub plan: Plan,
}

/// Reads, checks and plans; nothing is changed.
pub fn load(path: &Path, id: &str) -> Result<Bundle> {
    let path = fs::canonicalize(path).with_context(|| format!("open bundle {}", path.display()))?;
    let config = path.join("config.json");
    let size = fs::metadata(&config).with_context(|| format!("open {}", config.display()))?.len();
    if size > CONFIG_BYTES_MAX {
        bail!("{}: {size} bytes are more than the limit of {CONFIG_BYTES_MAX}", config.display());
    }
    let bytes = fs::read(&config).with_context(|| format!("read {}", config.display()))?;
    let spec = spec::parse(&bytes).map_err(|error| anyhow!("{}: {error}", config.display()))?;
    let container = check(&path, &spec).map_err(|refusals| refused(&config, &refusals))?;
    if !container.root.is_dir() {
        bail!("root.path: {} is no directory: unpack the container's file system there", container.root.display());
    }
    check_machine(&container, machine()).map_err(|refusals| refused(&config, &refusals))?;
    let hierarchies = observed_hierarchies()?;
    let unified = unified_controllers(&hierarchies);
    let cgroups = cgroup::plan(&hierarchies, &unified, container.cgroups_path.as_deref(), id, &container.resources)
        .map_err(|refusals| refused(&config, &refusals))?;
    let plan = plan::plan(&container, &cgroups, privileges()?);
    Ok(Bundle { path, container, cgroups, plan })
}

/// What of this machine decides whether a field can be honoured.
fn machine() -> Machine {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    Machine {
        apparmor: enabled.trim() == "Y",
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        resctrl: Path::new("/sys/fs/resctrl/schemata").exists(),
    }
}

/// The cgroup hierarchies mounted here.
pub fn observed_hierarchies() -> Result<Vec<Hierarchy>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    Ok(hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
}

/// Each refusal on a line of its own.
fn refused(config: &Path, refusals: &[Refusal]) -> anyhow::Error {
    let lines: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
    anyhow!("{}: {}", config.display(), lines.join("\n  "))
}

/// The controllers that version 2 has here; with all of version 1 mounted, none.
fn unified_controllers(hierarchies: &[Hierarchy]) -> Vec<String> {
    let unified = hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2);
    let text = unified.and_then(|hierarchy| fs::read_to_string(hierarchy.mount_point.join("cgroup.controllers")).ok());
    text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// The permitted and the bounding set of this process (proc_pid_status(5)).
fn privileges() -> Result<Privileges> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let set = |name: &str| {
        let text = status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        text.and_then(|text| u64::from_str_radix(text, 16).ok()).map(CapabilitySet).with_context(|| format!("/proc/self/status: no {name}"))
    };
    Ok(Privileges { held: set("CapPrm:")?, bounding: set("CapBnd:")? })
}
