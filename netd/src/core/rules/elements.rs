//! Elements of sets and maps: typed values in, the bytes that the kernel holds out, and back.
//!
//! A key is its fields one after the other, each in whole registers of 4 bytes, as expressions load them; numbers that the kernel
//! computes (marks, zones, slots) are in its own byte order, what stands in packets (addresses, ports) is in theirs. An element of a set of
//! intervals has two keys, the first and the last that it spans, as one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use rcluster_api::network::PREFIX6;

use super::expressions::Verdict;
use super::{Data, Set, balance, egress, ingress, isolation, policy};
use crate::core::links::Mac;

/// Bytes of a device's name in a key: padded with zeros.
pub const NAME_LEN: usize = 16;

/// Bytes of a register.
const REGISTER_LEN: usize = 4;

/// The sets of our table, in the order in which their elements are added and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetName {
    Sources,
    Sources6,
    Prefixes6,
    Members,
    Exits,
    Entries,
    Entries6,
    Inside,
    Backends,
    Hairpin,
    Vips,
    VipList,
    Dead,
    Backends6,
    Hairpin6,
    Vips6,
    Dead6,
    Allow,
    Allow6,
    AllowIn,
    AllowIn6,
    Shielded,
    Shielded6,
    Policed,
    Flood,
    Outward,
    Peers,
    Zones,
    Homes,
    Homes6,
    Served,
    Served6,
    Guarded,
    Allowed,
    Allowed6,
    Behind,
    Behind6,
    Ports,
    Ports6,
}

impl SetName {
    /// All of them, in order.
    pub const ALL: [Self; 39] = [
        Self::Sources,
        Self::Sources6,
        Self::Prefixes6,
        Self::Members,
        Self::Exits,
        Self::Entries,
        Self::Entries6,
        Self::Inside,
        Self::Backends,
        Self::Hairpin,
        Self::Vips,
        Self::VipList,
        Self::Dead,
        Self::Backends6,
        Self::Hairpin6,
        Self::Vips6,
        Self::Dead6,
        Self::Allow,
        Self::Allow6,
        Self::AllowIn,
        Self::AllowIn6,
        Self::Shielded,
        Self::Shielded6,
        Self::Policed,
        Self::Flood,
        Self::Outward,
        Self::Peers,
        Self::Zones,
        Self::Homes,
        Self::Homes6,
        Self::Served,
        Self::Served6,
        Self::Guarded,
        Self::Allowed,
        Self::Allowed6,
        Self::Behind,
        Self::Behind6,
        Self::Ports,
        Self::Ports6,
    ];

    /// What it is like.
    pub fn set(self) -> &'static Set {
        match self {
            Self::Sources => &isolation::SOURCES,
            Self::Sources6 => &isolation::SOURCES6,
            Self::Prefixes6 => &isolation::PREFIXES6,
            Self::Members => &isolation::MEMBERS,
            Self::Exits => &isolation::EXITS,
            Self::Entries => &egress::ENTRIES,
            Self::Entries6 => &egress::ENTRIES6,
            Self::Inside => &egress::INSIDE,
            Self::Backends => &balance::BACKENDS,
            Self::Hairpin => &balance::HAIRPIN,
            Self::Vips => &balance::VIPS,
            Self::VipList => &balance::VIP_LIST,
            Self::Dead => &balance::DEAD,
            Self::Backends6 => &balance::BACKENDS6,
            Self::Hairpin6 => &balance::HAIRPIN6,
            Self::Vips6 => &balance::VIPS6,
            Self::Dead6 => &balance::DEAD6,
            Self::Allow => &policy::ALLOW,
            Self::Allow6 => &policy::ALLOW6,
            Self::AllowIn => &policy::ALLOW_IN,
            Self::AllowIn6 => &policy::ALLOW_IN6,
            Self::Shielded => &policy::SHIELDED,
            Self::Shielded6 => &policy::SHIELDED6,
            Self::Policed => &policy::POLICED,
            Self::Flood => &isolation::FLOOD,
            Self::Outward => &ingress::OUTWARD,
            Self::Peers => &ingress::PEERS,
            Self::Zones => &ingress::ZONES,
            Self::Homes => &ingress::HOMES,
            Self::Homes6 => &ingress::HOMES6,
            Self::Served => &ingress::SERVED,
            Self::Served6 => &ingress::SERVED6,
            Self::Guarded => &ingress::GUARDED,
            Self::Allowed => &ingress::ALLOWED,
            Self::Allowed6 => &ingress::ALLOWED6,
            Self::Behind => &ingress::BEHIND,
            Self::Behind6 => &ingress::BEHIND6,
            Self::Ports => &ingress::PORTS,
            Self::Ports6 => &ingress::PORTS6,
        }
    }
}

/// A part of a key or of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A device's.
    Name,
    Address,
    Address6,
    /// The first half of such a one, which a network's have in common.
    Prefix6,
    /// Ethernet's.
    HardwareAddress,
    /// That of IP packets.
    Protocol,
    Port,
    Mark,
    /// Of connection tracking.
    Zone,
    /// What was drawn or hashed.
    Number,
}

impl Field {
    /// Its bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::Port | Self::Zone => 2,
            Self::Address | Self::Mark | Self::Number => 4,
            Self::HardwareAddress => 6,
            Self::Prefix6 => 8,
            Self::Name | Self::Address6 => 16,
        }
    }

    /// The bytes of the registers that it takes.
    pub fn padded(self) -> usize {
        self.bytes().next_multiple_of(REGISTER_LEN)
    }

    /// As nft's user space numbers data types; the kernel only keeps it.
    pub fn kind(self) -> u32 {
        match self {
            Self::Number | Self::Zone => 4,
            Self::Address => 7,
            Self::Address6 | Self::Prefix6 => 8,
            Self::HardwareAddress => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Name => 41,
        }
    }
}

/// What stands in a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Name(String),
    Address(Ipv4Addr),
    Address6(Ipv6Addr),
    /// A /64.
    Prefix6(Ipv6Net),
    HardwareAddress(Mac),
    Protocol(u8),
    Port(u16),
    Mark(u32),
    Zone(u16),
    Number(u32),
}

impl Value {
    /// The kind of field in which it can stand.
    pub fn field(&self) -> Field {
        match self {
            Self::Name(_) => Field::Name,
            Self::Address(_) => Field::Address,
            Self::Address6(_) => Field::Address6,
            Self::Prefix6(_) => Field::Prefix6,
            Self::HardwareAddress(_) => Field::HardwareAddress,
            Self::Protocol(_) => Field::Protocol,
            Self::Port(_) => Field::Port,
            Self::Mark(_) => Field::Mark,
            Self::Zone(_) => Field::Zone,
            Self::Number(_) => Field::Number,
        }
    }

    /// As a field holds it, padding included.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = match self {
            Self::Name(name) => name.bytes().take(NAME_LEN - 1).collect(),
            Self::Address(ip) => ip.octets().to_vec(),
            Self::Address6(ip) => ip.octets().to_vec(),
            Self::Prefix6(net) => net.network().octets()[..usize::from(PREFIX6 / 8)].to_vec(),
            Self::HardwareAddress(mac) => mac.0.to_vec(),
            Self::Protocol(number) => vec![*number],
            Self::Port(port) => port.to_be_bytes().to_vec(),
            Self::Zone(zone) => zone.to_ne_bytes().to_vec(),
            Self::Mark(number) | Self::Number(number) => number.to_ne_bytes().to_vec(),
        };
        bytes.resize(self.field().padded(), 0);
        bytes
    }

    /// What a field's bytes say; `None` if they are too few.
    pub fn decode(field: Field, bytes: &[u8]) -> Option<Self> {
        Some(match field {
            Field::Name => {
                let name = bytes.first_chunk::<NAME_LEN>()?;
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
                Self::Name(String::from_utf8_lossy(&name[..end]).into_owned())
            }
            Field::Address => Self::Address(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
            Field::Address6 => Self::Address6(Ipv6Addr::from(*bytes.first_chunk::<16>()?)),
            Field::Prefix6 => {
                let upper = u64::from_be_bytes(*bytes.first_chunk::<8>()?);
                Self::Prefix6(Ipv6Net::new_assert(Ipv6Addr::from_bits(u128::from(upper) << 64), PREFIX6))
            }
            Field::HardwareAddress => Self::HardwareAddress(Mac(*bytes.first_chunk::<6>()?)),
            Field::Protocol => Self::Protocol(*bytes.first()?),
            Field::Port => Self::Port(u16::from_be_bytes(*bytes.first_chunk::<2>()?)),
            Field::Zone => Self::Zone(u16::from_ne_bytes(*bytes.first_chunk::<2>()?)),
            Field::Mark => Self::Mark(u32::from_ne_bytes(*bytes.first_chunk::<4>()?)),
            Field::Number => Self::Number(u32::from_ne_bytes(*bytes.first_chunk::<4>()?)),
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Address(ip) => write!(f, "{ip}"),
            Self::Address6(ip) => write!(f, "{ip}"),
            Self::Prefix6(net) => write!(f, "{net}"),
            Self::HardwareAddress(mac) => write!(f, "{mac}"),
            Self::Protocol(number) => write!(f, "{number}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Zone(zone) => write!(f, "{zone}"),
            Self::Mark(number) | Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// What there can be one element of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub set: SetName,
    /// In a set of intervals two keys, the first and the last.
    pub bytes: Vec<u8>,
}

/// What a key of a set of intervals spans, field by field: first and last.
type Spans<'a> = Vec<(&'a [u8], &'a [u8])>;

impl Key {
    /// `None` for a key of another set.
    fn spans(&self) -> Option<Spans<'_>> {
        let set = self.set.set();
        let (mut first, last) = set.bounds(&self.bytes);
        let mut last = last?;
        let mut spans = Vec::with_capacity(set.key.len());
        for field in set.key {
            let (from, rest_of_first) = first.split_at_checked(field.padded())?;
            let (to, rest_of_last) = last.split_at_checked(field.padded())?;
            spans.push((from, to));
            (first, last) = (rest_of_first, rest_of_last);
        }
        Some(spans)
    }
}

/// Keys of sets of intervals, to be asked which others share a value with one of them. What stands in such keys is compared as packets
/// have it: the first byte counts most.
#[derive(Debug, Default)]
pub struct Spanned<'a> {
    /// With one value in the first field, by that.
    narrow: BTreeMap<(SetName, &'a [u8]), Vec<Spans<'a>>>,
    wide: BTreeMap<SetName, Vec<Spans<'a>>>,
}

impl<'a> Spanned<'a> {
    /// Of these keys those of sets of intervals.
    pub fn new(keys: impl IntoIterator<Item = &'a Key>) -> Self {
        let mut spanned = Self::default();
        for key in keys {
            let Some(spans) = key.spans() else { continue };
            match spans.first().filter(|(first, last)| first == last).map(|(first, _)| *first) {
                Some(first) => spanned.narrow.entry((key.set, first)).or_default().push(spans),
                None => spanned.wide.entry(key.set).or_default().push(spans),
            }
        }
        spanned
    }

    /// Whether one of them and `key` have a value in common.
    pub fn meets(&self, key: &Key) -> bool {
        let Some(spans) = key.spans() else { return false };
        let Some((first, last)) = spans.first().filter(|(first, last)| first <= last) else { return false };
        let shared = |other: &Spans<'_>| spans.iter().zip(other).all(|(one, other)| one.0 <= other.1 && other.0 <= one.1);
        let narrow = self.narrow.range((key.set, *first)..=(key.set, *last)).flat_map(|(_, others)| others);
        narrow.chain(self.wide.get(&key.set).into_iter().flatten()).any(shared)
    }
}

/// One element of one of the sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Key,
    /// Empty in a set that is no map.
    pub data: Vec<u8>,
}

/// Elements, with their data, by their keys.
pub type Elements = BTreeMap<Key, Vec<u8>>;

impl Element {
    /// An element of a set of keys; with data, of a map.
    pub fn new(set: SetName, key: &[Value], data: &[Value]) -> Self {
        Self { key: Key { set, bytes: encode(key) }, data: encode(data) }
    }

    /// The device that its key names.
    pub fn link(&self) -> Option<String> {
        let names = |value| if let Some(Value::Name(name)) = value { Some(name) } else { None };
        decode(self.key.set.set().key, &self.key.bytes).into_iter().find_map(names)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.key.set.set();
        write!(f, "{} {{ {} }}", set.name, in_words(set, &self.key.bytes, &self.data))
    }
}

/// Values one after the other.
pub fn encode(values: &[Value]) -> Vec<u8> {
    values.iter().flat_map(Value::encode).collect()
}

/// The values of fields one after the other; `None` for those for which the bytes do not suffice.
pub fn decode(fields: &[Field], mut bytes: &[u8]) -> Vec<Option<Value>> {
    let mut values = Vec::new();
    for field in fields {
        let (value, rest) = bytes.split_at_checked(field.padded()).unwrap_or_default();
        values.push(Value::decode(*field, value));
        bytes = rest;
    }
    values
}

/// An element of a set of this shape as nft writes it: `key . key : data`, and `first-last` where it spans more than one value.
pub fn in_words(set: &Set, key: &[u8], data: &[u8]) -> String {
    let (first, last) = set.bounds(key);
    let firsts = texts(set.key, first);
    let key: Vec<String> = match last {
        Some(last) => {
            firsts.into_iter().zip(texts(set.key, last)).map(|(from, to)| if from == to { from } else { from + "-" + &to }).collect()
        }
        None => firsts,
    };
    let data = match set.data {
        Data::None => None,
        Data::Fields(fields) => Some(texts(fields, data).join(" . ")),
        Data::Verdict => Some(Verdict::decode(data).map_or_else(|| "?".to_owned(), |verdict| verdict.to_string())),
    };
    let key = key.join(" . ");
    match data {
        Some(data) => format!("{key} : {data}"),
        None => key,
    }
}

fn texts(fields: &[Field], bytes: &[u8]) -> Vec<String> {
    decode(fields, bytes).into_iter().map(|value| value.map_or_else(|| "?".to_owned(), |value| value.to_string())).collect()
}
