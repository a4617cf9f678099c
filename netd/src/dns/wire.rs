//! DNS messages: a request's bytes in, the answer's bytes out, or nothing where silence is the answer.
//!
//! Sources: RFC 1035 (format, truncation), RFC 2308 (negative answers carry an SOA), RFC 6891 (EDNS), RFC 8482 (ANY).

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::seq::SliceRandom;

use crate::core::names::{Answer, Kind, Sight, ZONE, lookup};

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

/// Answers a request of an asker that sees `sight`; `None` for an asker that is unknown, who is refused.
pub fn respond(request: &[u8], sight: Option<&Sight>, transport: Transport, rng: &mut impl rand::Rng) -> Option<Vec<u8>> {
    let header = request.first_chunk::<HEADER_BYTES>()?;
    let id = u16::from_be_bytes([header[0], header[1]]);
    if header[2] & 0x80 != 0 {
        return None;
    }
    let op_code = OpCode::from_u8(header[2] >> 3 & 0xf);
    let failed = |code: ResponseCode| Message::error_msg(id, op_code, code).to_vec().ok();
    if op_code != OpCode::Query {
        return failed(ResponseCode::NotImp);
    }
    if header[4..6] != [0, 1] {
        return failed(ResponseCode::FormErr);
    }
    let Ok(request) = Message::from_vec(request) else { return failed(ResponseCode::FormErr) };
    let Some(query) = request.queries.first().cloned() else { return failed(ResponseCode::FormErr) };

    let mut response = Message::response(id, op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.add_query(query.clone());
    let mut limit = UDP_BYTES_DEFAULT;
    if let Some(asked) = &request.edns {
        limit = asked.max_payload().clamp(UDP_BYTES_DEFAULT, UDP_BYTES_MAX);
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        response.set_edns(edns);
        if asked.version() > 0 {
            response.metadata.response_code = ResponseCode::BADVERS;
            return response.to_vec().ok();
        }
    }
    fill(&mut response, &query, sight, rng);
    let limit = if transport == Transport::Tcp { u16::MAX } else { limit };
    fit(response, usize::from(limit))
}

fn fill(response: &mut Message, query: &Query, sight: Option<&Sight>, rng: &mut impl rand::Rng) {
    let name = query.name();
    let answer = match (sight, query.query_class()) {
        (Some(sight), DNSClass::IN | DNSClass::ANY) => match lower(name) {
            Some(text) => lookup(sight, &text, kind(query.query_type())),
            None => Answer::NoSuchName,
        },
        (Some(_) | None, _) => Answer::Refused,
    };
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
        Answer::Refused => response.metadata.response_code = ResponseCode::Refused,
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
    use crate::core::picture::{Endpoint, Network, Picture, Place};

    /// A network `front` with `count` endpoints named `web`.
    fn sight(count: u8) -> Sight {
        let endpoint = |last: u8| {
            let names = BTreeSet::from(["web".to_owned()]);
            let endpoint = Endpoint { task_id: format!("t{last}"), task: format!("web.{last}"), place: Place::Here, serving: true, names };
            (Ipv4Addr::new(10, 128, 0, last), endpoint)
        };
        let network = Network {
            name: "front".into(),
            vni: 1,
            subnet: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 24),
            internal: false,
            names: BTreeSet::new(),
            endpoints: (1..=count).map(endpoint).collect(),
            leaving: false,
        };
        let picture = Picture { networks: BTreeMap::from([("f".to_owned(), network)]), ..Default::default() };
        names::networks(&picture).into_values().collect()
    }

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn answered(request: &[u8], sight: Option<&Sight>, transport: Transport) -> Option<Vec<u8>> {
        respond(request, sight, transport, &mut StdRng::seed_from_u64(7))
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
