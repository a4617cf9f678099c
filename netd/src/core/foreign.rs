//! Questions about names that are not ours, and what other resolvers answer, as bytes.
//!
//! Decides: who is asked (`resolvers`), with what (`Question::query`), what is believed to be an answer (`Question::is_answered_by`), for how
//! long it may be remembered (`lifetime`), and what the asker gets of it (`Question::answer`). In: a request that was read already, a
//! resolv.conf(5), datagrams. Out: bytes. Never: looks into an answer's data beyond an SOA's last number, follows a pointer, or lets
//! through what is no answer to this question by the one who was asked.
//!
//! Sources: RFC 1035 §4.1 (format), 2181 §8 (TTLs), 2308 (negative answers, dead servers), 5452 §9 (what an answer has to match), 6891 (EDNS; the
//! record of an answer is passed on because what we ask is what we were asked), 9520 (failures are remembered).

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::links::RESOLVER;

const DNS_PORT: u16 = 53;

/// Resolvers that are asked: as many as other programs take of a resolv.conf.
pub const RESOLVERS_MAX: usize = 3;

/// What fits every path without fragments.
const UDP_BYTES_MAX: u16 = 1232;

const HEADER_BYTES: usize = 12;

const CLASS_IN: u16 = 1;

const TYPE_SOA: u16 = 6;

const TYPE_OPT: u16 = 41;

/// In the header's third byte.
const IS_RESPONSE: u8 = 0x80;
const OP_CODE: u8 = 0x78;
const IS_CUT: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;

/// In the header's fourth byte.
const RECURSION_AVAILABLE: u8 = 0x80;
const AUTHENTIC_DATA: u8 = 0x20;
const CHECKING_DISABLED: u8 = 0x10;
const RESPONSE_CODE: u8 = 0x0f;

/// In an OPT record's TTL.
const DNSSEC_OK: u16 = 0x8000;

const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;

/// The response code of an answer that nobody gave.
pub const SERVER_FAILURE: u8 = 2;

const LIFETIME_MAX: Duration = Duration::from_secs(3600);
const NEGATIVE_LIFETIME_MAX: Duration = Duration::from_secs(5);
const FAILURE_LIFETIME: Duration = Duration::from_secs(2);

/// A question, and how its asker wants it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub id: u16,
    pub recursion_desired: bool,
    /// The header's fourth byte.
    pub flags: u8,
    /// The labels with their lengths as the asker spells them, the root last.
    pub name: Vec<u8>,
    pub kind: u16,
    /// Whether the asker wants signatures; `None` if it does not speak EDNS.
    pub dnssec_ok: Option<bool>,
    /// Bytes that the asker takes.
    pub bytes_max: usize,
}

/// What questions have in common that have the same answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Lower case.
    name: Vec<u8>,
    kind: u16,
    flags: u8,
    dnssec_ok: Option<bool>,
    /// Who is asked; none: the host's resolvers.
    resolvers: Arc<[SocketAddr]>,
}

/// One record of a message.
struct Record {
    /// 0: answer, 1: authority, 2: additional.
    section: usize,
    kind: u16,
    ttl_at: usize,
    data: Range<usize>,
}

/// The resolvers that a resolv.conf(5) names, in its order. Not our own address, which would lead back here, nor addresses with a zone.
pub fn resolvers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(word)) = (words.next(), words.next()) else { return None };
        word.parse().ok()
    });
    at(named)
}

/// Where the resolvers with these addresses are asked, each once, and not our own.
pub fn at(addresses: impl Iterator<Item = IpAddr>) -> Vec<SocketAddr> {
    let mut resolvers: Vec<SocketAddr> = Vec::new();
    for ip in addresses {
        let resolver = SocketAddr::from((ip, DNS_PORT));
        if ip != IpAddr::V4(RESOLVER) && !ip.is_unspecified() && !resolvers.contains(&resolver) {
            resolvers.push(resolver);
        }
    }
    resolvers.truncate(RESOLVERS_MAX);
    resolvers
}

/// Whether others are asked for records of this type: not for what is between two servers only (transfers, keys), or stands in no zone.
pub fn is_asked_for(kind: u16) -> bool {
    !matches!(kind, 0 | TYPE_OPT | 249..=254)
}

impl Question {
    /// By what it is remembered when these are asked; none: the host's resolvers.
    pub fn key(&self, resolvers: &Arc<[SocketAddr]>) -> Key {
        let flags = self.flags & (AUTHENTIC_DATA | CHECKING_DISABLED);
        Key { name: self.name.to_ascii_lowercase(), kind: self.kind, flags, dnssec_ok: self.dnssec_ok, resolvers: resolvers.clone() }
    }

    /// The message for another resolver.
    pub fn query(&self, id: u16) -> Vec<u8> {
        self.message(id, [RECURSION_DESIRED, self.flags & (AUTHENTIC_DATA | CHECKING_DISABLED)])
    }

    /// Whether what came from `from` is the answer of `resolver`, who was asked with this id.
    pub fn is_answered_by(&self, id: u16, resolver: SocketAddr, from: SocketAddr, bytes: &[u8]) -> bool {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return false };
        let asked = self.section();
        (from.ip(), from.port()) == (resolver.ip(), resolver.port())
            && header[..2] == id.to_be_bytes()
            && header[2] & (IS_RESPONSE | OP_CODE) == IS_RESPONSE
            && header[4..6] == [0, 1]
            // A length is below 64 and so no letter.
            && bytes[HEADER_BYTES..].get(..asked.len()).is_some_and(|question| question.eq_ignore_ascii_case(&asked))
            && records(bytes).is_some()
    }

    /// What the asker gets of an answer to such a question: its own id and spelling, records that are `age` older, and without them if it
    /// cannot take so much.
    pub fn answer(&self, answer: &[u8], age: Duration) -> Vec<u8> {
        let (Some(header), Some(records)) = (answer.first_chunk::<HEADER_BYTES>(), records(answer)) else {
            return self.bare(SERVER_FAILURE, false);
        };
        if answer.len() > self.bytes_max {
            return self.bare(header[3] & RESPONSE_CODE, true);
        }
        let mut bytes = answer.to_vec();
        bytes[..2].copy_from_slice(&self.id.to_be_bytes());
        bytes[2] = self.first_flags() | header[2] & IS_CUT;
        bytes[3] = self.second_flags() | header[3] & (AUTHENTIC_DATA | RESPONSE_CODE);
        if let Some(spelling) = bytes.get_mut(HEADER_BYTES..HEADER_BYTES + self.name.len()) {
            spelling.copy_from_slice(&self.name);
        }
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for record in records.iter().filter(|record| record.kind != TYPE_OPT) {
            let ttl = ttl(answer, record).saturating_sub(age);
            bytes[record.ttl_at..record.ttl_at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        bytes
    }

    /// An answer without records.
    pub fn bare(&self, response_code: u8, is_cut: bool) -> Vec<u8> {
        let cut = if is_cut { IS_CUT } else { 0 };
        self.message(self.id, [self.first_flags() | cut, self.second_flags() | response_code])
    }

    fn first_flags(&self) -> u8 {
        IS_RESPONSE | if self.recursion_desired { RECURSION_DESIRED } else { 0 }
    }

    fn second_flags(&self) -> u8 {
        RECURSION_AVAILABLE | self.flags & CHECKING_DISABLED
    }

    /// The question and, for who speaks EDNS, our side of that.
    fn message(&self, id: u16, flags: [u8; 2]) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend(flags);
        bytes.extend([0, 1, 0, 0, 0, 0, 0, u8::from(self.dnssec_ok.is_some())]);
        bytes.extend(self.section());
        if let Some(dnssec_ok) = self.dnssec_ok {
            let flags = if dnssec_ok { DNSSEC_OK } else { 0 };
            bytes.push(0);
            for number in [TYPE_OPT, UDP_BYTES_MAX, 0, flags, 0] {
                bytes.extend(number.to_be_bytes());
            }
        }
        bytes
    }

    /// The message's question section.
    fn section(&self) -> Vec<u8> {
        [self.name.as_slice(), &self.kind.to_be_bytes(), &CLASS_IN.to_be_bytes()].concat()
    }
}

/// Whether an answer says that there is more of it than a datagram holds.
pub fn is_cut(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & IS_CUT != 0)
}

/// Whether an answer settles the question: the records, or that there are none. Another resolver may know better than to fail.
pub fn is_settled(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| matches!(flags & RESPONSE_CODE, NO_ERROR | NO_SUCH_NAME))
}

/// How long an answer may be remembered; `None` if not at all.
pub fn lifetime(answer: &[u8]) -> Option<Duration> {
    if is_cut(answer) {
        return None;
    }
    if !is_settled(answer) {
        return Some(FAILURE_LIFETIME);
    }
    let records = records(answer)?;
    let lowest = records.iter().filter(|record| record.kind != TYPE_OPT).map(|record| ttl(answer, record)).min()?;
    let soa = records.iter().find(|record| record.section == 1 && record.kind == TYPE_SOA);
    let lifetime = match soa {
        // Its last number is for how long "no" holds.
        Some(soa) => {
            let minimum = answer.get(soa.data.end.checked_sub(4)?..soa.data.end)?.first_chunk()?;
            Duration::from_secs(lowest.min(u32::from_be_bytes(*minimum)).into()).min(NEGATIVE_LIFETIME_MAX)
        }
        None if records.iter().any(|record| record.section == 0) => Duration::from_secs(lowest.into()).min(LIFETIME_MAX),
        // Who says no and not for how long.
        None => return None,
    };
    Some(lifetime).filter(|lifetime| !lifetime.is_zero())
}

/// A record's TTL; one with the highest bit is none.
fn ttl(message: &[u8], record: &Record) -> u32 {
    let bytes = message.get(record.ttl_at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    i32::from_be_bytes(bytes).max(0).cast_unsigned()
}

/// A message's records; `None` if it does not hold as many as it says.
fn records(message: &[u8]) -> Option<Vec<Record>> {
    let mut at = HEADER_BYTES;
    for _ in 0..number(message, 4)? {
        at = after_name(message, at)? + 4;
    }
    let mut records = Vec::new();
    for section in 0..3 {
        for _ in 0..number(message, 6 + 2 * section)? {
            let name_end = after_name(message, at)?;
            let data = name_end + 10..name_end + 10 + usize::from(number(message, name_end + 8)?);
            message.get(data.clone())?;
            at = data.end;
            records.push(Record { section, kind: number(message, name_end)?, ttl_at: name_end + 4, data });
        }
    }
    Some(records)
}

/// Where the name at `at` ends: at the root, or with a pointer to where it goes on.
pub fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            label @ 1..=63 => at += 1 + usize::from(label),
            192.. => return Some(at + 2),
            64..=191 => return None,
        }
    }
}

/// Two bytes as a number.
pub fn number(message: &[u8], at: usize) -> Option<u16> {
    message.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    const RESOLVER_ASKED: &str = "192.0.2.53:53";

    fn name(text: &str) -> Vec<u8> {
        let labels = text.split('.').filter(|label| !label.is_empty());
        labels.flat_map(|label| [vec![u8::try_from(label.len()).unwrap()], label.into()].concat()).chain([0]).collect()
    }

    fn question(text: &str) -> Question {
        Question { id: 7, recursion_desired: true, flags: 0, name: name(text), kind: 1, dnssec_ok: None, bytes_max: 512 }
    }

    /// One record, its name a pointer to the question's.
    fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let len = u16::try_from(data.len()).unwrap();
        [&[0xc0, 12][..], &kind.to_be_bytes(), &CLASS_IN.to_be_bytes(), &ttl.to_be_bytes(), &len.to_be_bytes(), data].concat()
    }

    /// An answer to `question` with these records as answers and as authority.
    fn answer(question: &Question, code: u8, answers: &[Vec<u8>], authority: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = question.message(99, [IS_RESPONSE, RECURSION_AVAILABLE | code]);
        bytes[7] = u8::try_from(answers.len()).unwrap();
        bytes[9] = u8::try_from(authority.len()).unwrap();
        bytes.extend(answers.concat());
        bytes.extend(authority.concat());
        bytes
    }

    fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
        let numbers = [1, 2, 3, 4, minimum].map(u32::to_be_bytes).concat();
        record(TYPE_SOA, ttl, &[name("a.example"), name("b.example"), numbers].concat())
    }

    #[test]
    fn the_hosts_resolvers_are_asked_but_never_ourselves() {
        let check = |text: &str, expected: &str| {
            let resolvers = resolvers(text);
            assert_eq!(resolvers.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" "), expected, "{text}");
        };
        check("", "");
        check("# nameserver 192.0.2.1\nsearch example.com\nnameserver 192.0.2.2 # first\n", "192.0.2.2:53");
        check("nameserver 127.0.0.53\noptions edns0 trust-ad", "127.0.0.53:53");
        check("nameserver 169.254.53.53\nnameserver 2001:db8::1\nnameserver 0.0.0.0\nnameserver fe80::1%eth0", "[2001:db8::1]:53");
        check(
            "nameserver 1.1.1.1\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4",
            "1.1.1.1:53 2.2.2.2:53 3.3.3.3:53",
        );
    }

    #[test]
    fn only_the_answer_to_this_question_from_the_one_who_was_asked_is_believed() {
        let asked = question("www.Example.com");
        let right = answer(&asked, NO_ERROR, &[record(1, 60, &[192, 0, 2, 7])], &[]);
        let resolver: SocketAddr = RESOLVER_ASKED.parse().unwrap();
        let believed = |from: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = right.clone();
            change(&mut bytes);
            asked.is_answered_by(99, resolver, from.parse().unwrap(), &bytes)
        };
        assert!(believed(RESOLVER_ASKED, &|_| {}));
        assert!(believed(RESOLVER_ASKED, &|bytes| bytes[HEADER_BYTES + 5] = b'e'), "others may spell it otherwise");
        assert!(!believed("192.0.2.54:53", &|_| {}), "another address");
        assert!(!believed("192.0.2.53:5353", &|_| {}), "another port");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes[1] ^= 1), "another id");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes[2] &= !IS_RESPONSE), "a question");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes[2] |= 1 << 3), "another operation");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes[HEADER_BYTES + 1] = b'x'), "another name");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes[HEADER_BYTES + asked.name.len() + 1] = 28), "another type");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes[HEADER_BYTES + asked.name.len() + 3] = 3), "another class");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes[5] = 0), "no question");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes[7] = 2), "fewer records than it says");
        assert!(!believed(RESOLVER_ASKED, &|bytes| bytes.truncate(HEADER_BYTES - 1)), "less than a header");
    }

    #[test]
    fn an_answer_is_remembered_as_long_as_it_says_within_bounds() {
        let asked = question("example.com");
        let address = |ttl: u32| record(1, ttl, &[192, 0, 2, 7]);
        let check = |code: u8, answers: &[Vec<u8>], authority: &[Vec<u8>], expected: Option<u64>| {
            assert_eq!(lifetime(&answer(&asked, code, answers, authority)), expected.map(Duration::from_secs));
        };
        check(NO_ERROR, &[address(60), address(30)], &[], Some(30));
        check(NO_ERROR, &[address(90_000)], &[], Some(3600));
        check(NO_ERROR, &[address(0)], &[], None);
        check(NO_ERROR, &[address(1 << 31)], &[], None);
        check(NO_SUCH_NAME, &[], &[soa(900, 300)], Some(5));
        check(NO_SUCH_NAME, &[], &[soa(900, 2)], Some(2));
        check(NO_ERROR, &[record(5, 300, &name("a.example"))], &[soa(3, 300)], Some(3));
        check(NO_ERROR, &[], &[], None);
        check(NO_SUCH_NAME, &[], &[], None);
        check(SERVER_FAILURE, &[], &[], Some(2));
        let mut cut = answer(&asked, NO_ERROR, &[address(60)], &[]);
        cut[2] |= IS_CUT;
        assert_eq!(lifetime(&cut), None);
    }

    #[test]
    fn the_asker_gets_its_own_id_and_spelling_and_what_is_left_of_the_ttl() {
        let stored = answer(&question("example.com"), NO_ERROR, &[record(1, 60, &[192, 0, 2, 7])], &[]);
        let asker = Question { id: 0xabcd, flags: CHECKING_DISABLED, ..question("eXample.com") };
        let bytes = asker.answer(&stored, Duration::from_secs(20));
        let mut expected = answer(&asker, NO_ERROR, &[record(1, 40, &[192, 0, 2, 7])], &[]);
        expected[..4].copy_from_slice(&[0xab, 0xcd, IS_RESPONSE | RECURSION_DESIRED, RECURSION_AVAILABLE | CHECKING_DISABLED]);
        assert_eq!(bytes, expected);
        let late = asker.answer(&stored, Duration::from_secs(1000));
        assert_eq!(ttl(&late, &records(&late).unwrap()[0]), 0);
    }

    #[test]
    fn what_the_asker_cannot_take_is_cut_and_says_so() {
        let asker = Question { bytes_max: 512, dnssec_ok: Some(true), ..question("example.com") };
        let large = answer(&asker, NO_ERROR, &[record(16, 60, &[b'x'; 600])], &[]);
        let bytes = asker.answer(&large, Duration::ZERO);
        assert_eq!(bytes, asker.bare(NO_ERROR, true));
        assert!(is_cut(&bytes) && !is_cut(&large));
        assert_eq!(records(&bytes).unwrap().len(), 1, "the OPT record of who speaks EDNS");
        assert_eq!(bytes[bytes.len() - 4..], [0x80, 0, 0, 0], "with what it had asked for");
        assert_eq!(Question { bytes_max: 65_535, ..asker }.answer(&large, Duration::ZERO).len(), large.len());
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn whatever_a_resolver_sends_nothing_breaks(
            noise in proptest::collection::vec(any::<u8>(), 0..80),
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let asked = question("example.com");
            let mut mutated = answer(&asked, NO_SUCH_NAME, &[record(1, 60, &[192, 0, 2, 7])], &[soa(900, 300)]);
            for (index, byte) in flips {
                let at = index.index(mutated.len());
                mutated[at] = byte;
            }
            let resolver = RESOLVER_ASKED.parse().unwrap();
            for bytes in [noise, mutated] {
                let believed = asked.is_answered_by(99, resolver, resolver, &bytes);
                prop_assert!(lifetime(&bytes).is_none_or(|lifetime| lifetime <= LIFETIME_MAX));
                let given = asked.answer(&bytes, Duration::from_secs(5));
                prop_assert!(given.len() <= asked.bytes_max && given.len() >= HEADER_BYTES);
                prop_assert!(!believed || given[..2] == asked.id.to_be_bytes());
            }
        }
    }
}
