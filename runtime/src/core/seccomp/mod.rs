//! Decides the seccomp filter of a container (runtime-spec, config-linux.md "Seccomp").
//!
//! In: `linux.seccomp` as written ([`Written`]). Out: a [`Seccomp`]: the classic BPF program (kernel `userspace-api/seccomp_filter.rst`),
//! the flags of seccomp(2) it is installed with, and who is to get the notifications; or every refusal at once. Never installs anything:
//! `init::seccomp` does.
//!
//! * [`profile`] reads and checks: text in, actions, architectures and rules out.
//! * [`syscalls`] knows the numbers.
//! * [`rules`] decides what each number means on each architecture: where rules contradict each other, and what is answered to calls
//!   that the profile's author did not know of.
//! * [`compile`] turns that into a program, through [`assemble`].
//!
//! A container must run the same under runc and crun, so where the specification says nothing the meaning is libseccomp's as runc uses
//! it; [`rules`] names each such place.

mod profile;
mod syscalls;

mod rules;

mod assemble;
mod compile;

#[cfg(test)]
mod evaluate;

pub use profile::{ACTIONS, ARCHITECTURES, OPERATORS, PROFILE_FLAGS, Written};

use std::fmt;
use std::path::{Path, PathBuf};

use super::check::Refusal;
use profile::Profile;

/// A filter, ready to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seccomp {
    pub program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*` of seccomp(2).
    pub flags: u32,
    /// Who hears of the calls with `SCMP_ACT_NOTIFY`; `None` when the program has none.
    pub listener: Option<Listener>,
}

/// One instruction as the kernel lays it out (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub value: u32,
}

/// The process that answers notifications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its socket, absolute.
    pub path: PathBuf,
    pub metadata: Option<String>,
    pub hand_over: HandOver,
}

/// How the filtered process passes on the descriptor of its notifications: with a call that its own filter allows, for a call that were
/// notified would wait for a listener who does not have the descriptor yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandOver {
    /// sendmsg(2) carries the descriptor itself.
    Message,
    /// write(2) tells its number, and the parent takes a copy (pidfd_getfd(2)), which needs the right to trace the process.
    Number,
}

/// An ABI whose calls have numbers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    X86_64,
    X86,
    /// 32-bit pointers on x86_64: the kernel reports x86_64 with a bit set in the number.
    X32,
    Aarch64,
    Arm,
}

impl Architecture {
    /// That of this program; `None` where the numbers of the calls are not known.
    pub const fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }
}

impl fmt::Display for Seccomp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux.seccomp: install a filter of {} instructions", self.program.len())?;
        let mut before = " with flags";
        for (name, _) in flag::NAMES.iter().filter(|(_, bit)| self.flags & bit != 0) {
            write!(f, "{before} {}", name.trim_start_matches("SECCOMP_FILTER_FLAG_"))?;
            before = "";
        }
        match &self.listener {
            Some(listener) => write!(f, ", notifying {}", listener.path.display()),
            None => Ok(()),
        }
    }
}

pub mod flag {
    //! `SECCOMP_FILTER_FLAG_*` (linux/seccomp.h).
    pub const TSYNC: u32 = 1;
    pub const LOG: u32 = 1 << 1;
    pub const SPEC_ALLOW: u32 = 1 << 2;
    pub const NEW_LISTENER: u32 = 1 << 3;
    pub const TSYNC_ESRCH: u32 = 1 << 4;
    pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;

    pub const NAMES: [(&str, u32); 6] = [
        ("SECCOMP_FILTER_FLAG_TSYNC", TSYNC),
        ("SECCOMP_FILTER_FLAG_LOG", LOG),
        ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", SPEC_ALLOW),
        ("SECCOMP_FILTER_FLAG_NEW_LISTENER", NEW_LISTENER),
        ("SECCOMP_FILTER_FLAG_TSYNC_ESRCH", TSYNC_ESRCH),
        ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", WAIT_KILLABLE_RECV),
    ];
}

/// Checks and compiles; `None` when the configuration asks for no filter. `bundle`: where a relative listener path starts from.
pub fn check(bundle: &Path, native: Option<Architecture>, written: &Written) -> Result<Option<Seccomp>, Vec<Refusal>> {
    if written.asks_for_nothing() {
        return Ok(None);
    }
    let refuse = |field: &str, why: String| vec![Refusal { field: field.to_owned(), why }];
    let Some(native) = native else {
        return Err(refuse("linux.seccomp", "the system calls of this machine's architecture are not known to this runtime".to_owned()));
    };
    let profile = profile::parse(native, written)?;
    let program = compile::compile(&profile).map_err(|too_long| refuse("linux.seccomp.syscalls", too_long.to_string()))?;
    let notifies = compile::notifies(&program);
    let listener = if notifies { Some(listener(bundle, &profile, written)?) } else { None };
    Ok(Some(Seccomp { program, flags: flags(&profile, notifies), listener }))
}

fn listener(bundle: &Path, profile: &Profile, written: &Written) -> Result<Listener, Vec<Refusal>> {
    let refuse = |field: &str, why: &str| vec![Refusal { field: field.to_owned(), why: why.to_owned() }];
    let path = written.listener_path.as_deref().filter(|path| !path.as_os_str().is_empty());
    let path = path.ok_or_else(|| refuse("linux.seccomp.listenerPath", "missing: SCMP_ACT_NOTIFY needs the socket of who answers"))?;
    let hand_over = rules::hand_over(profile).ok_or_else(|| {
        let why = "the container's process itself must hand its notifications over: \
                   give sendmsg or write SCMP_ACT_ALLOW or SCMP_ACT_LOG, without args";
        refuse("linux.seccomp.syscalls", why)
    })?;
    let metadata = written.listener_metadata.clone().filter(|metadata| !metadata.is_empty());
    Ok(Listener { path: bundle.join(path), metadata, hand_over })
}

fn flags(profile: &Profile, notifies: bool) -> u32 {
    match (notifies, profile.flags & flag::TSYNC != 0) {
        // The kernel takes both only with a result that cannot be mistaken for a descriptor.
        (true, true) => profile.flags | flag::NEW_LISTENER | flag::TSYNC_ESRCH,
        (true, false) => profile.flags | flag::NEW_LISTENER,
        // Says how a listener waits, and there is none: all calls that were to be notified are unknown here.
        (false, _) => profile.flags & !flag::WAIT_KILLABLE_RECV,
    }
}
