//! nf_tables over netlink: our table replaced whole, its elements changed, and both read back. A change is one transaction: the kernel
//! takes all of it or nothing. No `nft` binary, no C library.
//!
//! ```text
//! BATCH_BEGIN · NEWTABLE DELTABLE NEWTABLE NEWSET… NEWCHAIN… NEWRULE… NEWSETELEM… · BATCH_END
//! ```
//!
//! Attribute and message numbers are those of `linux/netfilter/nf_tables.h`. nf_tables' integers are big-endian on the wire.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::KernelError;
use super::netlink::{Netlink, error_of};
use crate::core::rules::{Chain, Element, Expression, Field, NAME_LEN, Outline, Rule, Set, Skeleton, TABLE, Verdict, chain_line};

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

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;

const FAMILY_INET: u8 = 1;
const NESTED: u16 = 0x8000;
const SET_IS_MAP: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

/// Elements in one message: an attribute's length has 16 bits.
const ELEMENTS_MAX: usize = 500;

/// One transaction in the making.
struct Transaction<'a> {
    netlink: &'a mut Netlink,
    bytes: Vec<u8>,
    first_sequence: u32,
    /// Where the flags of the last message are, for its acknowledgement.
    last_flags: usize,
    what: Vec<String>,
}

/// Replaces our table by `skeleton` with no elements.
pub fn load(netlink: &mut Netlink, skeleton: &Skeleton) -> Result<(), KernelError> {
    let mut transaction = Transaction::begin(netlink);
    let table = Attributes::new().text(1, TABLE);
    transaction.add("add table", NEW_TABLE, CREATE, &table);
    transaction.add("delete table", DEL_TABLE, 0, &table);
    transaction.add("add table", NEW_TABLE, CREATE, &table);
    for (number, set) in (1..).zip(&skeleton.sets) {
        transaction.add(&format!("add set {}", set.name), NEW_SET, CREATE, &set_attributes(set, number));
    }
    for chain in &skeleton.chains {
        transaction.add(&format!("add chain {}", chain.name), NEW_CHAIN, CREATE, &chain_attributes(chain));
        for rule in &chain.rules {
            transaction.add(&format!("add rule {}: {}", chain.name, rule.text), NEW_RULE, CREATE | APPEND, &rule_attributes(chain, rule));
        }
    }
    transaction.commit()
}

/// Removes and adds elements, in order, in one transaction.
pub fn change<'a>(netlink: &mut Netlink, changes: impl Iterator<Item = (bool, &'a Element)>) -> Result<(), KernelError> {
    let mut transaction = Transaction::begin(netlink);
    let mut group: Vec<&Element> = Vec::new();
    let mut current = None;
    for (add, element) in changes {
        let key = (add, element.set());
        if current != Some(key) || group.len() == ELEMENTS_MAX {
            transaction.elements(current, &group);
            group.clear();
            current = Some(key);
        }
        group.push(element);
    }
    transaction.elements(current, &group);
    transaction.commit()
}

/// Our table as the kernel holds it.
pub fn observe(netlink: &mut Netlink) -> Result<(Outline, BTreeSet<Element>), KernelError> {
    let mut outline = Outline::default();
    for chain in dump(netlink, "list chains", GET_CHAIN, &Attributes::new().text(1, TABLE))? {
        let attributes = parse(&chain);
        let hook = attributes.get(&4).map(|hook| parse(hook)).unwrap_or_default();
        outline.chains.insert(chain_line(
            &text(&attributes, 3),
            number(&hook, 1).unwrap_or(u32::MAX),
            number(&hook, 2).unwrap_or_default().cast_signed(),
            number(&attributes, 5).unwrap_or(Verdict::Accept as u32),
        ));
    }
    for rule in dump(netlink, "list rules", GET_RULE, &Attributes::new().text(1, TABLE))? {
        let attributes = parse(&rule);
        let comment = attributes.get(&7).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
        outline.rules.push(format!("{}: {comment}", text(&attributes, 2)));
    }
    let mut elements = BTreeSet::new();
    for set in dump(netlink, "list sets", GET_SET, &Attributes::new().text(1, TABLE))? {
        let name = text(&parse(&set), 2);
        for message in dump(netlink, "list elements", GET_ELEMENT, &Attributes::new().text(1, TABLE).text(2, &name))? {
            let list = parse(&message).remove(&3).unwrap_or_default();
            for (_, element) in split(list) {
                let attributes = parse(element);
                let key = attributes.get(&1).and_then(|key| parse(key).remove(&1)).unwrap_or_default();
                let data = attributes.get(&2).and_then(|data| parse(data).remove(&1));
                elements.extend(Element::decode(&name, key, data));
            }
        }
        outline.sets.insert(name);
    }
    Ok((outline, elements))
}

impl<'a> Transaction<'a> {
    fn begin(netlink: &'a mut Netlink) -> Self {
        let first_sequence = netlink.next_sequence();
        let mut transaction = Self { netlink, bytes: Vec::new(), first_sequence, last_flags: 0, what: vec!["begin".to_owned()] };
        write(&mut transaction.bytes, (BATCH_BEGIN, REQUEST, first_sequence), (0, SUBSYSTEM >> 8), &[]);
        transaction
    }

    fn add(&mut self, what: &str, kind: u16, flags: u16, attributes: &Attributes) {
        let sequence = self.netlink.next_sequence();
        self.what.push(what.to_owned());
        self.last_flags = self.bytes.len() + 6;
        write(&mut self.bytes, (SUBSYSTEM | kind, REQUEST | flags, sequence), (FAMILY_INET, 0), &attributes.0);
    }

    fn elements(&mut self, operation: Option<(bool, &str)>, elements: &[&Element]) {
        let Some((add, set)) = operation else { return };
        let list = elements.iter().fold(Attributes::new(), |list, element| {
            let (key, data) = element.encode();
            let item = Attributes::new().nested(1, Attributes::new().bytes(1, &key));
            // A removal names the key alone.
            let item = match data.filter(|_| add) {
                Some(data) => item.nested(2, Attributes::new().bytes(1, &data)),
                None => item,
            };
            list.nested(1, item)
        });
        let attributes = Attributes::new().text(1, TABLE).text(2, set).nested(3, list);
        let (verb, kind, flags) = if add { ("add to", NEW_ELEMENT, CREATE) } else { ("remove from", DEL_ELEMENT, 0) };
        self.add(&format!("{verb} set {set}"), kind, flags, &attributes);
    }

    /// Sends it and reads until the last message is acknowledged or refused; the first error is the one that counts.
    fn commit(mut self) -> Result<(), KernelError> {
        if self.last_flags == 0 {
            return Ok(());
        }
        let flags = u16::from_ne_bytes([self.bytes[self.last_flags], self.bytes[self.last_flags + 1]]) | ACK;
        self.bytes[self.last_flags..self.last_flags + 2].copy_from_slice(&flags.to_ne_bytes());
        let last_sequence = self.first_sequence + u32::try_from(self.what.len() - 1).expect("a transaction is bounded");
        let end = self.netlink.next_sequence();
        write(&mut self.bytes, (BATCH_END, REQUEST, end), (0, SUBSYSTEM >> 8), &[]);
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

fn dump(netlink: &mut Netlink, what: &str, kind: u16, attributes: &Attributes) -> Result<Vec<Vec<u8>>, KernelError> {
    let sequence = netlink.next_sequence();
    let mut bytes = Vec::new();
    write(&mut bytes, (SUBSYSTEM | kind, REQUEST | DUMP, sequence), (FAMILY_INET, 0), &attributes.0);
    netlink.send(&bytes)?;
    match netlink.collect(&format!("nf_tables, {what}")) {
        Ok(answers) => {
            // The kernel may ignore the filter by table.
            let ours = |payload: &Vec<u8>| text(&parse(payload), 1) == TABLE;
            Ok(answers.into_iter().map(|answer| answer.payload.get(4..).unwrap_or_default().to_vec()).filter(ours).collect())
        }
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// One message: its netlink header (type, flags, sequence number), nf_tables' own (family, resource), its attributes.
fn write(bytes: &mut Vec<u8>, (kind, flags, sequence): (u16, u16, u32), (family, resource): (u8, u16), attributes: &[u8]) {
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

fn set_attributes(set: &Set, number: u32) -> Attributes {
    let kinds = set.key.iter().fold(0, |kinds, field| kinds << 6 | field_kind(*field));
    let len = set.key.iter().map(|field| field_len(*field)).sum();
    let attributes = Attributes::new().text(1, TABLE).text(2, set.name).number(4, kinds).number(5, len).number(10, number);
    match set.data {
        Some(data) => attributes.number(3, SET_IS_MAP).number(6, field_kind(data)).number(7, field_len(data)),
        None => attributes.number(3, 0),
    }
}

/// As nft's user space numbers data types; the kernel only keeps it.
fn field_kind(field: Field) -> u32 {
    match field {
        Field::Address => 7,
        Field::Mark => 19,
        Field::Name => 41,
    }
}

fn field_len(field: Field) -> u32 {
    match field {
        Field::Address | Field::Mark => 4,
        Field::Name => NAME_LEN as u32,
    }
}

fn chain_attributes(chain: &Chain) -> Attributes {
    let hook = Attributes::new().number(1, chain.hook as u32).number(2, chain.priority.cast_unsigned());
    Attributes::new().text(1, TABLE).text(3, chain.name).nested(4, hook).number(5, chain.policy as u32).text(7, "filter")
}

fn rule_attributes(chain: &Chain, rule: &Rule) -> Attributes {
    let expressions = rule.expressions.iter().fold(Attributes::new(), |list, expression| {
        let (name, data) = expression_attributes(expression);
        list.nested(1, Attributes::new().text(1, name).nested(2, data))
    });
    Attributes::new().text(1, TABLE).text(2, chain.name).nested(4, expressions).bytes(7, rule.text.as_bytes())
}

fn expression_attributes(expression: &Expression) -> (&'static str, Attributes) {
    let new = Attributes::new;
    let value = |bytes: &[u8]| new().bytes(1, bytes);
    match expression {
        Expression::Meta { key, into } => ("meta", new().number(1, into.0).number(2, *key as u32)),
        Expression::SetMark { from } => ("meta", new().number(2, crate::core::rules::Meta::Mark as u32).number(3, from.0)),
        Expression::Payload { base, offset, len, into } => {
            ("payload", new().number(1, into.0).number(2, *base as u32).number(3, *offset).number(4, *len))
        }
        Expression::ConntrackState { into } => ("ct", new().number(1, into.0).number(2, 0)),
        Expression::Mask { register, mask } => {
            let data = new().number(1, register.0).number(2, register.0).number(3, 4);
            ("bitwise", data.nested(4, value(&mask.to_ne_bytes())).nested(5, value(&[0; 4])))
        }
        Expression::Compare { register, equal, value: bytes } => {
            ("cmp", new().number(1, register.0).number(2, u32::from(!equal)).nested(3, value(bytes)))
        }
        Expression::Lookup { set, key, into, present } => {
            let data = new().text(1, set).number(2, key.0);
            let data = match into {
                Some(into) => data.number(3, into.0),
                None => data,
            };
            ("lookup", data.number(5, u32::from(!present)))
        }
        Expression::Load { into, value: number } => ("immediate", new().number(1, into.0).nested(2, value(&number.to_ne_bytes()))),
        Expression::Verdict(verdict) => {
            let verdict = new().number(1, *verdict as u32);
            ("immediate", new().number(1, VERDICT_REGISTER).nested(2, new().nested(2, verdict)))
        }
        Expression::Reject => ("reject", new().number(1, 2).bytes(2, &[3])),
        Expression::Untrack => ("notrack", new()),
    }
}

/// Attributes being written: each padded to 4 bytes.
struct Attributes(Vec<u8>);

impl Attributes {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(4 + value.len()).expect("an attribute is bounded by ELEMENTS_MAX");
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Attributes one after the other; a list has several of the same kind.
fn split(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut attributes = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(value) = bytes.get(4..len) else { break };
        attributes.push((u16::from_ne_bytes([header[2], header[3]]) & !NESTED, value));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    attributes
}

fn parse(bytes: &[u8]) -> BTreeMap<u16, &[u8]> {
    split(bytes).into_iter().collect()
}

fn text(attributes: &BTreeMap<u16, &[u8]>, kind: u16) -> String {
    let bytes = attributes.get(&kind).copied().unwrap_or_default();
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn number(attributes: &BTreeMap<u16, &[u8]>, kind: u16) -> Option<u32> {
    attributes.get(&kind).and_then(|bytes| (*bytes).try_into().ok()).map(u32::from_be_bytes)
}
