//! Decides which values hold a container's limits.
//!
//! In: the hierarchies, the controllers version 2 has, `linux.resources`. Out: [`Limits`]: values in the order they are to be written, each
//! with the controller it needs, and refusals of what a hierarchy has no file for. Each controller is taken from version 2 where version 2
//! has it, else from version 1; values are written as version 1 counts them and converted for version 2.
//!
//! Sources: the kernel's `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2.rst`; runtime-spec, config-linux.md "Control groups".

use super::cgroup::{Hierarchy, Version, Write};
use super::check::{BlockIo, DeviceKind, DeviceRule, Refusal, Resources};
use super::device_filter;
use super::plan::Privileges;

/// The controller of files that every cgroup of version 2 has.
pub const CORE: &str = "cgroup";

/// A write and the controller it needs.
#[derive(Debug)]
pub struct Wish {
    pub controller: String,
    pub version: Version,
    pub write: Write,
    pub filter: Vec<device_filter::Instruction>,
}

/// All that is to be written.
#[derive(Debug, Default)]
pub struct Limits {
    pub wanted: Vec<Wish>,
    pub refusals: Vec<Refusal>,
}

/// Device rules that hold whatever the configuration says (runc and crun agree on them): making any node, and using the default ones,
/// the pseudo-terminals, `/dev/ptmx` and `/dev/net/tun`, which is of use only to who may change the network.
const ALWAYS: [(DeviceKind, Option<u32>, Option<u32>, &str); 11] = [
    (DeviceKind::Character, None, None, "m"),
    (DeviceKind::Block, None, None, "m"),
    (DeviceKind::Character, Some(1), Some(3), "rwm"),
    (DeviceKind::Character, Some(1), Some(5), "rwm"),
    (DeviceKind::Character, Some(1), Some(7), "rwm"),
    (DeviceKind::Character, Some(1), Some(8), "rwm"),
    (DeviceKind::Character, Some(1), Some(9), "rwm"),
    (DeviceKind::Character, Some(5), Some(0), "rwm"),
    (DeviceKind::Character, Some(5), Some(2), "rwm"),
    (DeviceKind::Character, Some(136), None, "rwm"),
    (DeviceKind::Character, Some(10), Some(200), "rwm"),
];

/// Every value to write, in order.
pub fn of(hierarchies: &[Hierarchy], unified: &[String], resources: &Resources) -> Limits {
    let mut collector = Collector { unified, limits: Limits::default() };
    match collector.version("memory") {
        Version::V1 => memory_v1(resources, &mut collector),
        Version::V2 => memory_v2(resources, &mut collector),
    }
    match collector.version("cpu") {
        Version::V1 => cpu_v1(resources, &mut collector),
        Version::V2 => cpu_v2(resources, &mut collector),
    }
    if let Some(cpus) = &resources.cpuset_cpus {
        collector.put("cpuset", "cpuset.cpus", cpus, "cpu.cpus");
    }
    if let Some(mems) = &resources.cpuset_mems {
        collector.put("cpuset", "cpuset.mems", mems, "cpu.mems");
    }
    if let Some(limit) = resources.pids_limit {
        collector.put("pids", "pids.max", if limit > 0 { limit.to_string() } else { "max".to_owned() }, "pids.limit");
    }
    match collector.version("io") {
        Version::V1 => block_io_v1(&resources.block_io, &mut collector),
        Version::V2 => block_io_v2(&resources.block_io, &mut collector),
    }
    hugepages(resources, &mut collector);
    network(resources, &mut collector);
    rdma(resources, &mut collector);
    devices(hierarchies, resources, &mut collector);
    // Last: they say in the files' own words what the fields above say in others.
    for (name, value) in &resources.unified {
        let controller = name.split('.').next().unwrap_or_default();
        collector.put_v2(controller, name, value, &format!("unified[{name}]"));
    }
    collector.limits
}

struct Collector<'a> {
    unified: &'a [String],
    limits: Limits,
}

impl Collector<'_> {
    fn version(&self, controller: &str) -> Version {
        if self.unified.iter().any(|name| name == controller) { Version::V2 } else { Version::V1 }
    }

    /// `field` is below `linux.resources`.
    fn put(&mut self, controller: &str, file: &str, value: impl ToString, field: &str) -> &mut Write {
        let version = self.version(controller);
        self.push(controller, version, file, value, field)
    }

    fn put_v2(&mut self, controller: &str, file: &str, value: impl ToString, field: &str) {
        // Version 1 has the controller, or nobody: neither can hold it.
        let held = controller == CORE || self.version(controller) == Version::V2;
        if held {
            self.push(controller, Version::V2, file, value, field);
        } else {
            self.refuse(field, &format!("the {controller} controller is not of cgroup version 2 on this host: use the other fields"));
        }
    }

    fn push(&mut self, controller: &str, version: Version, file: &str, value: impl ToString, field: &str) -> &mut Write {
        let field = format!("linux.resources.{field}");
        let write = Write { file: file.to_owned(), value: value.to_string(), field, instead: None, at_least: None, read_back: false };
        self.limits.wanted.push(Wish { controller: controller.to_owned(), version, write, filter: Vec::new() });
        &mut self.limits.wanted.last_mut().expect("it was just pushed").write
    }

    fn refuse(&mut self, field: &str, why: &str) {
        self.limits.refusals.push(Refusal { field: format!("linux.resources.{field}"), why: why.to_owned() });
    }
}

fn memory_v1(resources: &Resources, to: &mut Collector<'_>) {
    if resources.memory_hierarchy {
        // Since Linux 5.11 it cannot be otherwise.
        to.put("memory", "memory.use_hierarchy", 1, "memory.useHierarchy");
    }
    if let Some(limit) = resources.memory_limit {
        let write = to.put("memory", "memory.limit_in_bytes", limit, "memory.limit");
        write.at_least = resources.memory_check.then_some("memory.usage_in_bytes");
    }
    if let Some(reservation) = resources.memory_reservation {
        to.put("memory", "memory.soft_limit_in_bytes", reservation, "memory.reservation");
    }
    // After the limit: the kernel keeps memory and swap together at or above memory alone.
    if let Some(swap) = resources.memory_swap {
        to.put("memory", "memory.memsw.limit_in_bytes", swap, "memory.swap");
    }
    // Linux 5.16 and later take it and forget it.
    if let Some(limit) = resources.memory_kernel {
        to.put("memory", "memory.kmem.limit_in_bytes", limit, "memory.kernel").read_back = true;
    }
    if let Some(limit) = resources.memory_kernel_tcp {
        to.put("memory", "memory.kmem.tcp.limit_in_bytes", limit, "memory.kernelTCP");
    }
    if let Some(swappiness) = resources.memory_swappiness {
        to.put("memory", "memory.swappiness", swappiness, "memory.swappiness");
    }
    if resources.memory_oom_killer_off {
        to.put("memory", "memory.oom_control", 1, "memory.disableOOMKiller");
    }
}

fn memory_v2(resources: &Resources, to: &mut Collector<'_>) {
    let bytes = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(reservation) = resources.memory_reservation {
        to.put("memory", "memory.low", bytes(reservation), "memory.reservation");
    }
    // Version 2 counts swap alone, the configuration counts memory and swap together.
    if let Some(swap) = resources.memory_swap {
        let alone = if swap < 0 { swap } else { swap - resources.memory_limit.unwrap_or(0).max(0) };
        to.put("memory", "memory.swap.max", bytes(alone), "memory.swap");
    }
    if let Some(limit) = resources.memory_limit {
        let write = to.put("memory", "memory.max", bytes(limit), "memory.limit");
        write.at_least = resources.memory_check.then_some("memory.current");
    }
    let missing = [
        ("memory.kernel", resources.memory_kernel.is_some()),
        ("memory.kernelTCP", resources.memory_kernel_tcp.is_some()),
        ("memory.swappiness", resources.memory_swappiness.is_some()),
        ("memory.disableOOMKiller", resources.memory_oom_killer_off),
    ];
    for (field, _) in missing.into_iter().filter(|(_, asked)| *asked) {
        to.refuse(field, "cgroup version 2 has nothing of the kind: leave it out");
    }
}

fn cpu_v1(resources: &Resources, to: &mut Collector<'_>) {
    if let Some(shares) = resources.cpu_shares {
        to.put("cpu", "cpu.shares", shares, "cpu.shares");
    }
    if let Some(period) = resources.cpu_period {
        to.put("cpu", "cpu.cfs_period_us", period, "cpu.period");
    }
    if let Some(quota) = resources.cpu_quota {
        to.put("cpu", "cpu.cfs_quota_us", quota, "cpu.quota");
    }
    // After the quota, which it may not exceed.
    if let Some(burst) = resources.cpu_burst {
        to.put("cpu", "cpu.cfs_burst_us", burst, "cpu.burst");
    }
    if let Some(period) = resources.cpu_realtime_period {
        to.put("cpu", "cpu.rt_period_us", period, "cpu.realtimePeriod");
    }
    if let Some(runtime) = resources.cpu_realtime_runtime {
        to.put("cpu", "cpu.rt_runtime_us", runtime, "cpu.realtimeRuntime");
    }
    // After the shares, which an idle cgroup has none of.
    if let Some(idle) = resources.cpu_idle {
        to.put("cpu", "cpu.idle", idle, "cpu.idle");
    }
}

/// The weight stands for shares as Kubernetes KEP-2254 maps [2, 262144] to [1, 10000].
fn cpu_v2(resources: &Resources, to: &mut Collector<'_>) {
    const PERIOD_US_DEFAULT: u64 = 100_000;
    if let Some(shares) = resources.cpu_shares {
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        to.put("cpu", "cpu.weight", weight, "cpu.shares");
    }
    if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
        let quota = resources.cpu_quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
        let period = resources.cpu_period.unwrap_or(PERIOD_US_DEFAULT);
        to.put("cpu", "cpu.max", format!("{quota} {period}"), "cpu.quota");
    }
    if let Some(burst) = resources.cpu_burst {
        to.put("cpu", "cpu.max.burst", burst, "cpu.burst");
    }
    if let Some(idle) = resources.cpu_idle {
        to.put("cpu", "cpu.idle", idle, "cpu.idle");
    }
    let real_time = [
        ("cpu.realtimePeriod", resources.cpu_realtime_period.is_some()),
        ("cpu.realtimeRuntime", resources.cpu_realtime_runtime.is_some()),
    ];
    for (field, _) in real_time.into_iter().filter(|(_, asked)| *asked) {
        to.refuse(field, "cgroup version 2 gives no shares of real time: leave it out");
    }
}

/// Weights belong to the scheduler of a device: BFQ's where it is built, else what there was before Linux 5.0.
fn block_io_v1(block_io: &BlockIo, to: &mut Collector<'_>) {
    let with_bfq = |to: &mut Collector<'_>, name: &str, value: String, field: &str| {
        let write = to.put("blkio", &format!("blkio.bfq.{name}"), &value, field);
        write.instead = Some((format!("blkio.{name}"), value));
    };
    if let Some(weight) = block_io.weight {
        with_bfq(to, "weight", weight.to_string(), "blockIO.weight");
    }
    if let Some(weight) = block_io.leaf_weight {
        to.put("blkio", "blkio.leaf_weight", weight, "blockIO.leafWeight");
    }
    for (index, device) in &block_io.weights {
        let number = format!("{}:{}", device.major, device.minor);
        if let Some(weight) = device.weight {
            with_bfq(to, "weight_device", format!("{number} {weight}"), &format!("blockIO.weightDevice[{index}].weight"));
        }
        if let Some(weight) = device.leaf_weight {
            let field = format!("blockIO.weightDevice[{index}].leafWeight");
            to.put("blkio", "blkio.leaf_weight_device", format!("{number} {weight}"), &field);
        }
    }
    for throttle in &block_io.throttles {
        for (index, device) in throttle.devices.iter().enumerate() {
            let value = format!("{}:{} {}", device.major, device.minor, device.rate);
            to.put("blkio", &format!("blkio.throttle.{}_device", throttle.v1), value, &format!("blockIO.{}[{index}]", throttle.field));
        }
    }
}

/// A weight of version 1 is one of BFQ's; another scheduler's stands for it as runc maps [10, 1000] to [1, 10000].
fn block_io_v2(block_io: &BlockIo, to: &mut Collector<'_>) {
    const LEAF: &str = "cgroup version 2 has no weights of leaves: leave it out";
    let converted = |weight: u16| 1 + (u32::from(weight) - 10) * 9999 / 990;
    if let Some(weight) = block_io.weight {
        let write = to.put("io", "io.bfq.weight", weight, "blockIO.weight");
        write.instead = Some(("io.weight".to_owned(), converted(weight).to_string()));
    }
    if block_io.leaf_weight.is_some() {
        to.refuse("blockIO.leafWeight", LEAF);
    }
    for (index, device) in &block_io.weights {
        let number = format!("{}:{}", device.major, device.minor);
        if let Some(weight) = device.weight {
            let field = format!("blockIO.weightDevice[{index}].weight");
            let write = to.put("io", "io.bfq.weight", format!("{number} {weight}"), &field);
            write.instead = Some(("io.weight".to_owned(), format!("{number} {}", converted(weight))));
        }
        if device.leaf_weight.is_some() {
            to.refuse(&format!("blockIO.weightDevice[{index}].leafWeight"), LEAF);
        }
    }
    for throttle in &block_io.throttles {
        for (index, device) in throttle.devices.iter().enumerate() {
            // Here zero is no limit's name.
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            let value = format!("{}:{} {}={rate}", device.major, device.minor, throttle.v2);
            to.put("io", "io.max", value, &format!("blockIO.{}[{index}]", throttle.field));
        }
    }
}

fn hugepages(resources: &Resources, to: &mut Collector<'_>) {
    for (index, limit) in resources.hugepage_limits.iter().enumerate() {
        let field = format!("hugepageLimits[{index}]");
        let file = match to.version("hugetlb") {
            Version::V1 => format!("hugetlb.{}.limit_in_bytes", limit.page_size),
            Version::V2 => format!("hugetlb.{}.max", limit.page_size),
        };
        to.put("hugetlb", &file, limit.limit, &field);
    }
}

fn network(resources: &Resources, to: &mut Collector<'_>) {
    // Version 2 has neither: then nothing holds them, and they are refused.
    if let Some(class) = resources.network_class {
        to.put("net_cls", "net_cls.classid", class, "network.classID");
    }
    for (index, priority) in resources.network_priorities.iter().enumerate() {
        let value = format!("{} {}", priority.name, priority.priority);
        to.put("net_prio", "net_prio.ifpriomap", value, &format!("network.priorities[{index}]"));
    }
}

fn rdma(resources: &Resources, to: &mut Collector<'_>) {
    for (device, limits) in &resources.rdma {
        let mut value = device.clone();
        for (name, limit) in [("hca_handle", limits.hca_handles), ("hca_object", limits.hca_objects)] {
            value += &limit.map_or_else(String::new, |limit| format!(" {name}={limit}"));
        }
        to.put("rdma", "rdma.max", value, &format!("rdma[{device}]"));
    }
}

fn devices(hierarchies: &[Hierarchy], resources: &Resources, to: &mut Collector<'_>) {
    if resources.devices.is_empty() {
        return;
    }
    let rules = device_rules(&resources.devices);
    if hierarchies.iter().any(|hierarchy| hierarchy.controllers.iter().any(|name| name == "devices")) {
        for rule in rules {
            to.put("devices", if rule.allow { "devices.allow" } else { "devices.deny" }, device_line(&rule), "devices");
        }
    } else {
        to.push("devices", Version::V2, "", "", "devices");
        to.limits.wanted.last_mut().expect("it was just pushed").filter = device_filter::program(&rules);
    }
}

/// What a new container gets: without a device rule of its own all devices are denied but those that always are there, as under runc,
/// where this host and user can have it so. A configuration that forgot them would else hand the host's disks to whoever may make a node.
pub fn with_device_rules(resources: &Resources, hierarchies: &[Hierarchy], privileges: Privileges) -> Resources {
    let holds = |hierarchy: &Hierarchy| hierarchy.version == Version::V2 || hierarchy.controllers.iter().any(|name| name == "devices");
    let can = privileges.over_mounts() && hierarchies.iter().any(|hierarchy| hierarchy.writable && holds(hierarchy));
    let mut resources = resources.clone();
    if resources.devices.is_empty() && can {
        resources.devices.push(DeviceRule { allow: false, kind: None, major: None, minor: None, access: "rwm".to_owned() });
    }
    resources
}

/// The configuration's rules, then those that always hold. Before the first rule everything is allowed, as in a new cgroup.
fn device_rules(given: &[DeviceRule]) -> Vec<DeviceRule> {
    let always = ALWAYS.iter().map(|(kind, major, minor, access)| DeviceRule {
        allow: true,
        kind: Some(*kind),
        major: *major,
        minor: *minor,
        access: (*access).to_owned(),
    });
    given.iter().cloned().chain(always).collect()
}

/// A rule as `admin-guide/cgroup-v1/devices.rst` writes it; `a` stands for everything at once.
fn device_line(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    match rule.kind {
        None => "a".to_owned(),
        Some(kind) => {
            let kind = if kind == DeviceKind::Block { 'b' } else { 'c' };
            format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{check, spec};
    use super::*;

    const EVERYTHING: &str = r#"{
        "memory":{"limit":100,"reservation":50,"swap":150,"kernelTCP":20,"swappiness":7,"disableOOMKiller":true,"useHierarchy":true,
          "checkBeforeUpdate":true},
        "cpu":{"shares":1024,"quota":5000,"period":10000,"burst":2000,"realtimeRuntime":3,"realtimePeriod":4,"idle":1},
        "blockIO":{"weight":500,"leafWeight":20,"weightDevice":[{"major":8,"minor":0,"weight":10,"leafWeight":30}],
          "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],"throttleWriteBpsDevice":[{"major":8,"minor":1,"rate":2}],
          "throttleReadIOPSDevice":[{"major":8,"minor":2,"rate":3}],"throttleWriteIOPSDevice":[{"major":8,"minor":3,"rate":0}]},
        "hugepageLimits":[{"pageSize":"2MB","limit":4096}],"rdma":{"mlx0":{"hcaHandles":2,"hcaObjects":9}},
        "network":{"classID":7,"priorities":[{"name":"eth0","priority":3}]},"unified":{"memory.high":"90"}}"#;

    fn lines(unified: &[&str]) -> (Vec<String>, Vec<String>) {
        let config = format!(
            r#"{{"ociVersion":"1.2.0","root":{{"path":"/r"}},"process":{{"cwd":"/","args":["sh"]}},
            "linux":{{"namespaces":[{{"type":"mount"}}],"resources":{EVERYTHING}}}}}"#
        );
        let container = check::check(Path::new("/b"), &spec::parse(config.as_bytes()).unwrap()).unwrap();
        let unified: Vec<String> = unified.iter().map(|name| (*name).to_owned()).collect();
        let limits = of(&[], &unified, &container.resources);
        let line = |wish: &Wish| {
            let Write { file, value, instead, at_least, .. } = &wish.write;
            let instead = instead.as_ref().map_or(String::new(), |(file, value)| format!(" or {file}={value}"));
            let at_least = at_least.map_or(String::new(), |file| format!(" at least {file}"));
            format!("{file}={value}{instead}{at_least}")
        };
        (limits.wanted.iter().map(line).collect(), limits.refusals.iter().map(|refusal| refusal.field.clone()).collect())
    }

    #[test]
    fn every_limit_of_version_1() {
        let expected = [
            "memory.use_hierarchy=1",
            "memory.limit_in_bytes=100 at least memory.usage_in_bytes",
            "memory.soft_limit_in_bytes=50",
            "memory.memsw.limit_in_bytes=150",
            "memory.kmem.tcp.limit_in_bytes=20",
            "memory.swappiness=7",
            "memory.oom_control=1",
            "cpu.shares=1024",
            "cpu.cfs_period_us=10000",
            "cpu.cfs_quota_us=5000",
            "cpu.cfs_burst_us=2000",
            "cpu.rt_period_us=4",
            "cpu.rt_runtime_us=3",
            "cpu.idle=1",
            "blkio.bfq.weight=500 or blkio.weight=500",
            "blkio.leaf_weight=20",
            "blkio.bfq.weight_device=8:0 10 or blkio.weight_device=8:0 10",
            "blkio.leaf_weight_device=8:0 30",
            "blkio.throttle.read_bps_device=8:0 1",
            "blkio.throttle.write_bps_device=8:1 2",
            "blkio.throttle.read_iops_device=8:2 3",
            "blkio.throttle.write_iops_device=8:3 0",
            "hugetlb.2MB.limit_in_bytes=4096",
            "net_cls.classid=7",
            "net_prio.ifpriomap=eth0 3",
            "rdma.max=mlx0 hca_handle=2 hca_object=9",
        ];
        let (lines, refused) = lines(&[]);
        assert_eq!(lines, expected);
        assert_eq!(refused, ["linux.resources.unified[memory.high]"]);
    }

    #[test]
    fn every_limit_of_version_2() {
        let expected = [
            "memory.low=50",
            "memory.swap.max=50",
            "memory.max=100 at least memory.current",
            "cpu.weight=39",
            "cpu.max=5000 10000",
            "cpu.max.burst=2000",
            "cpu.idle=1",
            "io.bfq.weight=500 or io.weight=4950",
            "io.bfq.weight=8:0 10 or io.weight=8:0 1",
            "io.max=8:0 rbps=1",
            "io.max=8:1 wbps=2",
            "io.max=8:2 riops=3",
            "io.max=8:3 wiops=max",
            "hugetlb.2MB.max=4096",
            "net_cls.classid=7",
            "net_prio.ifpriomap=eth0 3",
            "rdma.max=mlx0 hca_handle=2 hca_object=9",
            "memory.high=90",
        ];
        let (lines, refused) = lines(&["memory", "cpu", "io", "hugetlb", "rdma"]);
        assert_eq!(lines, expected);
        let below = |field: &&str| format!("linux.resources.{field}");
        let fields = [
            "memory.kernelTCP",
            "memory.swappiness",
            "memory.disableOOMKiller",
            "cpu.realtimePeriod",
            "cpu.realtimeRuntime",
            "blockIO.leafWeight",
            "blockIO.weightDevice[0].leafWeight",
        ];
        assert_eq!(refused, fields.iter().map(below).collect::<Vec<_>>());
    }
}
