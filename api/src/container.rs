//! What a container gets from its node beside its image: mounts, devices, limits of its processes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::resource::Bytes;

/// When a node asks a registry for a container's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// When the node does not have it.
    #[default]
    Missing,
    /// Before every start; what a digest names does not change and is asked for once.
    Always,
    Never,
}

impl PullPolicy {
    /// The word as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Missing, Self::Always, Self::Never];
        all.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| format!("pull policy {text:?}: missing, always or never"))
    }
}

/// Something mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum MountSpec {
    /// A file or directory of the node; the node's policy has to allow it.
    Bind {
        /// Absolute, on the node.
        source: String,
        target: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        read_only: bool,
    },
    /// A directory that stays on the node when the task goes, shared by all tasks there that name it.
    Volume {
        source: String,
        target: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        read_only: bool,
    },
    /// Memory that goes with the container.
    Tmpfs {
        target: String,
        /// The kernel's default, half of the memory, when not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<Bytes>,
        /// 0o1777 when not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<FileMode>,
    },
}

impl MountSpec {
    /// Where it appears in the container.
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. } | Self::Volume { target, .. } | Self::Tmpfs { target, .. } => target,
        }
    }
}

/// Permissions, written in octal: `"1777"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
            Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(Self(mode)),
            _ => Err(format!("{text:?} is not a file mode: write it in octal and in quotes, such as \"0755\"")),
        }
    }
}

/// A resource limit of setrlimit(2): one number for both, or `{soft, hard}`; -1 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    pub soft: i64,
    pub hard: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongUlimit {
    soft: i64,
    hard: i64,
}

impl Serialize for Ulimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.soft == self.hard {
            serializer.serialize_i64(self.soft)
        } else {
            LongUlimit { soft: self.soft, hard: self.hard }.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Ulimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number, or {soft: NUMBER, hard: NUMBER}")]
        enum Form {
            Both(i64),
            Each(LongUlimit),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Both(limit) => Self { soft: limit, hard: limit },
            Form::Each(LongUlimit { soft, hard }) => Self { soft, hard },
        })
    }
}

/// What becomes of a container's output. It is also kept on the node, where `rclusterctl logs` reads it, but with `none`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    #[serde(default)]
    pub driver: LogDriver,
    /// Of `syslog`: `unix:///PATH`, `udp://IP:PORT` or `tcp://IP:PORT`; the node's own daemon at `/dev/log` when not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Of `syslog`, by name as in syslog(3); `daemon` when not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub facility: String,
    /// What the lines are found by: the identifier; the task's name when not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// Of each of the two files that are kept on the node; 10 MiB when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Bytes>,
}

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogDriver {
    /// Nowhere but the node's file.
    #[default]
    File,
    Journald,
    Syslog,
    /// Not even there.
    None,
}

impl LogDriver {
    pub const ALL: [Self; 4] = [Self::File, Self::Journald, Self::Syslog, Self::None];

    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Journald => "journald",
            Self::Syslog => "syslog",
            Self::None => "none",
        }
    }
}

/// The names of syslog's facilities (syslog(3)).
pub const FACILITIES: [&str; 20] = [
    "auth", "authpriv", "cron", "daemon", "ftp", "kern", "lpr", "mail", "news", "syslog", "user", "uucp", "local0", "local1", "local2",
    "local3", "local4", "local5", "local6", "local7",
];

/// Limits by name as in limits.conf(5): `nofile`, `nproc`, ….
pub type Ulimits = BTreeMap<String, Ulimit>;

/// The names of limits, each that of its `RLIMIT_` in lower case.
pub const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A device of the node: `/dev/fuse`, `/dev/sda:/dev/xvda`, `/dev/sda:/dev/xvda:r`, as Docker writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    pub source: String,
    pub target: String,
    /// Of the letters r, w and m (read, write, mknod).
    pub access: String,
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, target, access } = self;
        match (source == target, access == "rwm") {
            (true, true) => f.write_str(source),
            (false, true) => write!(f, "{source}:{target}"),
            (_, false) => write!(f, "{source}:{target}:{access}"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, access) = match parts.as_slice() {
            [source] => (*source, *source, "rwm"),
            [source, target] => (*source, *target, "rwm"),
            [source, target, access] => (*source, *target, *access),
            _ => ("", "", ""),
        };
        let is_path = |path: &str| path.starts_with('/') && path.len() > 1;
        let is_access = !access.is_empty() && access.len() <= 3 && access.chars().all(|c| "rwm".contains(c));
        if is_path(source) && is_path(target) && is_access {
            Ok(Self { source: source.to_owned(), target: target.to_owned(), access: access.to_owned() })
        } else {
            Err(format!("{text:?} is not a device: write /dev/NAME, /dev/NAME:/dev/IN-CONTAINER or /dev/NAME:/dev/IN-CONTAINER:rwm"))
        }
    }
}

/// Written and read as text.
macro_rules! as_text {
    ($($kind:ident),+) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

as_text! { FileMode, DeviceSpec }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written_alike() {
        for text in ["/dev/fuse", "/dev/sda:/dev/xvda", "/dev/sda:/dev/sda:r"] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
        for text in ["", "dev/fuse", "/dev/a:b", "/dev/a:/dev/b:x", "/dev/a:/dev/b:rwm:z", "/dev/a::r"] {
            text.parse::<DeviceSpec>().unwrap_err();
        }
    }

    #[test]
    fn pull_policies_have_names() {
        for policy in [PullPolicy::Missing, PullPolicy::Always, PullPolicy::Never] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(serde_json::to_string(&policy).unwrap(), format!("\"{policy}\""));
        }
        assert!("often".parse::<PullPolicy>().is_err());
    }

    #[test]
    fn file_modes_are_octal() {
        assert_eq!("0755".parse::<FileMode>().unwrap().0, 0o755);
        assert_eq!("1777".parse::<FileMode>().unwrap().to_string(), "1777");
        for text in ["", "0999", "77777", "+7", "-1", "rwx"] {
            text.parse::<FileMode>().unwrap_err();
        }
    }

    #[test]
    fn a_ulimit_is_one_number_or_two() {
        let limit = |text: &str| serde_json::from_str::<Ulimit>(text).unwrap();
        assert_eq!(limit("64"), Ulimit { soft: 64, hard: 64 });
        assert_eq!(serde_json::to_string(&limit(r#"{"soft":1,"hard":-1}"#)).unwrap(), r#"{"soft":1,"hard":-1}"#);
    }
}
