//! Names to IPv4 addresses: one A question over UDP to the first name server (RFC 1035, section 4).
//!
//! In: a name, sent as it is given, without a search list. Out: the addresses in the order of the answer, or why there are none.
//! Never: a cache, or an answer whose id, question or sender is not that of the query.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const TRY: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;
/// How long to wait before asking a server again that is not there (its port is closed while it restarts).
const AFTER_REFUSAL: Duration = Duration::from_millis(100);
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
const HEADER: usize = 12;

/// Why a name has no addresses; the words are what `resolve` prints.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// The name exists, an A record does not.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// The server does not answer such questions.
    Refused,
    /// Another response code.
    Code(u8),
    /// The name cannot be asked for.
    BadName(String),
    /// No answer in time.
    TimedOut,
    /// The answer cannot be understood.
    Malformed(&'static str),
    /// No server could be asked.
    Io(String),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoData => out.write_str("NODATA"),
            Self::NxDomain => out.write_str("NXDOMAIN"),
            Self::Refused => out.write_str("REFUSED"),
            Self::Code(2) => out.write_str("SERVFAIL"),
            Self::Code(code) => write!(out, "response code {code}"),
            Self::BadName(why) => write!(out, "bad name: {why}"),
            Self::TimedOut => out.write_str("name server timed out"),
            Self::Malformed(what) => write!(out, "malformed answer: {what}"),
            Self::Io(why) => write!(out, "name server: {why}"),
        }
    }
}

/// Asks the first name server of `/etc/resolv.conf`: up to three tries of a second each, and none after `deadline`.
pub fn lookup(name: &str, deadline: Instant) -> Result<Vec<Ipv4Addr>, Error> {
    let config = std::fs::read_to_string("/etc/resolv.conf").map_err(|error| Error::Io(format!("read /etc/resolv.conf: {error}")))?;
    let server = first_server(&config).ok_or_else(|| Error::Io("/etc/resolv.conf names no server".to_owned()))?;
    ask(SocketAddr::new(server, 53), name, deadline.min(Instant::now() + TRY * TRIES))
}

/// The first `nameserver` line with an address.
pub fn first_server(config: &str) -> Option<IpAddr> {
    config.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    })
}

/// The wire form of a recursive A question for `name`.
pub fn encode(id: u16, name: &str) -> Result<Vec<u8>, Error> {
    let mut query = Vec::with_capacity(HEADER + name.len() + 6);
    query.extend(id.to_be_bytes());
    // Recursion desired; one question and nothing else.
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        match u8::try_from(label.len()) {
            Ok(length @ 1..=63) => query.push(length),
            _ => return Err(Error::BadName(format!("a label of {} bytes (1 to 63 are possible) in {name:?}", label.len()))),
        }
        query.extend(label.as_bytes());
    }
    query.push(0);
    if query.len() - HEADER > 255 {
        return Err(Error::BadName(format!("{name:?} is longer than 255 bytes")));
    }
    query.extend(TYPE_A.to_be_bytes());
    query.extend(CLASS_IN.to_be_bytes());
    Ok(query)
}

/// The addresses in `answer`, which must be one to `query`; `None` when it answers something else and is to be passed over.
pub fn decode(query: &[u8], answer: &[u8]) -> Option<Result<Vec<Ipv4Addr>, Error>> {
    let is_answer = answer.len() >= HEADER && answer[..2] == query[..2] && answer[2] & 0x80 != 0;
    if !is_answer {
        return None;
    }
    let code = answer[3] & 0x0f;
    // Servers may leave the question out of a refusal (some do of a format error too).
    let asked =
        answer[4..6] == [0, 1] && answer.get(HEADER..query.len()).is_some_and(|question| question.eq_ignore_ascii_case(&query[HEADER..]));
    match code {
        0 | 3 if !asked => None,
        0 if answer[2] & 0x02 != 0 => Some(Err(Error::Malformed("cut short: too many addresses for UDP"))),
        0 => Some(addresses(answer, query.len())),
        3 => Some(Err(Error::NxDomain)),
        5 => Some(Err(Error::Refused)),
        other => Some(Err(Error::Code(other))),
    }
}

fn addresses(answer: &[u8], mut at: usize) -> Result<Vec<Ipv4Addr>, Error> {
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    let mut found = Vec::new();
    for _ in 0..count {
        at = after_name(answer, at)?;
        let fixed = answer.get(at..at + 10).ok_or(Error::Malformed("a record ends early"))?;
        let (kind, class) = (u16::from_be_bytes([fixed[0], fixed[1]]), u16::from_be_bytes([fixed[2], fixed[3]]));
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = answer.get(at + 10..at + 10 + length).ok_or(Error::Malformed("a record's data ends early"))?;
        if (kind, class) == (TYPE_A, CLASS_IN) {
            let octets: [u8; 4] = data.try_into().map_err(|_| Error::Malformed("an address is not 4 bytes long"))?;
            found.push(Ipv4Addr::from(octets));
        }
        at += 10 + length;
    }
    if found.is_empty() { Err(Error::NoData) } else { Ok(found) }
}

/// Where the record after an owner name goes on; a compression pointer ends the name.
fn after_name(answer: &[u8], mut at: usize) -> Result<usize, Error> {
    loop {
        match *answer.get(at).ok_or(Error::Malformed("a name ends early"))? {
            0 => return Ok(at + 1),
            pointer if pointer & 0xc0 == 0xc0 => return Ok(at + 2),
            length if length < 64 => at += 1 + usize::from(length),
            _ => return Err(Error::Malformed("an unknown kind of label")),
        }
    }
}

/// A server that is not there (ICMP port unreachable) is asked again until the deadline.
fn ask(server: SocketAddr, name: &str, deadline: Instant) -> Result<Vec<Ipv4Addr>, Error> {
    let mut last = Error::TimedOut;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(last);
        }
        let query = encode(random_id().map_err(io_error)?, name)?;
        match ask_once(server, &query, Instant::now() + left.min(TRY)) {
            Ok(Some(result)) => return result,
            Ok(None) => last = Error::TimedOut,
            Err(error) => {
                last = io_error(error);
                std::thread::sleep(AFTER_REFUSAL.min(deadline.saturating_duration_since(Instant::now())));
            }
        }
    }
}

/// Sends one query and waits for its answer until `until`; `None` when none came.
fn ask_once(server: SocketAddr, query: &[u8], until: Instant) -> io::Result<Option<Result<Vec<Ipv4Addr>, Error>>> {
    let any: SocketAddr = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.send(query)?;
    let mut buffer = vec![0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some(result) = decode(query, &buffer[..length]) {
                    return Ok(Some(result));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(u16::from_be_bytes(id))
}

fn io_error(error: io::Error) -> Error {
    Error::Io(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::{Duration, Instant};

    use super::{Error, ask, decode, encode, first_server};

    /// An answer to `query` with a response code and A records whose names point at the question.
    fn answer(query: &[u8], code: u8, addresses: &[[u8; 4]]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] = 0x85;
        answer[3] = code;
        answer[7] = u8::try_from(addresses.len()).unwrap();
        for address in addresses {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(address);
        }
        answer
    }

    #[test]
    fn a_query_is_header_labels_type_and_class() {
        let query = encode(0x1234, "web.lab.").unwrap();
        assert_eq!(query, b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\x03lab\0\0\x01\0\x01");
        assert_eq!(query, encode(0x1234, "web.lab").unwrap());
    }

    #[test]
    fn names_that_have_no_wire_form_are_refused() {
        for name in ["", ".", "a..b", &"x".repeat(64), &["abcdefg"; 40].join(".")] {
            assert!(matches!(encode(1, name), Err(Error::BadName(_))), "{name}");
        }
    }

    #[test]
    fn addresses_keep_the_order_of_the_answer() {
        let query = encode(7, "web").unwrap();
        let result = decode(&query, &answer(&query, 0, &[[10, 128, 0, 9], [10, 128, 0, 3]]));
        assert_eq!(result, Some(Ok(vec![Ipv4Addr::new(10, 128, 0, 9), Ipv4Addr::new(10, 128, 0, 3)])));
    }

    #[test]
    fn response_codes_have_words() {
        let query = encode(7, "web").unwrap();
        for (code, word) in [(0, "NODATA"), (3, "NXDOMAIN"), (5, "REFUSED"), (2, "SERVFAIL"), (4, "response code 4")] {
            assert_eq!(decode(&query, &answer(&query, code, &[])).unwrap().unwrap_err().to_string(), word);
        }
    }

    #[test]
    fn answers_to_other_questions_are_passed_over() {
        let query = encode(7, "web").unwrap();
        assert_eq!(decode(&query, &query), None, "a query is no answer");
        assert_eq!(decode(&query, &answer(&encode(8, "web").unwrap(), 0, &[[1, 2, 3, 4]])), None, "another id");
        assert_eq!(decode(&query, &answer(&encode(7, "wob").unwrap(), 0, &[[1, 2, 3, 4]])), None, "another name");
    }

    #[test]
    fn an_answer_cut_anywhere_is_no_panic() {
        let query = encode(7, "web").unwrap();
        let whole = answer(&query, 0, &[[1, 2, 3, 4]]);
        for length in 0..whole.len() {
            assert!(!matches!(decode(&query, &whole[..length]), Some(Ok(_))), "{length} bytes");
        }
    }

    #[test]
    fn the_first_name_server_counts() {
        assert_eq!(first_server("# x\nsearch lab\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"), Some([10, 0, 0, 1].into()));
        assert_eq!(first_server("options ndots:0\n"), None);
    }

    #[test]
    fn a_server_is_asked_over_udp() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"noise", from).unwrap();
            server.send_to(&answer(&buffer[..length], 0, &[[10, 0, 0, 7]]), from).unwrap();
        });
        assert_eq!(ask(at, "web", Instant::now() + Duration::from_secs(5)), Ok(vec![Ipv4Addr::new(10, 0, 0, 7)]));
        serving.join().unwrap();
    }
}
