//! Rules as data: the router namespace's in one nftables table, `inet rcluster`, and the host's in another (`host`).
//!
//! The chains never change while this version of netd runs; they are replaced whole, in one transaction, when the kernel's differ. What
//! changes with pods and networks are the elements of sets and maps, so a packet's cost does not depend on how many there are.
//!
//! Each rule carries its text as user data; comparing texts tells whether the kernel holds our rules. A set is compared by its name, the
//! lengths of its keys and data, and its flags.
//!
//! Each feature has a file of its own, with its sets, its rules and its elements; `skeleton` puts them in order.

use std::collections::BTreeSet;
use std::fmt;

use self::elements::Field;
use self::expressions::Expression;
use super::links::RESOLVER;

pub mod elements;

pub mod expressions;

pub mod isolation;

pub mod balance;

pub mod egress;

pub mod ingress;

pub mod policy;

pub mod skeleton;

pub mod host;

/// Our table in the router namespace.
pub const TABLE: Table = Table { family: TableFamily::Inet, name: "rcluster" };

/// A table of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    pub family: TableFamily,
    pub name: &'static str,
}

/// What packets come to a table; the numbers are the kernel's (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFamily {
    /// Both IPv4 and IPv6.
    Inet = 1,
    Ipv4 = 2,
    Ipv6 = 10,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            TableFamily::Inet => "inet",
            TableFamily::Ipv4 => "ip",
            TableFamily::Ipv6 => "ip6",
        };
        write!(f, "{family} {}", self.name)
    }
}

/// Everything of a table that is not elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skeleton {
    pub table: Table,
    pub sets: Vec<&'static Set>,
    pub chains: Vec<Chain>,
}

/// A set, or, with data, a map.
#[derive(Debug, PartialEq, Eq)]
pub struct Set {
    pub name: &'static str,
    pub key: &'static [Field],
    pub data: Data,
    pub filling: Filling,
}

/// What a map gives for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// It is no map, but a set.
    None,
    /// Values, one register after the other.
    Fields(&'static [Field]),
    /// Where the packet goes on.
    Verdict,
}

/// How elements come into a set, and what they span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filling {
    /// We add keys, one by one.
    Keys,
    /// We add elements that span, field by field, from a first key to a last one. For keys of several fields: the kernel's form for
    /// those of one is another.
    Intervals,
    /// The kernel adds keys as rules meet packets, and forgets each so long after it met it last.
    Learned { timeout_ms: u64 },
}

impl Set {
    /// Bytes of a key.
    pub fn key_len(&self) -> usize {
        padded(self.key)
    }

    /// Bytes of a map's data; verdicts count as none.
    pub fn data_len(&self) -> usize {
        match self.data {
            Data::None | Data::Verdict => 0,
            Data::Fields(fields) => padded(fields),
        }
    }

    /// The kernel's numbers (`NFT_SET_*`).
    pub fn flags(&self) -> u32 {
        let (interval, map, timeout, eval, concat) = (4, 8, 16, 32, 128);
        let filling = match self.filling {
            Filling::Keys => 0,
            Filling::Intervals => interval | concat,
            Filling::Learned { .. } => timeout | eval,
        };
        match self.data {
            Data::None => filling,
            Data::Fields(_) | Data::Verdict => filling | map,
        }
    }

    /// The first and, of a set of intervals, the last key of an element.
    pub fn bounds<'a>(&self, key: &'a [u8]) -> (&'a [u8], Option<&'a [u8]>) {
        match self.filling {
            Filling::Keys | Filling::Learned { .. } => (key, None),
            Filling::Intervals => key.split_at_checked(self.key_len()).map_or((key, None), |(first, last)| (first, Some(last))),
        }
    }
}

fn padded(fields: &[Field]) -> usize {
    fields.iter().map(|field| field.padded()).sum()
}

/// Rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// `None`: packets come to it only by a verdict.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// How packets come to a base chain, and what becomes of those that meet no verdict in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
    pub policy: Policy,
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    /// Translates addresses; sees only the first packet of a connection.
    Nat,
}

impl ChainKind {
    /// The kernel's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// Where a chain hangs; the numbers are the kernel's (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// The numbers are the kernel's (`NF_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Drop = 0,
    Accept = 1,
}

impl Chain {
    /// A base chain that filters.
    pub fn filter(name: &str, hook: Hook, priority: i32, policy: Policy, rules: Vec<Rule>) -> Self {
        Self { name: name.to_owned(), base: Some(Base { kind: ChainKind::Filter, hook, priority, policy }), rules }
    }

    /// A base chain that translates addresses.
    pub fn nat(name: &str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Self {
        Self { name: name.to_owned(), base: Some(Base { kind: ChainKind::Nat, hook, priority, policy: Policy::Accept }), rules }
    }

    /// A chain to which other chains lead.
    pub fn aside(name: &str, rules: Vec<Rule>) -> Self {
        Self { name: name.to_owned(), base: None, rules }
    }
}

/// One rule: what it means in nft's language, and the expressions that the kernel runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub text: String,
    pub expressions: Vec<Expression>,
}

impl Rule {
    /// A rule of several parts; the word `resolver` in the text stands for its address.
    pub fn new<const N: usize>(text: &str, parts: [Vec<Expression>; N]) -> Self {
        Self { text: text.replace("resolver", &RESOLVER.to_string()), expressions: parts.into_iter().flatten().collect() }
    }
}

impl fmt::Display for Skeleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {}", self.table)?;
        for set in &self.sets {
            writeln!(f, "  set {set}")?;
        }
        for chain in &self.chains {
            match chain.base {
                Some(base) => writeln!(f, "  chain {} {base}", chain.name)?,
                None => writeln!(f, "  chain {}", chain.name)?,
            }
            for rule in &chain.rules {
                writeln!(f, "    {}", rule.text)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, hook, priority, policy } = self;
        match kind {
            ChainKind::Filter => {}
            ChainKind::Nat => write!(f, "nat ")?,
        }
        write!(f, "hook {hook:?} priority {priority} policy {policy:?}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} -> {:?}", self.name, self.key, self.data)?;
        match self.filling {
            Filling::Keys => Ok(()),
            Filling::Intervals => write!(f, ", intervals"),
            Filling::Learned { timeout_ms } => write!(f, ", learned for {timeout_ms} ms"),
        }
    }
}

/// What the kernel reports of a table, in a form that can be compared: sets, chains, and rules by their texts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    pub sets: BTreeSet<String>,
    pub chains: BTreeSet<String>,
    /// In order, per chain: `chain: text`.
    pub rules: Vec<String>,
}

impl Skeleton {
    /// The outline that the kernel shows once it holds this skeleton.
    pub fn outline(&self) -> Outline {
        let set = |set: &&Set| set_line(set.name, set.key_len(), set.data_len(), set.flags());
        let chain = |chain: &Chain| {
            let base = chain.base.map(|base| (base.kind.word(), base.hook as u32, base.priority, base.policy as u32));
            chain_line(&chain.name, base)
        };
        Outline {
            sets: self.sets.iter().map(set).collect(),
            chains: self.chains.iter().map(chain).collect(),
            rules: self.chains.iter().flat_map(|chain| chain.rules.iter().map(|rule| format!("{}: {}", chain.name, rule.text))).collect(),
        }
    }
}

/// A set in an outline: the bytes of its keys and of its data (none for verdicts), and the kernel's flags.
pub fn set_line(name: &str, key_len: usize, data_len: usize, flags: u32) -> String {
    format!("{name} key {key_len} data {data_len} flags {flags}")
}

/// A chain in an outline; of a base chain with its kind, hook, priority and policy.
pub fn chain_line(name: &str, base: Option<(&str, u32, i32, u32)>) -> String {
    match base {
        Some((kind, hook, priority, policy)) => format!("{name} {kind} hook {hook} priority {priority} policy {policy}"),
        None => name.to_owned(),
    }
}
