//! nf_tables over netlink: a table of ours replaced whole, its elements changed, and both read back. A change is one transaction: the kernel
//! takes all of it or nothing. No `nft` binary, no C library.
//!
//! ```text
//! BATCH_BEGIN · NEWTABLE DELTABLE NEWTABLE NEWSET… NEWCHAIN… NEWRULE… NEWSETELEM… · BATCH_END
//! BATCH_BEGIN · (DELSETELEM | NEWSETELEM)… · BATCH_END
//! ```
//!
//! Attribute and message numbers are those of `linux/netfilter/nf_tables.h`.

use std::collections::BTreeSet;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};
use nix::errno::Errno;

use self::attributes::{Attributes, parse, split, text};
use super::KernelError;
use super::netlink::{Netlink, error_of};
use crate::core::rules::elements::{Element, Elements, Key, SetName};
use crate::core::rules::{Chain, Filling, Outline, Set, Skeleton, TABLE, Table};

pub(super) mod attributes;

mod encode;

#[cfg(test)]
mod damage_tests;

pub const NETLINK_NETFILTER: isize = 12;

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DEL_ELEMENT: u16 = 14;

const NLMSG_ERROR: u16 = 2;

/// Elements in one message: an attribute's length has 16 bits, and an element takes at most 120 bytes.
const ELEMENTS_MAX: usize = 500;

/// One transaction in the making.
struct Transaction<'a> {
    netlink: &'a mut Netlink,
    table: Table,
    bytes: Vec<u8>,
    first_sequence: u32,
    /// Where the flags of the last message are, for its acknowledgement.
    last_flags: usize,
    what: Vec<String>,
}

/// Replaces the table of `skeleton` by it, with no elements.
pub fn load(netlink: &mut Netlink, skeleton: &Skeleton) -> Result<(), KernelError> {
    load_with(netlink, skeleton, &[])
}

/// Replaces the table of `skeleton` by it, with these elements: no packet meets its rules without them.
pub fn load_with(netlink: &mut Netlink, skeleton: &Skeleton, changes: &[Change<'_>]) -> Result<(), KernelError> {
    let mut transaction = Transaction::begin(netlink, skeleton.table);
    let name = skeleton.table.name;
    let table = Attributes::new().text(1, name);
    transaction.add("add table", NEW_TABLE, NLM_F_CREATE, &table);
    transaction.add("delete table", DEL_TABLE, 0, &table);
    transaction.add("add table", NEW_TABLE, NLM_F_CREATE, &table);
    for (id, set) in (1..).zip(&skeleton.sets) {
        transaction.add(&format!("add set {}", set.name), NEW_SET, NLM_F_CREATE, &encode::set(name, set, id));
    }
    // All of them before the first rule, which may lead to any.
    for chain in &skeleton.chains {
        transaction.add(&format!("add chain {}", chain.name), NEW_CHAIN, NLM_F_CREATE, &encode::chain(name, chain));
    }
    for chain in &skeleton.chains {
        for rule in &chain.rules {
            let what = format!("add rule {}: {}", chain.name, rule.text);
            transaction.add(&what, NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &encode::rule(name, chain, rule));
        }
    }
    transaction.change(changes);
    transaction.commit()
}

/// An element that is to be added or removed.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub add: bool,
    pub set: &'static Set,
    pub key: &'a [u8],
    pub data: &'a [u8],
}

impl<'a> Change<'a> {
    pub fn add(element: &'a Element) -> Self {
        Self { add: true, set: element.key.set.set(), key: &element.key.bytes, data: &element.data }
    }

    pub fn remove(element: &'a Element) -> Self {
        Self { add: false, ..Self::add(element) }
    }
}

/// Removes and adds elements of the router's table, in order, in one transaction.
pub fn change(netlink: &mut Netlink, changes: &[Change<'_>]) -> Result<(), KernelError> {
    change_in(netlink, TABLE, changes)
}

/// The same in any table of ours.
pub fn change_in(netlink: &mut Netlink, table: Table, changes: &[Change<'_>]) -> Result<(), KernelError> {
    let mut transaction = Transaction::begin(netlink, table);
    transaction.change(changes);
    transaction.commit()
}

/// The router's table as the kernel holds it.
pub fn observe(netlink: &mut Netlink) -> Result<(Outline, Elements), KernelError> {
    let outline = outline(netlink, TABLE)?;
    let mut elements = Elements::new();
    for name in SetName::ALL {
        match name.set().filling {
            Filling::Keys | Filling::Intervals => {
                let seen = read(netlink, name.set())?.into_iter();
                elements.extend(seen.map(|(bytes, data)| (Key { set: name, bytes }, data)));
            }
            // What the kernel adds by itself is nobody's to compare.
            Filling::Learned { .. } => {}
        }
    }
    Ok((outline, elements))
}

/// A table's sets, chains and rules as the kernel holds them; nothing if there is no such table.
pub fn outline(netlink: &mut Netlink, table: Table) -> Result<Outline, KernelError> {
    let mut outline = Outline { chains: chains(netlink, table)?, ..Outline::default() };
    outline.rules.extend(list(netlink, "list rules", GET_RULE, table)?.iter().map(|rule| encode::rule_outline(rule)));
    outline.sets.extend(list(netlink, "list sets", GET_SET, table)?.iter().map(|set| encode::set_outline(set)));
    Ok(outline)
}

/// A table's chains, as in an outline.
pub fn chains(netlink: &mut Netlink, table: Table) -> Result<BTreeSet<String>, KernelError> {
    Ok(list(netlink, "list chains", GET_CHAIN, table)?.iter().map(|chain| encode::chain_outline(chain)).collect())
}

/// Whether a rule of the table has these bytes in it, as one has that compares a device's name with them.
pub fn mentions(netlink: &mut Netlink, table: Table, word: &[u8]) -> Result<bool, KernelError> {
    let mentions = |rule: &Vec<u8>| rule.windows(word.len()).any(|part| part == word);
    Ok(list(netlink, "list rules", GET_RULE, table)?.iter().any(mentions))
}

/// Puts the rules of `chain` before those that the table's chain of its name has.
pub fn insert(netlink: &mut Netlink, table: Table, chain: &Chain) -> Result<(), KernelError> {
    let mut transaction = Transaction::begin(netlink, table);
    for rule in chain.rules.iter().rev() {
        let what = format!("insert rule {}: {}", chain.name, rule.text);
        transaction.add(&what, NEW_RULE, NLM_F_CREATE, &encode::rule(table.name, chain, rule));
    }
    transaction.commit()
}

/// What the kernel holds in a set: each key with its data, which is empty where the set is no map.
pub type Held = Vec<(Vec<u8>, Vec<u8>)>;

/// The keys of a set of the router's table, with their data.
pub fn read(netlink: &mut Netlink, set: &Set) -> Result<Held, KernelError> {
    read_in(netlink, TABLE, set)
}

/// The same of any table; nothing if there is no such set.
pub fn read_in(netlink: &mut Netlink, table: Table, set: &Set) -> Result<Held, KernelError> {
    let messages = dump(netlink, "list elements", GET_ELEMENT, table, &Attributes::new().text(1, table.name).text(2, set.name))?;
    let elements = messages.iter().flat_map(|message| split(parse(message).remove(&3).unwrap_or_default()));
    Ok(elements.map(|(_, element)| encode::element_back(set, element)).collect())
}

impl<'a> Transaction<'a> {
    fn begin(netlink: &'a mut Netlink, table: Table) -> Self {
        let first_sequence = netlink.next_sequence();
        let mut transaction = Self { netlink, table, bytes: Vec::new(), first_sequence, last_flags: 0, what: vec!["begin".to_owned()] };
        write(&mut transaction.bytes, (BATCH_BEGIN, NLM_F_REQUEST, first_sequence), (0, SUBSYSTEM >> 8), &[]);
        transaction
    }

    fn add(&mut self, what: &str, kind: u16, flags: u16, attributes: &Attributes) {
        let sequence = self.netlink.next_sequence();
        self.what.push(what.to_owned());
        self.last_flags = self.bytes.len() + 6;
        write(&mut self.bytes, (SUBSYSTEM | kind, NLM_F_REQUEST | flags, sequence), (self.table.family as u8, 0), &attributes.0);
    }

    /// Elements in order.
    fn change(&mut self, changes: &[Change<'_>]) {
        for alike in changes.chunk_by(|one, next| (one.add, one.set.name) == (next.add, next.set.name)) {
            for group in alike.chunks(ELEMENTS_MAX) {
                self.elements(group);
            }
        }
    }

    /// Elements of one set, all to be added or all to be removed.
    fn elements(&mut self, changes: &[Change<'_>]) {
        let Some(Change { add, set, .. }) = changes.first() else { return };
        let list = changes.iter().fold(Attributes::new(), |list, change| {
            // A removal names the key alone.
            let data = add.then_some(change.data);
            list.nested(1, encode::element(set, change.key, data))
        });
        let attributes = Attributes::new().text(1, self.table.name).text(2, set.name).nested(3, list);
        let (verb, kind, flags) = if *add { ("add to", NEW_ELEMENT, NLM_F_CREATE) } else { ("remove from", DEL_ELEMENT, 0) };
        self.add(&format!("{verb} set {}", set.name), kind, flags, &attributes);
    }

    /// Sends it and reads until the last message is acknowledged or refused; the first error is the one that counts.
    fn commit(mut self) -> Result<(), KernelError> {
        if self.last_flags == 0 {
            return Ok(());
        }
        let flags = u16::from_ne_bytes([self.bytes[self.last_flags], self.bytes[self.last_flags + 1]]) | NLM_F_ACK;
        self.bytes[self.last_flags..self.last_flags + 2].copy_from_slice(&flags.to_ne_bytes());
        let last_sequence = self.first_sequence + u32::try_from(self.what.len() - 1).expect("a transaction is bounded");
        let end = self.netlink.next_sequence();
        write(&mut self.bytes, (BATCH_END, NLM_F_REQUEST, end), (0, SUBSYSTEM >> 8), &[]);
        self.netlink.send(&self.bytes)?;
        let mut first_error = None;
        loop {
            for answer in self.netlink.receive()? {
                let Some(place) = answer.sequence.checked_sub(self.first_sequence) else { continue };
                if answer.kind != NLMSG_ERROR {
                    continue;
                }
                if let (Some(errno), None) = (error_of(&answer.payload), &first_error) {
                    let what = self.what.get(place as usize).map_or("commit", String::as_str);
                    first_error = Some(KernelError::Refused { what: format!("nf_tables, {what}"), errno });
                }
                if answer.sequence == last_sequence || answer.sequence == self.first_sequence {
                    return first_error.map_or(Ok(()), Err);
                }
            }
        }
    }
}

/// Everything of a kind in a table.
fn list(netlink: &mut Netlink, what: &str, kind: u16, table: Table) -> Result<Vec<Vec<u8>>, KernelError> {
    dump(netlink, what, kind, table, &Attributes::new().text(1, table.name))
}

fn dump(netlink: &mut Netlink, what: &str, kind: u16, table: Table, attributes: &Attributes) -> Result<Vec<Vec<u8>>, KernelError> {
    let sequence = netlink.next_sequence();
    let mut bytes = Vec::new();
    write(&mut bytes, (SUBSYSTEM | kind, NLM_F_REQUEST | NLM_F_DUMP, sequence), (table.family as u8, 0), &attributes.0);
    netlink.send(&bytes)?;
    match netlink.collect(&format!("nf_tables, {what}")) {
        Ok(answers) => {
            // The kernel may ignore the filter by table.
            let ours = |payload: &Vec<u8>| text(&parse(payload), 1) == table.name;
            Ok(answers.into_iter().map(|answer| answer.payload.get(4..).unwrap_or_default().to_vec()).filter(ours).collect())
        }
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// One message: its netlink header (type, flags, sequence number), netfilter's own (family, resource), its attributes.
pub(super) fn write(bytes: &mut Vec<u8>, (kind, flags, sequence): (u16, u16, u32), (family, resource): (u8, u16), attributes: &[u8]) {
    let len = u32::try_from(20 + attributes.len()).expect("a message is bounded by ELEMENTS_MAX");
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
}
