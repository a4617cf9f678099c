//! The kernel takes every kind of set, chain and expression that `core::rules` knows, and shows it as it was given.

use std::net::{Ipv4Addr, Ipv6Addr};

use rcluster_netd::core::links::Mac;
use rcluster_netd::core::rules::elements::{Field, Value, encode};
use rcluster_netd::core::rules::expressions::{
    Conntrack, End, Expression, FIRST, Family, Header, Limit, Meta, Register, Rejection, Verdict,
};
use rcluster_netd::core::rules::skeleton::skeleton;
use rcluster_netd::core::rules::{Base, Chain, ChainKind, Data, Filling, Hook, Policy, Rule, Set, Skeleton, TABLE};
use rcluster_netd::kernel::netlink::Netlink;
use rcluster_netd::kernel::nft;

use crate::support::Lab;

static VIPS: Set = Set { name: "vips", key: &[Field::Address], data: Data::Verdict, filling: Filling::Keys };

static BACKENDS: Set =
    Set { name: "backends", key: &[Field::Address, Field::Number], data: Data::Fields(&[Field::Address]), filling: Filling::Keys };

static BEHIND: Set = Set {
    name: "behind",
    key: &[Field::Protocol, Field::Port, Field::Number],
    data: Data::Fields(&[Field::Address, Field::Port]),
    filling: Filling::Keys,
};

static PEERS: Set = Set { name: "peers", key: &[Field::HardwareAddress], data: Data::Fields(&[Field::Mark]), filling: Filling::Keys };

static ALLOWED: Set =
    Set { name: "allowed", key: &[Field::Protocol, Field::Port, Field::Address], data: Data::None, filling: Filling::Intervals };

static HELD6: Set = Set { name: "held6", key: &[Field::Address6], data: Data::None, filling: Filling::Keys };

static FLOOD: Set = Set { name: "flood", key: &[Field::Name], data: Data::None, filling: Filling::Learned { timeout_ms: 10_000 } };

const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

fn address(offset: u32, into: Register) -> Expression {
    Expression::Payload { header: Header::Network, offset, len: 4, into }
}

fn destination_port(into: Register) -> Expression {
    Expression::Payload { header: Header::Transport, offset: 2, len: 2, into }
}

fn compare(equal: bool, value: &[u8]) -> Expression {
    Expression::Compare { register: FIRST, equal, value: value.to_vec() }
}

fn map(set: &'static Set) -> Expression {
    Expression::Lookup { set, key: FIRST, into: Some(FIRST), present: true }
}

fn to_backend(port: Option<Register>) -> Expression {
    Expression::Translate { end: End::Destination, family: Family::Ipv4, address: FIRST, port }
}

fn goes(verdict: Verdict) -> Expression {
    Expression::Verdict(verdict)
}

fn nat(name: &str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = Base { kind: ChainKind::Nat, hook, priority, policy: Policy::Accept };
    Chain { name: name.to_owned(), base: Some(base), rules }
}

fn aside(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: None, rules }
}

fn everything() -> Skeleton {
    let (second, third) = (FIRST.after(1), FIRST.after(2));
    let filter = |name: &str, hook, priority, rules| Chain::filter(name, hook, priority, Policy::Accept, rules);
    let mesh = vec![
        Rule::new(
            "ct mark set ether saddr map @peers",
            [vec![
                Expression::Payload { header: Header::Link, offset: 6, len: 6, into: FIRST },
                map(&PEERS),
                Expression::SetConnectionMark { from: FIRST },
            ]],
        ),
        Rule::new(
            "ct direction reply ct mark & 0xff000000 == 0x01000000 meta mark set ct mark",
            [
                vec![Expression::Conntrack { key: Conntrack::Direction, into: FIRST }, compare(true, &[1])],
                vec![Expression::Conntrack { key: Conntrack::Mark, into: FIRST }],
                vec![Expression::Mask { register: FIRST, mask: 0xff00_0000 }, compare(true, &0x0100_0000_u32.to_ne_bytes())],
                vec![Expression::Conntrack { key: Conntrack::Mark, into: FIRST }, Expression::SetMark { from: FIRST }],
            ],
        ),
    ];
    let guard = vec![Rule::new(
        "meta l4proto . th dport . ip saddr != @allowed goto refuse",
        [vec![
            Expression::Meta { key: Meta::Protocol, into: FIRST },
            destination_port(second),
            address(SOURCE, third),
            Expression::Lookup { set: &ALLOWED, key: FIRST, into: None, present: false },
            goes(Verdict::Goto("refuse".into())),
        ]],
    )];
    let balance = vec![
        Rule::new(
            "fib daddr type local jump p2",
            [
                vec![Expression::DestinationType { into: FIRST }, compare(true, &2_u32.to_ne_bytes())],
                vec![goes(Verdict::Jump("p2".into()))],
            ],
        ),
        Rule::new("jump r2", [vec![goes(Verdict::Jump("r2".into()))]]),
        Rule::new("jump h64", [vec![goes(Verdict::Jump("h64".into()))]]),
        Rule::new(
            "ip daddr vmap @vips",
            [vec![
                address(DESTINATION, FIRST),
                Expression::Lookup { set: &VIPS, key: FIRST, into: Some(Register::VERDICT), present: true },
            ]],
        ),
    ];
    let random = vec![Rule::new(
        "dnat to ip daddr . numgen random mod 2 map @backends",
        [vec![address(DESTINATION, FIRST), Expression::Random { below: 2, into: second }, map(&BACKENDS), to_backend(None)]],
    )];
    let hashed = vec![Rule::new(
        "dnat to ip daddr . jhash ip saddr mod 64 seed 1 map @backends",
        [
            vec![address(DESTINATION, FIRST), address(SOURCE, second)],
            vec![Expression::Hash { from: second, len: 4, below: 64, seed: 1, into: second }, map(&BACKENDS), to_backend(None)],
        ],
    )];
    let with_port = vec![Rule::new(
        "dnat to meta l4proto . th dport . numgen random mod 2 map @behind",
        [vec![
            Expression::Meta { key: Meta::Protocol, into: FIRST },
            destination_port(second),
            Expression::Random { below: 2, into: third },
            map(&BEHIND),
            to_backend(Some(second)),
        ]],
    )];
    let forward = vec![
        Rule::new(
            "ct original ip daddr 169.254.54.2 ct status & dnat != 0 accept",
            [
                vec![Expression::Conntrack { key: Conntrack::OriginalDestination, into: FIRST }, compare(true, &[169, 254, 54, 2])],
                vec![Expression::Conntrack { key: Conntrack::Status, into: FIRST }, Expression::Mask { register: FIRST, mask: 0x20 }],
                vec![compare(false, &[0; 4]), goes(Verdict::Accept)],
            ],
        ),
        Rule::new(
            "ct original ip6 daddr @held6 drop",
            [vec![
                Expression::Conntrack { key: Conntrack::OriginalDestination6, into: FIRST },
                Expression::Lookup { set: &HELD6, key: FIRST, into: None, present: true },
                goes(Verdict::Drop),
            ]],
        ),
        Rule::new("jump policy", [vec![goes(Verdict::Jump("policy".into()))]]),
    ];
    let input = vec![Rule::new(
        "update @flood { iifname limit rate over 20000/second burst 5000 packets } drop",
        [vec![
            Expression::Meta { key: Meta::InputName, into: FIRST },
            Expression::Update { set: &FLOOD, key: FIRST, over: Limit { per_second: 20_000, burst: 5_000 } },
            goes(Verdict::Drop),
        ]],
    )];
    let refuse = vec![
        Rule::new(
            "meta l4proto tcp reject with tcp reset",
            [vec![Expression::Meta { key: Meta::Protocol, into: FIRST }, compare(true, &[6]), Expression::Reject(Rejection::Reset)]],
        ),
        Rule::new("reject with icmpx port-unreachable", [vec![Expression::Reject(Rejection::PortUnreachable)]]),
    ];
    let policy = vec![
        Rule::new("return", [vec![goes(Verdict::Return)]]),
        Rule::new("reject with icmpx host-unreachable", [vec![Expression::Reject(Rejection::HostUnreachable)]]),
    ];
    let leave = vec![
        Rule::new(
            "snat to 169.254.53.53",
            [vec![
                Expression::Load { into: FIRST, value: vec![169, 254, 53, 53] },
                Expression::Translate { end: End::Source, family: Family::Ipv4, address: FIRST, port: None },
            ]],
        ),
        Rule::new("masquerade random-fully", [vec![Expression::Masquerade]]),
    ];
    Skeleton {
        table: TABLE,
        sets: vec![&VIPS, &BACKENDS, &BEHIND, &PEERS, &ALLOWED, &HELD6, &FLOOD],
        chains: vec![
            filter("mesh", Hook::Prerouting, -150, mesh),
            filter("guard", Hook::Prerouting, -120, guard),
            nat("balance", Hook::Prerouting, -100, balance),
            aside("r2", random),
            aside("h64", hashed),
            aside("p2", with_port),
            filter("forward", Hook::Forward, 0, forward),
            aside("refuse", refuse),
            aside("policy", policy),
            filter("input", Hook::Input, 0, input),
            nat("leave", Hook::Postrouting, 100, leave),
        ],
    }
}

#[test]
fn the_kernel_takes_whatever_rules_are_made_of_and_shows_it_as_it_was_given() {
    let lab = Lab::wire(1);
    lab.hosts[0].here(|| {
        let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        for skeleton in [everything(), skeleton()] {
            nft::load(&mut netlink, &skeleton).unwrap();
            let (outline, elements) = nft::observe(&mut netlink).unwrap();
            assert_eq!(outline, skeleton.outline());
            assert_eq!(elements.len(), 0);
        }
    });
}

#[test]
fn rules_are_replaced_with_their_elements_or_not_at_all() {
    let lab = Lab::wire(1);
    lab.hosts[0].here(|| {
        let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        let (old, new) = (entries("r2", 2), entries("h64", 3));
        nft::load_with(&mut netlink, &everything(), &changes(true, &old)).unwrap();
        nft::load_with(&mut netlink, &everything(), &changes(true, &new)).unwrap();
        for (set, key, data) in &new {
            assert_eq!(nft::read(&mut netlink, set).unwrap(), [(key.clone(), data.clone())], "{set}");
        }
        // To a chain that is not there.
        nft::load_with(&mut netlink, &everything(), &changes(true, &entries("nowhere", 4))).unwrap_err();
        for (set, key, data) in &new {
            assert_eq!(nft::read(&mut netlink, set).unwrap(), [(key.clone(), data.clone())], "{set}");
        }
    });
}

#[test]
fn the_kernel_takes_a_transaction_however_large() {
    let lab = Lab::wire(1);
    lab.hosts[0].here(|| {
        let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        nft::load(&mut netlink, &everything()).unwrap();
        // More than the socket's first buffer holds, which the kernel makes twice as large as is asked for.
        let keys: Vec<Vec<u8>> = (0..400_000_u128).map(|number| encode(&[Value::Address6(Ipv6Addr::from(number))])).collect();
        let changes: Vec<nft::Change<'_>> = keys.iter().map(|key| nft::Change { add: true, set: &HELD6, key, data: &[] }).collect();
        nft::change(&mut netlink, &changes).unwrap();
        assert_eq!(nft::read(&mut netlink, &HELD6).unwrap().len(), keys.len());
    });
}

type Entry = (&'static Set, Vec<u8>, Vec<u8>);

/// An element of each shape; the data of maps depend on `chain` and `last`.
fn entries(chain: &str, last: u8) -> Vec<Entry> {
    let ip = |last: u8| Value::Address(Ipv4Addr::new(10, 128, 0, last));
    let from = encode(&[Value::Protocol(6), Value::Port(0), ip(0)]);
    let to = encode(&[Value::Protocol(17), Value::Port(u16::MAX), ip(255)]);
    vec![
        (&VIPS, encode(&[ip(9)]), Verdict::Goto(chain.to_owned()).encode()),
        (&BACKENDS, encode(&[ip(9), Value::Number(0)]), encode(&[ip(last)])),
        (&BEHIND, encode(&[Value::Protocol(17), Value::Port(53), Value::Number(2)]), encode(&[ip(last), Value::Port(5353)])),
        (&PEERS, encode(&[Value::HardwareAddress(Mac([2, 0x76, 10, 90, 0, 102]))]), encode(&[Value::Mark(u32::from(last))])),
        (&ALLOWED, [from, to].concat(), Vec::new()),
        (&HELD6, encode(&[Value::Address6(Ipv6Addr::LOCALHOST)]), Vec::new()),
    ]
}

fn changes(add: bool, entries: &[Entry]) -> Vec<nft::Change<'_>> {
    entries.iter().map(|(set, key, data)| nft::Change { add, set, key, data }).collect()
}

#[test]
fn the_kernel_keeps_elements_of_every_shape_and_replaces_them_in_one_transaction() {
    let lab = Lab::wire(1);
    lab.hosts[0].here(|| {
        let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        nft::load(&mut netlink, &everything()).unwrap();
        let (old, new) = (entries("r2", 2), entries("h64", 3));
        nft::change(&mut netlink, &changes(true, &old)).unwrap();
        for (set, key, data) in &old {
            assert_eq!(nft::read(&mut netlink, set).unwrap(), [(key.clone(), data.clone())], "{set}");
        }
        nft::change(&mut netlink, &[changes(false, &old), changes(true, &new)].concat()).unwrap();
        for (set, key, data) in &new {
            assert_eq!(nft::read(&mut netlink, set).unwrap(), [(key.clone(), data.clone())], "{set}");
        }
        nft::change(&mut netlink, &changes(false, &new)).unwrap();
        for (set, ..) in &new {
            assert_eq!(nft::read(&mut netlink, set).unwrap().len(), 0, "{set}");
        }
    });
}
