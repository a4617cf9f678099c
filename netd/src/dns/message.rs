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
#[path = "message_tests.rs"]
mod tests;
