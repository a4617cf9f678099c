//! Datagrams with the address of this host that they were sent to: who sent one may take an answer from there alone.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Has a socket of IPv4 tell that address.
pub fn prepare(socket: &std::net::UdpSocket) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?)
}

/// The next datagram: its length, who sent it, and to which address.
pub async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddrV4, Ipv4Addr)> {
    let read = || -> io::Result<(usize, SocketAddrV4, Ipv4Addr)> {
        let mut space = nix::cmsg_space!(in_pktinfo);
        let mut parts = [IoSliceMut::new(&mut *buffer)];
        let received = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(space.as_mut_slice()), MsgFlags::empty())?;
        let at = received.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr))),
            _ => None,
        });
        match (received.address, at) {
            (Some(from), Some(at)) => Ok((received.bytes, SocketAddrV4::from(from), at)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel does not say who sent a datagram, or to which address")),
        }
    };
    socket.async_io(Interest::READABLE, read).await
}

/// Sends one, from this address.
pub async fn answer(socket: &UdpSocket, bytes: &[u8], to: SocketAddrV4, from: Ipv4Addr) -> io::Result<()> {
    let source = in_addr { s_addr: u32::from(from).to_be() };
    let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: in_addr { s_addr: 0 } };
    let to = SockaddrIn::from(to);
    let write = || -> io::Result<usize> {
        let controls = [ControlMessage::Ipv4PacketInfo(&info)];
        Ok(sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &controls, MsgFlags::empty(), Some(&to))?)
    };
    socket.async_io(Interest::WRITABLE, write).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_from_the_address_that_was_asked() {
        let port = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        prepare(&port).unwrap();
        port.set_nonblocking(true).unwrap();
        let at = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 7), port.local_addr().unwrap().port());
        let port = UdpSocket::from_std(port).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(at).await.unwrap();
        client.send(b"question").await.unwrap();
        let mut buffer = [0; 64];
        let (len, from, asked) = receive(&port, &mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], asked), (&b"question"[..], *at.ip()));
        answer(&port, b"answer", from, asked).await.unwrap();
        // It hears nobody but the one that it asked.
        let heard = tokio::time::timeout(std::time::Duration::from_secs(20), client.recv(&mut buffer)).await;
        assert_eq!(heard.expect("an answer comes").unwrap(), 6);
    }
}
