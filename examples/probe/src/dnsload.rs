//! `dnsload`: as many questions to the first name server as it answers, so many on their way at once, over one socket.
//!
//! In: a name with an address, and for how long. Out: one line of JSON. Never: an answer that is counted twice, or for another question.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::dns;
use crate::ends::Timings;
use crate::output::say;

/// A question without an answer by then is lost, and asked again.
const LOST: Duration = Duration::from_millis(200);
const HEADER: usize = 12;

/// A question on its way.
#[derive(Debug)]
struct Slot {
    /// Its id: which slot it is, and the how manieth question of it.
    id: [u8; 2],
    sent: Instant,
}

/// How an answer is judged.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// That of this slot, with an address in it.
    Good(usize),
    /// That of this slot, and it says no.
    Bad(usize),
    /// Late, twice, or nobody's.
    Stray,
}

/// Asks for `time`.
pub fn load(name: &str, time: Duration, window: u8) -> io::Result<()> {
    let config = std::fs::read_to_string("/etc/resolv.conf")?;
    let server = dns::first_server(&config).ok_or_else(|| io::Error::other("/etc/resolv.conf names no server"))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::new(server, 53))?;
    socket.set_read_timeout(Some(LOST))?;
    let mut query = dns::encode(0, name).map_err(|error| io::Error::other(error.to_string()))?;
    let began = Instant::now();
    let mut slots = Vec::new();
    for number in 0..window.max(1) {
        slots.push(Slot { id: [number, 0], sent: began });
        send(&socket, &mut query, [number, 0])?;
    }
    let (mut timings, mut lost, mut bad) = (Timings::default(), 0_u64, 0_u64);
    let mut swept = began;
    let mut buffer = [0; 4096];
    while began.elapsed() < time {
        match socket.recv(&mut buffer) {
            Ok(length) => match judge(&slots, &buffer[..length]) {
                Judged::Good(number) => {
                    timings.add(slots[number].sent.elapsed());
                    ask_next(&socket, &mut query, &mut slots[number])?;
                }
                Judged::Bad(number) => {
                    bad += 1;
                    ask_next(&socket, &mut query, &mut slots[number])?;
                }
                Judged::Stray => {}
            },
            Err(error) if is_silence(&error) => {}
            Err(error) => return Err(error),
        }
        if swept.elapsed() >= LOST {
            swept = Instant::now();
            for slot in slots.iter_mut().filter(|slot| slot.sent.elapsed() >= LOST) {
                lost += 1;
                ask_next(&socket, &mut query, slot)?;
            }
        }
    }
    say(&format!("{{{},\"lost\":{lost},\"bad\":{bad}}}", timings.json_fields(began.elapsed())))
}

/// A server that is not there for a moment loses questions, no more.
fn is_silence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
    )
}

fn ask_next(socket: &UdpSocket, query: &mut [u8], slot: &mut Slot) -> io::Result<()> {
    slot.id[1] = slot.id[1].wrapping_add(1);
    slot.sent = Instant::now();
    send(socket, query, slot.id)
}

fn send(socket: &UdpSocket, query: &mut [u8], id: [u8; 2]) -> io::Result<()> {
    query[..2].copy_from_slice(&id);
    match socket.send(query) {
        Ok(_) => Ok(()),
        Err(error) if is_silence(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn judge(slots: &[Slot], answer: &[u8]) -> Judged {
    let Some(header) = answer.get(..HEADER) else { return Judged::Stray };
    let number = usize::from(header[0]);
    let is_due = header[2] & 0x80 != 0 && slots.get(number).is_some_and(|slot| slot.id == header[..2]);
    match (is_due, header[3] & 0x0f, u16::from_be_bytes([header[6], header[7]])) {
        (false, ..) => Judged::Stray,
        (true, 0, 1..) => Judged::Good(number),
        (true, ..) => Judged::Bad(number),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Judged, Slot, judge};

    #[test]
    fn only_the_answer_that_is_due_counts() {
        let slots = [Slot { id: [0, 7], sent: Instant::now() }, Slot { id: [1, 0], sent: Instant::now() }];
        let answer = |id: [u8; 2], flags: u8, code: u8, count: u8| [id[0], id[1], flags, code, 0, 1, 0, count, 0, 0, 0, 0];
        for (bytes, judged) in [
            (answer([0, 7], 0x85, 0x80, 3), Judged::Good(0)),
            (answer([1, 0], 0x85, 0x80, 1), Judged::Good(1)),
            (answer([1, 0], 0x85, 0x80, 0), Judged::Bad(1)),
            (answer([1, 0], 0x85, 0x83, 0), Judged::Bad(1)),
            (answer([0, 6], 0x85, 0x80, 1), Judged::Stray),
            (answer([2, 0], 0x85, 0x80, 1), Judged::Stray),
            (answer([0, 7], 0x05, 0, 1), Judged::Stray),
        ] {
            assert_eq!(judge(&slots, &bytes), judged, "{bytes:?}");
        }
        assert_eq!(judge(&slots, &[0, 7, 0x85]), Judged::Stray);
    }
}
