//! `serve`: a small HTTP/1.1 server that says which task and node it is, and misbehaves on demand.
//!
//! One thread with a small stack per connection, one request per connection. It never ends by itself but by `/crash` or a signal.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::json;
use crate::output::say;

const STACK_BYTES: usize = 64 * 1024;
const HEAD_BYTES_MAX: u64 = 16 * 1024;
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// How long a client may take to send its request or to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be taken (no descriptors, no threads left).
const EXHAUSTED: Duration = Duration::from_millis(100);
const CRASH_CODE: i32 = 3;

#[derive(Debug)]
struct Server {
    task: String,
    node: String,
    requests: AtomicU64,
    /// What `/eat` took and never gives back.
    eaten: Mutex<Vec<Vec<u8>>>,
}

/// What a request line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Who,
    Health,
    Crash,
    Eat { mib: usize },
    Stream,
    BadRequest(&'static str),
    BadMethod,
    Unknown(&'a str),
}

/// Serves for ever; returns only why it cannot.
pub fn serve(port: u16) -> io::Error {
    let of_environment = |name| std::env::var(name).unwrap_or_default();
    let server = Arc::new(Server {
        task: of_environment("RCLUSTER_TASK"),
        node: of_environment("RCLUSTER_NODE"),
        requests: AtomicU64::new(0),
        eaten: Mutex::new(Vec::new()),
    });
    let (listener, port) = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).and_then(|it| Ok((it.local_addr()?.port(), it))) {
        Ok((port, listener)) => (listener, port),
        Err(error) => return io::Error::new(error.kind(), format!("listen on port {port}: {error}")),
    };
    log(&format!("serving on port {port}"));
    loop {
        let accepted = listener.accept().and_then(|(connection, _)| {
            let server = Arc::clone(&server);
            std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
                if let Err(error) = handle(&server, connection) {
                    log(&format!("connection: {error}"));
                }
            })
        });
        if let Err(error) = accepted {
            log(&format!("accept: {error}"));
            std::thread::sleep(EXHAUSTED);
        }
    }
}

/// A log line that nobody reads must not end the service.
fn log(line: &str) {
    drop(say(line));
}

fn handle(server: &Server, mut connection: TcpStream) -> io::Result<()> {
    let peer = connection.peer_addr()?.ip();
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let Some(request) = read_head(&mut reader)? else { return Ok(()) };
    let target = request.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    log(&format!("{} from {peer}", target.escape_debug()));
    let count = server.requests.fetch_add(1, Ordering::Relaxed) + 1;
    match asked(&request) {
        Asked::Who => answer(&mut connection, "200 OK", "application/json", &server.who(count)),
        Asked::Health => answer(&mut connection, "200 OK", "text/plain", "ok\n"),
        Asked::Crash => std::process::exit(CRASH_CODE),
        Asked::Eat { mib } => {
            server.eat(mib);
            answer(&mut connection, "200 OK", "text/plain", &format!("ate {mib} MiB\n"))
        }
        Asked::Stream => {
            connection.set_read_timeout(None)?;
            connection.set_write_timeout(None)?;
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")?;
            echo(&mut reader, &mut connection)
        }
        Asked::BadRequest(why) => answer(&mut connection, "400 Bad Request", "text/plain", &format!("{why}\n")),
        Asked::BadMethod => answer(&mut connection, "405 Method Not Allowed", "text/plain", "only GET\n"),
        Asked::Unknown(path) => answer(&mut connection, "404 Not Found", "text/plain", &format!("no {path} here\n")),
    }
}

impl Server {
    fn who(&self, requests: u64) -> String {
        let (task, node, pid) = (json::string(&self.task), json::string(&self.node), std::process::id());
        format!("{{\"task\":{task},\"node\":{node},\"pid\":{pid},\"requests\":{requests}}}\n")
    }

    /// Takes memory a MiB at a time and writes to each page, so that it counts against the limit as it grows.
    fn eat(&self, mib: usize) {
        for _ in 0..mib {
            let piece = vec![1; 1 << 20];
            self.eaten.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
        }
    }
}

/// The request line, after reading past the headers; none when the client closed without asking.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = reader.take(HEAD_BYTES_MAX);
    let (mut request, mut line) = (String::new(), String::new());
    if head.read_line(&mut request)? == 0 {
        return Ok(None);
    }
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the headers end early or are too long"));
        }
        if line.trim_end().is_empty() {
            return Ok(Some(request));
        }
    }
}

fn asked(request: &str) -> Asked<'_> {
    let mut words = request.split_whitespace();
    let (Some(method), Some(target), Some(_)) = (words.next(), words.next(), words.next()) else {
        return Asked::BadRequest("no request line");
    };
    if method != "GET" {
        return Asked::BadMethod;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
        "/" => Asked::Who,
        "/health" => Asked::Health,
        "/crash" => Asked::Crash,
        "/stream" => Asked::Stream,
        "/eat" => match query.split('&').find_map(|pair| pair.strip_prefix("mib=")).map(str::parse) {
            Some(Ok(mib)) => Asked::Eat { mib },
            Some(Err(_)) | None => Asked::BadRequest("say how much: /eat?mib=N"),
        },
        unknown => Asked::Unknown(unknown),
    }
}

fn answer(connection: &mut TcpStream, status: &str, kind: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    connection.write_all(format!("{head}{body}").as_bytes())
}

/// Sends each line back as it comes; a line beyond the limit goes back in pieces.
fn echo(reader: &mut impl BufRead, writer: &mut impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        writer.write_all(&line)?;
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, asked, echo, read_head};

    #[test]
    fn request_lines_are_understood() {
        for (line, expected) in [
            ("GET / HTTP/1.1\r\n", Asked::Who),
            ("GET /health HTTP/1.1\r\n", Asked::Health),
            ("GET /crash HTTP/1.1\r\n", Asked::Crash),
            ("GET /eat?mib=64 HTTP/1.1\r\n", Asked::Eat { mib: 64 }),
            ("GET /eat HTTP/1.1\r\n", Asked::BadRequest("say how much: /eat?mib=N")),
            ("GET /stream HTTP/1.1\r\n", Asked::Stream),
            ("POST / HTTP/1.1\r\n", Asked::BadMethod),
            ("GET /x?y HTTP/1.1\r\n", Asked::Unknown("/x")),
            ("hello\r\n", Asked::BadRequest("no request line")),
        ] {
            assert_eq!(asked(line), expected, "{line}");
        }
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        let mut whole = &b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest"[..];
        assert_eq!(read_head(&mut whole).unwrap().as_deref(), Some("GET / HTTP/1.1\r\n"));
        assert_eq!(whole, b"rest");
        assert_eq!(read_head(&mut &b""[..]).unwrap(), None);
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nHost"[..]).is_err());
    }

    #[test]
    fn every_line_is_echoed() {
        let mut out = Vec::new();
        echo(&mut &b"1\n2\nend"[..], &mut out).unwrap();
        assert_eq!(out, b"1\n2\nend");
    }
}
