//! Cgroups and what they limit (config-linux.md "Control groups").

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::Refusals;
use super::mounts::DeviceKind;
use crate::core::cpu_list;
use crate::core::spec::{self, HugepageLimit, InterfacePriority, Rdma, ThrottleDevice};

/// The kernel's IFNAMSIZ without the end.
const INTERFACE_BYTES_MAX: usize = 15;

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
    pub memory_kernel: Option<i64>,
    pub memory_kernel_tcp: Option<i64>,
    pub memory_swappiness: Option<u64>,
    pub memory_oom_killer_off: bool,
    pub memory_hierarchy: bool,
    /// A limit below what is used already is refused, where the kernel would kill.
    pub memory_check: bool,
    pub cpu_burst: Option<u64>,
    pub cpu_realtime_runtime: Option<i64>,
    pub cpu_realtime_period: Option<u64>,
    pub cpu_idle: Option<i64>,
    pub block_io: BlockIo,
    pub hugepage_limits: Vec<HugepageLimit>,
    pub network_class: Option<u32>,
    pub network_priorities: Vec<InterfacePriority>,
    pub rdma: BTreeMap<String, Rdma>,
    /// Files of version 2 and what is written there.
    pub unified: BTreeMap<String, String>,
}

/// `linux.resources.blockIO`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockIo {
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
    /// With their places in the list.
    pub weights: Vec<(usize, DeviceWeight)>,
    pub throttles: Vec<Throttle>,
}

/// One of `linux.resources.blockIO.weightDevice[]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceWeight {
    pub major: u32,
    pub minor: u32,
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
}

/// One of the four lists of throttles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    /// The field's name in `blockIO`.
    pub field: &'static str,
    /// As version 1 names it in its file, and version 2 as a key.
    pub v1: &'static str,
    pub v2: &'static str,
    pub devices: Vec<ThrottleDevice>,
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
        let memory = given.memory.clone().unwrap_or_default();
        let cpu = given.cpu.clone().unwrap_or_default();
        let network = given.network.clone().unwrap_or_default();
        self.memory(&memory);
        self.cpu(&cpu);
        self.hugepages(&given.hugepage_limits);
        self.network(&network);
        self.rdma(&given.rdma);
        self.unified(&given.unified);
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
            memory_kernel: memory.kernel.filter(|limit| *limit != 0),
            memory_kernel_tcp: memory.kernel_tcp.filter(|limit| *limit != 0),
            memory_swappiness: memory.swappiness,
            memory_oom_killer_off: memory.disable_oom_killer == Some(true),
            memory_hierarchy: memory.use_hierarchy == Some(true),
            memory_check: memory.check_before_update == Some(true),
            cpu_burst: cpu.burst,
            cpu_realtime_runtime: cpu.realtime_runtime.filter(|runtime| *runtime != 0),
            cpu_realtime_period: cpu.realtime_period.filter(|period| *period != 0),
            cpu_idle: cpu.idle,
            block_io: given.block_io.as_ref().map(|block_io| self.block_io(block_io)).unwrap_or_default(),
            hugepage_limits: given.hugepage_limits.clone(),
            network_class: network.class_id.filter(|class| *class != 0),
            network_priorities: network.priorities,
            rdma: given.rdma.clone(),
            unified: given.unified.clone(),
        }
    }

    pub(super) fn memory(&mut self, memory: &spec::Memory) {
        let fields = [
            ("limit", memory.limit),
            ("reservation", memory.reservation),
            ("swap", memory.swap),
            ("kernel", memory.kernel),
            ("kernelTCP", memory.kernel_tcp),
        ];
        for (field, value) in fields {
            if value.is_some_and(|value| value < -1) {
                self.refuse(format!("linux.resources.memory.{field}"), "is negative; only -1, no limit, may be");
            }
        }
        if let Some(swappiness) = memory.swappiness.filter(|swappiness| *swappiness > 100) {
            self.refuse("linux.resources.memory.swappiness", format!("{swappiness} is not between 0 and 100"));
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

    fn cpu(&mut self, cpu: &spec::Cpu) {
        // What the kernel makes of others is not what was asked for (kernel/sched/sched.h, MIN_SHARES and MAX_SHARES).
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && !(2..=262_144).contains(shares)) {
            self.refuse("linux.resources.cpu.shares", format!("{shares} is not between 2 and 262144"));
        }
        if let Some(quota) = cpu.quota.filter(|quota| *quota > 0 && *quota < 1000) {
            self.refuse("linux.resources.cpu.quota", format!("{quota} µs is below the kernel's 1000"));
        }
        if let Some(period) = cpu.period.filter(|period| *period != 0 && !(1000..=1_000_000).contains(period)) {
            self.refuse("linux.resources.cpu.period", format!("{period} µs is not between 1000 and 1000000"));
        }
        match (cpu.burst.filter(|burst| *burst != 0), cpu.quota.filter(|quota| *quota > 0)) {
            (Some(_), None) => self.refuse("linux.resources.cpu.burst", "needs linux.resources.cpu.quota, which it may exceed for a while"),
            (Some(burst), Some(quota)) if burst > quota.unsigned_abs() => {
                self.refuse("linux.resources.cpu.burst", format!("{burst} µs is above linux.resources.cpu.quota, {quota}"));
            }
            _ => {}
        }
        if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime < -1) {
            self.refuse("linux.resources.cpu.realtimeRuntime", format!("{runtime} µs is negative; only -1, no limit, may be"));
        }
        if let Some(idle) = cpu.idle.filter(|idle| !(0..=1).contains(idle)) {
            self.refuse("linux.resources.cpu.idle", format!("{idle} is neither 0 nor 1"));
        }
        for (name, list) in [("cpus", &cpu.cpus), ("mems", &cpu.mems)] {
            if let Some(Err(why)) = list.as_ref().filter(|list| !list.is_empty()).map(|list| cpu_list::parse(list)) {
                self.refuse(format!("linux.resources.cpu.{name}"), why);
            }
        }
    }

    fn block_io(&mut self, given: &spec::BlockIo) -> BlockIo {
        const FIELD: &str = "linux.resources.blockIO";
        let mut weight = |field: String, weight: Option<u16>| {
            let weight = weight.filter(|weight| *weight != 0);
            if let Some(weight) = weight.filter(|weight| !(10..=1000).contains(weight)) {
                self.refuse(field, format!("{weight} is not between 10 and 1000"));
            }
            weight
        };
        let list = given.weight_device.iter().enumerate();
        let weights = list.map(|(index, device)| {
            let field = |name: &str| format!("{FIELD}.weightDevice[{index}].{name}");
            let (of_all, of_leaf) = (weight(field("weight"), device.weight), weight(field("leafWeight"), device.leaf_weight));
            (index, DeviceWeight { major: device.major, minor: device.minor, weight: of_all, leaf_weight: of_leaf })
        });
        let weights = weights.collect();
        let throttles = [
            ("throttleReadBpsDevice", "read_bps", "rbps", &given.throttle_read_bps_device),
            ("throttleWriteBpsDevice", "write_bps", "wbps", &given.throttle_write_bps_device),
            ("throttleReadIOPSDevice", "read_iops", "riops", &given.throttle_read_iops_device),
            ("throttleWriteIOPSDevice", "write_iops", "wiops", &given.throttle_write_iops_device),
        ];
        BlockIo {
            weight: weight(format!("{FIELD}.weight"), given.weight),
            leaf_weight: weight(format!("{FIELD}.leafWeight"), given.leaf_weight),
            weights,
            throttles: throttles.map(|(field, v1, v2, devices)| Throttle { field, v1, v2, devices: devices.clone() }).into(),
        }
    }

    /// `2MB` and the like: the end of a file's name.
    fn hugepages(&mut self, limits: &[HugepageLimit]) {
        for (index, limit) in limits.iter().enumerate() {
            let digits = limit.page_size.trim_end_matches(|c: char| c.is_ascii_uppercase());
            let plain = digits.starts_with(|c: char| ('1'..='9').contains(&c)) && digits.bytes().all(|byte| byte.is_ascii_digit());
            if !plain || !["KB", "MB", "GB"].contains(&&limit.page_size[digits.len()..]) {
                let why = format!("{:?} is no page size such as 64KB, 2MB or 1GB", limit.page_size);
                self.refuse(format!("linux.resources.hugepageLimits[{index}].pageSize"), why);
            }
        }
    }

    fn network(&mut self, network: &spec::Network) {
        for (index, InterfacePriority { name, .. }) in network.priorities.iter().enumerate() {
            if name.is_empty() || name.len() > INTERFACE_BYTES_MAX || name.contains(|c: char| c.is_whitespace() || c == '/' || c == '\0') {
                self.refuse(format!("linux.resources.network.priorities[{index}].name"), format!("{name:?} is no name of an interface"));
            }
        }
    }

    fn rdma(&mut self, rdma: &BTreeMap<String, Rdma>) {
        for (device, limits) in rdma {
            let field = format!("linux.resources.rdma[{device}]");
            if device.is_empty() || device.contains(|c: char| c.is_whitespace() || c == '\0') {
                self.refuse(&field, "is no name of a device");
            }
            if limits.hca_handles.is_none() && limits.hca_objects.is_none() {
                self.refuse(field, "sets neither hcaHandles nor hcaObjects");
            }
        }
    }

    fn unified(&mut self, unified: &BTreeMap<String, String>) {
        for name in unified.keys() {
            let field = format!("linux.resources.unified[{name}]");
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if !name.contains('.') || name.starts_with('.') || !name.chars().all(plain) {
                self.refuse(field, "is no file of a cgroup of version 2");
            } else if ["cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze"].contains(&name.as_str()) {
                self.refuse(field, "is for this runtime to write");
            }
        }
    }
}
