//! Requests as pods send them and as nobody does, and what another reader makes of the answers.

use std::collections::BTreeMap;

use hickory_proto::op::{Edns as TheirEdns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::TestCaseError;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::core::names;
use crate::core::picture::{Attachment, Attachments, Endpoint, Membership, NamedPort, Network, Picture, Place, Service};
use crate::core::uplink;

/// What a pod sees on a network `front` with `count` endpoints named `web`, which listen at `http`.
fn sight(count: u8) -> Sight {
    let endpoint = |last: u8| {
        let names = vec!["web".into()];
        let place = Place::Node(Ipv4Addr::new(10, 90, 0, 102));
        let (task_id, task, service_id) = (format!("t{last}").into(), format!("web.{last}").into(), "web".into());
        let endpoint = Endpoint { task_id, task, place, serving: true, dead: false, names, service_id };
        (Ipv4Addr::new(10, 128, 0, last), endpoint)
    };
    let network = Network {
        name: "front".into(),
        vni: 1,
        subnet: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 24),
        subnet6: None,
        internal: false,
        names: BTreeSet::from(["web".to_owned()]),
        endpoints: (1..=count).map(endpoint).collect(),
        vips: BTreeMap::new(),
        leaving: false,
        policy: None,
        encrypted: false,
    };
    let port = NamedPort { name: "http".to_owned(), udp: false, target: 8080 };
    let service = Service { name: "web".to_owned(), stack: String::new(), ports: vec![port] };
    let picture = Picture {
        networks: BTreeMap::from([("f".to_owned(), network)]),
        services: BTreeMap::from([("web".to_owned(), service)]),
        ..Default::default()
    };
    let membership = Membership { network_id: "f".to_owned(), ip: Ipv4Addr::new(10, 128, 0, 250) };
    let attachments = Attachments::from([("me".to_owned(), Attachment { networks: vec![membership], ..Default::default() })]);
    let networks = names::networks(&picture, &attachments);
    names::sights(&networks, &attachments, uplink::inside(&picture)).remove("me").unwrap()
}

fn question(name: &str) -> Vec<u8> {
    asked_for(name, RecordType::A)
}

fn asked_for(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn judged(request: &[u8], sight: Option<&Sight>, transport: Transport) -> Verdict {
    respond(request, sight, transport, &mut StdRng::seed_from_u64(7))
}

fn answered(request: &[u8], sight: Option<&Sight>, transport: Transport) -> Option<Vec<u8>> {
    if let Verdict::Answer(answer) = judged(request, sight, transport) { Some(answer) } else { None }
}

/// With an OPT record of this version that takes so many bytes and wants signatures.
fn with_edns(request: &[u8], bytes_max: u16, version: u8) -> Vec<u8> {
    let mut bytes = request.to_vec();
    bytes[11] += 1;
    bytes.extend([0, 0, 41]);
    bytes.extend(bytes_max.to_be_bytes());
    bytes.extend([0, version, 0x80, 0, 0, 0]);
    bytes
}

#[test]
fn addresses_are_answered_byte_for_byte() {
    let mut request = question("wEb.");
    request[..3].copy_from_slice(&[0xab, 0xcd, 1]);
    let bytes = answered(&request, Some(&sight(1)), Transport::Udp).unwrap();
    let expected =
        [b"\xab\xcd\x85\x80\0\x01\0\x01\0\0\0\0\x03wEb\0\0\x01\0\x01".as_slice(), b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\x0a\x80\0\x01"];
    assert_eq!(bytes, expected.concat());
}

#[test]
fn another_reader_sees_in_negative_answers_what_was_meant() {
    for (name, code, zone) in [("nobody.", ResponseCode::NXDomain, "nobody."), ("x.front.internal.", ResponseCode::NXDomain, "internal.")] {
        let answer = Message::from_vec(&answered(&question(name), Some(&sight(1)), Transport::Udp).unwrap()).unwrap();
        assert_eq!((answer.metadata.response_code, answer.answers.len(), answer.authorities.len()), (code, 0, 1), "{name}");
        let soa = &answer.authorities[0];
        assert_eq!((soa.name.to_string().as_str(), soa.ttl), (zone, 1));
        assert!(soa.data.to_string().starts_with("resolver.internal. hostmaster.internal."), "{}", soa.data);
    }
}

#[test]
fn another_reader_sees_ports_and_the_addresses_of_their_hosts() {
    let bytes = answered(&asked_for("_http._tcp.web.", RecordType::SRV), Some(&sight(2)), Transport::Udp).unwrap();
    let answer = Message::from_vec(&bytes).unwrap();
    let mut ports: Vec<(String, u16)> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.target.to_string(), srv.port)),
            _ => None,
        })
        .collect();
    ports.sort();
    assert_eq!(ports, [("web.1.front.internal.".to_owned(), 8080), ("web.2.front.internal.".to_owned(), 8080)]);
    let mut hosts: Vec<String> = answer.additionals.iter().map(|record| format!("{} {}", record.name, record.data)).collect();
    hosts.sort();
    assert_eq!(hosts, ["web.1.front.internal. 10.128.0.1", "web.2.front.internal. 10.128.0.2"]);

    let bytes = answered(&asked_for("_http._tcp.web.", RecordType::SRV), Some(&sight(200)), Transport::Udp).unwrap();
    let cut = Message::from_vec(&bytes).unwrap();
    assert!(bytes.len() <= 512 && cut.metadata.truncation && !cut.answers.is_empty());
    let bytes = answered(&asked_for("_http._tcp.web.", RecordType::SRV), Some(&sight(200)), Transport::Tcp).unwrap();
    let whole = Message::from_vec(&bytes).unwrap();
    assert_eq!((whole.answers.len(), whole.additionals.len(), whole.metadata.truncation), (200, 200, false));
}

#[test]
fn another_reader_sees_what_pointers_lead_to() {
    let bytes = answered(&asked_for("1.0.128.10.in-addr.arpa.", RecordType::PTR), Some(&sight(1)), Transport::Udp).unwrap();
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(matches!(&answer.answers[0].data, RData::PTR(name) if name.to_string() == "web.1.front.internal."));
}

#[test]
fn edns_is_answered_in_kind_and_other_versions_are_refused() {
    let bytes = answered(&with_edns(&question("web."), 4096, 0), Some(&sight(200)), Transport::Udp).unwrap();
    assert!(bytes.len() <= 1232 && bytes.len() > 1232 - 16, "{}", bytes.len());
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(answer.edns.is_some_and(|edns| edns.max_payload() == 1232 && edns.flags().dnssec_ok && edns.version() == 0));
    let bytes = answered(&with_edns(&question("web."), 4096, 1), Some(&sight(1)), Transport::Udp).unwrap();
    assert_eq!((bytes[3] & 0xf, bytes[bytes.len() - 6], bytes[7]), (0, BAD_VERSION_UPPER, 0));
    let twice = with_edns(&with_edns(&question("web."), 512, 0), 512, 0);
    assert_eq!(answered(&twice, Some(&sight(1)), Transport::Udp).unwrap()[3], FORMAT_ERROR);
}

#[test]
fn a_question_is_one_whole_name_of_bounded_length() {
    let code = |name: &[u8]| {
        let request = [&[0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name, &[0, 1, 0, 1]].concat();
        answered(&request, Some(&Sight::default()), Transport::Udp).unwrap()[3] & 0xf
    };
    let labels = |count: usize, last: usize| [[&[49][..], &[b'x'; 49]].concat().repeat(count), vec![b'y'; last + 1], vec![0]].concat();
    let spelt = |count: usize, last: u8| {
        let mut name = labels(count, usize::from(last));
        name[count * 50] = last;
        name
    };
    assert_eq!((spelt(5, 3).len(), code(&spelt(5, 3))), (255, REFUSED));
    assert_eq!((spelt(5, 4).len(), code(&spelt(5, 4))), (256, FORMAT_ERROR));
    assert_eq!(code(&[0xc0, 12]), FORMAT_ERROR);
    assert_eq!(code(&[3, b'w', b'e', b'b', 0xc0, 12]), FORMAT_ERROR);
    assert_eq!(code(&[64]), FORMAT_ERROR);
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

    let mut edns = TheirEdns::new();
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

/// What another reader makes of a message that is a query and of one question, compared with what ours does.
fn compare(message: &[u8]) -> Result<(), TestCaseError> {
    let (ours, theirs) = (Request::read(message), Message::from_vec(message));
    let is_plain = message.len() >= HEADER_BYTES && message[2] & OP_CODE == 0 && message[4..6] == [0, 1];
    if let (Some(ours), Ok(theirs), true) = (&ours, &theirs, is_plain) {
        let query = &theirs.queries[0];
        let labels = query.name().iter().flat_map(|label| [&[u8::try_from(label.len()).unwrap_or_default()][..], label].concat());
        prop_assert_eq!(theirs.metadata.op_code, OpCode::Query);
        prop_assert_eq!(ours.id, theirs.metadata.id);
        prop_assert_eq!(ours.name, labels.chain([0]).collect::<Vec<u8>>());
        prop_assert_eq!((ours.kind, ours.class), (u16::from(query.query_type()), u16::from(query.query_class())));
        let said = theirs.edns.as_ref().map(|edns| (edns.max_payload(), edns.version(), edns.flags().dnssec_ok));
        prop_assert_eq!(ours.edns.map(|edns| (edns.bytes_max.max(512), edns.version, edns.dnssec_ok)), said);
    }
    // Without records both want the same, but that they follow pointers.
    if is_plain && message[6..12] == [0; 6] {
        let points = message[HEADER_BYTES..].iter().any(|byte| *byte >= 0xc0);
        prop_assert!(ours.is_some() == theirs.is_ok() || ours.is_none() && points);
    }
    Ok(())
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 20_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_read_is_what_another_reader_reads(
        edns in any::<bool>(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        cut in 0..8_usize,
    ) {
        let plain = asked_for("www.front.internal.", RecordType::SRV);
        let mut message = if edns { with_edns(&plain, 1400, 0) } else { plain };
        for (index, byte) in flips {
            let at = index.index(message.len());
            message[at] = byte;
        }
        compare(&message)?;
        message.truncate(message.len() - cut);
        compare(&message)?;
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
        let mut ours = [asked_for("web.front.internal.", RecordType::A), asked_for("_http._tcp.web.", RecordType::SRV)];
        for (index, byte) in flips {
            for mutated in &mut ours {
                let at = index.index(mutated.len());
                mutated[at] = byte;
            }
        }
        for request in ours.into_iter().chain([noise]) {
            for (transport, bytes_max) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
                let Some(answer) = answered(&request, Some(&sight), transport) else { continue };
                prop_assert!(answer.len() <= bytes_max);
                prop_assert!(Message::from_vec(&answer).is_ok());
            }
        }
    }
}
