//! The root, mounts, device nodes and paths in the container (config.md "Root", "Mounts"; config-linux.md "Devices").

use std::path::{Component, Path, PathBuf};

use super::{IdMappings, Namespace, NamespaceKind, Refusals};
use crate::core::mount_options::{self, MountOptions, Propagation};
use crate::core::spec;

/// One of `mounts[]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its place in `mounts[]`.
    pub index: usize,
    /// Absolute, in the container.
    pub destination: PathBuf,
    pub what: MountWhat,
    pub options: MountOptions,
    pub idmap: Option<Idmap>,
}

/// How the files of a mount seem to be owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idmap {
    /// `None`: as by the container's user namespace.
    pub ids: Option<IdMappings>,
    /// Also those of the mounts below.
    pub recursive: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountWhat {
    /// A file or directory of the host, absolute.
    Bind { source: PathBuf, recursive: bool },
    /// A mount that is there already, or with `bind` only its attributes.
    Remount { bind: bool },
    /// The container's view of the cgroup hierarchies.
    Cgroup,
    /// A file system by its kernel name.
    FileSystem { kind: String, source: String },
}

/// One of `linux.devices[]`, or a default device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// The type of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

impl Refusals {
    pub(super) fn root(&mut self, bundle: &Path, root: Option<&spec::Root>) -> PathBuf {
        match root {
            Some(root) if !root.path.as_os_str().is_empty() => bundle.join(&root.path),
            _ => {
                self.refuse("root.path", "missing: name the directory of the container's file system");
                PathBuf::new()
            }
        }
    }

    /// `linux.rootfsPropagation`; without it mounts of the host are still seen, and none of the container's is seen outside.
    pub(super) fn root_propagation(&mut self, text: Option<&str>) -> Option<(Propagation, bool)> {
        let text = text.filter(|text| !text.is_empty())?;
        let found = mount_options::propagation(text);
        if found.is_none() {
            self.refuse("linux.rootfsPropagation", format!("{text:?} is none of shared, slave, private, unbindable, or these after an r"));
        }
        found
    }

    pub(super) fn mounts(&mut self, bundle: &Path, given: &[spec::Mount], namespaces: &[Namespace]) -> Vec<Mount> {
        given.iter().enumerate().filter_map(|(index, mount)| self.mount(bundle, index, mount, namespaces)).collect()
    }

    pub(super) fn mount(&mut self, bundle: &Path, index: usize, mount: &spec::Mount, namespaces: &[Namespace]) -> Option<Mount> {
        let field = format!("mounts[{index}]");
        // A relative destination counts from the root (config.md: older configurations have them).
        let destination = Path::new("/").join(&mount.destination);
        if destination.components().all(|component| matches!(component, Component::RootDir | Component::CurDir)) {
            self.refuse(format!("{field}.destination"), "is the root itself: set root.path instead");
        }
        for (name, path) in [("destination", Some(&mount.destination)), ("source", mount.source.as_ref())] {
            if path.is_some_and(|path| path.as_os_str().as_encoded_bytes().contains(&0)) {
                self.refuse(format!("{field}.{name}"), "holds a NUL byte");
            }
        }
        let options = match mount_options::parse(&mount.options) {
            Ok(options) => options,
            Err(why) => {
                self.refuse(format!("{field}.options"), why);
                return None;
            }
        };
        let what = self.mount_what(bundle, &field, mount, &options)?;
        let idmap = self.idmap(&field, mount, &options, &what, namespaces);
        if options.copy_up && !matches!(&what, MountWhat::FileSystem { kind, .. } if kind == "tmpfs") {
            self.refuse(format!("{field}.options"), "tmpcopyup: only a tmpfs can take in what it covers");
        }
        Some(Mount { index, destination, what, options, idmap })
    }

    fn mount_what(&mut self, bundle: &Path, field: &str, mount: &spec::Mount, options: &MountOptions) -> Option<MountWhat> {
        let kind = mount.kind.as_deref().unwrap_or_default();
        let source = mount.source.clone().unwrap_or_default();
        let bind = options.bind.or_else(|| (kind == "bind").then_some(false));
        let mut no_data = |what: &str| {
            for (key, _) in &options.data {
                self.refuse(format!("{field}.options"), format!("{key:?} is no option of {what}"));
            }
        };
        Some(match (bind, kind) {
            (Some(_), _) if options.remount => {
                no_data("a bind mount");
                MountWhat::Remount { bind: true }
            }
            (None, _) if options.remount => MountWhat::Remount { bind: false },
            (Some(_), _) if source.as_os_str().is_empty() => {
                self.refuse(format!("{field}.source"), "missing: a bind mount needs what it binds");
                return None;
            }
            (Some(recursive), _) => {
                no_data("a bind mount");
                MountWhat::Bind { source: bundle.join(source), recursive }
            }
            (None, "") => {
                self.refuse(format!("{field}.type"), "missing: name the file system, or add the option bind");
                return None;
            }
            (None, "cgroup" | "cgroup2") => {
                no_data("a cgroup mount");
                MountWhat::Cgroup
            }
            (None, kind) => MountWhat::FileSystem { kind: kind.to_owned(), source: source.to_string_lossy().into_owned() },
        })
    }

    /// `mounts[].uidMappings` and the like: how the files of a bound directory seem to be owned. Mappings without the option ask for it.
    fn idmap(
        &mut self,
        field: &str,
        mount: &spec::Mount,
        options: &MountOptions,
        what: &MountWhat,
        namespaces: &[Namespace],
    ) -> Option<Idmap> {
        let users = self.id_ranges(&format!("{field}.uidMappings"), &mount.uid_mappings);
        let groups = self.id_ranges(&format!("{field}.gidMappings"), &mount.gid_mappings);
        let ids = match (mount.uid_mappings.is_empty(), mount.gid_mappings.is_empty()) {
            (true, true) => None,
            (false, false) => Some(IdMappings { users, groups }),
            (lacks_users, _) => {
                let (missing, given) = if lacks_users { ("uidMappings", "gidMappings") } else { ("gidMappings", "uidMappings") };
                self.refuse(format!("{field}.{missing}"), format!("missing: {given} needs it beside it"));
                None
            }
        };
        let recursive = options.idmap.or(ids.is_some().then_some(false))?;
        if !matches!(what, MountWhat::Bind { .. }) {
            self.refuse(format!("{field}.options"), "idmap: only a bind mount has files whose ids can be mapped");
        }
        if ids.is_none() && !namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::User) {
            self.refuse(format!("{field}.uidMappings"), "missing: without a user namespace there is nothing else to map ids by");
        }
        Some(Idmap { ids, recursive })
    }

    pub(super) fn devices(&mut self, given: &[spec::Device]) -> Vec<Device> {
        let mut devices = default_devices();
        for (index, device) in given.iter().enumerate() {
            let field = format!("linux.devices[{index}]");
            let kind = match device.kind.as_str() {
                "c" | "u" => DeviceKind::Character,
                "b" => DeviceKind::Block,
                "p" => DeviceKind::Fifo,
                other => {
                    self.refuse(format!("{field}.type"), format!("{other:?} is none of c, u, b, p"));
                    continue;
                }
            };
            if !device.path.is_absolute() {
                self.refuse(format!("{field}.path"), "not an absolute path");
            }
            let numbers = match (kind, device.major, device.minor) {
                (DeviceKind::Fifo, _, _) => (0, 0),
                (_, Some(major), Some(minor)) => (major, minor),
                _ => {
                    self.refuse(format!("{field}.major"), "major and minor are both needed");
                    continue;
                }
            };
            let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
            let mode = device.file_mode.unwrap_or(0o666) & 0o7777;
            devices.retain(|other| other.path != device.path);
            devices.push(Device { path: device.path.clone(), kind, major: numbers.0, minor: numbers.1, mode, uid, gid });
        }
        devices
    }

    pub(super) fn paths(&mut self, field: &str, given: &[PathBuf]) -> Vec<PathBuf> {
        for (index, path) in given.iter().enumerate() {
            if !path.is_absolute() {
                self.refuse(format!("{field}[{index}]"), "not an absolute path");
            }
        }
        given.to_vec()
    }
}

/// The devices every container has (config-linux.md "Default Devices").
fn default_devices() -> Vec<Device> {
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
        .into_iter()
        .map(|(name, major, minor)| Device {
            path: Path::new("/dev").join(name),
            kind: DeviceKind::Character,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect()
}
