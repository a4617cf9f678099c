//! Where a container's output goes beside its file, and in what form each line goes there.
//!
//! In: the monitor's `--log-sink`, then lines. Out: messages for a datagram socket or a stream. Decides nothing of files and opens
//! nothing.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// What a syslog server may be asked to hold while it does not read; a whole message more is lost.
pub const OUTBOX_BYTES_MAX: usize = 256 << 10;

const JOURNAL: &str = "/run/systemd/journal/socket";
const SYSLOG: &str = "/dev/log";

/// RFC 5424, 6.2.5: APP-NAME has at most 48 characters.
const TAG_BYTES_MAX: usize = 48;

/// Facilities by number (RFC 5424, 6.2.1; names of syslog(3)).
const FACILITIES: [&str; 24] = [
    "kern",
    "user",
    "mail",
    "daemon",
    "auth",
    "syslog",
    "lpr",
    "news",
    "uucp",
    "cron",
    "authpriv",
    "ftp",
    "ntp",
    "security",
    "console",
    "solaris-cron",
    "local0",
    "local1",
    "local2",
    "local3",
    "local4",
    "local5",
    "local6",
    "local7",
];

/// Of syslog(3): what a container writes to its standard error is an error, all else is information.
const ERROR: u8 = 3;
const INFORMATION: u8 = 6;

/// `--log-sink`, JSON.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    driver: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    facility: String,
    /// What the lines are found by.
    #[serde(default)]
    tag: String,
    /// Beside each line, where the sink keeps fields.
    #[serde(default)]
    fields: BTreeMap<String, String>,
}

/// What becomes of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// It is not kept at all.
    Nowhere,
    /// It is kept in the file and sent.
    Sent { address: Address, form: Form },
}

/// Where lines are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Udp(SocketAddr),
    Tcp(SocketAddr),
}

/// How a line is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// The journal's native protocol (systemd, "Native Journal Protocol").
    Journal { tag: String, fields: BTreeMap<String, String> },
    /// As syslog(3) writes to a local daemon (RFC 3164, 4.1, without a host name).
    Local { facility: u8, tag: String },
    /// RFC 5424.
    Remote { facility: u8, tag: String, host: String },
}

/// A line of output, or a piece of one.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// RFC 3339.
    pub time: &'a str,
    pub is_error: bool,
    pub text: &'a [u8],
    /// More of it follows.
    pub goes_on: bool,
}

/// Reads `--log-sink`; `host` is this node's name.
///
/// # Errors
/// A sentence that names the field.
pub fn parse(text: &str, host: &str) -> Result<Output, String> {
    let wanted: Wanted = serde_json::from_str(text).map_err(|error| format!("--log-sink: {error}"))?;
    let Wanted { driver, address, facility, tag, fields } = wanted;
    let plain = |c: char| c.is_ascii_graphic();
    if tag.len() > TAG_BYTES_MAX || !tag.chars().all(plain) {
        return Err(format!("--log-sink: tag {tag:?}: at most {TAG_BYTES_MAX} printable characters of ASCII, none of them a blank"));
    }
    if let Some(name) = fields.keys().find(|name| !is_field(name)) {
        return Err(format!("--log-sink: field {name:?}: capital letters, digits and _, a letter first, at most 64"));
    }
    match driver.as_str() {
        "none" => Ok(Output::Nowhere),
        "journald" => match parse_address(if address.is_empty() { "unix:///run/systemd/journal/socket" } else { &address })? {
            // Another than the first is that of a journal namespace (systemd-journald.service(8)).
            address @ Address::Unix(_) => Ok(Output::Sent { address, form: Form::Journal { tag, fields } }),
            _ => Err(format!("--log-sink: address {address:?}: a journal listens at a socket of this node: unix:///PATH")),
        },
        "syslog" => {
            let name = if facility.is_empty() { "daemon" } else { &facility };
            let facility = FACILITIES.iter().position(|known| *known == name);
            let facility = facility.and_then(|number| u8::try_from(number).ok());
            let facility = facility.ok_or_else(|| format!("--log-sink: there is no facility {name:?}: {}", FACILITIES.join(", ")))?;
            let address = parse_address(if address.is_empty() { "unix:///dev/log" } else { &address })?;
            let form = match address {
                Address::Unix(_) => Form::Local { facility, tag },
                Address::Udp(_) | Address::Tcp(_) => Form::Remote { facility, tag, host: host.to_owned() },
            };
            Ok(Output::Sent { address, form })
        }
        other => Err(format!("--log-sink: there is no driver {other:?}: journald, syslog or none")),
    }
}

fn parse_address(text: &str) -> Result<Address, String> {
    let refused = || format!("--log-sink: address {text:?}: unix:///PATH, udp://IP:PORT or tcp://IP:PORT");
    match text.split_once("://").ok_or_else(refused)? {
        ("unix", path) if path.starts_with('/') => Ok(Address::Unix(path.into())),
        ("udp", address) => address.parse().map(Address::Udp).map_err(|_| refused()),
        ("tcp", address) => address.parse().map(Address::Tcp).map_err(|_| refused()),
        _ => Err(refused()),
    }
}

/// The journal takes no other names and drops what has them.
fn is_field(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

impl Form {
    /// The message for a line.
    pub fn message(&self, line: &Line<'_>) -> Vec<u8> {
        let severity = if line.is_error { ERROR } else { INFORMATION };
        match self {
            Self::Journal { tag, fields } => journal(line, severity, tag, fields),
            Self::Local { facility, tag } => with_text(format!("<{}>{} {tag}: ", facility * 8 + severity, short_time(line.time)), line),
            Self::Remote { facility, tag, host } => {
                let nil = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
                // RFC 5424, 6.2.3.1: six digits of a second's fraction at most.
                let time = micros(line.time);
                with_text(format!("<{}>1 {time} {} {} - - - ", facility * 8 + severity, nil(host), nil(tag)), line)
            }
        }
    }

    /// The sink in words.
    pub fn name(&self) -> &'static str {
        if matches!(self, Self::Journal { .. }) { "journald" } else { "syslog" }
    }
}

fn with_text(head: String, line: &Line<'_>) -> Vec<u8> {
    let mut message = head.into_bytes();
    message.extend_from_slice(line.text);
    message
}

/// `FIELD=value` and a newline; a value that holds a newline, which no line of output does, would need its length before it. What is no
/// text at all is written in that form, too, since the journal takes any bytes there.
fn journal(line: &Line<'_>, severity: u8, tag: &str, fields: &BTreeMap<String, String>) -> Vec<u8> {
    let mut message = format!("PRIORITY={severity}\nSYSLOG_IDENTIFIER={}\n", single(tag)).into_bytes();
    for (name, value) in fields {
        message.extend_from_slice(format!("{name}={}\n", single(value)).as_bytes());
    }
    if line.goes_on {
        message.extend_from_slice(b"CONTAINER_PARTIAL_MESSAGE=true\n");
    }
    message.extend_from_slice(b"MESSAGE\n");
    message.extend_from_slice(&(line.text.len() as u64).to_le_bytes());
    message.extend_from_slice(line.text);
    message.push(b'\n');
    message
}

fn single(value: &str) -> String {
    value.replace('\n', " ")
}

/// `Jan  2 03:04:05` of `2026-01-02T03:04:05.…Z` (RFC 3164, 4.1.2).
fn short_time(time: &str) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let number = |from: usize, to: usize| time.get(from..to).and_then(|text| text.parse::<usize>().ok()).unwrap_or_default();
    let month = MONTHS.get(number(5, 7).wrapping_sub(1)).unwrap_or(&MONTHS[0]);
    format!("{month} {:>2} {}", number(8, 10), time.get(11..19).unwrap_or("00:00:00"))
}

fn micros(time: &str) -> String {
    match time.strip_suffix('Z').and_then(|time| time.split_once('.')) {
        Some((second, fraction)) => format!("{second}.{}Z", &fraction[..fraction.len().min(6)]),
        None => time.to_owned(),
    }
}

/// Messages for a stream that it has not taken yet, whole and in order (RFC 6587, 3.4.1: each with its length before it).
#[derive(Debug, Default)]
pub struct Outbox {
    messages: VecDeque<Vec<u8>>,
    /// What the stream has taken of the first.
    taken: usize,
    bytes: usize,
}

impl Outbox {
    /// Whether there was room.
    pub fn push(&mut self, message: &[u8]) -> bool {
        let mut framed = format!("{} ", message.len()).into_bytes();
        framed.extend_from_slice(message);
        if self.bytes + framed.len() > OUTBOX_BYTES_MAX {
            return false;
        }
        self.bytes += framed.len();
        self.messages.push_back(framed);
        true
    }

    /// What to write next.
    pub fn next(&self) -> Option<&[u8]> {
        self.messages.front().map(|message| &message[self.taken..])
    }

    /// So many bytes of [`Outbox::next`] were written.
    pub fn written(&mut self, count: usize) {
        self.taken += count;
        if self.messages.front().is_some_and(|message| self.taken >= message.len()) {
            self.bytes -= self.messages.pop_front().map_or(0, |message| message.len());
            self.taken = 0;
        }
    }

    /// The stream is another: a message of which it had a part is sent again, whole.
    pub fn restart(&mut self) {
        self.taken = 0;
    }

    /// How many messages are left.
    pub fn len(&self) -> usize {
        self.messages.len()
    }
}

/// The local syslog's and the journal's sockets, for messages to the user.
pub fn well_known(address: &Address) -> Option<&'static str> {
    match address {
        Address::Unix(path) if path.as_os_str() == JOURNAL => Some("is systemd-journald running on this node?"),
        Address::Unix(path) if path.as_os_str() == SYSLOG => Some("is a syslog daemon running on this node?"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Line<'_> = Line { time: "2026-01-02T03:04:05.123456789Z", is_error: false, text: b"hello = \xff", goes_on: false };

    fn form(text: &str) -> Form {
        match parse(text, "n1").unwrap() {
            Output::Sent { form, .. } => form,
            Output::Nowhere => panic!("nowhere"),
        }
    }

    #[test]
    fn each_form_is_as_its_rules_say() {
        let remote = form(r#"{"driver":"syslog","address":"udp://127.0.0.1:514","facility":"local0","tag":"web.1"}"#);
        assert_eq!(remote.message(&LINE), b"<134>1 2026-01-02T03:04:05.123456Z n1 web.1 - - - hello = \xff");
        let error = Line { is_error: true, ..LINE };
        assert_eq!(form(r#"{"driver":"syslog","tag":"web.1"}"#).message(&error), b"<27>Jan  2 03:04:05 web.1: hello = \xff");
        let journal = form(r#"{"driver":"journald","tag":"web.1","fields":{"CONTAINER_NAME":"a\nb"}}"#);
        let expected = b"PRIORITY=6\nSYSLOG_IDENTIFIER=web.1\nCONTAINER_NAME=a b\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE\n\x09\0\0\0\0\0\0\0hello = \xff\n";
        assert_eq!(journal.message(&Line { goes_on: true, ..LINE }), expected);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, said) in [
            (r#"{"driver":"gelf"}"#, "there is no driver \"gelf\""),
            (r#"{"driver":"syslog","facility":"x"}"#, "there is no facility \"x\""),
            (r#"{"driver":"syslog","address":"tcp://logs.example:514"}"#, "udp://IP:PORT"),
            (r#"{"driver":"syslog","address":"unix://dev/log"}"#, "unix:///PATH"),
            (r#"{"driver":"syslog","tag":"a b"}"#, "none of them a blank"),
            (r#"{"driver":"journald","fields":{"lower":""}}"#, "field \"lower\""),
            (r#"{"driver":"none","more":1}"#, "unknown field"),
        ] {
            assert!(parse(text, "n1").unwrap_err().contains(said), "{text}");
        }
        assert_eq!(parse(r#"{"driver":"none"}"#, "n1"), Ok(Output::Nowhere));
    }

    #[test]
    fn an_outbox_is_bounded_and_never_cuts_a_message() {
        let mut outbox = Outbox::default();
        assert!(outbox.push(b"one") && outbox.push(b"two"));
        assert_eq!(outbox.next(), Some(b"3 one".as_slice()));
        outbox.written(2);
        assert_eq!(outbox.next(), Some(b"one".as_slice()));
        outbox.restart();
        assert_eq!(outbox.next(), Some(b"3 one".as_slice()));
        outbox.written(5);
        assert_eq!((outbox.next(), outbox.len()), (Some(b"3 two".as_slice()), 1));
        let long = vec![b'x'; OUTBOX_BYTES_MAX / 2];
        assert!(outbox.push(&long) && !outbox.push(&long));
        outbox.written(5);
        outbox.written(outbox.next().unwrap().len());
        assert!((outbox.next(), outbox.bytes) == (None, 0) && outbox.push(&long));
    }
}
