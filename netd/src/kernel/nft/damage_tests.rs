//! What the kernel's answers are made of, damaged in many ways: it is read as something or as nothing, never beyond its end or without one.

use proptest::prelude::{any, prop_assert, proptest};
use proptest::sample::Index;

use super::attributes::{Attributes, number, parse, split, text};
use super::encode;
use crate::core::rules::elements::SetName;
use crate::core::rules::skeleton::skeleton;
use crate::kernel::damage::{any_damages, config, damaged};

/// The table as the kernel shows it, and an element of each shape.
fn messages() -> Vec<Vec<u8>> {
    let skeleton = skeleton();
    let table = skeleton.table.name;
    let mut messages: Vec<Vec<u8>> = Vec::new();
    messages.extend(skeleton.sets.iter().map(|set| encode::set(table, set, 1).0));
    for chain in &skeleton.chains {
        messages.push(encode::chain(table, chain).0);
        messages.extend(chain.rules.iter().map(|rule| encode::rule(table, chain, rule).0));
    }
    let value = |bytes: &[u8]| Attributes::new().bytes(1, bytes);
    let verdict = Attributes::new().nested(2, Attributes::new().number(1, 0xffff_fffc).text(2, "refuse"));
    for data in [value(&[10, 128, 0, 2]), verdict] {
        messages.push(Attributes::new().nested(1, value(&[7; 20])).nested(10, value(&[8; 20])).nested(2, data).0);
    }
    messages
}

/// Everything that is read of any message.
fn read(bytes: &[u8]) -> usize {
    let outlines = [encode::set_outline(bytes), encode::chain_outline(bytes), encode::rule_outline(bytes)].concat();
    let elements = SetName::ALL.into_iter().map(|name| encode::element_back(name.set(), bytes));
    let attributes = parse(bytes);
    let numbers = attributes.keys().filter(|kind| number(&attributes, **kind).is_some()).count();
    let texts: usize = attributes.keys().map(|kind| text(&attributes, *kind).len()).sum();
    outlines.len() + elements.map(|(key, data)| key.len() + data.len()).sum::<usize>() + numbers + texts
}

#[test]
fn what_is_not_damaged_is_read() {
    for message in messages() {
        assert!(read(&message) > 0 && !split(&message).is_empty());
    }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn what_is_damaged_is_read_up_to_its_end(message in any::<Index>(), damages in any_damages()) {
        let messages = messages();
        let bytes = damaged(messages[message.index(messages.len())].clone(), &damages);
        let taken: usize = split(&bytes).iter().map(|(_, value)| value.len() + 4).sum();
        prop_assert!(taken <= bytes.len(), "{} of {}", taken, bytes.len());
        // A text may grow where bytes of it are none: three for each.
        prop_assert!(read(&bytes) <= 64 * (bytes.len() + 64));
    }
}
