//! Whether nodes are there, and hear what is large: ICMP echo (RFC 792) over the underlay.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

/// So often each is asked.
const TRIES: u16 = 3;

/// How long is waited for answers before all that are silent are asked again.
const TRY: Duration = Duration::from_millis(100);

/// So many are asked before what has come is read: it waits in the socket's buffer, and what does not fit there is lost.
const SLICE: usize = 16;

/// Room for the answers of a slice, each as large as a packet may be; of what it keeps the kernel counts its own, too.
const RECEIVE_BYTES: usize = SLICE * 2 * 65_536;

const TTL: u8 = 64;
const ICMP: u8 = 1;

const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// The nodes that do not answer, asked from the calling thread's network namespace.
pub fn silent(nodes: &BTreeSet<Ipv4Addr>) -> io::Result<BTreeSet<Ipv4Addr>> {
    let id = own_id();
    ask(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?, id, nodes, |_, number| echo(id, number).to_vec())
}

/// The nodes that answer small packets and do not answer those of `mtu` bytes, which are not to be taken apart on the way.
pub fn narrow(nodes: &BTreeSet<Ipv4Addr>, mtu: u16) -> io::Result<BTreeSet<Ipv4Addr>> {
    // What others ask at the same time is answered to another id.
    let id = own_id().map(|byte| byte ^ 0x55);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    // With a header of our own the kernel neither takes apart what is too large for the path as it knows it, nor makes it smaller.
    socket.set_header_included_v4(true)?;
    let unheard = ask(socket, id, nodes, |node, number| whole(id, node, number, mtu))?;
    if unheard.is_empty() {
        return Ok(unheard);
    }
    let silent = silent(&unheard)?;
    Ok(unheard.difference(&silent).copied().collect())
}

fn own_id() -> [u8; 2] {
    let own = process::id().to_be_bytes();
    [own[2], own[3]]
}

/// The nodes that do not answer what they are sent, packets with this id.
fn ask(
    mut socket: Socket,
    id: [u8; 2],
    nodes: &BTreeSet<Ipv4Addr>,
    question: impl Fn(Ipv4Addr, u16) -> Vec<u8>,
) -> io::Result<BTreeSet<Ipv4Addr>> {
    if let Err(errno) = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES) {
        debug!(%errno, "large answers of many nodes may be lost");
    }
    let mut silent = nodes.clone();
    for number in 1..=TRIES {
        let asked: Vec<Ipv4Addr> = silent.iter().copied().collect();
        for slice in asked.chunks(SLICE) {
            for node in slice {
                // One that cannot even be sent to is as silent as the others.
                drop(socket.send_to(&question(*node, number), &SocketAddrV4::new(*node, 0).into()));
            }
            hear(&mut socket, id, &mut silent, Duration::ZERO)?;
        }
        hear(&mut socket, id, &mut silent, TRY)?;
    }
    Ok(silent)
}

/// Takes what comes within `wait`, and what is there already.
fn hear(socket: &mut Socket, id: [u8; 2], silent: &mut BTreeSet<Ipv4Addr>, wait: Duration) -> io::Result<()> {
    let until = Instant::now() + wait;
    // Others are sent pings, too, and on this host so are we.
    let mut at_least = 4 * SLICE;
    while !silent.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() && at_least == 0 {
            return Ok(());
        }
        at_least = at_least.saturating_sub(1);
        socket.set_nonblocking(left.is_zero())?;
        if !left.is_zero() {
            // Less than a microsecond would be for ever.
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        }
        let mut packet = [0; 128];
        match socket.read(&mut packet) {
            Ok(len) => {
                if let Some(node) = answer(&packet[..len], id) {
                    silent.remove(&node);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(()),
            // What is told of a packet that was sent.
            Err(_) => {}
        }
    }
    Ok(())
}

fn echo(id: [u8; 2], number: u16) -> [u8; 8] {
    let [high, low] = number.to_be_bytes();
    let mut packet = [ECHO, 0, 0, 0, id[0], id[1], high, low];
    let words = packet.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!folded).to_be_bytes();
    (packet[2], packet[3]) = (high, low);
    packet
}

/// An echo in a packet of `mtu` bytes that may not be taken apart; what is left zero of its header the kernel fills in.
fn whole(id: [u8; 2], node: Ipv4Addr, number: u16, mtu: u16) -> Vec<u8> {
    let (length, destination) = (mtu.to_be_bytes(), node.octets());
    let dont_fragment = 0x40;
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, dont_fragment, 0, TTL, ICMP, 0, 0, 0, 0, 0, 0];
    packet.extend(destination);
    packet.extend(echo(id, number));
    // Zeros change no checksum.
    packet.resize(usize::from(mtu).max(packet.len()), 0);
    packet
}

/// Who answers, in a packet with its IPv4 header.
fn answer(packet: &[u8], id: [u8; 2]) -> Option<Ipv4Addr> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let message = packet.get(header..header + 8)?;
    (message[0] == ECHO_REPLY && message[4..6] == id).then(|| Ipv4Addr::from(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_has_the_checksum_that_is_due_and_its_answer_is_known() {
        // As ping computes it.
        assert_eq!(echo([0x12, 0x34], 1), [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1]);
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 90, 0, 102, 10, 90, 0, 101];
        packet.extend([0, 0, 0, 0, 0x12, 0x34, 0, 1]);
        assert_eq!(answer(&packet, [0x12, 0x34]), Some(Ipv4Addr::new(10, 90, 0, 102)));
        assert_eq!(answer(&packet, [0x12, 0x35]), None, "another's");
        for len in 0..packet.len() {
            assert_eq!(answer(&packet[..len], [0x12, 0x34]), None);
        }
        packet[20] = ECHO;
        assert_eq!(answer(&packet, [0x12, 0x34]), None, "a question");
    }

    #[test]
    fn a_whole_packet_is_as_large_as_is_asked_and_may_not_be_taken_apart() {
        let packet = whole([0x12, 0x34], Ipv4Addr::new(10, 90, 0, 102), 1, 1500);
        assert_eq!((packet.len(), &packet[..4], &packet[6..10]), (1500, &[0x45, 0, 0x05, 0xdc][..], &[0x40, 0, 64, 1][..]));
        assert_eq!((&packet[16..20], &packet[20..28]), (&[10, 90, 0, 102][..], &echo([0x12, 0x34], 1)[..]));
    }

    #[test]
    fn this_host_answers() {
        let own = BTreeSet::from([Ipv4Addr::LOCALHOST]);
        assert_eq!(silent(&own).unwrap(), BTreeSet::new());
        assert_eq!(narrow(&own, 1500).unwrap(), BTreeSet::new());
    }

    #[test]
    fn of_very_many_that_answer_none_is_missed() {
        let own: BTreeSet<Ipv4Addr> = (1..=2000_u32).map(|number| Ipv4Addr::from(0x7f00_0000 + number)).collect();
        assert_eq!(narrow(&own, 1500).unwrap(), BTreeSet::new());
    }
}
