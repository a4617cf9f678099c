//! Sets, chains, rules and elements as nf_tables' attributes; and elements and outlines back from them.

use super::attributes::{Attributes, number, parse, text};
use crate::core::rules::elements::Field;
use crate::core::rules::expressions::{Conntrack, Expression, Limit, Meta, Register, Rejection, Verdict};
use crate::core::rules::{Base, Chain, Data, Filling, Rule, Set, chain_line, set_line};

/// The type of a map's data when they are verdicts.
const DATA_VERDICT: u32 = 0xffff_ff00;

/// The direction of a connection's first packet.
const ORIGINAL: u8 = 0;

/// A set of a table; `id` is its number in the transaction.
pub fn set(table: &str, set: &Set, id: u32) -> Attributes {
    let attributes = Attributes::new()
        .text(1, table)
        .text(2, set.name)
        .number(3, set.flags())
        .number(4, kinds(set.key))
        .number(5, len(set.key_len()))
        .number(10, id);
    let attributes = match set.data {
        Data::None => attributes,
        Data::Fields(fields) => attributes.number(6, kinds(fields)).number(7, len(set.data_len())),
        Data::Verdict => attributes.number(6, DATA_VERDICT),
    };
    match set.filling {
        Filling::Keys => attributes,
        Filling::Intervals => {
            let field = |list: Attributes, field: &Field| list.nested(1, Attributes::new().number(1, len(field.bytes())));
            attributes.nested(9, Attributes::new().nested(2, set.key.iter().fold(Attributes::new(), field)))
        }
        Filling::Learned { timeout_ms } => attributes.long_number(11, timeout_ms),
    }
}

/// A set's line in the outline, by what the kernel says of it.
pub fn set_outline(message: &[u8]) -> String {
    let attributes = parse(message);
    let bytes = |kind| number(&attributes, kind).unwrap_or_default() as usize;
    // The kernel tells the size of its own form of a verdict.
    let data_len = if number(&attributes, 6) == Some(DATA_VERDICT) { 0 } else { bytes(7) };
    set_line(&text(&attributes, 2), bytes(5), data_len, number(&attributes, 3).unwrap_or_default())
}

fn kinds(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |kinds, field| kinds << 6 | field.kind())
}

fn len(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a key is a few registers")
}

/// A chain of a table without its rules.
pub fn chain(table: &str, chain: &Chain) -> Attributes {
    let attributes = Attributes::new().text(1, table).text(3, &chain.name);
    match chain.base {
        Some(Base { kind, hook, priority, policy }) => {
            let hook = Attributes::new().number(1, hook as u32).number(2, priority.cast_unsigned());
            attributes.nested(4, hook).number(5, policy as u32).text(7, kind.word())
        }
        None => attributes,
    }
}

/// A chain's line in the outline, by what the kernel says of it.
pub fn chain_outline(message: &[u8]) -> String {
    let attributes = parse(message);
    let kind = text(&attributes, 7);
    let base = attributes.get(&4).map(|hook| {
        let hook = parse(hook);
        (
            kind.as_str(),
            number(&hook, 1).unwrap_or(u32::MAX),
            number(&hook, 2).unwrap_or_default().cast_signed(),
            number(&attributes, 5).unwrap_or(u32::MAX),
        )
    });
    chain_line(&text(&attributes, 3), base)
}

/// A rule of a table's chain.
pub fn rule(table: &str, chain: &Chain, rule: &Rule) -> Attributes {
    let expressions = rule.expressions.iter().fold(Attributes::new(), |list, step| list.nested(1, expression(step)));
    Attributes::new().text(1, table).text(2, &chain.name).nested(4, expressions).bytes(7, rule.text.as_bytes())
}

/// A rule's line in the outline, by what the kernel says of it.
pub fn rule_outline(message: &[u8]) -> String {
    let attributes = parse(message);
    let comment = attributes.get(&7).map(|bytes| String::from_utf8_lossy(bytes)).unwrap_or_default();
    format!("{}: {comment}", text(&attributes, 2))
}

/// One step of a rule: its name and its data.
pub fn expression(expression: &Expression) -> Attributes {
    let (name, data) = match expression {
        Expression::Meta { key, into } => ("meta", Attributes::new().number(1, into.0).number(2, *key as u32)),
        Expression::SetMark { from } => ("meta", Attributes::new().number(2, Meta::Mark as u32).number(3, from.0)),
        Expression::Payload { header, offset, len, into } => {
            ("payload", Attributes::new().number(1, into.0).number(2, *header as u32).number(3, *offset).number(4, *len))
        }
        Expression::Conntrack { key, into } => ("ct", conntrack(*key, *into)),
        Expression::SetConnectionMark { from } => ("ct", Attributes::new().number(2, Conntrack::Mark as u32).number(4, from.0)),
        Expression::SetZone { from } => ("ct", Attributes::new().number(2, Conntrack::Zone as u32).bytes(3, &[ORIGINAL]).number(4, from.0)),
        Expression::DestinationType { into } => {
            let (address_type, by_destination) = (3, 2);
            ("fib", Attributes::new().number(1, into.0).number(2, address_type).number(3, by_destination))
        }
        Expression::WayBack { into } => {
            let (device, by_source_and_input) = (1, 1 | 8);
            ("fib", Attributes::new().number(1, into.0).number(2, device).number(3, by_source_and_input))
        }
        Expression::Mask { register, mask } => {
            let data = Attributes::new().number(1, register.0).number(2, register.0).number(3, 4);
            ("bitwise", data.nested(4, value(&mask.to_ne_bytes())).nested(5, value(&[0; 4])))
        }
        Expression::Compare { register, equal, value: bytes } => {
            ("cmp", Attributes::new().number(1, register.0).number(2, u32::from(!equal)).nested(3, value(bytes)))
        }
        Expression::Lookup { set, key, into, present } => {
            let data = Attributes::new().text(1, set.name).number(2, key.0);
            let data = into.iter().fold(data, |data, into| data.number(3, into.0));
            ("lookup", data.number(5, u32::from(!present)))
        }
        Expression::Update { set, key, over } => {
            let update = 1;
            let data = Attributes::new().text(1, set.name).number(3, update).number(4, key.0);
            ("dynset", data.nested(7, Attributes::new().text(1, "limit").nested(2, limit_exceeded(*over))))
        }
        Expression::Load { into, value: bytes } => ("immediate", Attributes::new().number(1, into.0).nested(2, value(bytes))),
        Expression::Random { below, into } => {
            let random = 1;
            ("numgen", Attributes::new().number(1, into.0).number(2, *below).number(3, random))
        }
        Expression::Hash { from, len, below, seed, into } => {
            let jenkins = 0;
            let data = Attributes::new().number(1, from.0).number(2, into.0).number(3, *len).number(4, *below);
            ("hash", data.number(5, *seed).number(7, jenkins))
        }
        Expression::Translate { end, family, address, port } => {
            let data = Attributes::new().number(1, *end as u32).number(2, *family as u32).number(3, address.0);
            ("nat", port.iter().fold(data, |data, port| data.number(5, port.0)))
        }
        Expression::Over(limit) => ("limit", limit_exceeded(*limit)),
        Expression::Masquerade => {
            let random_fully = 16;
            ("masq", Attributes::new().number(1, random_fully))
        }
        Expression::Verdict(into) => ("immediate", Attributes::new().number(1, Register::VERDICT.0).nested(2, verdict(into))),
        Expression::Reject(rejection) => ("reject", reject(*rejection)),
        Expression::Untrack => ("notrack", Attributes::new()),
    };
    Attributes::new().text(1, name).nested(2, data)
}

fn conntrack(key: Conntrack, into: Register) -> Attributes {
    let data = Attributes::new().number(1, into.0).number(2, key as u32);
    match key {
        Conntrack::State | Conntrack::Direction | Conntrack::Status | Conntrack::Mark | Conntrack::Zone => data,
        Conntrack::OriginalDestination | Conntrack::OriginalDestination6 => data.bytes(3, &[ORIGINAL]),
    }
}

fn limit_exceeded(limit: Limit) -> Attributes {
    let (second, packets, inverted) = (1, 0, 1);
    Attributes::new().long_number(1, limit.per_second).long_number(2, second).number(3, limit.burst).number(4, packets).number(5, inverted)
}

fn reject(rejection: Rejection) -> Attributes {
    let (reset, for_both_families) = (1, 2);
    let code = match rejection {
        Rejection::Reset => return Attributes::new().number(1, reset),
        Rejection::PortUnreachable => 1,
        Rejection::HostUnreachable => 2,
        Rejection::AdminProhibited => 3,
    };
    Attributes::new().number(1, for_both_families).bytes(2, &[code])
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}

fn verdict(verdict: &Verdict) -> Attributes {
    let data = Attributes::new().number(1, verdict.code().cast_unsigned());
    Attributes::new().nested(2, verdict.chain().into_iter().fold(data, |data, chain| data.text(2, chain)))
}

/// An element of a set of this shape; without `data` its key alone, as a removal names it.
pub fn element(set: &Set, key: &[u8], data: Option<&[u8]>) -> Attributes {
    let (first, last) = set.bounds(key);
    let element = Attributes::new().nested(1, value(first));
    let element = last.into_iter().fold(element, |element, last| element.nested(10, value(last)));
    match (set.data, data) {
        (Data::None, _) | (_, None) => element,
        (Data::Fields(_), Some(data)) => element.nested(2, value(data)),
        (Data::Verdict, Some(data)) => Verdict::decode(data).into_iter().fold(element, |element, into| element.nested(2, verdict(&into))),
    }
}

/// The key and the data of an element of a set of this shape.
pub fn element_back(set: &Set, element: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let attributes = parse(element);
    let inner = |kind, part| attributes.get(&kind).and_then(|data| parse(data).remove(&part)).unwrap_or_default();
    let first = inner(1, 1);
    let key = match set.filling {
        Filling::Keys | Filling::Learned { .. } => first.to_vec(),
        Filling::Intervals if attributes.contains_key(&10) => [first, inner(10, 1)].concat(),
        Filling::Intervals => [first, first].concat(),
    };
    let data = match set.data {
        Data::None => Vec::new(),
        Data::Fields(_) => inner(2, 1).to_vec(),
        Data::Verdict => {
            let verdict = parse(inner(2, 2));
            [&number(&verdict, 1).unwrap_or(u32::MAX).to_be_bytes()[..], text(&verdict, 2).as_bytes()].concat()
        }
    };
    (key, data)
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
