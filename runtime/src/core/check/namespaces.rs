//! Namespaces and what belongs to one: names and kernel settings (config-linux.md "Namespaces", "Sysctl").

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::{Container, Process, Refusal, Refusals};
use crate::core::spec;

/// The kinds of `linux.namespaces[].type` that are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceKind {
    Network,
    Ipc,
    Uts,
    Pid,
    Cgroup,
    Time,
    User,
    Mount,
}

impl fmt::Display for NamespaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
            Self::User => "user",
            Self::Mount => "mount",
        })
    }
}

/// A namespace: new, or one that exists at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    pub kind: NamespaceKind,
    pub path: Option<PathBuf>,
}

/// A range of ids of the container and the host's ids they stand for (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    pub container: u32,
    pub host: u32,
    pub size: u32,
}

impl fmt::Display for IdMapping {
    /// A line of `/proc/PID/uid_map`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.container, self.host, self.size)
    }
}

/// `uidMappings` and `gidMappings` of one user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMappings {
    pub users: Vec<IdMapping>,
    pub groups: Vec<IdMapping>,
}

/// An offset of one clock of a new time namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeOffset {
    /// As `/proc/PID/timens_offsets` names it.
    pub clock: String,
    pub seconds: i64,
    pub nanoseconds: u32,
}

const HOST_TEXT_BYTES_MAX: usize = 64;

/// The kernel's limit on the lines of a mapping (user_namespaces(7)).
const MAPPINGS_MAX: usize = 340;
const NANOSECONDS_PER_SECOND: u32 = 1_000_000_000;

impl Refusals {
    pub(super) fn namespaces(&mut self, given: &[spec::Namespace]) -> Vec<Namespace> {
        let mut namespaces: Vec<Namespace> = Vec::new();
        for (index, namespace) in given.iter().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            let kind = match namespace.kind.as_str() {
                "network" => NamespaceKind::Network,
                "ipc" => NamespaceKind::Ipc,
                "uts" => NamespaceKind::Uts,
                "pid" => NamespaceKind::Pid,
                "cgroup" => NamespaceKind::Cgroup,
                "mount" => NamespaceKind::Mount,
                "time" => NamespaceKind::Time,
                "user" => NamespaceKind::User,
                other => {
                    self.refuse(field, format!("{other:?} is no kind of namespace"));
                    continue;
                }
            };
            let path = namespace.path.clone().filter(|path| !path.as_os_str().is_empty());
            if namespaces.iter().any(|other| other.kind == kind) {
                self.refuse(&field, format!("{kind} is listed twice"));
            }
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                self.refuse(format!("{field}.path"), "not an absolute path");
            }
            if kind == NamespaceKind::Mount && path.is_some() {
                self.refuse(format!("{field}.path"), "the root would change for all who live in that mount namespace: leave the path out");
            }
            namespaces.push(Namespace { kind, path });
        }
        if !namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::Mount) {
            self.refuse("linux.namespaces", "a container shares no mount namespace with the host: add {\"type\":\"mount\"}");
        }
        namespaces.sort_by_key(|namespace| namespace.kind);
        namespaces
    }

    /// `hostname` and `domainname`: changing the host's own is refused.
    pub(super) fn host_text(&mut self, field: &str, text: Option<&str>, namespaces: &[Namespace]) -> Option<String> {
        let text = text.filter(|text| !text.is_empty())?;
        if !namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::Uts) {
            self.refuse(field, "would change the host's: add {\"type\":\"uts\"} to linux.namespaces");
        }
        if text.len() > HOST_TEXT_BYTES_MAX {
            self.refuse(field, format!("longer than the kernel's {HOST_TEXT_BYTES_MAX} bytes"));
        }
        Some(text.to_owned())
    }

    /// Only what a namespace of the container holds: any other would change the host's.
    pub(super) fn sysctl(&mut self, given: &BTreeMap<String, String>, namespaces: &[Namespace]) -> BTreeMap<String, String> {
        for name in given.keys() {
            let Some(needed) = namespace_of(name) else {
                self.refuse(format!("linux.sysctl[{name}]"), "belongs to the whole host, not to a namespace of the container");
                continue;
            };
            if name.split(['.', '/']).any(|part| part.is_empty()) {
                self.refuse(format!("linux.sysctl[{name}]"), "is no name of a setting");
            }
            if !namespaces.iter().any(|namespace| namespace.kind == needed) {
                let why = format!("would change the host's: add {{\"type\":\"{needed}\"}} to linux.namespaces");
                self.refuse(format!("linux.sysctl[{name}]"), why);
            }
        }
        given.clone()
    }

    /// `linux.uidMappings` and `linux.gidMappings`.
    pub(super) fn id_mappings(&mut self, linux: &spec::Linux, namespaces: &[Namespace]) -> IdMappings {
        let ids = IdMappings {
            users: self.id_ranges("linux.uidMappings", &linux.uid_mappings),
            groups: self.id_ranges("linux.gidMappings", &linux.gid_mappings),
        };
        let user = namespaces.iter().find(|namespace| namespace.kind == NamespaceKind::User);
        for (field, ranges) in [("linux.uidMappings", &ids.users), ("linux.gidMappings", &ids.groups)] {
            match user {
                None if !ranges.is_empty() => {
                    self.refuse(field, "maps the ids of no namespace: add {\"type\":\"user\"} to linux.namespaces");
                }
                Some(Namespace { path: None, .. }) if ranges.is_empty() => {
                    self.refuse(field, "missing: a new user namespace holds no id without one");
                }
                Some(Namespace { path: None, .. }) if !is_mapped(ranges, 0) => {
                    self.refuse(field, "maps no containerID 0, as which the container is set up");
                }
                _ => {}
            }
        }
        ids
    }

    /// Reads ranges of ids; the kernel would refuse what is refused here, without saying which.
    pub(super) fn id_ranges(&mut self, field: &str, given: &[spec::IdMapping]) -> Vec<IdMapping> {
        if given.len() > MAPPINGS_MAX {
            self.refuse(field, format!("{} entries are more than the kernel's {MAPPINGS_MAX}", given.len()));
            return Vec::new();
        }
        let mut ranges: Vec<IdMapping> = Vec::new();
        for (index, range) in given.iter().enumerate() {
            let place = format!("{field}[{index}]");
            if range.size == 0 {
                self.refuse(format!("{place}.size"), "is 0: a range holds at least one id");
                continue;
            }
            for (name, first) in [("containerID", range.container_id), ("hostID", range.host_id)] {
                if first.checked_add(range.size).is_none() {
                    self.refuse(format!("{place}.{name}"), format!("{first} and {} more lie beyond the last id 4294967294", range.size));
                }
            }
            let overlaps = |a: u32, a_size: u32, b: u32, b_size: u32| {
                u64::from(a) < u64::from(b) + u64::from(b_size) && u64::from(b) < u64::from(a) + u64::from(a_size)
            };
            for (other, earlier) in ranges.iter().enumerate() {
                if overlaps(earlier.container, earlier.size, range.container_id, range.size) {
                    self.refuse(format!("{place}.containerID"), format!("overlaps {field}[{other}]"));
                }
                if overlaps(earlier.host, earlier.size, range.host_id, range.size) {
                    self.refuse(format!("{place}.hostID"), format!("overlaps {field}[{other}]"));
                }
            }
            ranges.push(IdMapping { container: range.container_id, host: range.host_id, size: range.size });
        }
        ranges
    }

    /// `process.user`: an id without a mapping cannot be taken on.
    pub(super) fn mapped_user(&mut self, process: &Process, ids: &IdMappings) {
        if !ids.users.is_empty() && !is_mapped(&ids.users, process.uid) {
            self.refuse("process.user.uid", format!("{} is not mapped by linux.uidMappings", process.uid));
        }
        let groups = [("process.user.gid".to_owned(), process.gid)];
        let additional = process.additional_gids.iter().enumerate();
        let additional = additional.map(|(index, gid)| (format!("process.user.additionalGids[{index}]"), *gid));
        for (field, gid) in groups.into_iter().chain(additional) {
            if !ids.groups.is_empty() && !is_mapped(&ids.groups, gid) {
                self.refuse(field, format!("{gid} is not mapped by linux.gidMappings"));
            }
        }
    }

    /// `linux.timeOffsets`.
    pub(super) fn time_offsets(&mut self, given: &BTreeMap<String, spec::TimeOffset>, namespaces: &[Namespace]) -> Vec<TimeOffset> {
        let time = namespaces.iter().find(|namespace| namespace.kind == NamespaceKind::Time);
        match time {
            _ if given.is_empty() => {}
            None => self.refuse("linux.timeOffsets", "shift the clocks of no namespace: add {\"type\":\"time\"} to linux.namespaces"),
            Some(Namespace { path: Some(_), .. }) => {
                self.refuse(
                    "linux.timeOffsets",
                    "the clocks of a namespace that exists cannot be shifted: leave its path or the offsets out",
                );
            }
            Some(_) => {}
        }
        for (clock, offset) in given {
            if clock != "monotonic" && clock != "boottime" {
                self.refuse(format!("linux.timeOffsets[{clock}]"), "is no clock of a time namespace: use monotonic or boottime");
            }
            if offset.nanosecs >= NANOSECONDS_PER_SECOND {
                self.refuse(format!("linux.timeOffsets[{clock}].nanosecs"), format!("{} is a second or more", offset.nanosecs));
            }
        }
        let offset = |(clock, offset): (&String, &spec::TimeOffset)| TimeOffset {
            clock: clock.clone(),
            seconds: offset.secs,
            nanoseconds: offset.nanosecs,
        };
        given.iter().map(offset).collect()
    }
}

/// The namespace a kernel setting belongs to.
fn namespace_of(setting: &str) -> Option<NamespaceKind> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];
    let dotted = setting.replace('/', ".");
    if dotted.starts_with("net.") {
        Some(NamespaceKind::Network)
    } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        Some(NamespaceKind::Ipc)
    } else if dotted == "kernel.domainname" || dotted == "kernel.hostname" {
        Some(NamespaceKind::Uts)
    } else {
        None
    }
}

/// Refuses settings of a namespace that, joined by path, turns out to be the host's own.
pub fn check_not_the_hosts(container: &Container, kind: NamespaceKind) -> Result<(), Refusal> {
    let why = || format!("would change the host's: the {kind} namespace to be joined is the host's own");
    let of_uts = [("hostname", &container.hostname), ("domainname", &container.domainname)];
    let text = of_uts.into_iter().find(|(_, text)| kind == NamespaceKind::Uts && text.is_some());
    let setting = container.sysctl.keys().find(|name| namespace_of(name) == Some(kind));
    let field = text.map(|(field, _)| field.to_owned()).or_else(|| setting.map(|name| format!("linux.sysctl[{name}]")));
    field.map_or(Ok(()), |field| Err(Refusal { field, why: why() }))
}

fn is_mapped(ranges: &[IdMapping], id: u32) -> bool {
    ranges.iter().any(|range| id.checked_sub(range.container).is_some_and(|distance| distance < range.size))
}
