//! What a path between two hosts carries, measured from its ends: `sink` on one side, `load`, `rr` or `conns` on the other.
//!
//! ```text
//! load    'b' bytes …, half-close ──►  sink      rr   'e' x ──►  sink      conns   'c' ──►  sink     a connection each
//!                     ◄── 8 bytes: how many           ◄── x, again …               ◄── one byte, end
//! ```
//!
//! In: where the other side is, and for how long. Out: one line of JSON. Never: a thread for a connection of `conns`, which would cost more
//! than the path; a connection that its client has to remember (the server ends it first, so that ports do not run out).

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::http::{self, Url};
use crate::output::say;

const STACK_BYTES: usize = 64 * 1024;
const CHUNK_BYTES: usize = 128 * 1024;
/// How long a client may take to say what it wants, and a server to take or give a byte.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait when no connection can be taken (no descriptors, no threads left).
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What a connection is for: its first byte.
const BULK: u8 = b'b';
const ECHO: u8 = b'e';
const CLOSE: u8 = b'c';

/// How long each of many things took.
#[derive(Debug, Default)]
pub struct Timings {
    nanos: Vec<u64>,
}

impl Timings {
    pub fn add(&mut self, took: Duration) {
        self.nanos.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The fields of a JSON object, without its braces: how many, how many a second, and the least, p50 and p99 in microseconds.
    pub fn json_fields(&mut self, within: Duration) -> String {
        self.nanos.sort_unstable();
        let last = self.nanos.len().saturating_sub(1);
        let at =
            |percent: usize| self.nanos.get(last * percent / 100).map_or(0.0, |nanos| Duration::from_nanos(*nanos).as_secs_f64() * 1e6);
        let count = self.nanos.len();
        format!(
            "\"count\":{count},\"per_second\":{:.1},\"best_us\":{:.2},\"p50_us\":{:.2},\"p99_us\":{:.2}",
            per_second(count as u64, within),
            at(0),
            at(50),
            at(99)
        )
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate")]
fn per_second(count: u64, within: Duration) -> f64 {
    if within.is_zero() { 0.0 } else { count as f64 / within.as_secs_f64() }
}

/// Takes connections for ever; returns only why it cannot.
pub fn sink(port: u16) -> io::Error {
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(listener) => listener,
        Err(error) => return io::Error::new(error.kind(), format!("listen on port {port}: {error}")),
    };
    // Nobody may read this any more, and that is no reason to end.
    drop(say(&format!("sink on port {port}")));
    loop {
        match listener.accept() {
            // A client that goes away in the middle is its own business.
            Ok((connection, _)) => drop(take(connection)),
            Err(_) => std::thread::sleep(EXHAUSTED),
        }
    }
}

fn take(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut wanted = [0];
    connection.read_exact(&mut wanted)?;
    match wanted[0] {
        CLOSE => connection.write_all(&wanted),
        ECHO => beside(move || echo(connection)),
        BULK => beside(move || swallow(connection)),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{other} is nothing that a sink does"))),
    }
}

fn beside(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || drop(work())).map(drop)
}

fn echo(mut connection: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    loop {
        connection.read_exact(&mut byte)?;
        connection.write_all(&byte)?;
    }
}

fn swallow(mut connection: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut count = 0_u64;
    loop {
        match connection.read(&mut buffer)? {
            0 => return connection.write_all(&count.to_be_bytes()),
            length => count += u64::try_from(length).unwrap_or_default(),
        }
    }
}

/// Where a sink is, as `HOST:PORT`, with its name asked for once.
pub fn resolve(target: &str) -> Result<SocketAddr, String> {
    let url = Url::parse(&format!("http://{target}/"))?;
    let address = url.resolve(Instant::now() + PATIENCE).map_err(|why| format!("{}: {why}", url.host))?;
    Ok(SocketAddr::new(address, url.port))
}

fn open(sink: SocketAddr, wanted: u8) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect_timeout(&sink, PATIENCE).map_err(|error| io::Error::other(http::words(&error)))?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.write_all(&[wanted])?;
    Ok(connection)
}

/// Sends as much as goes on one connection; what has arrived by the end counts.
pub fn load(sink: SocketAddr, time: Duration) -> io::Result<()> {
    let mut connection = open(sink, BULK)?;
    let chunk = vec![0x5a; CHUNK_BYTES];
    let began = Instant::now();
    while began.elapsed() < time {
        connection.write_all(&chunk)?;
    }
    connection.shutdown(std::net::Shutdown::Write)?;
    let mut count = [0; 8];
    connection.read_exact(&mut count)?;
    let (bytes, took) = (u64::from_be_bytes(count), began.elapsed());
    say(&format!("{{\"bytes\":{bytes},\"mbit_per_second\":{:.1}}}", per_second(bytes.saturating_mul(8), took) / 1e6))
}

/// Sends a byte and waits for it, again and again, on one connection.
pub fn rr(sink: SocketAddr, time: Duration) -> io::Result<()> {
    let mut connection = open(sink, ECHO)?;
    let mut byte = [1];
    let mut timings = Timings::default();
    let began = Instant::now();
    while began.elapsed() < time {
        let asked = Instant::now();
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)?;
        timings.add(asked.elapsed());
    }
    say(&format!("{{{}}}", timings.json_fields(began.elapsed())))
}

/// Connects, asks for a byte and waits for the connection's end, again and again.
pub fn conns(sink: SocketAddr, time: Duration) -> io::Result<()> {
    let mut timings = Timings::default();
    let mut failed = 0_u64;
    let began = Instant::now();
    while began.elapsed() < time {
        let asked = Instant::now();
        let done = open(sink, CLOSE).and_then(|mut connection| connection.read_to_end(&mut Vec::with_capacity(1)));
        match done {
            Ok(1) => timings.add(asked.elapsed()),
            Ok(_) | Err(_) => failed += 1,
        }
    }
    say(&format!("{{{},\"failed\":{failed}}}", timings.json_fields(began.elapsed())))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::Duration;

    use super::{BULK, CLOSE, ECHO, Timings, take};

    /// A connection that a sink has taken.
    fn taken() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::thread::spawn(move || take(listener.accept().unwrap().0));
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        connection
    }

    #[test]
    fn a_sink_counts_what_it_swallows() {
        let mut connection = taken();
        connection.write_all(&[BULK]).unwrap();
        connection.write_all(&[7; 300_000]).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let mut count = [0; 8];
        connection.read_exact(&mut count).unwrap();
        assert_eq!(u64::from_be_bytes(count), 300_000);
    }

    #[test]
    fn a_sink_says_again_what_it_hears_or_ends_first() {
        let mut connection = taken();
        let mut byte = [0];
        connection.write_all(&[ECHO]).unwrap();
        for letter in *b"abc" {
            connection.write_all(&[letter]).unwrap();
            connection.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [letter]);
        }
        let mut connection = taken();
        connection.write_all(&[CLOSE]).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [CLOSE]);
    }

    #[test]
    fn timings_are_told_in_order() {
        let mut timings = Timings::default();
        for micros in (1..=100).rev() {
            timings.add(Duration::from_micros(micros));
        }
        assert_eq!(
            timings.json_fields(Duration::from_secs(2)),
            "\"count\":100,\"per_second\":50.0,\"best_us\":1.00,\"p50_us\":50.00,\"p99_us\":99.00"
        );
        assert!(Timings::default().json_fields(Duration::ZERO).starts_with("\"count\":0,\"per_second\":0.0"));
    }
}
