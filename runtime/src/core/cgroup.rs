//! Decides in which cgroups a container lives and what is written there.
//!
//! In: the text of `/proc/self/mountinfo` and `/proc/self/cgroup`, `linux.cgroupsPath`, `linux.resources`. Out: a [`CgroupPlan`]: one [`Group`]
//! per mounted hierarchy, version 1 (controllers mounted one by one or together), hybrid, or version 2, each with the values to write
//! in order. Never leaves a hierarchy out, so that the container can be found, frozen and killed by any; never lets a limit go unheld:
//! a limit whose controller is not mounted is refused.
//!
//! Sources: the kernel's `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2.rst`; runtime-spec, config-linux.md "Control groups".

use std::path::{Component, Path, PathBuf};

use super::check::{Refusal, Resources};
use super::device_filter;
use super::limits::{self, Limits, Wish};

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    pub mount_point: PathBuf,
    /// Version 1: the controllers, or `name=…`, as in `/proc/self/cgroup`. Version 2: empty, the directory's own files tell.
    pub controllers: Vec<String>,
    /// This process's cgroup, below the mount point.
    pub own: PathBuf,
    /// Whether the container's cgroup can be made here.
    pub writable: bool,
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

impl Group {
    /// Whether its processes can be frozen by it (freezer-subsystem.rst; cgroup-v2.rst, "cgroup.freeze").
    pub fn can_freeze(&self) -> bool {
        self.hierarchy.version == Version::V2 || self.hierarchy.controllers.iter().any(|name| name == "freezer")
    }
}

/// A value for a file of a cgroup, and the field of the configuration that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub file: String,
    pub value: String,
    pub field: String,
    /// Another file and its value, for kernels that do not have the first.
    pub instead: Option<(String, String)>,
    /// The file of what is used already, if the value must not be below.
    pub at_least: Option<&'static str>,
    /// The kernel may take it and not keep it.
    pub read_back: bool,
}

/// All of a container's cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupPlan {
    pub groups: Vec<Group>,
    /// Hierarchies this user may make no cgroup in: the container stays where its creator is.
    pub others: Vec<Hierarchy>,
}

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
        found.push(Hierarchy {
            version,
            mount_point: PathBuf::from(unescape(mount_point)),
            controllers: controllers.clone(),
            own,
            writable: true,
        });
    }
    found
}

/// mountinfo writes space, tab, newline and backslash in octal.
pub fn unescape(text: &str) -> String {
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

/// Where the container's cgroup is in a hierarchy.
pub fn directory(hierarchy: &Hierarchy, cgroups_path: Option<&Path>, id: &str) -> PathBuf {
    let fallback = Path::new("/rcluster").join(id);
    let path = cgroups_path.unwrap_or(&fallback);
    let base = if path.is_absolute() { hierarchy.mount_point.clone() } else { hierarchy.mount_point.join(&hierarchy.own) };
    base.join(path.components().filter(|part| matches!(part, Component::Normal(_))).collect::<PathBuf>())
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
    let Limits { mut wanted, mut refusals } = limits::of(hierarchies, unified, resources);
    let (usable, others): (Vec<_>, Vec<_>) = hierarchies.iter().cloned().partition(|hierarchy| hierarchy.writable);
    let groups = usable.into_iter().map(|hierarchy| group(directory(&hierarchy, cgroups_path, id), hierarchy, &mut wanted)).collect();
    refusals.extend(wanted.into_iter().map(|wish| Refusal {
        field: wish.write.field,
        why: match others.iter().find(|other| holds(other, &wish.controller, wish.version)) {
            Some(other) => {
                format!("this user may make no cgroup in {} to hold it: leave the limit out, or run as root", other.mount_point.display())
            }
            None => {
                format!("this host has no {} cgroup controller mounted to hold it: mount one, or leave the limit out", wish.controller)
            }
        },
    }));
    if refusals.is_empty() { Ok(CgroupPlan { groups, others }) } else { Err(refusals) }
}

fn holds(hierarchy: &Hierarchy, controller: &str, version: Version) -> bool {
    hierarchy.version == version && (version == Version::V2 || hierarchy.controllers.iter().any(|name| name == controller))
}

fn group(directory: PathBuf, hierarchy: Hierarchy, wanted: &mut Vec<Wish>) -> Group {
    let mut group = Group { hierarchy, directory, enable: Vec::new(), writes: Vec::new(), device_filter: Vec::new() };
    let mut rest = Vec::new();
    for wish in wanted.drain(..) {
        let held = holds(&group.hierarchy, &wish.controller, wish.version);
        if !held {
            rest.push(wish);
        } else if !wish.filter.is_empty() {
            group.device_filter = wish.filter;
        } else {
            // The core's own files are there without any controller.
            if wish.version == Version::V2 && wish.controller != limits::CORE && !group.enable.contains(&wish.controller) {
                group.enable.push(wish.controller);
            }
            group.writes.push(wish.write);
        }
    }
    *wanted = rest;
    group
}

#[cfg(test)]
mod tests {
    use super::super::check::DeviceRule;
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
            ..Resources::default()
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
  devices.allow = c 10:200 rwm
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
