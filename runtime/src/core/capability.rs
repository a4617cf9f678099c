//! Capability names and sets (capabilities(7)).
//!
//! In: names such as `CAP_CHOWN`. Out: [`CapabilitySet`], one bit per capability as the kernel numbers them. Never asks what is held.

use std::fmt;

/// Names by number, from `include/uapi/linux/capability.h`.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities; bit `n` is capability `n`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySet(pub u64);

impl CapabilitySet {
    /// Every capability, also those this program has no name for.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether it holds a capability by its name.
    pub fn holds(self, name: &str) -> bool {
        NAMES.iter().position(|known| *known == name).is_some_and(|bit| self.0 >> bit & 1 == 1)
    }

    /// Reads a list of names: the set, and the names that are none.
    pub fn parse(names: &[String]) -> (Self, Vec<String>) {
        let mut unknown = Vec::new();
        let set = names.iter().fold(Self::default(), |set, name| match NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)) {
            Some(bit) => Self(set.0 | 1 << bit),
            None => {
                unknown.push(name.clone());
                set
            }
        });
        (set, unknown)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The numbers in it, rising.
    pub fn bits(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |bit| self.0 >> bit & 1 == 1)
    }
}

impl fmt::Display for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, bit) in self.bits().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            match NAMES.get(bit as usize) {
                Some(name) => write!(f, "{separator}{name}")?,
                None => write!(f, "{separator}{bit}")?,
            }
        }
        Ok(())
    }
}

/// Every capability this program knows by name, for `features` and errors.
pub fn names() -> &'static [&'static str] {
    &NAMES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_bits_and_back() {
        let (set, unknown) = CapabilitySet::parse(&["CAP_KILL".into(), "cap_chown".into(), "CAP_CHECKPOINT_RESTORE".into()]);
        assert!(unknown.is_empty());
        assert_eq!((set.0, set.to_string().as_str()), (1 << 40 | 1 << 5 | 1, "CAP_CHOWN CAP_KILL CAP_CHECKPOINT_RESTORE"));
    }

    #[test]
    fn an_unknown_name_is_told() {
        assert_eq!(CapabilitySet::parse(&["CAP_FLY".into(), "CAP_CHOWN".into()]), (CapabilitySet(1), vec!["CAP_FLY".into()]));
    }
}
