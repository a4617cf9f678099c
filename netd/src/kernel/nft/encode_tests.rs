//! The expected bytes were worked out from the kernel's headers (`linux/netfilter/nf_tables.h`), word by word, for little-endian hosts.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::core::links::Mac;
use crate::core::rules::elements::{self, Value};
use crate::core::rules::expressions::{End, FIRST, Family, Header};
use crate::core::rules::{ChainKind, Hook, Policy, TABLE};
use crate::kernel::nft::attributes::split;

const ALLOWED_KEY: &[Field] = &[Field::Protocol, Field::Port, Field::Address];

static ALLOWED: Set = Set { name: "allowed", key: ALLOWED_KEY, data: Data::None, filling: Filling::Intervals };

static VIPS: Set = Set { name: "vips", key: &[Field::Address], data: Data::Verdict, filling: Filling::Keys };

static BEHIND: Set = Set {
    name: "behind",
    key: &[Field::Protocol, Field::Port, Field::Number],
    data: Data::Fields(&[Field::Address, Field::Port]),
    filling: Filling::Keys,
};

static PEERS: Set = Set { name: "peers", key: &[Field::HardwareAddress], data: Data::Fields(&[Field::Mark]), filling: Filling::Keys };

static FLOOD: Set = Set { name: "flood", key: &[Field::Name], data: Data::None, filling: Filling::Learned { timeout_ms: 10_000 } };

#[track_caller]
fn check(attributes: &Attributes, expected: &str) {
    let words: Vec<String> = attributes.0.chunks(4).map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    assert_eq!(words.join(" "), expected);
}

#[track_caller]
fn check_expression(step: Expression, expected: &str) {
    check(&expression(&step), expected);
}

#[test]
fn facts_about_packets_are_encoded_as_the_kernel_reads_them() {
    check_expression(
        Expression::Meta { key: Meta::InputName, into: FIRST },
        "09000100 6d657461 00000000 14000280 08000100 00000008 08000200 00000006",
    );
    check_expression(Expression::SetMark { from: FIRST }, "09000100 6d657461 00000000 14000280 08000200 00000003 08000300 00000008");
    check_expression(
        Expression::Payload { header: Header::Link, offset: 6, len: 6, into: FIRST },
        "0c000100 7061796c 6f616400 24000280 08000100 00000008 08000200 00000000 08000300 00000006 08000400 00000006",
    );
    check_expression(
        Expression::DestinationType { into: FIRST },
        "08000100 66696200 1c000280 08000100 00000008 08000200 00000003 08000300 00000002",
    );
    check_expression(
        Expression::WayBack { into: FIRST },
        "08000100 66696200 1c000280 08000100 00000008 08000200 00000001 08000300 00000009",
    );
    check_expression(
        Expression::Load { into: FIRST, value: vec![169, 254, 53, 53] },
        "0e000100 696d6d65 64696174 65000000 18000280 08000100 00000008 0c000280 08000100 a9fe3535",
    );
}

#[test]
fn facts_about_connections_are_encoded_as_the_kernel_reads_them() {
    for (key, expected) in [
        (Conntrack::State, "14000280 08000100 00000008 08000200 00000000"),
        (Conntrack::Direction, "14000280 08000100 00000008 08000200 00000001"),
        (Conntrack::Status, "14000280 08000100 00000008 08000200 00000002"),
        (Conntrack::Mark, "14000280 08000100 00000008 08000200 00000003"),
        (Conntrack::OriginalDestination, "1c000280 08000100 00000008 08000200 00000014 05000300 00000000"),
        (Conntrack::OriginalDestination6, "1c000280 08000100 00000008 08000200 00000016 05000300 00000000"),
    ] {
        check_expression(Expression::Conntrack { key, into: FIRST }, &format!("07000100 63740000 {expected}"));
    }
    check_expression(Expression::SetConnectionMark { from: FIRST }, "07000100 63740000 14000280 08000200 00000003 08000400 00000008");
    check_expression(
        Expression::SetZone { from: FIRST },
        "07000100 63740000 1c000280 08000200 00000011 05000300 00000000 08000400 00000008",
    );
}

#[test]
fn comparisons_are_encoded_as_the_kernel_reads_them() {
    check_expression(
        Expression::Mask { register: FIRST, mask: 0xff00_0000 },
        "0c000100 62697477 69736500 34000280 08000100 00000008 08000200 00000008 08000300 00000004 \
         0c000480 08000100 000000ff 0c000580 08000100 00000000",
    );
    check_expression(
        Expression::Compare { register: FIRST, equal: false, value: b"p".to_vec() },
        "08000100 636d7000 20000280 08000100 00000008 08000200 00000001 0c000380 05000100 70000000",
    );
    check_expression(
        Expression::Lookup { set: &PEERS, key: FIRST, into: None, present: false },
        "0b000100 6c6f6f6b 75700000 20000280 0a000100 70656572 73000000 08000200 00000008 08000500 00000001",
    );
    check_expression(
        Expression::Lookup { set: &VIPS, key: FIRST, into: Some(Register::VERDICT), present: true },
        "0b000100 6c6f6f6b 75700000 28000280 09000100 76697073 00000000 08000200 00000008 08000300 00000000 08000500 00000000",
    );
    check_expression(
        Expression::Update { set: &FLOOD, key: FIRST, over: Limit { per_second: 20_000, burst: 5_000 } },
        "0b000100 64796e73 65740000 64000280 0a000100 666c6f6f 64000000 08000300 00000001 08000400 00000008 \
         44000780 0a000100 6c696d69 74000000 34000280 0c000100 00000000 00004e20 0c000200 00000000 00000001 \
         08000300 00001388 08000400 00000000 08000500 00000001",
    );
    check_expression(
        Expression::Over(Limit { per_second: 80_000, burst: 20_000 }),
        "0a000100 6c696d69 74000000 34000280 0c000100 00000000 00013880 0c000200 00000000 00000001 08000300 00004e20 \
         08000400 00000000 08000500 00000001",
    );
}

#[test]
fn choices_and_translations_are_encoded_as_the_kernel_reads_them() {
    check_expression(
        Expression::Random { below: 3, into: FIRST.after(1) },
        "0b000100 6e756d67 656e0000 1c000280 08000100 00000009 08000200 00000003 08000300 00000001",
    );
    check_expression(
        Expression::Hash { from: FIRST, len: 4, below: 64, seed: 0x7263_6c72, into: FIRST.after(1) },
        "09000100 68617368 00000000 34000280 08000100 00000008 08000200 00000009 08000300 00000004 \
         08000400 00000040 08000500 72636c72 08000700 00000000",
    );
    check_expression(
        Expression::Translate { end: End::Destination, family: Family::Ipv4, address: FIRST, port: Some(FIRST.after(1)) },
        "08000100 6e617400 24000280 08000100 00000001 08000200 00000002 08000300 00000008 08000500 00000009",
    );
    check_expression(
        Expression::Translate { end: End::Source, family: Family::Ipv6, address: FIRST, port: None },
        "08000100 6e617400 1c000280 08000100 00000000 08000200 0000000a 08000300 00000008",
    );
    check_expression(Expression::Masquerade, "09000100 6d617371 00000000 0c000280 08000100 00000010");
}

#[test]
fn verdicts_are_encoded_as_the_kernel_reads_them() {
    for (verdict, expected) in [
        (Verdict::Drop, "1c000280 08000100 00000000 10000280 0c000280 08000100 00000000"),
        (Verdict::Accept, "1c000280 08000100 00000000 10000280 0c000280 08000100 00000001"),
        (Verdict::Return, "1c000280 08000100 00000000 10000280 0c000280 08000100 fffffffb"),
        (Verdict::Jump("policy".into()), "28000280 08000100 00000000 1c000280 18000280 08000100 fffffffd 0b000200 706f6c69 63790000"),
        (Verdict::Goto("refuse".into()), "28000280 08000100 00000000 1c000280 18000280 08000100 fffffffc 0b000200 72656675 73650000"),
    ] {
        check_expression(Expression::Verdict(verdict), &format!("0e000100 696d6d65 64696174 65000000 {expected}"));
    }
    for (rejection, expected) in [
        (Rejection::PortUnreachable, "14000280 08000100 00000002 05000200 01000000"),
        (Rejection::HostUnreachable, "14000280 08000100 00000002 05000200 02000000"),
        (Rejection::AdminProhibited, "14000280 08000100 00000002 05000200 03000000"),
        (Rejection::Reset, "0c000280 08000100 00000001"),
    ] {
        check_expression(Expression::Reject(rejection), &format!("0b000100 72656a65 63740000 {expected}"));
    }
    check_expression(Expression::Untrack, "0c000100 6e6f7472 61636b00 04000280");
}

#[test]
fn sets_are_encoded_as_the_kernel_reads_them() {
    let table = "0d000100 72636c75 73746572 00000000";
    check(
        &set(TABLE.name, &ALLOWED, 1),
        &format!(
            "{table} 0c000200 616c6c6f 77656400 08000300 00000084 08000400 0000c347 08000500 0000000c 08000a00 00000001 \
             2c000980 28000280 0c000180 08000100 00000001 0c000180 08000100 00000002 0c000180 08000100 00000004"
        ),
    );
    check(
        &set(TABLE.name, &VIPS, 2),
        &format!(
            "{table} 09000200 76697073 00000000 08000300 00000008 08000400 00000007 08000500 00000004 08000a00 00000002 \
             08000600 ffffff00"
        ),
    );
    check(
        &set(TABLE.name, &BEHIND, 3),
        &format!(
            "{table} 0b000200 62656869 6e640000 08000300 00000008 08000400 0000c344 08000500 0000000c 08000a00 00000003 \
             08000600 000001cd 08000700 00000008"
        ),
    );
    check(
        &set(TABLE.name, &FLOOD, 4),
        &format!(
            "{table} 0a000200 666c6f6f 64000000 08000300 00000030 08000400 00000029 08000500 00000010 08000a00 00000004 \
             0c000b00 00000000 00002710"
        ),
    );
}

#[test]
fn chains_are_encoded_as_the_kernel_reads_them() {
    let table = "0d000100 72636c75 73746572 00000000";
    let base = Base { kind: ChainKind::Nat, hook: Hook::Prerouting, priority: -100, policy: Policy::Accept };
    let balance = Chain { name: "balance".into(), base: Some(base), rules: Vec::new() };
    check(
        &chain(TABLE.name, &balance),
        &format!("{table} 0c000300 62616c61 6e636500 14000480 08000100 00000000 08000200 ffffff9c 08000500 00000001 08000700 6e617400"),
    );
    let refuse = Chain { name: "refuse".into(), base: None, rules: Vec::new() };
    check(&chain(TABLE.name, &refuse), &format!("{table} 0b000300 72656675 73650000"));
}

#[test]
fn what_the_kernel_says_of_sets_and_chains_is_their_outline() {
    for (of, expected) in [
        (&ALLOWED, "allowed key 12 data 0 flags 132"),
        (&VIPS, "vips key 4 data 0 flags 8"),
        (&BEHIND, "behind key 12 data 8 flags 8"),
        (&PEERS, "peers key 8 data 4 flags 8"),
        (&FLOOD, "flood key 16 data 0 flags 48"),
    ] {
        assert_eq!(set_outline(&set(TABLE.name, of, 1).0), expected);
        assert_eq!(set_line(of.name, of.key_len(), of.data_len(), of.flags()), expected);
    }
    // The kernel adds the size of its own verdicts.
    assert_eq!(set_outline(&set(TABLE.name, &VIPS, 1).number(7, 16).0), "vips key 4 data 0 flags 8");
    let base = Base { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: 100, policy: Policy::Accept };
    for base in [Some(base), None] {
        let of = Chain { name: "leave".into(), base, rules: Vec::new() };
        let expected = if base.is_some() { "leave nat hook 4 priority 100 policy 1" } else { "leave" };
        assert_eq!(chain_outline(&chain(TABLE.name, &of).0), expected);
    }
}

#[test]
fn elements_are_encoded_as_the_kernel_reads_them() {
    let tcp = |last: Ipv4Addr| elements::encode(&[Value::Protocol(6), Value::Port(80), Value::Address(last)]);
    let span = [tcp(Ipv4Addr::new(10, 0, 0, 0)), tcp(Ipv4Addr::new(10, 255, 255, 255))].concat();
    check(
        &element(&ALLOWED, &span, Some(&[])),
        "14000180 10000100 06000000 00500000 0a000000 14000a80 10000100 06000000 00500000 0affffff",
    );
    assert_eq!(elements::in_words(&ALLOWED, &span, &[]), "6 . 80 . 10.0.0.0-10.255.255.255");

    let vip = elements::encode(&[Value::Address(Ipv4Addr::new(10, 128, 0, 9))]);
    let chain = Verdict::Goto("r3".into()).encode();
    check(&element(&VIPS, &vip, Some(&chain)), "0c000180 08000100 0a800009 18000280 14000280 08000100 fffffffc 07000200 72330000");
    check(&element(&VIPS, &vip, None), "0c000180 08000100 0a800009");
    assert_eq!(elements::in_words(&VIPS, &vip, &chain), "10.128.0.9 : goto r3");

    let slot = elements::encode(&[Value::Protocol(6), Value::Port(80), Value::Number(2)]);
    let backend = elements::encode(&[Value::Address(Ipv4Addr::new(10, 128, 0, 7)), Value::Port(8080)]);
    check(&element(&BEHIND, &slot, Some(&backend)), "14000180 10000100 06000000 00500000 02000000 10000280 0c000100 0a800007 1f900000");
    assert_eq!(elements::in_words(&BEHIND, &slot, &backend), "6 . 80 . 2 : 10.128.0.7 . 8080");

    let peer = elements::encode(&[Value::HardwareAddress(Mac([2, 0x76, 10, 90, 0, 0x66]))]);
    let node = elements::encode(&[Value::Mark(0x0100_0002)]);
    check(&element(&PEERS, &peer, Some(&node)), "10000180 0c000100 02760a5a 00660000 0c000280 08000100 02000001");
    assert_eq!(elements::in_words(&PEERS, &peer, &node), "02:76:0a:5a:00:66 : 16777218");
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        "[a-z0-9]{1,15}".prop_map(Value::Name),
        any::<u32>().prop_map(|bits| Value::Address(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| Value::Address6(Ipv6Addr::from_bits(bits))),
        any::<[u8; 6]>().prop_map(|bytes| Value::HardwareAddress(Mac(bytes))),
        any::<u8>().prop_map(Value::Protocol),
        any::<u16>().prop_map(Value::Port),
        any::<u32>().prop_map(Value::Mark),
        any::<u32>().prop_map(Value::Number),
    ]
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Drop),
        Just(Verdict::Accept),
        Just(Verdict::Return),
        "[a-z0-9]{1,8}".prop_map(Verdict::Jump),
        "[a-z0-9]{1,8}".prop_map(Verdict::Goto),
    ]
}

/// Values, and the shape of a key or of data in which they stand; it lives as long as the tests.
fn any_values() -> impl Strategy<Value = (&'static [Field], Vec<u8>)> {
    proptest::collection::vec(any_value(), 1..5).prop_map(|values| {
        let fields: Vec<Field> = values.iter().map(Value::field).collect();
        let bytes = elements::encode(&values);
        assert_eq!(elements::decode(&fields, &bytes), values.into_iter().map(Some).collect::<Vec<_>>());
        (&*fields.leak(), bytes)
    })
}

fn any_data() -> impl Strategy<Value = (Data, Vec<u8>)> {
    prop_oneof![
        Just((Data::None, Vec::<u8>::new())),
        any_values().prop_map(|(fields, bytes)| (Data::Fields(fields), bytes)),
        any_verdict().prop_map(|verdict| (Data::Verdict, verdict.encode())),
    ]
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

    #[test]
    fn elements_survive_the_way_through_the_kernel(
        (fields, key) in any_values(),
        (data, bytes) in any_data(),
        spans in any::<bool>(),
        of_several in 1_usize..4,
    ) {
        let filling = if spans { Filling::Intervals } else { Filling::Keys };
        let set = Set { name: "any", key: fields, data, filling };
        let key = if spans { key.repeat(2) } else { key };
        let list = (0..of_several).fold(Attributes::new(), |list, _| list.nested(1, element(&set, &key, Some(&bytes))));
        let back: Vec<_> = split(&list.0).into_iter().map(|(_, element)| element_back(&set, element)).collect();
        prop_assert_eq!(back, vec![(key, bytes); of_several]);
    }

    #[test]
    fn what_is_no_element_does_no_harm(garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
        for set in [&ALLOWED, &VIPS, &BEHIND, &PEERS, &FLOOD] {
            let (key, data) = element_back(set, &garbage);
            elements::in_words(set, &key, &data);
            set_outline(&garbage);
            chain_outline(&garbage);
            rule_outline(&garbage);
        }
    }
}
