//! Decides in which cgroups a container lives and what is written there.
//!
//! In: the text of `/proc/self/mountinfo` and `/proc/self/cgroup`, `linux.cgroupsPath`, `linux.resources`. Out: a [`CgroupPlan`]: one [`Group`]
//! per mounted hierarchy, version 1 (controllers mounted one by one or together), hybrid, or version 2, each with the values to write
//! in order. Never leaves a hierarchy out, so that the container can be found, frozen and killed by any; never lets a limit go unheld:
//! a limit whose controller is not mounted is refused.
//!
//! Sources: the kernel's `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2.rst`; runtime-spec, config-linux.md "Control groups".

use std::path::{Component, Path, PathBuf};

use super::check::{DeviceKind, DeviceRule, Refusal, Resources};
use super::device_filter;

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    pub mount_point: PathBuf,
    /// Version 1: the controllers, or `name=…`, as in `/proc/self/cgroup`. Version 2: empty, the directory's own files tell.
    pub controllers: Vec<String>,
    /// This process's cgroup, below the mount point.
    pub own: PathBuf,
}

/// The two generations of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// One directory the container's processes are put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub hierarchy: Hierarchy,
    /// Absolute.
    pub directory: PathBuf,
    /// Version 2: controllers to enable in every directory above.
    pub enable: Vec<String>,
    pub writes: Vec<Write>,
    /// Version 2: the program that filters device access, instead of a device controller.
    pub device_filter: Vec<device_filter::Instruction>,
}

/// A value for a file of a cgroup, and the field of the configuration that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub file: &'static str,
    pub value: String,
    pub field: &'static str,
}

/// All of a container's cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupPlan {
    pub groups: Vec<Group>,
}

/// Device rules that hold whatever the configuration says (runc and crun agree on them): making any node, and using the default ones,
/// the pseudo-terminals and `/dev/ptmx`.
const ALWAYS: [(DeviceKind, Option<u32>, Option<u32>, &str); 10] = [
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
];

/// Finds the hierarchies a process sees, by `/proc/self/mountinfo` and `/proc/self/cgroup` (proc_pid_mountinfo(5), cgroups(7)).
pub fn hierarchies(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    let own: Vec<(Vec<String>, &str)> = own
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            Some((controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(), parts.next()?))
        })
        .collect();
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mount: Vec<&str> = mount.split(' ').collect();
        let file_system: Vec<&str> = file_system.split(' ').collect();
        let (&[_, _, _, root, mount_point, ..], &[kind, _, options]) = (mount.as_slice(), file_system.as_slice()) else { continue };
        let (version, mine) = match kind {
            "cgroup2" => (Version::V2, own.iter().find(|(controllers, _)| controllers.is_empty())),
            "cgroup" => {
                let options: Vec<&str> = options.split(',').collect();
                let holds = |(controllers, _): &&(Vec<String>, &str)| {
                    !controllers.is_empty() && controllers.iter().all(|name| options.contains(&name.as_str()))
                };
                (Version::V1, own.iter().find(holds))
            }
            _ => continue,
        };
        let Some((controllers, path)) = mine else { continue };
        if found.iter().any(|other| other.version == version && other.controllers == *controllers) {
            continue;
        }
        let below = Path::new(path).strip_prefix(unescape(root)).unwrap_or(Path::new(""));
        let own = below.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        found.push(Hierarchy { version, mount_point: PathBuf::from(unescape(mount_point)), controllers: controllers.clone(), own });
    }
    found
}

/// mountinfo writes space, tab, newline and backslash in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The cgroup that systemd would make for `SLICE:PREFIX:NAME`: `a-b.slice:p:n` is `/a.slice/a-b.slice/p-n.scope` (systemd.slice(5); runc's
/// default is `system.slice`, and a name that ends in `.slice` is one itself). `None` when it is not of that form.
pub fn path_of_unit(text: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = text.split(':').collect();
    let &[slice, prefix, name] = parts.as_slice() else { return None };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice")?;
    if name.is_empty() || text.contains('/') || stem != "-" && stem.split('-').any(str::is_empty) {
        return None;
    }
    let mut path = PathBuf::from("/");
    if stem != "-" {
        let ends = stem.match_indices('-').map(|(place, _)| place).chain([stem.len()]);
        path.extend(ends.map(|end| format!("{}.slice", &stem[..end])));
    }
    path.push(match prefix {
        _ if name.ends_with(".slice") => name.to_owned(),
        "" => format!("{name}.scope"),
        _ => format!("{prefix}-{name}.scope"),
    });
    Some(path)
}

/// Decides the container's cgroups. An absolute `cgroups_path` counts from each hierarchy's mount point, a relative one from the
/// runtime's own cgroup; without one it is `/rcluster/<id>`.
pub fn plan(
    hierarchies: &[Hierarchy],
    unified: &[String],
    cgroups_path: Option<&Path>,
    id: &str,
    resources: &Resources,
) -> Result<CgroupPlan, Vec<Refusal>> {
    let fallback = Path::new("/rcluster").join(id);
    let path = cgroups_path.unwrap_or(&fallback);
    let mut wanted = wanted(hierarchies, unified, resources);
    let groups = hierarchies.iter().map(|hierarchy| group(hierarchy, path, &mut wanted)).collect();
    let refusals: Vec<Refusal> = wanted
        .into_iter()
        .map(|wish| Refusal {
            field: wish.write.field.to_owned(),
            why: format!("this host has no {} cgroup controller mounted to hold it: mount one, or leave the limit out", wish.controller),
        })
        .collect();
    if refusals.is_empty() { Ok(CgroupPlan { groups }) } else { Err(refusals) }
}

/// A write and the controller it needs.
struct Wish {
    controller: &'static str,
    version: Version,
    write: Write,
    filter: Vec<device_filter::Instruction>,
}

fn group(hierarchy: &Hierarchy, path: &Path, wanted: &mut Vec<Wish>) -> Group {
    let base = if path.is_absolute() { hierarchy.mount_point.clone() } else { hierarchy.mount_point.join(&hierarchy.own) };
    let directory = base.join(path.components().filter(|part| matches!(part, Component::Normal(_))).collect::<PathBuf>());
    let mut group = Group { hierarchy: hierarchy.clone(), directory, enable: Vec::new(), writes: Vec::new(), device_filter: Vec::new() };
    let mut rest = Vec::new();
    for wish in wanted.drain(..) {
        let held = match hierarchy.version {
            Version::V1 => wish.version == Version::V1 && hierarchy.controllers.iter().any(|name| name == wish.controller),
            Version::V2 => wish.version == Version::V2,
        };
        if !held {
            rest.push(wish);
        } else if !wish.filter.is_empty() {
            group.device_filter = wish.filter;
        } else {
            if wish.version == Version::V2 && !group.enable.iter().any(|name| name == wish.controller) {
                group.enable.push(wish.controller.to_owned());
            }
            group.writes.push(wish.write);
        }
    }
    *wanted = rest;
    group
}

/// Every value to write, in order. Each controller is taken from version 2 where version 2 has it, else from version 1.
fn wanted(hierarchies: &[Hierarchy], unified: &[String], resources: &Resources) -> Vec<Wish> {
    let is_v1 = |controller: &str| hierarchies.iter().any(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller));
    let version = |controller: &str| {
        if unified.iter().any(|name| name == controller) { Version::V2 } else { Version::V1 }
    };
    let mut wishes = Vec::new();
    let mut wish = |controller: &'static str, file: &'static str, value: String, field: &'static str| {
        wishes.push(Wish { controller, version: version(controller), write: Write { file, value, field }, filter: Vec::new() });
    };
    match version("memory") {
        Version::V1 => memory_v1(resources, &mut wish),
        Version::V2 => memory_v2(resources, &mut wish),
    }
    match version("cpu") {
        Version::V1 => cpu_v1(resources, &mut wish),
        Version::V2 => cpu_v2(resources, &mut wish),
    }
    for (value, file, field) in [
        (&resources.cpuset_cpus, "cpuset.cpus", "linux.resources.cpu.cpus"),
        (&resources.cpuset_mems, "cpuset.mems", "linux.resources.cpu.mems"),
    ] {
        if let Some(value) = value {
            wish("cpuset", file, value.clone(), field);
        }
    }
    if let Some(limit) = resources.pids_limit {
        wish("pids", "pids.max", if limit > 0 { limit.to_string() } else { "max".to_owned() }, "linux.resources.pids.limit");
    }
    if !resources.devices.is_empty() {
        let rules = device_rules(&resources.devices);
        let field = "linux.resources.devices";
        if is_v1("devices") {
            for rule in rules {
                wish("devices", if rule.allow { "devices.allow" } else { "devices.deny" }, device_line(&rule), field);
            }
        } else {
            let write = Write { file: "", value: String::new(), field };
            wishes.push(Wish { controller: "devices", version: Version::V2, write, filter: device_filter::program(&rules) });
        }
    }
    wishes
}

fn memory_v1(resources: &Resources, wish: &mut impl FnMut(&'static str, &'static str, String, &'static str)) {
    if let Some(limit) = resources.memory_limit {
        wish("memory", "memory.limit_in_bytes", limit.to_string(), "linux.resources.memory.limit");
    }
    if let Some(reservation) = resources.memory_reservation {
        wish("memory", "memory.soft_limit_in_bytes", reservation.to_string(), "linux.resources.memory.reservation");
    }
    // After the limit: the kernel keeps memory and swap together at or above memory alone.
    if let Some(swap) = resources.memory_swap {
        wish("memory", "memory.memsw.limit_in_bytes", swap.to_string(), "linux.resources.memory.swap");
    }
}

fn memory_v2(resources: &Resources, wish: &mut impl FnMut(&'static str, &'static str, String, &'static str)) {
    let bytes = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(reservation) = resources.memory_reservation {
        wish("memory", "memory.low", bytes(reservation), "linux.resources.memory.reservation");
    }
    // Version 2 counts swap alone, the configuration counts memory and swap together.
    if let Some(swap) = resources.memory_swap {
        let alone = if swap < 0 { swap } else { swap - resources.memory_limit.unwrap_or(0).max(0) };
        wish("memory", "memory.swap.max", bytes(alone), "linux.resources.memory.swap");
    }
    if let Some(limit) = resources.memory_limit {
        wish("memory", "memory.max", bytes(limit), "linux.resources.memory.limit");
    }
}

fn cpu_v1(resources: &Resources, wish: &mut impl FnMut(&'static str, &'static str, String, &'static str)) {
    if let Some(shares) = resources.cpu_shares {
        wish("cpu", "cpu.shares", shares.to_string(), "linux.resources.cpu.shares");
    }
    if let Some(period) = resources.cpu_period {
        wish("cpu", "cpu.cfs_period_us", period.to_string(), "linux.resources.cpu.period");
    }
    if let Some(quota) = resources.cpu_quota {
        wish("cpu", "cpu.cfs_quota_us", quota.to_string(), "linux.resources.cpu.quota");
    }
}

/// The weight stands for shares as Kubernetes KEP-2254 maps [2, 262144] to [1, 10000].
fn cpu_v2(resources: &Resources, wish: &mut impl FnMut(&'static str, &'static str, String, &'static str)) {
    const PERIOD_US_DEFAULT: u64 = 100_000;
    if let Some(shares) = resources.cpu_shares {
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        wish("cpu", "cpu.weight", weight.to_string(), "linux.resources.cpu.shares");
    }
    if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
        let quota = resources.cpu_quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
        let period = resources.cpu_period.unwrap_or(PERIOD_US_DEFAULT);
        wish("cpu", "cpu.max", format!("{quota} {period}"), "linux.resources.cpu.quota");
    }
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
    use super::*;

    const V1_MOUNTS: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
99 31 0:36 / /mnt/again/pids rw,relatime - cgroup cgroup rw,pids
42 27 0:21 / /proc rw - proc proc rw
";
    const V1_OWN: &str = "7:name=systemd:/\n6:pids:/\n5:devices:/\n4:memory:/box/a\n3:cpuset:/\n1:cpu,cpuacct:/\n0::/\n";

    fn full() -> Resources {
        Resources {
            devices: vec![DeviceRule { allow: false, kind: None, major: None, minor: None, access: "rwm".into() }],
            memory_limit: Some(64 << 20),
            memory_reservation: Some(32 << 20),
            memory_swap: Some(96 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: Some("0".into()),
            pids_limit: Some(100),
        }
    }

    fn text(plan: &CgroupPlan) -> String {
        let mut text = String::new();
        for group in &plan.groups {
            text += &format!("{}\n", group.directory.display());
            if !group.enable.is_empty() {
                text += &format!("  enable {}\n", group.enable.join(" "));
            }
            for write in &group.writes {
                text += &format!("  {} = {}\n", write.file, write.value);
            }
            if !group.device_filter.is_empty() {
                text += &format!("  device filter of {} instructions\n", group.device_filter.len());
            }
        }
        text
    }

    #[test]
    fn hybrid_joins_every_hierarchy_once() {
        let found = hierarchies(V1_MOUNTS, V1_OWN);
        let plan = plan(&found, &[], Some(Path::new("/rc/web")), "id", &full()).unwrap();
        let expected = "\
/sys/fs/cgroup/cpu/rc/web
  cpu.shares = 1024
  cpu.cfs_period_us = 100000
  cpu.cfs_quota_us = 50000
/sys/fs/cgroup/cpuset/rc/web
  cpuset.cpus = 0-1
  cpuset.mems = 0
/sys/fs/cgroup/memory/rc/web
  memory.limit_in_bytes = 67108864
  memory.soft_limit_in_bytes = 33554432
  memory.memsw.limit_in_bytes = 100663296
/sys/fs/cgroup/devices/rc/web
  devices.deny = a
  devices.allow = c *:* m
  devices.allow = b *:* m
  devices.allow = c 1:3 rwm
  devices.allow = c 1:5 rwm
  devices.allow = c 1:7 rwm
  devices.allow = c 1:8 rwm
  devices.allow = c 1:9 rwm
  devices.allow = c 5:0 rwm
  devices.allow = c 5:2 rwm
  devices.allow = c 136:* rwm
/sys/fs/cgroup/pids/rc/web
  pids.max = 100
/sys/fs/cgroup/systemd/rc/web
/sys/fs/cgroup/unified/rc/web
";
        assert_eq!(text(&plan), expected);
    }

    #[test]
    fn a_relative_path_starts_from_the_own_cgroup() {
        let found = hierarchies(V1_MOUNTS, V1_OWN);
        let plan = plan(&found, &[], Some(Path::new("web")), "id", &Resources::default()).unwrap();
        let directories: Vec<_> = plan.groups.iter().map(|group| group.directory.to_str().unwrap()).collect();
        assert!(directories.contains(&"/sys/fs/cgroup/memory/box/a/web"), "{directories:?}");
        assert!(directories.contains(&"/sys/fs/cgroup/pids/web"), "{directories:?}");
    }

    #[test]
    fn version_2_alone() {
        let found = hierarchies("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n", "0::/system.slice/a.service\n");
        let unified: Vec<String> = ["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).into();
        let plan = plan(&found, &unified, None, "web", &full()).unwrap();
        let expected = "\
/sys/fs/cgroup/rcluster/web
  enable memory cpu cpuset pids
  memory.low = 33554432
  memory.swap.max = 33554432
  memory.max = 67108864
  cpu.weight = 39
  cpu.max = 50000 100000
  cpuset.cpus = 0-1
  cpuset.mems = 0
  pids.max = 100
";
        assert!(text(&plan).starts_with(expected), "{}", text(&plan));
        assert!(text(&plan).contains("device filter of"));
    }

    #[test]
    fn a_limit_without_its_controller_is_refused() {
        let found = hierarchies("39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n", "8:pids:/\n");
        let resources = Resources { memory_limit: Some(1 << 20), pids_limit: Some(-1), ..Resources::default() };
        let refusals = plan(&found, &[], None, "web", &resources).unwrap_err();
        assert_eq!(refusals.len(), 1);
        assert!(refusals[0].to_string().starts_with("linux.resources.memory.limit: this host has no memory cgroup controller"));
    }

    #[test]
    fn units_of_systemd_as_paths() {
        let path = |text: &str| path_of_unit(text).map(|path| path.display().to_string());
        assert_eq!(path("a-b-c.slice:cri:x1").as_deref(), Some("/a.slice/a-b.slice/a-b-c.slice/cri-x1.scope"));
        assert_eq!(path(":docker:x1").as_deref(), Some("/system.slice/docker-x1.scope"));
        assert_eq!(path("-.slice::x1").as_deref(), Some("/x1.scope"));
        assert_eq!(path("user.slice::pod.slice").as_deref(), Some("/user.slice/pod.slice"));
        for text in ["/a/b", "a:b", "a.slice:b:", "a--b.slice:c:d", "a:b:c", "a.slice:../..:x", "a.slice:b/c:d"] {
            assert_eq!(path(text), None, "{text}");
        }
    }

    #[test]
    fn a_mount_of_a_part_counts_from_that_part() {
        let found = hierarchies("39 31 0:36 /docker/x /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n", "8:pids:/docker/x/y\n");
        assert_eq!(found[0].own, Path::new("y"));
    }
}
