//! The rules of the router namespace as data: one nftables table, `inet rcluster`.
//!
//! The chains never change while this version of netd runs; they are replaced whole, in one transaction, when the kernel's differ. What
//! changes with pods and networks are the elements of three sets, so a packet's cost does not depend on how many there are:
//!
//! ```text
//! sources  device . address          the one source address that may come in from a pod's veth
//! members  device → VNI              which network a packet comes from
//! exits    VNI . device              where a packet of that network may leave
//! ```
//!
//! Each rule carries its text as user data; comparing texts tells whether the kernel holds our rules. The mark that `members` sets is
//! cleared before the packet leaves, so the host's own marks never meet it.
//!
//! Egress is not built yet: there is no path out of the overlay for any network, so a network's `internal` flag, which forbids one,
//! is kept by construction. Whoever builds egress must read it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use super::links::{RESOLVER, veth_name, vxlan_name};
use super::picture::{Attachments, Picture};

/// The table's name; its family is inet.
pub const TABLE: &str = "rcluster";

/// Bytes of a device's name in a set's key: padded with zeros.
pub const NAME_LEN: usize = 16;

/// Everything of the table that is not elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skeleton {
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// A set (or, with `data`, a map).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: &'static str,
    pub key: &'static [Field],
    pub data: Option<Field>,
}

/// A part of a key, as nftables' user space numbers its types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Name,
    Address,
    Mark,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    pub hook: Hook,
    pub priority: i32,
    pub policy: Verdict,
    pub rules: Vec<Rule>,
}

/// Where a chain hangs; the numbers are the kernel's (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
}

/// The numbers are the kernel's (`NF_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Drop = 0,
    Accept = 1,
}

/// One rule: what it means in nft's language, and the expressions that the kernel runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub text: String,
    pub expressions: Vec<Expression>,
}

/// A register of 4 bytes; longer values take the following ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u32);

/// One step of a rule; a comparison or lookup that fails ends the rule.
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
        base: Base,
        offset: u32,
        len: u32,
        into: Register,
    },
    ConntrackState {
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
    Lookup {
        set: &'static str,
        key: Register,
        into: Option<Register>,
        present: bool,
    },
    Load {
        into: Register,
        value: u32,
    },
    Verdict(Verdict),
    /// ICMP (or ICMPv6) "administratively prohibited".
    Reject,
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

/// What a payload's offset counts from; the numbers are the kernel's (`NFT_PAYLOAD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Network = 1,
    Transport = 2,
}

/// One element of one of the sets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    Source { link: String, ip: Ipv4Addr },
    Member { link: String, vni: u32 },
    Exit { vni: u32, link: String },
}

impl Element {
    /// The set it belongs to.
    pub fn set(&self) -> &'static str {
        match self {
            Self::Source { .. } => "sources",
            Self::Member { .. } => "members",
            Self::Exit { .. } => "exits",
        }
    }

    /// The device it speaks of.
    pub fn link(&self) -> &String {
        match self {
            Self::Source { link, .. } | Self::Member { link, .. } | Self::Exit { link, .. } => link,
        }
    }

    /// Key and, for a map, data, as the kernel holds them.
    pub fn encode(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        match self {
            Self::Source { link, ip } => ([&padded(link)[..], &ip.octets()].concat(), None),
            Self::Member { link, vni } => (padded(link).to_vec(), Some(vni.to_ne_bytes().to_vec())),
            Self::Exit { vni, link } => ([&vni.to_ne_bytes()[..], &padded(link)].concat(), None),
        }
    }

    /// The element that a set of the kernel holds under `key`; `None` for a set or a shape that is not ours.
    pub fn decode(set: &str, key: &[u8], data: Option<&[u8]>) -> Option<Self> {
        let name = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_ne_bytes).ok();
        match set {
            "sources" => {
                let (link, ip) = key.split_at_checked(NAME_LEN)?;
                Some(Self::Source { link: name(link), ip: Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?) })
            }
            "members" => Some(Self::Member { link: name(key), vni: number(data?)? }),
            "exits" => {
                let (vni, link) = key.split_at_checked(4)?;
                Some(Self::Exit { vni: number(vni)?, link: name(link) })
            }
            _ => None,
        }
    }

    /// Whether both have the same key in the same set, so that one must go before the other can come.
    pub fn collides(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Member { link, .. }, Self::Member { link: other, .. }) => link == other,
            _ => self == other,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source { link, ip } => write!(f, "sources {{ {link} . {ip} }}"),
            Self::Member { link, vni } => write!(f, "members {{ {link} : {vni} }}"),
            Self::Exit { vni, link } => write!(f, "exits {{ {vni} . {link} }}"),
        }
    }
}

impl fmt::Display for Skeleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE}")?;
        for set in &self.sets {
            writeln!(f, "  set {} {:?} -> {:?}", set.name, set.key, set.data)?;
        }
        for chain in &self.chains {
            writeln!(f, "  chain {} hook {:?} priority {} policy {:?}", chain.name, chain.hook, chain.priority, chain.policy)?;
            for rule in &chain.rules {
                writeln!(f, "    {}", rule.text)?;
            }
        }
        Ok(())
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
        Outline {
            sets: self.sets.iter().map(|set| set.name.to_owned()).collect(),
            chains: self
                .chains
                .iter()
                .map(|chain| chain_line(chain.name, chain.hook as u32, chain.priority, chain.policy as u32))
                .collect(),
            rules: self.chains.iter().flat_map(|chain| chain.rules.iter().map(|rule| format!("{}: {}", chain.name, rule.text))).collect(),
        }
    }
}

/// A chain in an outline.
pub fn chain_line(name: &str, hook: u32, priority: i32, policy: u32) -> String {
    format!("{name} hook {hook} priority {priority} policy {policy}")
}

/// The table's sets and chains.
pub fn skeleton() -> Skeleton {
    let sets = vec![
        Set { name: "sources", key: &[Field::Name, Field::Address], data: None },
        Set { name: "members", key: &[Field::Name], data: Some(Field::Mark) },
        Set { name: "exits", key: &[Field::Mark, Field::Name], data: None },
    ];
    let before_tracking = -300;
    let chains = vec![
        Chain {
            name: "source",
            hook: Hook::Prerouting,
            priority: before_tracking,
            policy: Verdict::Accept,
            rules: vec![
                rule("iifname p* meta nfproto ipv6 drop", [from_pod(), family(FAMILY_IPV6), vec![drop()]]),
                rule("iifname p* iifname . ip saddr != @sources drop", [from_pod(), family(FAMILY_IPV4), not_its_source(), vec![drop()]]),
                rule("ip daddr resolver udp dport 53 notrack", [resolver_address(16), port(PROTOCOL_UDP, 2), vec![Expression::Untrack]]),
            ],
        },
        Chain {
            name: "answer",
            hook: Hook::Output,
            priority: before_tracking,
            policy: Verdict::Accept,
            rules: vec![rule(
                "ip saddr resolver udp sport 53 notrack",
                [resolver_address(12), port(PROTOCOL_UDP, 0), vec![Expression::Untrack]],
            )],
        },
        Chain {
            name: "forward",
            hook: Hook::Forward,
            priority: 0,
            policy: Verdict::Drop,
            rules: vec![
                rule("ct state established,related accept", [established(), vec![accept()]]),
                rule("meta mark set iifname map @members", [mark_by_input()]),
                rule("meta mark . oifname @exits meta mark set 0 accept", [same_network(), vec![accept()]]),
                rule("reject with icmpx admin-prohibited", [vec![Expression::Reject]]),
            ],
        },
        Chain {
            name: "input",
            hook: Hook::Input,
            priority: 0,
            policy: Verdict::Drop,
            rules: vec![
                rule("iifname lo accept", [name_is(b"lo\0"), vec![accept()]]),
                rule("ct state established,related accept", [established(), vec![accept()]]),
                rule(
                    "iifname p* ip daddr resolver udp dport 53 accept",
                    [from_pod(), resolver_address(16), port(PROTOCOL_UDP, 2), vec![accept()]],
                ),
                rule(
                    "iifname p* ip daddr resolver tcp dport 53 accept",
                    [from_pod(), resolver_address(16), port(PROTOCOL_TCP, 2), vec![accept()]],
                ),
                rule("iifname p* icmp type echo-request accept", [from_pod(), echo_request(), vec![accept()]]),
                rule("iifname p* reject with icmpx admin-prohibited", [from_pod(), vec![Expression::Reject]]),
            ],
        },
    ];
    Skeleton { sets, chains }
}

/// The sets' elements: packets may pass between the devices of one network, and from a pod only under its own address.
pub fn elements(picture: &Picture, attachments: &Attachments) -> BTreeSet<Element> {
    let mut elements = BTreeSet::new();
    let mut join = |link: String, vni: u32| {
        elements.insert(Element::Exit { vni, link: link.clone() });
        elements.insert(Element::Member { link, vni });
    };
    for network in picture.networks.values() {
        join(vxlan_name(network.vni), network.vni);
    }
    for (task_id, attachment) in attachments {
        for membership in &attachment.networks {
            if let Some(network) = picture.networks.get(&membership.network_id) {
                join(veth_name(task_id, &membership.network_id), network.vni);
            }
        }
    }
    for (task_id, attachment) in attachments {
        for membership in &attachment.networks {
            elements.insert(Element::Source { link: veth_name(task_id, &membership.network_id), ip: membership.ip });
        }
    }
    elements
}

const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const STATE_ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const FIRST: Register = Register(8);

fn padded(name: &str) -> [u8; NAME_LEN] {
    let mut key = [0; NAME_LEN];
    for (to, from) in key.iter_mut().zip(name.bytes().take(NAME_LEN - 1)) {
        *to = from;
    }
    key
}

fn rule<const N: usize>(text: &str, parts: [Vec<Expression>; N]) -> Rule {
    Rule { text: text.replace("resolver", &RESOLVER.to_string()), expressions: parts.into_iter().flatten().collect() }
}

fn accept() -> Expression {
    Expression::Verdict(Verdict::Accept)
}

fn drop() -> Expression {
    Expression::Verdict(Verdict::Drop)
}

fn equals(value: &[u8]) -> Expression {
    Expression::Compare { register: FIRST, equal: true, value: value.to_vec() }
}

fn name_is(start: &[u8]) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::InputName, into: FIRST }, equals(start)]
}

fn from_pod() -> Vec<Expression> {
    name_is(b"p")
}

fn family(number: u8) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::Family, into: FIRST }, equals(&[number])]
}

fn not_its_source() -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        Expression::Payload { base: Base::Network, offset: 12, len: 4, into: Register(FIRST.0 + 4) },
        Expression::Lookup { set: "sources", key: FIRST, into: None, present: false },
    ]
}

/// `offset`: 12 for the source address, 16 for the destination.
fn resolver_address(offset: u32) -> Vec<Expression> {
    let mut expressions = family(FAMILY_IPV4);
    expressions.push(Expression::Payload { base: Base::Network, offset, len: 4, into: FIRST });
    expressions.push(equals(&RESOLVER.octets()));
    expressions
}

/// `offset`: 0 for the source port, 2 for the destination.
fn port(protocol: u8, offset: u32) -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::Protocol, into: FIRST },
        equals(&[protocol]),
        Expression::Payload { base: Base::Transport, offset, len: 2, into: FIRST },
        equals(&53_u16.to_be_bytes()),
    ]
}

fn echo_request() -> Vec<Expression> {
    let mut expressions = family(FAMILY_IPV4);
    expressions.push(Expression::Meta { key: Meta::Protocol, into: FIRST });
    expressions.push(equals(&[PROTOCOL_ICMP]));
    expressions.push(Expression::Payload { base: Base::Transport, offset: 0, len: 1, into: FIRST });
    expressions.push(equals(&[8]));
    expressions
}

fn established() -> Vec<Expression> {
    vec![
        Expression::ConntrackState { into: FIRST },
        Expression::Mask { register: FIRST, mask: STATE_ESTABLISHED_OR_RELATED },
        Expression::Compare { register: FIRST, equal: false, value: vec![0; 4] },
    ]
}

fn mark_by_input() -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        Expression::Lookup { set: "members", key: FIRST, into: Some(FIRST), present: true },
        Expression::SetMark { from: FIRST },
    ]
}

fn same_network() -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::Mark, into: FIRST },
        Expression::Meta { key: Meta::OutputName, into: Register(FIRST.0 + 1) },
        Expression::Lookup { set: "exits", key: FIRST, into: None, present: true },
        Expression::Load { into: FIRST, value: 0 },
        Expression::SetMark { from: FIRST },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_survive_the_way_through_the_kernel() {
        for element in [
            Element::Source { link: "p0123456789ab".into(), ip: Ipv4Addr::new(10, 128, 0, 2) },
            Element::Member { link: "v4097".into(), vni: 4097 },
            Element::Exit { vni: 4097, link: "v4097".into() },
        ] {
            let (key, data) = element.encode();
            assert_eq!(Element::decode(element.set(), &key, data.as_deref()), Some(element));
        }
    }

    #[test]
    fn the_skeleton_reads_like_this() {
        assert_eq!(
            skeleton().to_string(),
            "table inet rcluster
  set sources [Name, Address] -> None
  set members [Name] -> Some(Mark)
  set exits [Mark, Name] -> None
  chain source hook Prerouting priority -300 policy Accept
    iifname p* meta nfproto ipv6 drop
    iifname p* iifname . ip saddr != @sources drop
    ip daddr 169.254.53.53 udp dport 53 notrack
  chain answer hook Output priority -300 policy Accept
    ip saddr 169.254.53.53 udp sport 53 notrack
  chain forward hook Forward priority 0 policy Drop
    ct state established,related accept
    meta mark set iifname map @members
    meta mark . oifname @exits meta mark set 0 accept
    reject with icmpx admin-prohibited
  chain input hook Input priority 0 policy Drop
    iifname lo accept
    ct state established,related accept
    iifname p* ip daddr 169.254.53.53 udp dport 53 accept
    iifname p* ip daddr 169.254.53.53 tcp dport 53 accept
    iifname p* icmp type echo-request accept
    iifname p* reject with icmpx admin-prohibited
"
        );
    }
}
