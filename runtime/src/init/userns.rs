//! The process between the parent and the container's first one, and the namespaces of users and of time (user_namespaces(7),
//! time_namespaces(7)).
//!
//! ```text
//! parent                     usher                                  child
//!   │ clone3 ───────────────► │ joins what the host owns
//!   │ ◄────────────────── Map │ unshare(CLONE_NEWUSER)
//!   │ writes uid_map, gid_map
//!   │ Go ───────────────────► │ becomes root of the user namespace
//!   │                         │ clone3(CLONE_PARENT, namespaces) ──► │
//!   │ ◄─────────────────────────────────────────────────── Born{pid} │
//!   │ Go ──────────────────────────────────────────────────────────► │ the rest of the steps
//!   │ reaps                   └ exits
//! ```
//!
//! The child is born after the user namespace, so that its other namespaces belong to it; it is the parent's child, so that the parent can
//! wait for it. It waits until the parent knows it, lest it be left behind by a parent that fails meanwhile.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::LinkNameSpaceType;

use super::{Doing, Failure};
use crate::core::check::{IdMapping, IdMappings, NamespaceKind, TimeOffset};
use crate::sync::{Channel, Message};
use crate::sys::{self, Cloned, namespace};

/// Makes a user namespace and has its ids mapped.
pub fn make(channel: &Channel) -> Result<(), Failure> {
    sys::unshare(namespace::USER).doing(|| {
        let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
        format!("unshare (the limit user.max_user_namespaces is {})", most.trim())
    })?;
    ask(channel, &Message::Map)
}

/// Asks the parent for something and waits until it is done.
pub fn ask(channel: &Channel, message: &Message) -> Result<(), Failure> {
    channel.send(message)?;
    match channel.receive()? {
        Some((Message::Go, _)) => Ok(()),
        _ => Err(Failure::refused("the parent is gone")),
    }
}

/// Refuses a joined user namespace that maps other ids than the configuration says.
pub fn compare(expected: &IdMappings) -> Result<(), Failure> {
    for (field, file, expected) in
        [("linux.uidMappings", "/proc/self/uid_map", &expected.users), ("linux.gidMappings", "/proc/self/gid_map", &expected.groups)]
    {
        let actual = fs::read_to_string(file).doing(|| file.to_owned())?;
        let lines: Vec<String> = actual.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let same = lines.len() == expected.len() && expected.iter().map(IdMapping::to_string).all(|line| lines.contains(&line));
        if !expected.is_empty() && !same {
            return Err(Failure::refused(format!("{field}: that namespace maps {} instead: leave the field out", lines.join(", "))));
        }
    }
    Ok(())
}

/// Becomes root of the user namespace; says whether it denies a change of groups.
pub fn become_root() -> Result<bool, Failure> {
    let denied = match rustix::thread::set_thread_groups(&[]) {
        Ok(()) => false,
        Err(Errno::PERM) => true,
        Err(errno) => return Err(errno).doing(|| "leave the groups of the host".to_owned()),
    };
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).doing(|| "set the group".to_owned())?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).doing(|| "set the user".to_owned())?;
    Ok(denied)
}

/// Returns in the child that it makes.
pub fn bear(channel: &Channel, kinds: &[NamespaceKind]) -> Result<(), Failure> {
    let flags = kinds.iter().fold(sys::SIBLING, |flags, kind| flags | namespace::flag(*kind));
    match sys::clone_process(flags, None)?.0 {
        Cloned::Child => {
            // The procfs of the host knows it by the id that the parent knows it by.
            let own = fs::read_link("/proc/self").doing(|| "/proc/self".to_owned())?;
            let pid = own.to_str().and_then(|pid| pid.parse().ok()).ok_or_else(|| Failure::refused("/proc/self names no process"))?;
            ask(channel, &Message::Born { pid })
        }
        Cloned::Parent { .. } => sys::exit(0),
    }
}

/// Makes a time namespace, shifts its clocks while nobody lives in it, and enters it.
pub fn shift_time(offsets: &[TimeOffset]) -> Result<(), Failure> {
    sys::unshare(namespace::TIME)?;
    let mut lines = String::new();
    for TimeOffset { clock, seconds, nanoseconds } in offsets {
        writeln!(lines, "{clock} {seconds} {nanoseconds}").map_err(|_| Failure::refused("an offset has no text"))?;
    }
    if !lines.is_empty() {
        let file = "/proc/self/timens_offsets";
        let written = fs::OpenOptions::new().write(true).open(file).and_then(|mut file| file.write_all(lines.as_bytes()));
        written.doing(|| format!("write {:?} to {file}", lines.trim_end()))?;
    }
    let own = File::open("/proc/self/ns/time_for_children")?;
    Ok(rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Time))?)
}
