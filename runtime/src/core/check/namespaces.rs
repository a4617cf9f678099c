//! Namespaces and what belongs to one: names and kernel settings (config-linux.md "Namespaces", "Sysctl").

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::Refusals;
use crate::core::spec;

/// The kinds of `linux.namespaces[].type` that are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceKind {
    Network,
    Ipc,
    Uts,
    Pid,
    Cgroup,
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

const HOST_TEXT_BYTES_MAX: usize = 64;

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
                "user" | "time" => {
                    self.refuse(field, format!("{} namespaces are not built yet: leave it out", namespace.kind));
                    continue;
                }
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
                self.refuse(format!("{field}.path"), "joining a mount namespace is not built yet: leave the path out");
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
        const IPC: [&str; 7] =
            ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni"];
        for name in given.keys() {
            let dotted = name.replace('/', ".");
            let needed = if dotted.starts_with("net.") {
                NamespaceKind::Network
            } else if IPC.contains(&dotted.as_str()) || dotted == "kernel.shm_rmid_forced" || dotted.starts_with("fs.mqueue.") {
                NamespaceKind::Ipc
            } else if dotted == "kernel.domainname" || dotted == "kernel.hostname" {
                NamespaceKind::Uts
            } else {
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
}
