//! Cgroups and what they limit (config-linux.md "Control groups").

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::Refusals;
use super::mounts::DeviceKind;
use crate::core::spec;

/// `linux.resources`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub devices: Vec<DeviceRule>,
    /// Bytes; -1 is no limit.
    pub memory_limit: Option<i64>,
    pub memory_reservation: Option<i64>,
    /// Memory and swap together.
    pub memory_swap: Option<i64>,
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; -1 is no limit.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// At most this many tasks; zero or less is no limit.
    pub pids_limit: Option<i64>,
}

/// One of `linux.resources.devices[]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    pub allow: bool,
    /// `None`: both kinds.
    pub kind: Option<DeviceKind>,
    /// `None`: any.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Of the letters `r`, `w`, `m`.
    pub access: String,
}

impl Refusals {
    pub(super) fn cgroups_path(&mut self, path: Option<&Path>) -> Option<PathBuf> {
        let path = path.filter(|path| !path.as_os_str().is_empty())?;
        let text = path.to_string_lossy();
        if text.split(':').count() == 3 && !text.contains('/') {
            self.refuse("linux.cgroupsPath", "slice:prefix:name is systemd's form: give a path, or use --systemd-cgroup");
        }
        if path.components().any(|component| component == Component::ParentDir) {
            self.refuse("linux.cgroupsPath", "must not hold \"..\"");
        }
        if path.components().all(|component| component == Component::RootDir) {
            self.refuse("linux.cgroupsPath", "is the root of all cgroups: name one of the container's own");
        }
        Some(path.to_owned())
    }

    pub(super) fn resources(&mut self, given: &spec::Resources) -> Resources {
        let fields = [
            ("linux.resources.blockIO", &given.block_io),
            ("linux.resources.hugepageLimits", &given.hugepage_limits),
            ("linux.resources.network", &given.network),
            ("linux.resources.rdma", &given.rdma),
            ("linux.resources.unified", &given.unified),
        ];
        fields.into_iter().for_each(|(field, value)| self.unbuilt(field, value));
        let memory = given.memory.clone().unwrap_or_default();
        let fields = [
            ("linux.resources.memory.kernel", &memory.kernel),
            ("linux.resources.memory.kernelTCP", &memory.kernel_tcp),
            ("linux.resources.memory.swappiness", &memory.swappiness),
            ("linux.resources.memory.disableOOMKiller", &memory.disable_oom_killer),
            ("linux.resources.memory.useHierarchy", &memory.use_hierarchy),
            ("linux.resources.memory.checkBeforeUpdate", &memory.check_before_update),
        ];
        // `false` is what an unset switch does anyway.
        for (field, value) in fields {
            let asked = value.as_ref().filter(|value| **value != Value::Bool(false)).cloned();
            self.unbuilt(field, &asked);
        }
        let cpu = given.cpu.clone().unwrap_or_default();
        let fields = [
            ("linux.resources.cpu.burst", &cpu.burst),
            ("linux.resources.cpu.realtimeRuntime", &cpu.realtime_runtime),
            ("linux.resources.cpu.realtimePeriod", &cpu.realtime_period),
            ("linux.resources.cpu.idle", &cpu.idle),
        ];
        fields.into_iter().for_each(|(field, value)| self.unbuilt(field, value));
        self.memory(&memory);
        if let Some(quota) = cpu.quota.filter(|quota| *quota > 0 && *quota < 1000) {
            self.refuse("linux.resources.cpu.quota", format!("{quota} µs is below the kernel's 1000"));
        }
        if let Some(period) = cpu.period.filter(|period| *period != 0 && !(1000..=1_000_000).contains(period)) {
            self.refuse("linux.resources.cpu.period", format!("{period} µs is not between 1000 and 1000000"));
        }
        Resources {
            devices: self.device_rules(&given.devices),
            memory_limit: memory.limit.filter(|limit| *limit != 0),
            memory_reservation: memory.reservation.filter(|limit| *limit != 0),
            memory_swap: memory.swap.filter(|limit| *limit != 0),
            cpu_shares: cpu.shares.filter(|shares| *shares != 0),
            cpu_quota: cpu.quota.filter(|quota| *quota != 0),
            cpu_period: cpu.period.filter(|period| *period != 0),
            cpuset_cpus: cpu.cpus.filter(|text| !text.is_empty()),
            cpuset_mems: cpu.mems.filter(|text| !text.is_empty()),
            pids_limit: given.pids.as_ref().map(|pids| pids.limit),
        }
    }

    pub(super) fn memory(&mut self, memory: &spec::Memory) {
        let fields = [("limit", memory.limit), ("reservation", memory.reservation), ("swap", memory.swap)];
        for (field, value) in fields {
            if value.is_some_and(|value| value < -1) {
                self.refuse(format!("linux.resources.memory.{field}"), "is negative; only -1, no limit, may be");
            }
        }
        match (memory.limit.filter(|limit| *limit > 0), memory.swap.filter(|swap| *swap > 0)) {
            (Some(limit), Some(swap)) if swap < limit => {
                self.refuse("linux.resources.memory.swap", format!("{swap} is memory and swap together and below the limit {limit}"));
            }
            (None, Some(_)) => self.refuse("linux.resources.memory.swap", "needs linux.resources.memory.limit beside it"),
            _ => {}
        }
    }

    pub(super) fn device_rules(&mut self, given: &[spec::DeviceRule]) -> Vec<DeviceRule> {
        let mut rules = Vec::new();
        for (index, rule) in given.iter().enumerate() {
            let field = format!("linux.resources.devices[{index}]");
            let kind = match rule.kind.as_deref() {
                None | Some("" | "a") => None,
                Some("c" | "u") => Some(DeviceKind::Character),
                Some("b") => Some(DeviceKind::Block),
                Some(other) => {
                    self.refuse(format!("{field}.type"), format!("{other:?} is none of a, c, b"));
                    continue;
                }
            };
            let access = rule.access.clone().filter(|access| !access.is_empty()).unwrap_or_else(|| "rwm".to_owned());
            if let Some(letter) = access.chars().find(|letter| !"rwm".contains(*letter)) {
                self.refuse(format!("{field}.access"), format!("{letter:?} is none of r, w, m"));
            }
            let mut number = |name: &str, value: Option<i64>| match value {
                None | Some(-1) => None,
                Some(value) => u32::try_from(value).map_or_else(
                    |_| {
                        self.refuse(format!("{field}.{name}"), format!("{value} is no device number"));
                        None
                    },
                    Some,
                ),
            };
            let (major, minor) = (number("major", rule.major), number("minor", rule.minor));
            if kind.is_none() && (major.is_some() || minor.is_some()) {
                self.refuse(format!("{field}.type"), "missing: a device number belongs to c or to b");
            }
            rules.push(DeviceRule { allow: rule.allow, kind, major, minor, access });
        }
        rules
    }
}
