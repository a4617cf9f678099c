//! DNS messages: a request's bytes in, the answer's bytes out, or nothing where silence is the answer, or a question for others.
//!
//! Sources: RFC 1035 (format, truncation), RFC 2308 (negative answers carry an SOA), RFC 6891 (EDNS), RFC 8482 (ANY).

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::seq::SliceRandom;

use crate::core::foreign::{Question, is_asked_for};
use crate::core::names::{Answer, Kind, Sight, ZONE, lookup, may_ask_others};

/// What fits every path without fragments.
const UDP_BYTES_MAX: u16 = 1232;

const UDP_BYTES_DEFAULT: u16 = 512;

const HEADER_BYTES: usize = 12;

/// Addresses may change at any moment: nobody is to remember them.
const TTL_SECONDS: u32 = 0;

/// How long "no" may be remembered.
const NEGATIVE_TTL_SECONDS: u32 = 1;

/// How an answer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Answer(Vec<u8>),
    /// Other resolvers are to be asked.
    Foreign(Question),
    Silence,
}

impl From<Option<Vec<u8>>> for Verdict {
    fn from(answer: Option<Vec<u8>>) -> Self {
        answer.map_or(Self::Silence, Self::Answer)
    }
}

/// Judges a request of an asker that sees `sight`; `None` is an asker that is unknown, who is refused.
pub fn respond(request: &[u8], sight: Option<&Sight>, transport: Transport, rng: &mut impl rand::Rng) -> Verdict {
    let Some(header) = request.first_chunk::<HEADER_BYTES>() else { return Verdict::Silence };
    let id = u16::from_be_bytes([header[0], header[1]]);
    if header[2] & 0x80 != 0 {
        return Verdict::Silence;
    }
    let op_code = OpCode::from_u8(header[2] >> 3 & 0xf);
    let failed = |code: ResponseCode| Verdict::from(Message::error_msg(id, op_code, code).to_vec().ok());
    if op_code != OpCode::Query {
        return failed(ResponseCode::NotImp);
    }
    if header[4..6] != [0, 1] {
        return failed(ResponseCode::FormErr);
    }
    let Ok(request) = Message::from_vec(request) else { return failed(ResponseCode::FormErr) };
    let Some(query) = request.queries.first() else { return failed(ResponseCode::FormErr) };

    let mut response = Message::response(id, op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = sight.is_some_and(|sight| may_ask_others(sight));
    response.add_query(query.clone());
    let mut limit = UDP_BYTES_DEFAULT;
    if let Some(asked) = &request.edns {
        limit = asked.max_payload().clamp(UDP_BYTES_DEFAULT, UDP_BYTES_MAX);
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        response.set_edns(edns);
        if asked.version() > 0 {
            response.metadata.response_code = ResponseCode::BADVERS;
            return response.to_vec().ok().into();
        }
    }
    let limit = usize::from(if transport == Transport::Tcp { u16::MAX } else { limit });
    match judge(query, sight) {
        Answer::Foreign => Verdict::Foreign(Question {
            id,
            recursion_desired: request.metadata.recursion_desired,
            flags: header[3],
            name: spelt(query.name()),
            kind: query.query_type().into(),
            dnssec_ok: request.edns.as_ref().map(|edns| edns.flags().dnssec_ok),
            bytes_max: limit,
        }),
        answer => {
            fill(&mut response, query, answer, rng);
            fit(response, limit).into()
        }
    }
}

fn judge(query: &Query, sight: Option<&Sight>) -> Answer {
    let class = query.query_class();
    let answer = match (sight, class) {
        (Some(sight), DNSClass::IN | DNSClass::ANY) => match lower(query.name()) {
            Some(text) => lookup(sight, &text, kind(query.query_type())),
            None => Answer::NoSuchName,
        },
        (Some(_) | None, _) => Answer::Refused,
    };
    if answer == Answer::Foreign && (class != DNSClass::IN || !is_asked_for(query.query_type().into())) { Answer::Refused } else { answer }
}

/// The name's labels with their lengths.
fn spelt(name: &Name) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.iter() {
        bytes.extend(u8::try_from(label.len()));
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}

/// Puts an answer of ours into the response.
fn fill(response: &mut Message, query: &Query, answer: Answer, rng: &mut impl rand::Rng) {
    let name = query.name();
    response.metadata.authoritative = answer != Answer::Refused;
    match answer {
        Answer::Addresses(mut addresses) => {
            addresses.shuffle(rng);
            response.add_answers(addresses.into_iter().map(|ip| Record::from_rdata(name.clone(), TTL_SECONDS, RData::A(A(ip)))));
        }
        Answer::Pointer(target) => match Name::from_ascii(format!("{target}.")) {
            Ok(target) => {
                response.add_answer(Record::from_rdata(name.clone(), TTL_SECONDS, RData::PTR(PTR(target))));
            }
            Err(_) => deny(response, name),
        },
        Answer::NoData => deny(response, name),
        Answer::NoSuchName => {
            response.metadata.response_code = ResponseCode::NXDomain;
            deny(response, name);
        }
        Answer::Foreign | Answer::Refused => response.metadata.response_code = ResponseCode::Refused,
    }
}

fn kind(asked: RecordType) -> Kind {
    match asked {
        RecordType::A | RecordType::ANY => Kind::Address,
        RecordType::PTR => Kind::Pointer,
        _ => Kind::Other,
    }
}

/// The name as `core` knows names; `None` if a label holds bytes that no name of ours has.
fn lower(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name.iter() {
        let label = std::str::from_utf8(label).ok().filter(|label| label.is_ascii() && !label.contains('.'))?;
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&label.to_ascii_lowercase());
    }
    Some(text)
}

/// Adds the SOA that a negative answer needs. The zone is the name's last label: ours by the rules of `core::names`.
fn deny(response: &mut Message, name: &Name) {
    let zone = name.trim_to(1);
    let ours = |label: &str| Name::from_ascii(format!("{label}.{ZONE}."));
    if let (Ok(server), Ok(mailbox)) = (ours("resolver"), ours("hostmaster")) {
        let soa = SOA::new(server, mailbox, 1, 1, 1, 1, NEGATIVE_TTL_SECONDS);
        response.add_authority(Record::from_rdata(zone, NEGATIVE_TTL_SECONDS, RData::SOA(soa)));
    }
}

/// Keeps as many addresses as fit, and says so if not all do: the asker comes again over TCP.
fn fit(mut response: Message, limit: usize) -> Option<Vec<u8>> {
    let whole = response.to_vec().ok()?;
    if whole.len() <= limit || response.answers.is_empty() {
        return Some(whole);
    }
    response.metadata.truncation = true;
    let answers = std::mem::take(&mut response.answers);
    let mut best = response.to_vec().ok()?;
    let (mut fits, mut too_many) = (0, answers.len());
    while fits + 1 < too_many {
        let middle = fits.midpoint(too_many);
        response.answers = answers[..middle].to_vec();
        let bytes = response.to_vec().ok()?;
        if bytes.len() <= limit {
            (fits, best) = (middle, bytes);
        } else {
            too_many = middle;
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv4Addr;

    use proptest::prelude::{any, prop_assert, proptest};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::core::names;
    use crate::core::picture::{Attachments, Endpoint, Network, Picture, Place};

    /// A network `front` with `count` endpoints named `web`.
    fn sight(count: u8) -> Sight {
        let endpoint = |last: u8| {
            let names = BTreeSet::from(["web".to_owned()]);
            let place = Place::Node(Ipv4Addr::new(10, 90, 0, 102));
            let (task_id, task, service_id) = (format!("t{last}"), format!("web.{last}"), String::new());
            let endpoint = Endpoint { task_id, task, place, serving: true, dead: false, names, service_id };
            (Ipv4Addr::new(10, 128, 0, last), endpoint)
        };
        let network = Network {
            name: "front".into(),
            vni: 1,
            subnet: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 24),
            internal: false,
            names: BTreeSet::new(),
            endpoints: (1..=count).map(endpoint).collect(),
            vips: BTreeMap::new(),
            policy: None,
            leaving: false,
        };
        let picture = Picture { networks: BTreeMap::from([("f".to_owned(), network)]), ..Default::default() };
        names::networks(&picture, &Attachments::new()).into_values().collect()
    }

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn judged(request: &[u8], sight: Option<&Sight>, transport: Transport) -> Verdict {
        respond(request, sight, transport, &mut StdRng::seed_from_u64(7))
    }

    fn answered(request: &[u8], sight: Option<&Sight>, transport: Transport) -> Option<Vec<u8>> {
        if let Verdict::Answer(answer) = judged(request, sight, transport) { Some(answer) } else { None }
    }

    #[test]
    fn a_cut_answer_fills_the_datagram() {
        let bytes = answered(&question("web."), Some(&sight(200)), Transport::Udp).unwrap();
        assert!(bytes.len() <= 512 && bytes.len() > 512 - 30, "{}", bytes.len());
        let whole = answered(&question("web."), Some(&sight(200)), Transport::Tcp).unwrap();
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 200);
    }

    #[test]
    fn an_unknown_asker_is_refused() {
        let bytes = answered(&question("web."), None, Transport::Udp).unwrap();
        assert_eq!(Message::from_vec(&bytes).unwrap().metadata.response_code, ResponseCode::Refused);
    }

    #[test]
    fn a_foreign_question_is_handed_on_as_it_was_asked() {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = true;
        message.add_query(Query::query(Name::from_ascii("wWw.example.com.").unwrap(), RecordType::AAAA));
        let Verdict::Foreign(plain) = judged(&message.to_vec().unwrap(), Some(&sight(1)), Transport::Udp) else { panic!("not foreign") };
        assert_eq!((plain.id, plain.kind, plain.dnssec_ok, plain.bytes_max), (message.metadata.id, 28, None, 512));
        assert_eq!(plain.name, b"\x03wWw\x07example\x03com\0");
        // As our own reader sees what is sent on.
        let query = Message::from_vec(&plain.query(7)).unwrap();
        assert_eq!(query.queries, message.queries);
        assert!(query.metadata.recursion_desired && query.metadata.checking_disabled && query.edns.is_none());

        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        message.set_edns(edns);
        let Verdict::Foreign(signed) = judged(&message.to_vec().unwrap(), Some(&sight(1)), Transport::Udp) else { panic!("not foreign") };
        assert_eq!((signed.dnssec_ok, signed.bytes_max), (Some(true), 1232));
        let query = Message::from_vec(&signed.query(7)).unwrap();
        assert!(query.edns.is_some_and(|edns| edns.flags().dnssec_ok && edns.max_payload() == 1232));
        let Verdict::Foreign(tcp) = judged(&message.to_vec().unwrap(), Some(&sight(1)), Transport::Tcp) else { panic!("not foreign") };
        assert_eq!(tcp.bytes_max, 65_535);
    }

    #[test]
    fn transfers_and_other_classes_are_not_handed_on() {
        for (kind, class) in [(RecordType::AXFR, DNSClass::IN), (RecordType::IXFR, DNSClass::IN), (RecordType::TXT, DNSClass::CH)] {
            let mut message = Message::query();
            message.add_query(Query::query(Name::from_ascii("example.com.").unwrap(), kind).set_query_class(class).clone());
            let bytes = answered(&message.to_vec().unwrap(), Some(&sight(1)), Transport::Tcp).unwrap();
            assert_eq!(Message::from_vec(&bytes).unwrap().metadata.response_code, ResponseCode::Refused, "{kind} {class}");
        }
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn whatever_comes_in_nothing_breaks_and_nothing_too_large_goes_out(
            noise in proptest::collection::vec(any::<u8>(), 0..80),
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let sight = sight(200);
            let mut mutated = question("web.front.internal.");
            for (index, byte) in flips {
                let at = index.index(mutated.len());
                mutated[at] = byte;
            }
            for request in [noise, mutated] {
                let answer = answered(&request, Some(&sight), Transport::Udp).unwrap_or_default();
                prop_assert!(answer.len() <= 1232);
            }
        }
    }
}
