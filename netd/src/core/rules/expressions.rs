//! What rules are made of: expressions that the kernel runs on a packet one after the other. They pass values on in registers; one whose
//! comparison or lookup fails ends the rule.

use std::fmt;

use ipnet::Ipv4Net;

use super::Set;

/// A register of 4 bytes; longer values take the following ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u32);

/// The first of the sixteen.
pub const FIRST: Register = Register(8);

impl Register {
    /// Not one of the sixteen: what is put here is where the packet goes on.
    pub const VERDICT: Self = Self(0);

    /// The register after a value of `registers` of them.
    pub fn after(self, registers: u32) -> Self {
        Self(self.0 + registers)
    }
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    Meta {
        key: Meta,
        into: Register,
    },
    SetMark {
        from: Register,
    },
    Payload {
        header: Header,
        offset: u32,
        len: u32,
        into: Register,
    },
    Conntrack {
        key: Conntrack,
        into: Register,
    },
    /// The mark of the packet's connection.
    SetConnectionMark {
        from: Register,
    },
    /// In which zone the packet's connection is looked up, by the side that begins it, and kept if it is new; before connections are tracked.
    SetZone {
        from: Register,
    },
    /// What kind of address the destination is, by the namespace's routes: `LOCAL_ADDRESS` and others.
    DestinationType {
        into: Register,
    },
    /// By which device a packet to the sender would leave, if it is that by which this one came; 0 if it is not.
    WayBack {
        into: Register,
    },
    Mask {
        register: Register,
        mask: u32,
    },
    Compare {
        register: Register,
        equal: bool,
        value: Vec<u8>,
    },
    /// In a set: whether the key is there. In a map: what it gives, `into` a register; `Register::VERDICT` for a map of verdicts.
    Lookup {
        set: &'static Set,
        key: Register,
        into: Option<Register>,
        present: bool,
    },
    /// Puts the key into a set that learns, or keeps it there; goes on while packets come `over` the limit that each key has.
    Update {
        set: &'static Set,
        key: Register,
        over: Limit,
    },
    /// Goes on while packets come over this limit, whosever they are.
    Over(Limit),
    Load {
        into: Register,
        value: Vec<u8>,
    },
    /// A number below `below`, drawn anew for each packet.
    Random {
        below: u32,
        into: Register,
    },
    /// A number below `below` that depends on `len` bytes of registers and the seed alone.
    Hash {
        from: Register,
        len: u32,
        below: u32,
        seed: u32,
        into: Register,
    },
    /// The connection's new source or destination: an address, and with `port` the port of one register.
    Translate {
        end: End,
        family: Family,
        address: Register,
        port: Option<Register>,
    },
    /// The new source is an address of the device by which the packet leaves, and a port that cannot be guessed.
    Masquerade,
    Verdict(Verdict),
    Reject(Rejection),
    /// Connection tracking leaves the packet alone.
    Untrack,
}

/// Facts about a packet; the numbers are the kernel's (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Protocol = 16,
}

/// Facts about a packet's connection; the numbers are the kernel's (`NFT_CT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conntrack {
    State = 0,
    /// Of one byte.
    Direction = 1,
    Status = 2,
    Mark = 3,
    Zone = 17,
    /// Where its first packet was sent to, before any translation.
    OriginalDestination = 20,
    /// The same for IPv6.
    OriginalDestination6 = 22,
}

/// What a payload's offset counts from; the numbers are the kernel's (`NFT_PAYLOAD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// A family of addresses; the numbers are the kernel's (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ipv4 = 2,
    Ipv6 = 10,
}

/// The end of a connection that is translated; the numbers are the kernel's (`NFT_NAT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source = 0,
    Destination = 1,
}

/// So many packets a second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub per_second: u64,
    pub burst: u32,
}

/// How a sender is told that its packet goes nowhere: by ICMP or ICMPv6, or by TCP's reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    PortUnreachable,
    HostUnreachable,
    AdminProhibited,
    Reset,
}

/// Where a packet goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Accept,
    /// To where the chain was jumped to from.
    Return,
    /// Through another chain, and on behind the rule.
    Jump(String),
    /// Through another chain, and not back.
    Goto(String),
}

impl Verdict {
    /// The kernel's number (`NF_*`, `NFT_*`).
    pub fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    /// The chain to which it leads.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Drop | Self::Accept | Self::Return => None,
        }
    }

    /// As data of a map of verdicts: the number, then the chain.
    pub fn encode(&self) -> Vec<u8> {
        [&self.code().to_be_bytes()[..], self.chain().unwrap_or_default().as_bytes()].concat()
    }

    /// What `encode` made; `None` for a number that is no verdict of ours.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (code, chain) = bytes.split_first_chunk::<4>()?;
        let chain = String::from_utf8_lossy(chain).into_owned();
        match i32::from_be_bytes(*code) {
            0 => Some(Self::Drop),
            1 => Some(Self::Accept),
            -3 => Some(Self::Jump(chain)),
            -4 => Some(Self::Goto(chain)),
            -5 => Some(Self::Return),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => write!(f, "drop"),
            Self::Accept => write!(f, "accept"),
            Self::Return => write!(f, "return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

const STATE_INVALID: u32 = 1;
const STATE_ESTABLISHED: u32 = 2;
const STATE_ESTABLISHED_OR_RELATED: u32 = STATE_ESTABLISHED | 4;

pub(super) fn accept() -> Vec<Expression> {
    vec![Expression::Verdict(Verdict::Accept)]
}

/// Lets pass what is routed: marks are ours, and mean nothing elsewhere.
pub(super) fn accept_unmarked() -> Vec<Expression> {
    [unmark(), accept()].concat()
}

pub(super) fn unmark() -> Vec<Expression> {
    vec![Expression::Load { into: FIRST, value: 0_u32.to_ne_bytes().to_vec() }, Expression::SetMark { from: FIRST }]
}

pub(super) fn drop() -> Vec<Expression> {
    vec![Expression::Verdict(Verdict::Drop)]
}

pub(super) fn equals(value: &[u8]) -> Expression {
    Expression::Compare { register: FIRST, equal: true, value: value.to_vec() }
}

/// Whether the name of the device by which the packet came begins so.
pub(super) fn input_begins(start: &[u8]) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::InputName, into: FIRST }, equals(start)]
}

/// Whether the device by which the packet came (`InputName`) or leaves (`OutputName`) is, or is not, that of this name.
pub(super) fn device(key: Meta, name: &str, is: bool) -> Vec<Expression> {
    let name = [name.as_bytes(), &[0]].concat();
    vec![Expression::Meta { key, into: FIRST }, Expression::Compare { register: FIRST, equal: is, value: name }]
}

pub(super) fn family(family: Family) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::Family, into: FIRST }, equals(&[family as u8])]
}

pub(super) fn protocol(number: u8) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::Protocol, into: FIRST }, equals(&[number])]
}

pub(super) fn source_address(into: Register) -> Expression {
    Expression::Payload { header: Header::Network, offset: 12, len: 4, into }
}

pub(super) fn destination_address(into: Register) -> Expression {
    Expression::Payload { header: Header::Network, offset: 16, len: 4, into }
}

/// Whether the set has the packet's destination.
pub(super) fn to_one_of(set: &'static Set) -> Vec<Expression> {
    vec![destination_address(FIRST), Expression::Lookup { set, key: FIRST, into: None, present: true }]
}

/// The same of IPv6.
pub(super) fn source_address6(into: Register) -> Expression {
    Expression::Payload { header: Header::Network, offset: 8, len: 16, into }
}

/// The first half of it.
pub(super) fn source_prefix6(into: Register) -> Expression {
    Expression::Payload { header: Header::Network, offset: 8, len: 8, into }
}

pub(super) fn destination_address6(into: Register) -> Expression {
    Expression::Payload { header: Header::Network, offset: 24, len: 16, into }
}

pub(super) fn to_one_of6(set: &'static Set) -> Vec<Expression> {
    vec![destination_address6(FIRST), Expression::Lookup { set, key: FIRST, into: None, present: true }]
}

pub(super) fn not_to_one_of(set: &'static Set) -> Vec<Expression> {
    vec![destination_address(FIRST), Expression::Lookup { set, key: FIRST, into: None, present: false }]
}

pub(super) fn not_to_one_of6(set: &'static Set) -> Vec<Expression> {
    vec![destination_address6(FIRST), Expression::Lookup { set, key: FIRST, into: None, present: false }]
}

/// The protocol, and behind it the port to which the packet goes.
pub(super) fn to_port(into: Register) -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::Protocol, into },
        Expression::Payload { header: Header::Transport, offset: 2, len: 2, into: into.after(1) },
    ]
}

/// Of no connection that there is, and of none that can begin: connection tracking does not translate it.
pub(super) fn invalid() -> Vec<Expression> {
    bits(Conntrack::State, STATE_INVALID)
}

/// Whether the sender's address is, or is not, in the net.
pub(super) fn source_in(net: Ipv4Net, is: bool) -> Vec<Expression> {
    let mut expressions = family(Family::Ipv4);
    expressions.extend([
        source_address(FIRST),
        // As it stands in the packet.
        Expression::Mask { register: FIRST, mask: u32::from_ne_bytes(net.netmask().octets()) },
        Expression::Compare { register: FIRST, equal: is, value: net.network().octets().to_vec() },
    ]);
    expressions
}

/// Of a connection that is known.
pub(super) fn of_connection() -> Vec<Expression> {
    bits(Conntrack::State, STATE_ESTABLISHED)
}

/// Of a connection that is known, or of one that belongs to it.
pub(super) fn established() -> Vec<Expression> {
    bits(Conntrack::State, STATE_ESTABLISHED_OR_RELATED)
}

/// Whether one of the bits is set.
pub(super) fn bits(key: Conntrack, mask: u32) -> Vec<Expression> {
    vec![
        Expression::Conntrack { key, into: FIRST },
        Expression::Mask { register: FIRST, mask },
        Expression::Compare { register: FIRST, equal: false, value: vec![0; 4] },
    ]
}
