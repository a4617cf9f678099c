//! Mount options (runtime-spec, config.md "Linux mount options").
//!
//! In: the strings of `mounts[].options`. Out: [`MountOptions`], split into what the mount carries (attributes of mount_setattr(2)), how it
//! propagates, and what its file system is told. Never guesses: what is neither known nor plausible data is refused by name.

use std::fmt;

/// Attribute bits of mount_setattr(2), from `include/uapi/linux/mount.h`.
pub mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    /// The field the three access-time modes share; `relatime` is 0.
    pub const ATIME: u64 = 0x70;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// Bits to clear, then bits to set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Set(bit) => {
                self.set |= bit;
                self.clear &= !bit;
            }
            Change::Clear(bit) => {
                self.set &= !bit;
                self.clear |= bit;
            }
            Change::AccessTime(mode) => {
                self.clear |= attr::ATIME;
                self.set = self.set & !attr::ATIME | mode;
            }
        }
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (attr::RDONLY, "ro"),
            (attr::NOSUID, "nosuid"),
            (attr::NODEV, "nodev"),
            (attr::NOEXEC, "noexec"),
            (attr::NOATIME, "noatime"),
            (attr::STRICTATIME, "strictatime"),
            (attr::NODIRATIME, "nodiratime"),
            (attr::NOSYMFOLLOW, "nosymfollow"),
        ];
        let set: Vec<&str> = names.iter().filter(|(bit, _)| self.set & bit != 0).map(|(_, name)| *name).collect();
        f.write_str(&set.join(","))
    }
}

/// How a mount passes mounts on (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
    Unbindable,
}

impl fmt::Display for Propagation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Slave => "slave",
            Self::Shared => "shared",
            Self::Unbindable => "unbindable",
        })
    }
}

/// What `mounts[].options` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `Some(recursive)` for a bind mount.
    pub bind: Option<bool>,
    /// Of this mount only.
    pub attributes: Attributes,
    /// Of this mount and all below it (`rro`, `rnosuid`, …).
    pub recursive: Attributes,
    /// With whether it is recursive; later entries come later.
    pub propagation: Vec<(Propagation, bool)>,
    /// `Some(recursive)` for a mount with mapped ids.
    pub idmap: Option<bool>,
    /// What the mount covers is copied into it.
    pub copy_up: bool,
    /// Changes a mount that is there already.
    pub remount: bool,
    /// For the file system: flags and `key=value`.
    pub data: Vec<(String, Option<String>)>,
    /// For the file system, if it knows them: flags of mount(2) that a file system context has no general form for.
    pub hints: Vec<String>,
}

/// Every option that is not the file system's own, sorted.
pub const KNOWN: [&str; 64] = [
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

#[derive(Clone, Copy)]
enum Change {
    Set(u64),
    Clear(u64),
    AccessTime(u64),
}

/// Reads the options; the error says which one is refused and why.
pub fn parse(options: &[String]) -> Result<MountOptions, String> {
    let mut parsed = MountOptions::default();
    for option in options {
        match option.as_str() {
            // Silence concerns what the kernel writes into its log, which no context of fsopen(2) does.
            "" | "defaults" | "silent" | "loud" => {}
            "bind" => parsed.bind = Some(parsed.bind.unwrap_or(false)),
            "rbind" => parsed.bind = Some(true),
            "idmap" => parsed.idmap = Some(parsed.idmap.unwrap_or(false)),
            "ridmap" => parsed.idmap = Some(true),
            "tmpcopyup" => parsed.copy_up = true,
            "remount" => parsed.remount = true,
            "acl" | "noacl" | "iversion" | "noiversion" => parsed.hints.push(option.clone()),
            // A key and a value reach fsconfig(2) apart, and neither as a C string.
            _ if option.contains('\0') => return Err(format!("option {option:?} holds a NUL byte")),
            text => {
                if let Some(propagation) = propagation(text) {
                    parsed.propagation.push(propagation);
                } else if let Some(change) = attribute(text) {
                    parsed.attributes.apply(change);
                } else if let Some(change) = text.strip_prefix('r').and_then(attribute) {
                    parsed.recursive.apply(change);
                } else {
                    parsed.data.push(match text.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (superblock_flag(text).unwrap_or(text).to_owned(), None),
                    });
                }
            }
        }
    }
    Ok(parsed)
}

/// Reads a propagation and whether it is recursive.
pub fn propagation(option: &str) -> Option<(Propagation, bool)> {
    Some(match option {
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        "unbindable" => (Propagation::Unbindable, false),
        "runbindable" => (Propagation::Unbindable, true),
        _ => return None,
    })
}

fn attribute(option: &str) -> Option<Change> {
    Some(match option {
        "ro" => Change::Set(attr::RDONLY),
        "rw" => Change::Clear(attr::RDONLY),
        "nosuid" => Change::Set(attr::NOSUID),
        "suid" => Change::Clear(attr::NOSUID),
        "nodev" => Change::Set(attr::NODEV),
        "dev" => Change::Clear(attr::NODEV),
        "noexec" => Change::Set(attr::NOEXEC),
        "exec" => Change::Clear(attr::NOEXEC),
        "nodiratime" => Change::Set(attr::NODIRATIME),
        "diratime" => Change::Clear(attr::NODIRATIME),
        "nosymfollow" => Change::Set(attr::NOSYMFOLLOW),
        "symfollow" => Change::Clear(attr::NOSYMFOLLOW),
        "noatime" => Change::AccessTime(attr::NOATIME),
        "strictatime" => Change::AccessTime(attr::STRICTATIME),
        "relatime" | "norelatime" | "nostrictatime" | "atime" => Change::AccessTime(0),
        _ => return None,
    })
}

/// The name a file system context knows a mount(8) flag by (`fs/fs_context.c`, `common_set_sb_flag`).
fn superblock_flag(option: &str) -> Option<&'static str> {
    Some(match option {
        "sync" => "sync",
        "async" => "async",
        "dirsync" => "dirsync",
        "lazytime" => "lazytime",
        "nolazytime" => "nolazytime",
        "mand" => "mand",
        "nomand" => "nomand",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &str) -> MountOptions {
        parse(&options.split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn attributes_data_and_propagation_are_told_apart() {
        let options = read("nosuid,strictatime,mode=755,rprivate,ro,newinstance,rnoexec,rw");
        assert_eq!(options.attributes.to_string(), "nosuid,strictatime");
        assert_eq!(options.attributes.clear, attr::ATIME | attr::RDONLY);
        assert_eq!(options.recursive.set, attr::NOEXEC);
        assert_eq!(options.propagation, [(Propagation::Private, true)]);
        assert_eq!(options.data, [("mode".into(), Some("755".into())), ("newinstance".into(), None)]);
    }

    #[test]
    fn rbind_wins_over_bind_and_rw_is_not_recursive_w() {
        assert_eq!(read("rbind,bind").bind, Some(true));
        assert_eq!(read("bind,relatime").bind, Some(false));
        assert_eq!(read("rro").recursive.set, attr::RDONLY);
    }

    #[test]
    fn options_that_are_not_the_file_systems() {
        let options = read("idmap,tmpcopyup,remount,silent,loud,acl,noiversion");
        assert_eq!((options.idmap, options.copy_up, options.remount), (Some(false), true, true));
        assert!(options.data.is_empty());
        assert_eq!(options.hints, ["acl", "noiversion"]);
        assert_eq!(read("ridmap,idmap").idmap, Some(true));
        assert!(parse(&["a\0b".into()]).unwrap_err().contains("NUL"));
    }

    /// The list `features` gives, which is runc's.
    #[test]
    fn every_known_option_is_taken_for_what_it_is() {
        for option in KNOWN {
            let options = parse(&[option.to_owned()]).unwrap();
            let data = ["async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync"].contains(&option);
            assert_eq!(!options.data.is_empty(), data, "{option}");
            let nothing = ["defaults", "loud", "silent"].contains(&option);
            assert_eq!(options == MountOptions::default(), nothing, "{option}");
        }
    }
}
