//! DNS messages: a request's bytes in, the answer's bytes out, or nothing where silence is the answer, or a question for others.
//!
//! Of a request is read what an answer needs: the header, the one question, where the records end that follow, and the OPT record among
//! them. An answer repeats the question as it was spelt, and its records point there for their names. Never: follows a pointer, looks
//! into what is not needed, or says more than the asker can take.
//!
//! Sources: RFC 1035 (format, truncation), RFC 2308 (negative answers carry an SOA), RFC 2782 (SRV), RFC 3225 (an asker's wish for signatures
//! is repeated), RFC 3596 (AAAA), RFC 4035 §3.2.2 (so is that nobody check them), RFC 6891 (EDNS), RFC 8482 (ANY).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use rand::seq::SliceRandom;

use crate::core::foreign::{Question, after_name, is_asked_for, number};
use crate::core::names::{Answer, Kind, Sight, Target, lookup, may_ask_others};

/// What fits every path without fragments.
const UDP_BYTES_MAX: u16 = 1232;

const UDP_BYTES_DEFAULT: u16 = 512;

const HEADER_BYTES: usize = 12;

/// With the root, and with the labels' lengths.
const NAME_BYTES_MAX: usize = 255;

/// Addresses may change at any moment: nobody is to remember them.
const TTL_SECONDS: u32 = 0;

/// How long "no" may be remembered.
const NEGATIVE_TTL_SECONDS: u32 = 1;

const TYPE_A: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;
const TYPE_OPT: u16 = 41;
const TYPE_ANY: u16 = 255;

const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// In the header's third byte.
const IS_RESPONSE: u8 = 0x80;
const OP_CODE: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const IS_CUT: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;

/// In the header's fourth byte.
const RECURSION_AVAILABLE: u8 = 0x80;
const CHECKING_DISABLED: u8 = 0x10;

const FORMAT_ERROR: u8 = 1;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// Of a version of EDNS that nobody here speaks: the upper eight bits stand in the OPT record, the lower four in the header.
const BAD_VERSION_UPPER: u8 = 1;

/// In the first byte of an OPT record's flags.
const DNSSEC_OK: u8 = 0x80;

const OPT_BYTES: usize = 11;

/// A record with an address, its name a pointer.
const ADDRESS_BYTES: usize = 16;
const ADDRESS6_BYTES: usize = 28;

/// The server and the mailbox of our zones, and numbers that mean nothing but for the last.
const SOA_NAMES: &[u8] = b"\x08resolver\x08internal\0\x0ahostmaster\x08internal\0";
const SOA_NUMBERS: [u32; 5] = [1, 1, 1, 1, NEGATIVE_TTL_SECONDS];

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

/// Judges a request of an asker that sees `sight`; `None` is an asker that is unknown, who is refused.
pub fn respond(message: &[u8], sight: Option<&Sight>, transport: Transport, rng: &mut impl rand::Rng) -> Verdict {
    let Some(header) = message.first_chunk::<HEADER_BYTES>() else { return Verdict::Silence };
    if header[2] & IS_RESPONSE != 0 {
        return Verdict::Silence;
    }
    if header[2] & OP_CODE != 0 {
        return Verdict::Answer(failure(header, NOT_IMPLEMENTED));
    }
    let Some(request) = Request::read(message) else { return Verdict::Answer(failure(header, FORMAT_ERROR)) };
    let limit = usize::from(match (transport, request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.bytes_max.clamp(UDP_BYTES_DEFAULT, UDP_BYTES_MAX),
        (Transport::Udp, None) => UDP_BYTES_DEFAULT,
    });
    let response = Response::new(&request, limit, sight.is_some_and(may_ask_others));
    if request.edns.is_some_and(|edns| edns.version > 0) {
        return Verdict::Answer(response.finish(BAD_VERSION_UPPER));
    }
    match judge(&request, sight) {
        Answer::Foreign => Verdict::Foreign(Question {
            id: request.id,
            recursion_desired: request.flags[0] & RECURSION_DESIRED != 0,
            flags: request.flags[1],
            name: request.name.to_vec(),
            kind: request.kind,
            dnssec_ok: request.edns.map(|edns| edns.dnssec_ok),
            bytes_max: limit,
        }),
        answer => Verdict::Answer(filled(response, answer, rng).finish(0)),
    }
}

/// What is read of a request.
#[derive(Debug)]
struct Request<'a> {
    id: u16,
    /// The header's third and fourth byte.
    flags: [u8; 2],
    /// The question's labels with their lengths as the asker spells them, the root last.
    name: &'a [u8],
    kind: u16,
    class: u16,
    edns: Option<Edns>,
}

/// What an asker's OPT record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edns {
    bytes_max: u16,
    version: u8,
    dnssec_ok: bool,
}

impl<'a> Request<'a> {
    /// `None` if it is not one question and as many records as it says.
    fn read(message: &'a [u8]) -> Option<Self> {
        let header = message.first_chunk::<HEADER_BYTES>()?;
        if header[4..6] != [0, 1] {
            return None;
        }
        let name = plain_name(message.get(HEADER_BYTES..)?)?;
        let end = HEADER_BYTES + name.len();
        Some(Self {
            id: number(message, 0)?,
            flags: [header[2], header[3]],
            name,
            kind: number(message, end)?,
            class: number(message, end + 2)?,
            edns: edns(message, end + 4)?,
        })
    }
}

/// The name at the beginning of these bytes, if it is whole: without pointers.
fn plain_name(bytes: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    loop {
        match *bytes.get(end)? {
            0 => break,
            label @ 1..=63 => end += 1 + usize::from(label),
            64.. => return None,
        }
        if end >= NAME_BYTES_MAX {
            return None;
        }
    }
    bytes.get(..=end)
}

/// The OPT record among the records that begin at `at`; the outer `None` if they are not what the header says.
fn edns(message: &[u8], mut at: usize) -> Option<Option<Edns>> {
    let mut found = None;
    for section in 0..3 {
        for _ in 0..number(message, 6 + 2 * section)? {
            let fields = after_name(message, at)?;
            let end = fields + 10 + usize::from(number(message, fields + 8)?);
            message.get(fields..end)?;
            if number(message, fields)? == TYPE_OPT {
                // One, of the root, and last of all.
                if section != 2 || fields != at + 1 || found.is_some() {
                    return None;
                }
                let [version, flags] = number(message, fields + 5)?.to_be_bytes();
                found = Some(Edns { bytes_max: number(message, fields + 2)?, version, dnssec_ok: flags & DNSSEC_OK != 0 });
            }
            at = end;
        }
    }
    Some(found)
}

fn judge<'a>(request: &Request<'_>, sight: Option<&'a Sight>) -> Answer<'a> {
    let (Some(sight), CLASS_IN | CLASS_ANY) = (sight, request.class) else { return Answer::Refused };
    let answer = lookup(sight, &lower(request.name), kind(request.kind));
    if answer == Answer::Foreign && (request.class != CLASS_IN || !is_asked_for(request.kind)) { Answer::Refused } else { answer }
}

fn kind(asked: u16) -> Kind {
    match asked {
        TYPE_A | TYPE_ANY => Kind::Address,
        TYPE_AAAA => Kind::Address6,
        TYPE_PTR => Kind::Pointer,
        TYPE_SRV => Kind::Port,
        _ => Kind::Other,
    }
}

/// The name as `core` knows names. What no name of ours has in a label becomes a question mark, which none has either.
fn lower(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((len, labels)) = rest.split_first().filter(|(len, _)| **len > 0) {
        let (label, after) = labels.split_at_checked(usize::from(*len)).unwrap_or((labels, &[]));
        if !text.is_empty() {
            text.push('.');
        }
        let known = |byte: &u8| byte.is_ascii() && *byte != b'.';
        text.extend(label.iter().map(|byte| if known(byte) { char::from(byte.to_ascii_lowercase()) } else { '?' }));
        rest = after;
    }
    text
}

/// A name with its labels' lengths, the root last; `None` if it cannot be written so.
fn spelt(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= NAME_BYTES_MAX).then_some(bytes)
}

/// An answer without anything but a header.
fn failure(header: &[u8; HEADER_BYTES], code: u8) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..2].copy_from_slice(&header[..2]);
    bytes[2] = IS_RESPONSE | header[2] & (OP_CODE | RECURSION_DESIRED);
    bytes[3] = code;
    bytes
}

/// Where a record stands, and where the header counts it.
#[derive(Debug, Clone, Copy)]
enum Section {
    Answer,
    Authority,
    Additional,
}

/// An answer that is being written.
struct Response<'a> {
    bytes: Vec<u8>,
    /// That the asker takes, but for our OPT record.
    limit: usize,
    name: &'a [u8],
    edns: Option<Edns>,
    counts: [u16; 3],
}

impl<'a> Response<'a> {
    /// The header and the question.
    fn new(request: &Request<'a>, limit: usize, recursion_available: bool) -> Self {
        let mut bytes = Vec::with_capacity(usize::from(UDP_BYTES_DEFAULT));
        bytes.extend(request.id.to_be_bytes());
        bytes.push(IS_RESPONSE | request.flags[0] & RECURSION_DESIRED);
        bytes.push(request.flags[1] & CHECKING_DISABLED | if recursion_available { RECURSION_AVAILABLE } else { 0 });
        bytes.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        bytes.extend(request.name);
        bytes.extend(request.kind.to_be_bytes());
        bytes.extend(request.class.to_be_bytes());
        let limit = limit - if request.edns.is_some() { OPT_BYTES } else { 0 };
        Self { bytes, limit, name: request.name, edns: request.edns, counts: [0; 3] }
    }

    fn flag(&mut self, first: u8, second: u8) {
        self.bytes[2] |= first;
        self.bytes[3] |= second;
    }

    /// Adds a record, unless it does not fit. `name` is as it stands on the wire.
    fn add(&mut self, section: Section, name: &[u8], kind: u16, ttl: u32, data: &[&[u8]]) -> bool {
        let len: usize = data.iter().map(|part| part.len()).sum();
        let count = &mut self.counts[section as usize];
        let Ok(written_len) = u16::try_from(len) else { return false };
        if self.bytes.len() + name.len() + 10 + len > self.limit || *count == u16::MAX {
            return false;
        }
        *count += 1;
        self.bytes.extend(name);
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(CLASS_IN.to_be_bytes());
        self.bytes.extend(ttl.to_be_bytes());
        self.bytes.extend(written_len.to_be_bytes());
        data.iter().for_each(|part| self.bytes.extend(*part));
        true
    }

    /// Adds a record of the name that was asked for.
    fn answer(&mut self, kind: u16, data: &[&[u8]]) -> bool {
        self.add(Section::Answer, &pointer(HEADER_BYTES), kind, TTL_SECONDS, data)
    }

    /// Adds the SOA that a negative answer needs. The zone is the name's last label: ours by the rules of `core::names`.
    fn deny(&mut self) {
        let mut zone = 0;
        let mut at = 0;
        while let Some(len) = self.name.get(at).filter(|len| **len > 0) {
            zone = at;
            at += 1 + usize::from(*len);
        }
        let numbers = SOA_NUMBERS.map(u32::to_be_bytes);
        self.add(Section::Authority, &pointer(HEADER_BYTES + zone), TYPE_SOA, NEGATIVE_TTL_SECONDS, &[SOA_NAMES, numbers.as_flattened()]);
    }

    /// The bytes, with our OPT record for who speaks EDNS; `code_upper` are the upper bits of the response code, which stand there.
    fn finish(mut self, code_upper: u8) -> Vec<u8> {
        if let Some(edns) = self.edns {
            self.counts[Section::Additional as usize] += 1;
            self.bytes.push(0);
            self.bytes.extend(TYPE_OPT.to_be_bytes());
            self.bytes.extend(UDP_BYTES_MAX.to_be_bytes());
            self.bytes.extend([code_upper, 0, if edns.dnssec_ok { DNSSEC_OK } else { 0 }, 0, 0, 0]);
        }
        for (count, at) in self.counts.iter().zip([6, 8, 10]) {
            self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        self.bytes
    }
}

/// A pointer to what stands in the message's question.
fn pointer(at: usize) -> [u8; 2] {
    (0xc000 | u16::try_from(at).unwrap_or_default()).to_be_bytes()
}

/// Puts an answer of ours into the response.
fn filled<'a>(mut response: Response<'a>, answer: Answer<'_>, rng: &mut impl rand::Rng) -> Response<'a> {
    if answer != Answer::Refused {
        response.flag(AUTHORITATIVE, 0);
    }
    match answer {
        Answer::Addresses(addresses) => add_addresses(&mut response, addresses.into_owned(), rng),
        Answer::Addresses6(addresses) => add_addresses6(&mut response, addresses, rng),
        Answer::Ports(targets) => add_targets(&mut response, targets, rng),
        Answer::Pointer(target) => {
            let written = spelt(target).is_some_and(|target| response.answer(TYPE_PTR, &[&target]));
            if !written {
                response.deny();
            }
        }
        Answer::NoData => response.deny(),
        Answer::NoSuchName => {
            response.flag(0, NO_SUCH_NAME);
            response.deny();
        }
        Answer::Foreign | Answer::Refused => response.flag(0, REFUSED),
    }
    response
}

/// As many as fit, chosen and in an order by chance. If not all do, the answer says so: the asker comes again over TCP.
fn add_addresses(response: &mut Response<'_>, mut addresses: Vec<Ipv4Addr>, rng: &mut impl rand::Rng) {
    let fit = response.limit.saturating_sub(response.bytes.len()) / ADDRESS_BYTES;
    let (chosen, rest) = addresses.partial_shuffle(rng, fit);
    for ip in chosen {
        response.answer(TYPE_A, &[&ip.octets()]);
    }
    if !rest.is_empty() {
        response.flag(IS_CUT, 0);
    }
}

/// The same for those of IPv6.
fn add_addresses6(response: &mut Response<'_>, mut addresses: Vec<Ipv6Addr>, rng: &mut impl rand::Rng) {
    let fit = response.limit.saturating_sub(response.bytes.len()) / ADDRESS6_BYTES;
    let (chosen, rest) = addresses.partial_shuffle(rng, fit);
    for ip6 in chosen {
        response.answer(TYPE_AAAA, &[&ip6.octets()]);
    }
    if !rest.is_empty() {
        response.flag(IS_CUT, 0);
    }
}

/// The same for ports. The addresses of their hosts follow as far as they fit, without a word if they do not.
fn add_targets(response: &mut Response<'_>, mut targets: Vec<Target<'_>>, rng: &mut impl rand::Rng) {
    targets.shuffle(rng);
    let mut hosts = Vec::new();
    let mut seen = BTreeSet::new();
    for Target { host, ip, port } in targets {
        let Some(host) = spelt(host) else { continue };
        // Priority 0, weight 1: all alike.
        if !response.answer(TYPE_SRV, &[&[0, 0, 0, 1], &port.to_be_bytes(), &host]) {
            response.flag(IS_CUT, 0);
            break;
        }
        if seen.insert(ip) {
            hosts.push((host, ip));
        }
    }
    for (host, ip) in hosts {
        if !response.add(Section::Additional, &host, TYPE_A, TTL_SECONDS, &[&ip.octets()]) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
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
            let names = BTreeSet::from(["web".to_owned()]);
            let place = Place::Node(Ipv4Addr::new(10, 90, 0, 102));
            let (task_id, task, service_id) = (format!("t{last}"), format!("web.{last}"), "web".to_owned());
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
        for (name, code, zone) in
            [("nobody.", ResponseCode::NXDomain, "nobody."), ("x.front.internal.", ResponseCode::NXDomain, "internal.")]
        {
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
}
