//! Connection tracking over netlink: the flows of a namespace read, and single ones forgotten.
//!
//! Attribute and message numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use nix::errno::Errno;

use super::KernelError;
use super::netlink::Netlink;
use super::nft::attributes::{Attributes, number, parse};
use super::nft::write;
use crate::core::flows::{Flow, Transport};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;

const FAMILY_ANY: u8 = 0;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;

/// Of a tuple.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;

/// Of a tuple's addresses: both ends of IPv4, and both of IPv6.
const ENDS: [u16; 2] = [1, 2];
const ENDS6: [u16; 2] = [3, 4];

/// Those of the flows over TCP and UDP; there may be very many, of which no others are kept.
pub fn flows(netlink: &mut Netlink, which: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError> {
    let mut found = Vec::new();
    let take = |payload: &[u8]| found.extend(payload.get(4..).and_then(flow).filter(which));
    ask(netlink, "list tracked connections", (GET, NLM_F_DUMP, FAMILY_ANY), &Attributes::new(), take)?;
    Ok(found)
}

/// Forgets a flow; one that is not there is none.
///
/// It is found by its replies, which say where it was led. A client that begins anew from the same port takes the flow of before away, and what the
/// kernel makes instead often has its id, as that stands for a place in memory and what the client sends (`nf_ct_get_id`); it may be led elsewhere.
pub fn forget(netlink: &mut Netlink, flow: &Flow) -> Result<(), KernelError> {
    let (source, destination) = flow.reply;
    let address = |addresses: Attributes, number: usize, ip: IpAddr| match ip {
        IpAddr::V4(ip) => addresses.bytes(ENDS[number], &ip.octets()),
        IpAddr::V6(ip) => addresses.bytes(ENDS6[number], &ip.octets()),
    };
    let addresses = address(address(Attributes::new(), 0, source.0), 1, destination.0);
    let family = if destination.0.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 };
    let protocol =
        Attributes::new().bytes(1, &[flow.transport.number()]).bytes(2, &source.1.to_be_bytes()).bytes(3, &destination.1.to_be_bytes());
    let tuple = Attributes::new().nested(ADDRESSES, addresses).nested(PROTOCOL, protocol);
    let attributes = Attributes::new().nested(REPLY, tuple).number(ID, flow.id);
    match ask(netlink, &format!("forget the connection {flow}"), (DELETE, NLM_F_ACK, family), &attributes, |_| ()) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

fn ask(
    netlink: &mut Netlink,
    what: &str,
    (kind, flags, family): (u16, u16, u8),
    attributes: &Attributes,
    mut take: impl FnMut(&[u8]),
) -> Result<(), KernelError> {
    let sequence = netlink.next_sequence();
    let mut bytes = Vec::new();
    write(&mut bytes, (SUBSYSTEM | kind, NLM_F_REQUEST | flags, sequence), (family, 0), &attributes.0);
    netlink.send(&bytes)?;
    netlink.each(what, |answer| take(&answer.payload))
}

/// A flow by what the kernel says of it; `None` for other protocols.
fn flow(message: &[u8]) -> Option<Flow> {
    let attributes = parse(message);
    let (protocol, source, destination) = tuple(attributes.get(&ORIGINAL)?)?;
    let (_, server, client) = tuple(attributes.get(&REPLY)?)?;
    let transport = [Transport::Tcp, Transport::Udp].into_iter().find(|transport| transport.number() == protocol)?;
    Some(Flow { transport, source, destination, reply: (server, client), id: number(&attributes, ID)? })
}

/// An address and a port.
type End = (IpAddr, u16);

/// The protocol's number, and both ends; `None` where there are no ports.
fn tuple(tuple: &[u8]) -> Option<(u8, End, End)> {
    let tuple = parse(tuple);
    let (addresses, protocol) = (parse(tuple.get(&ADDRESSES)?), parse(tuple.get(&PROTOCOL)?));
    let address = |number: usize| -> Option<IpAddr> {
        match (addresses.get(&ENDS[number]), addresses.get(&ENDS6[number])) {
            (Some(ip), _) => Some(Ipv4Addr::from(*ip.first_chunk::<4>()?).into()),
            (None, Some(ip)) => Some(Ipv6Addr::from(*ip.first_chunk::<16>()?).into()),
            (None, None) => None,
        }
    };
    let end = |number: usize, port: u16| -> Option<End> {
        let port = protocol.get(&port)?.first_chunk::<2>()?;
        Some((address(number)?, u16::from_be_bytes(*port)))
    };
    Some((*protocol.get(&1)?.first()?, end(0, 2)?, end(1, 3)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};
    use proptest::sample::select;

    use super::*;
    use crate::kernel::damage::{any_damages, config, damaged};

    fn ends(source: [u8; 4], destination: [u8; 4], protocol: u8) -> Attributes {
        let addresses = Attributes::new().bytes(1, &source).bytes(2, &destination);
        let ports = Attributes::new().bytes(1, &[protocol]).bytes(2, &4000_u16.to_be_bytes()).bytes(3, &53_u16.to_be_bytes());
        Attributes::new().nested(ADDRESSES, addresses).nested(PROTOCOL, ports)
    }

    fn message(protocol: u8) -> Vec<u8> {
        let original = ends([10, 128, 0, 2], [10, 128, 0, 8], protocol);
        let reply = ends([10, 128, 0, 3], [10, 128, 0, 2], protocol);
        Attributes::new().nested(ORIGINAL, original).nested(REPLY, reply).number(3, 0x1a).number(ID, 77).0
    }

    #[test]
    fn a_flow_is_read_as_the_kernel_writes_it_and_others_are_passed_over() {
        let read = flow(&message(17)).unwrap();
        assert_eq!((read.to_string().as_str(), read.id), ("udp 10.128.0.2:4000 to 10.128.0.8:53 at 10.128.0.3", 77));
        let ends = |server: [u8; 4]| ((IpAddr::from(server), 4000), (IpAddr::from([10, 128, 0, 2]), 53));
        assert_eq!(read.reply, ends([10, 128, 0, 3]));
        assert_eq!(flow(&message(1)), None);
        for len in 0..message(6).len() {
            assert_eq!(flow(&message(6)[..len]), None, "cut after {len}");
        }
    }

    #[test]
    fn a_flow_of_ipv6_is_read_too() {
        let ends = |source: u128, destination: u128| {
            let (source, destination) = (source.to_be_bytes(), destination.to_be_bytes());
            let addresses = Attributes::new().bytes(3, &source).bytes(4, &destination);
            let ports = Attributes::new().bytes(1, &[6]).bytes(2, &4000_u16.to_be_bytes()).bytes(3, &80_u16.to_be_bytes());
            Attributes::new().nested(ADDRESSES, addresses).nested(PROTOCOL, ports)
        };
        let message = Attributes::new().nested(ORIGINAL, ends(1, 8)).nested(REPLY, ends(3, 1)).number(ID, 77).0;
        assert_eq!(flow(&message).unwrap().to_string(), "tcp [::1]:4000 to [::8]:80 at ::3");
        for len in 0..message.len() {
            assert_eq!(flow(&message[..len]), None, "cut after {len}");
        }
    }

    proptest! {
        #![proptest_config(config(4000))]

        #[test]
        fn a_damaged_message_is_none_or_a_flow_of_what_it_says(protocol in select(vec![1_u8, 6, 17]), damages in any_damages()) {
            let bytes = damaged(message(protocol), &damages);
            if let Some(flow) = flow(&bytes) {
                for ip in [flow.source.0, flow.destination.0, flow.server()] {
                    let octets = match ip {
                        IpAddr::V4(ip) => ip.octets().to_vec(),
                        IpAddr::V6(ip) => ip.octets().to_vec(),
                    };
                    prop_assert!(bytes.windows(octets.len()).any(|window| window == octets), "{} is nowhere in it", ip);
                }
                prop_assert!(bytes.windows(4).any(|window| window == flow.id.to_be_bytes()), "{} is nowhere in it", flow.id);
            }
        }
    }
}
