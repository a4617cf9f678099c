//! VXLAN network identifiers (RFC 7348 §5: 24 bits). The next is sought above the highest in use, so that one just freed rests.

use std::collections::BTreeSet;

use rcluster_api::object::Network;

/// Smaller ones are left to people who configure VXLAN by hand on the same hosts.
const FIRST: u32 = 4096;
const LAST: u32 = (1 << 24) - 1;

/// A VNI that no network has.
pub fn next<'a>(networks: impl Iterator<Item = &'a Network>) -> Option<u32> {
    let used: BTreeSet<u32> = networks.filter_map(|network| network.vni).collect();
    let above = used.last().map_or(FIRST, |highest| highest + 1);
    if above <= LAST { Some(above) } else { (FIRST..=LAST).find(|vni| !used.contains(vni)) }
}
