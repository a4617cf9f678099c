//! `stream`: one TCP connection to a server's `/stream`, numbered lines sent on it and checked as they come back.
//!
//! ```text
//! client  GET /stream ──► server      the server answers with headers, then echoes line by line
//!         1\n 2\n 3\n ──►
//!                     ◄── 1\n 2\n …   in order, none missing, none twice; else the stream is broken
//!         half-close  ──►
//!                     ◄── the rest, end
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::http::{self, Url};
use crate::output::say;
use crate::stop::Stop;

const CONNECT: Duration = Duration::from_secs(5);
/// How long to wait for the echoes still under way after the half-close.
const REST: Duration = Duration::from_secs(2);
/// How long a full send buffer may hold up a line before the stream counts as broken: far beyond any restart it is to survive.
const WRITE: Duration = Duration::from_secs(60);

/// What the reader saw.
#[derive(Debug, Default)]
struct Echoes {
    echoed: u64,
    longest_gap: Duration,
    /// Why reading ended before the server's orderly end.
    failed: Option<String>,
}

/// Streams until stop is said or the stream breaks, prints the summary, and says whether all came back.
pub fn stream(url: &Url, interval: Duration, stop: &Stop) -> io::Result<bool> {
    let (mut connection, reader) = open(url)?;
    let (done, ended) = mpsc::channel();
    let at_end = stop.clone();
    std::thread::Builder::new().spawn(move || {
        let echoes = read_echoes(reader);
        // The receiver is gone only when the summary is already printed.
        drop(done.send(echoes));
        at_end.say();
    })?;
    let mut sent = 0;
    let mut failed = None;
    loop {
        if let Err(error) = connection.write_all(format!("{}\n", sent + 1).as_bytes()) {
            failed = Some(http::words(&error));
            break;
        }
        sent += 1;
        if stop.wait(interval) {
            break;
        }
    }
    // An echo reader that ended before the half-close lost its server.
    let early = ended.try_recv().ok();
    let was_early = early.is_some();
    let echoes = match early {
        Some(echoes) => echoes,
        None => finish(&connection, &ended, &mut failed),
    };
    if was_early && echoes.failed.is_none() {
        failed.get_or_insert_with(|| "the server closed the stream".to_owned());
    }
    let why = failed.or(echoes.failed).or_else(|| (echoes.echoed != sent).then(|| format!("{} of {sent} lines came back", echoes.echoed)));
    if let Some(why) = &why {
        eprintln!("rcluster-probe: stream broken: {why}");
    }
    let broken = why.is_some();
    let gap_ms = echoes.longest_gap.as_millis();
    say(&format!("{{\"sent\":{sent},\"echoed\":{},\"longest_gap_ms\":{gap_ms},\"broken\":{broken}}}", echoes.echoed))?;
    Ok(!broken)
}

/// Connects, asks for the stream and reads past the answer's headers.
fn open(url: &Url) -> io::Result<(TcpStream, BufReader<TcpStream>)> {
    let deadline = Instant::now() + CONNECT;
    let address = url.resolve(deadline).map_err(|why| io::Error::other(format!("{}: {why}", url.host)))?;
    let mut connection = TcpStream::connect_timeout(&SocketAddr::new(address, url.port), http::left(deadline)?)?;
    connection.set_nodelay(true)?;
    connection.set_write_timeout(Some(WRITE))?;
    connection.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut reader = BufReader::new(connection.try_clone()?);
    reader.get_ref().set_read_timeout(Some(CONNECT))?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.split_whitespace().nth(1) != Some("200") {
        return Err(io::Error::other(format!("the server does not stream: {:?}", line.trim_end())));
    }
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    reader.get_ref().set_read_timeout(None)?;
    Ok((connection, reader))
}

/// Half-closes and waits for the rest; what does not come in time is a failure.
fn finish(connection: &TcpStream, ended: &mpsc::Receiver<Echoes>, failed: &mut Option<String>) -> Echoes {
    if let Err(error) = connection.shutdown(Shutdown::Write) {
        failed.get_or_insert_with(|| http::words(&error));
    }
    if let Ok(echoes) = ended.recv_timeout(REST) {
        return echoes;
    }
    failed.get_or_insert_with(|| "the rest did not come back in time".to_owned());
    // Ends the reader, which then tells how far it came; a connection already gone ended it by itself.
    drop(connection.shutdown(Shutdown::Both));
    ended.recv_timeout(REST).unwrap_or_default()
}

fn read_echoes(mut reader: impl BufRead) -> Echoes {
    let mut echoes = Echoes::default();
    let mut last = Instant::now();
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => return echoes,
            Ok(_) => {}
            Err(error) => {
                echoes.failed = Some(http::words(&error));
                return echoes;
            }
        }
        if line != format!("{}\n", echoes.echoed + 1) {
            echoes.failed = Some(format!("line {} came back as {line:?}", echoes.echoed + 1));
            return echoes;
        }
        echoes.echoed += 1;
        echoes.longest_gap = echoes.longest_gap.max(last.elapsed());
        last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::read_echoes;

    #[test]
    fn echoes_come_back_in_order() {
        for (text, echoed, fails) in
            [("", 0, false), ("1\n2\n3\n", 3, false), ("1\n3\n", 1, true), ("1\n1\n", 1, true), ("1\n2", 1, true), ("2\n", 0, true)]
        {
            let echoes = read_echoes(text.as_bytes());
            assert_eq!((echoes.echoed, echoes.failed.is_some()), (echoed, fails), "{text:?}");
        }
    }
}
