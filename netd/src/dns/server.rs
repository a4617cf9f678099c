//! The resolver's two loops.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, error, warn};

use super::SharedBoard;
use super::wire::{Transport, respond};

const REQUEST_BYTES_MAX: usize = 4096;

/// TCP connections at one time; more wait in the backlog.
const CONNECTIONS_MAX: usize = 64;

/// How long a TCP connection may be silent, or slow.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// Questions on one TCP connection.
const CONNECTION_QUERIES_MAX: usize = 1000;

/// Serves UDP until the process ends.
pub fn serve_udp(socket: UdpSocket, shared: SharedBoard) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("dns".to_owned()).stack_size(256 * 1024).spawn(move || {
        let mut buffer = [0; REQUEST_BYTES_MAX];
        let mut control = nix::cmsg_space!(nix::libc::in_pktinfo);
        let mut rng = rand::rng();
        loop {
            match receive(&socket, &mut buffer, &mut control) {
                Ok(Some((len, device, asker))) => {
                    shared.queries.fetch_add(1, Ordering::Relaxed);
                    let board = shared.board.load();
                    if let Some(answer) = respond(&buffer[..len], board.by_index.get(&device), Transport::Udp, &mut rng) {
                        drop(board);
                        if let Err(error) = socket.send_to(&answer, asker) {
                            debug!(%asker, %error, "answer not sent");
                        }
                    }
                }
                Ok(None) => {}
                // What an earlier answer met on its way; not about this socket.
                Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES) => {}
                Err(errno) => {
                    error!(%errno, "receive on the resolver's UDP socket; trying again in a second");
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    })
}

/// A datagram's length, the index of the device it came in on, and its sender.
fn receive(socket: &UdpSocket, buffer: &mut [u8], control: &mut [u8]) -> nix::Result<Option<(usize, u32, SocketAddr)>> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::empty())?;
    let device = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => u32::try_from(info.ipi_ifindex).ok(),
        _ => None,
    });
    let sender = message.address.map(|sender| SocketAddr::from((sender.ip(), sender.port())));
    Ok(device.zip(sender).map(|(device, sender)| (message.bytes, device, sender)))
}

/// Serves TCP until it is dropped.
pub async fn serve_tcp(listener: std::net::TcpListener, shared: SharedBoard) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((stream, asker)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve_connection(stream, asker, &shared).await {
                        debug!(%asker, %error, "connection ended");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%error, "accept on the resolver's TCP socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(mut stream: TcpStream, asker: SocketAddr, shared: &SharedBoard) -> io::Result<()> {
    let IpAddr::V4(ip) = asker.ip() else { return Ok(()) };
    for _ in 0..CONNECTION_QUERIES_MAX {
        let len = match timeout(IDLE_MAX, stream.read_u16()).await? {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => usize::from(other?),
        };
        let mut request = vec![0; len];
        timeout(IDLE_MAX, stream.read_exact(&mut request)).await??;
        shared.queries.fetch_add(1, Ordering::Relaxed);
        let answer = {
            let board = shared.board.load();
            respond(&request, board.by_address.get(&ip), Transport::Tcp, &mut rand::rng())
        };
        let Some(answer) = answer else { return Ok(()) };
        let mut framed = u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
        framed.extend(&answer);
        timeout(IDLE_MAX, stream.write_all(&framed)).await??;
    }
    Ok(())
}
