//! A network's names and addresses, packed. In: maps. Out: the same to look into, in a few pieces of memory: a map's nodes and its strings take
//! several times what they hold, and a node may have the names of ten thousand endpoints. Never: changes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Names, each with the addresses that it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// All of them, in their order, one after the other.
    text: Box<str>,
    /// Theirs, in the order of names.
    addresses: Box<[Ipv4Addr]>,
    /// Where each one's name and addresses end, which is where the next one's begin.
    ends: Box<[(u32, u32)]>,
}

/// Addresses, each with its full name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pointers {
    /// All names, in the order of addresses.
    text: Box<str>,
    /// In order; where each one's name ends.
    ends: Box<[(Ipv4Addr, u32)]>,
}

/// An offset; names come in messages that are far smaller than 4 GiB.
fn offset(length: usize) -> u32 {
    u32::try_from(length).expect("the names of a network are fewer bytes than that")
}

impl Names {
    /// These.
    pub fn new(names: &BTreeMap<String, Vec<Ipv4Addr>>) -> Self {
        let (mut text, mut addresses, mut ends) = (String::new(), Vec::new(), Vec::with_capacity(names.len()));
        for (name, ips) in names {
            text.push_str(name);
            addresses.extend_from_slice(ips);
            ends.push((offset(text.len()), offset(addresses.len())));
        }
        Self { text: text.into(), addresses: addresses.into(), ends: ends.into() }
    }

    /// What a name stands for, maybe nothing; `None` if it is not among them.
    pub fn get(&self, name: &str) -> Option<&[Ipv4Addr]> {
        let (mut low, mut high) = (0_usize, self.ends.len());
        while low < high {
            let middle = low.midpoint(high);
            let (found, addresses) = self.at(middle)?;
            match found.cmp(name) {
                Ordering::Equal => return Some(addresses),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Ipv4Addr])> {
        (0..self.ends.len()).filter_map(|index| self.at(index))
    }

    fn at(&self, index: usize) -> Option<(&str, &[Ipv4Addr])> {
        let (text_end, addresses_end) = *self.ends.get(index)?;
        let before = index.checked_sub(1).and_then(|before| self.ends.get(before));
        let (text_begin, addresses_begin) = before.copied().unwrap_or_default();
        let name = self.text.get(text_begin as usize..text_end as usize)?;
        Some((name, self.addresses.get(addresses_begin as usize..addresses_end as usize)?))
    }
}

impl Pointers {
    /// These.
    pub fn new(names: &BTreeMap<Ipv4Addr, String>) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(names.len()));
        for (ip, name) in names {
            text.push_str(name);
            ends.push((*ip, offset(text.len())));
        }
        Self { text: text.into(), ends: ends.into() }
    }

    /// The name of an address.
    pub fn get(&self, ip: Ipv4Addr) -> Option<&str> {
        let index = self.ends.binary_search_by_key(&ip, |(ip, _)| *ip).ok()?;
        self.at(index).map(|(_, name)| name)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, &str)> {
        (0..self.ends.len()).filter_map(|index| self.at(index))
    }

    fn at(&self, index: usize) -> Option<(Ipv4Addr, &str)> {
        let (ip, end) = *self.ends.get(index)?;
        let begin = index.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |(_, end)| *end);
        Some((ip, self.text.get(begin as usize..end as usize)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_are_found_as_in_a_map(
            names in btree_map("[aü.]{0,4}", vec(any::<Ipv4Addr>(), 0..3), 0..40),
            others in vec("[aü.b]{0,4}", 20),
        ) {
            let packed = Names::new(&names);
            for name in names.keys().chain(&others) {
                prop_assert_eq!(packed.get(name), names.get(name).map(Vec::as_slice), "{}", name);
            }
            let all: BTreeMap<String, Vec<Ipv4Addr>> = packed.iter().map(|(name, ips)| (name.to_owned(), ips.to_vec())).collect();
            prop_assert_eq!(all, names);
        }

        #[test]
        fn addresses_are_found_as_in_a_map(names in btree_map((0..50_u32).prop_map(Ipv4Addr::from_bits), "[aü.]{0,4}", 0..40)) {
            let packed = Pointers::new(&names);
            for ip in (0..50).map(Ipv4Addr::from_bits) {
                prop_assert_eq!(packed.get(ip), names.get(&ip).map(String::as_str));
            }
            let all: BTreeMap<Ipv4Addr, String> = packed.iter().map(|(ip, name)| (ip, name.to_owned())).collect();
            prop_assert_eq!(all, names);
        }
    }
}
