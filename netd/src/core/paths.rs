//! Whether the paths to other nodes carry packets as large as this host sends.
//!
//! One that does not is a black hole for everything large: connections are made, and stall with the first full segment. In: the nodes that
//! share a network with this one, which of them have been asked and which answer small packets alone. Out: whom to ask next, what is told.
//! Never: asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Ticks after which a path is looked at again.
pub const LOOK_TICKS: u32 = 60;

/// Nodes that are named; of more the rest is counted.
const NAMED_MAX: usize = 8;

/// What is known of the paths.
#[derive(Debug, Default)]
pub struct Paths {
    /// Ticks since each was looked at.
    looked: BTreeMap<Ipv4Addr, u32>,
    narrow: BTreeSet<Ipv4Addr>,
}

impl Paths {
    /// A tick has passed.
    pub fn tick(&mut self) {
        for ticks in self.looked.values_mut() {
            *ticks = ticks.saturating_add(1);
        }
    }

    /// Those of the peers that are to be asked now. What is known of others is forgotten.
    pub fn due(&mut self, peers: &BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
        self.looked.retain(|peer, _| peers.contains(peer));
        self.narrow.retain(|peer| peers.contains(peer));
        peers.iter().filter(|peer| self.looked.get(*peer).is_none_or(|ticks| *ticks >= LOOK_TICKS)).copied().collect()
    }

    /// Those were asked, and of them these answer small packets alone.
    pub fn found(&mut self, asked: &BTreeSet<Ipv4Addr>, narrow: &BTreeSet<Ipv4Addr>) {
        for peer in asked {
            self.looked.insert(*peer, 0);
            self.narrow.remove(peer);
        }
        self.narrow.extend(narrow);
    }

    /// What is wrong, in words; `mtu`: the underlay's.
    pub fn conditions(&self, mtu: u32) -> Option<String> {
        let named: Vec<String> = self.narrow.iter().take(NAMED_MAX).map(Ipv4Addr::to_string).collect();
        if named.is_empty() {
            return None;
        }
        let more = self.narrow.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = named.join(", ");
        Some(format!(
            "packets of {mtu} bytes do not reach {names}{more}, smaller ones do: the path's MTU is smaller than that of this host's device; set \
             the device's MTU to the path's, on all nodes"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(last: &[u8]) -> BTreeSet<Ipv4Addr> {
        last.iter().map(|last| Ipv4Addr::new(10, 90, 0, *last)).collect()
    }

    #[test]
    fn a_path_is_looked_at_once_a_minute_and_told_of_until_it_is_well_or_gone() {
        let mut paths = Paths::default();
        assert_eq!(paths.due(&nodes(&[2, 3])), nodes(&[2, 3]));
        paths.found(&nodes(&[2, 3]), &nodes(&[3]));
        let told = "packets of 1500 bytes do not reach 10.90.0.3, smaller ones do: the path's MTU is smaller than that of this host's device; set \
                    the device's MTU to the path's, on all nodes";
        assert_eq!(paths.conditions(1500).as_deref(), Some(told));
        assert_eq!(paths.due(&nodes(&[2, 3, 4])), nodes(&[4]), "a new one is looked at");
        paths.found(&nodes(&[4]), &nodes(&[]));
        (0..LOOK_TICKS).for_each(|_| paths.tick());
        assert_eq!(paths.due(&nodes(&[2, 3])), nodes(&[2, 3]));
        paths.found(&nodes(&[2, 3]), &nodes(&[2]));
        assert!(paths.conditions(1500).is_some_and(|told| told.contains("reach 10.90.0.2,")));
        assert_eq!(paths.due(&nodes(&[])), nodes(&[]));
        assert_eq!(paths.conditions(1500), None);
        let many: BTreeSet<Ipv4Addr> = (1..=12).map(|last| Ipv4Addr::new(10, 90, 0, last)).collect();
        paths.found(&many, &many);
        assert!(paths.conditions(9000).is_some_and(|told| told.contains("10.90.0.8 and 4 more, smaller")));
    }
}
