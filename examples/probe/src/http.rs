//! The client's side of HTTP/1.1: a URL, one connection, one answer.
//!
//! In: a URL and a deadline that covers name, connection and answer together. Out: the address that was tried and the body, or why not in
//! words. Never: a redirect, a second address, a connection kept.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::dns;

/// The most of an answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// `http://host[:port]/path`.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    pub host: String,
    pub port: u16,
    pub path: String,
}

/// What came of a request.
#[derive(Debug)]
pub struct Fetched {
    /// The address that was tried; none when the name did not resolve.
    pub address: Option<IpAddr>,
    /// The body of a 2xx answer, or why there is none.
    pub body: Result<String, String>,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").ok_or_else(|| format!("{text:?} is no http:// URL"))?;
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').ok_or_else(|| format!("{text:?} has no ] after its address"))?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| format!("{text:?}: {port:?} is not a port"))?,
            None if port.is_empty() => 80,
            None => return Err(format!("{text:?}: {port:?} is not a port")),
        };
        let is_clean = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !is_clean(host) || !is_clean(&path) {
            return Err(format!("{text:?} has no host, or letters that a URL cannot hold"));
        }
        Ok(Self { host: host.to_owned(), port, path })
    }

    /// The first address of the host: the literal itself, or what the name server says now.
    pub fn resolve(&self, deadline: Instant) -> Result<IpAddr, String> {
        if let Ok(address) = self.host.parse() {
            return Ok(address);
        }
        let addresses = dns::lookup(&self.host, deadline).map_err(|error| error.to_string())?;
        addresses.first().map(|address| IpAddr::V4(*address)).ok_or_else(|| dns::Error::NoData.to_string())
    }
}

/// Resolves, connects and asks, all before `deadline`.
pub fn fetch(url: &Url, deadline: Instant) -> Fetched {
    match url.resolve(deadline) {
        Ok(address) => Fetched { address: Some(address), body: exchange(url, address, deadline) },
        Err(why) => Fetched { address: None, body: Err(why) },
    }
}

/// An io error in few words, the same for each way a system call has to say it.
pub fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "timed out".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

/// The time left, or a timeout when there is none.
pub fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn exchange(url: &Url, address: IpAddr, deadline: Instant) -> Result<String, String> {
    let to = SocketAddr::new(address, url.port);
    let connected = left(deadline).and_then(|left| TcpStream::connect_timeout(&to, left));
    let connection = connected.map_err(|error| words(&error))?;
    // Which of the two fails tells whether a packet found its way at all.
    let answer = ask(url, connection, deadline).map_err(|error| format!("connected, then {}", words(&error)))?;
    body(&answer)
}

fn ask(url: &Url, mut connection: TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    connection.set_write_timeout(Some(left(deadline)?))?;
    write!(connection, "GET {} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n\r\n", url.path, url.host, url.port)?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        connection.set_read_timeout(Some(left(deadline)?))?;
        match connection.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
        }
    }
}

/// The body of a whole answer with a 2xx status, whose length is told or ends with the connection.
fn body(answer: &[u8]) -> Result<String, String> {
    if answer.is_empty() {
        return Err("closed without an answer".to_owned());
    }
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("closed amid the headers")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default();
    if !status.starts_with('2') {
        return Err(format!("status {status}"));
    }
    let told = lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    match told.map(|(_, length)| length.trim().parse::<usize>()) {
        Some(Ok(length)) if body.len() < length => Err("closed amid the body".to_owned()),
        Some(Err(_)) => Err("a content-length that is no number".to_owned()),
        _ => Ok(body.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Url, body};

    #[test]
    fn urls_have_host_port_and_path() {
        for (text, host, port, path) in [
            ("http://web:8080/", "web", 8080, "/"),
            ("http://web", "web", 80, "/"),
            ("http://web?x=1", "web", 80, "/?x=1"),
            ("http://10.0.0.1:81/eat?mib=3", "10.0.0.1", 81, "/eat?mib=3"),
            ("http://[::1]:81/a/b", "::1", 81, "/a/b"),
        ] {
            assert_eq!(Url::parse(text), Ok(Url { host: host.to_owned(), port, path: path.to_owned() }), "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in
            ["web:8080", "https://web/", "http://", "http://:80/", "http://web:x/", "http://web:70000/", "http://[::1", "http://a b/"]
        {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_whole_good_answer_counts() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"), Ok("ok\n".to_owned()));
        for (answer, why) in [
            (&b""[..], "closed without an answer"),
            (b"HTTP/1.1 200 OK\r\n", "closed amid the headers"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok\n", "closed amid the body"),
            (b"HTTP/1.1 503 No\r\n\r\n", "status 503"),
        ] {
            assert_eq!(body(answer), Err(why.to_owned()));
        }
    }
}
