//! Capabilities and the user (capabilities(7), credentials(7)). In: sets that `core/plan` has already cut to what can be had.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet as Bits, CapabilitySets};

use super::{Doing, Failure};
use crate::core::capability::CapabilitySet;

/// Drops every capability but these from the bounding set, also those this program has no name for.
pub fn keep_in_bounding_set(keep: CapabilitySet) -> Result<(), Failure> {
    for bit in 0..u64::BITS {
        let one = Bits::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(one) {
            Ok(true) if keep.0 >> bit & 1 == 0 => {
                rustix::thread::remove_capability_from_bounding_set(one).doing(|| format!("drop {}", CapabilitySet(1 << bit)))?;
            }
            Ok(_) => {}
            // Past the kernel's last capability.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Becomes a user and keeps the permitted set until [`set`].
pub fn become_user(uid: u32, gid: u32, additional_gids: &[u32], groups_denied: bool) -> Result<(), Failure> {
    rustix::thread::set_keep_capabilities(true)?;
    let groups: Vec<Gid> = additional_gids.iter().copied().map(Gid::from_raw).collect();
    if !groups_denied {
        rustix::thread::set_thread_groups(&groups).doing(|| "set the additional groups".to_owned())?;
    } else if !groups.is_empty() {
        return Err(Failure::refused("additionalGids: this user namespace was made without the privilege to change groups"));
    }
    let gid = Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).doing(|| "set the group".to_owned())?;
    let uid = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).doing(|| "set the user".to_owned())?;
    Ok(rustix::thread::set_keep_capabilities(false)?)
}

/// Sets the three sets that capset(2) sets.
pub fn set(effective: CapabilitySet, permitted: CapabilitySet, inheritable: CapabilitySet) -> Result<(), Failure> {
    let bits = |set: CapabilitySet| Bits::from_bits_retain(set.0);
    let sets = CapabilitySets { effective: bits(effective), permitted: bits(permitted), inheritable: bits(inheritable) };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Raises the ambient set, so that a user without privileges keeps them at exec.
pub fn raise_ambient(set: CapabilitySet) -> Result<(), Failure> {
    for bit in set.bits() {
        rustix::thread::configure_capability_in_ambient_set(Bits::from_bits_retain(1 << bit), true)
            .doing(|| CapabilitySet(1 << bit).to_string())?;
    }
    Ok(())
}
