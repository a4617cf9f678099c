//! The resolver's two loops. The sockets are not theirs alone (`hold`): what they have not fetched when netd ends waits for the next one.
//!
//! One pod cannot keep the others from being answered: over UDP the kernel drops what is beyond each device's share and what all have beside
//! (`rules::isolation`), and of what is too much still for this processor each device is answered a few; over TCP each address has a few
//! connections, what is beyond them is closed at once, and none lasts longer than `CONNECTION_MAX`.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt, sockopt};
use rand::rngs::ThreadRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, error, warn};

use super::SharedBoard;
use super::forward::Forwarder;
use super::message::{Transport, Verdict, respond};
use crate::core::shares::Shares;

const REQUEST_BYTES_MAX: usize = 4096;

/// Questions that are fetched from the kernel at once, if so many are there.
const BATCH_MAX: usize = 32;

/// So many full batches in a row say that questions come faster than they are answered: more wait than asking in good faith brings about.
const CROWDED_BATCHES: u32 = 32;

/// Of one device so many in a batch are answered then.
const ANSWERS_WHEN_CROWDED: usize = 4;

/// What may wait to be read: what many pods ask at once.
const RECEIVE_BYTES_MAX: usize = 4 << 20;

/// TCP connections at one time; more wait in the backlog.
const CONNECTIONS_MAX: usize = 256;

/// TCP connections of one address, which is one pod's on one network; more are closed at once.
const CONNECTIONS_OF_ONE_MAX: usize = 8;

/// How long a TCP connection may be silent, or slow.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// The same while more than half of all connections are taken.
const IDLE_MAX_WHEN_CROWDED: Duration = Duration::from_millis(300);

/// How long a TCP connection may last.
const CONNECTION_MAX: Duration = Duration::from_secs(10);

/// For the questions that are being answered when netd ends.
const END_MAX: Duration = Duration::from_secs(1);

/// Questions on one TCP connection.
const CONNECTION_QUERIES_MAX: usize = 100;

/// The thread that answers questions over UDP.
#[derive(Debug)]
pub struct Answering {
    ending: Arc<AtomicBool>,
    /// Nothing comes; it ends with the thread.
    ended: mpsc::Receiver<()>,
}

impl Answering {
    /// Ends it when what it has fetched is answered, so that whoever has the socket next finds all the rest. `knock` is a socket of the
    /// router's own that is connected to the resolver's: a datagram that asks nothing has the thread look up.
    pub fn end(self, knock: &UdpSocket) {
        self.ending.store(true, Ordering::Relaxed);
        if let Err(error) = knock.send(&[]) {
            return warn!(%error, "the resolver's thread was not told to end: a question may be lost");
        }
        if self.ended.recv_timeout(END_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            warn!("the resolver's thread did not end in time: a question may be lost");
        }
    }
}

/// Serves UDP until it is told to end.
pub fn serve_udp(socket: UdpSocket, shared: SharedBoard, forwarder: Forwarder) -> io::Result<Answering> {
    if let Err(errno) = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES_MAX) {
        warn!(%errno, "the resolver's UDP socket keeps its small buffer: questions may be lost when many come at once");
    }
    let socket = Arc::new(socket);
    let ending = Arc::new(AtomicBool::new(false));
    let (lives, ended) = mpsc::channel();
    let answering = Answering { ending: ending.clone(), ended };
    thread::Builder::new().name("dns".to_owned()).stack_size(256 * 1024).spawn(move || {
        let _lives = lives;
        let mut buffers = vec![[0_u8; REQUEST_BYTES_MAX]; BATCH_MAX];
        let mut headers = MultiHeaders::preallocate(BATCH_MAX, Some(nix::cmsg_space!(nix::libc::in_pktinfo)));
        let mut datagrams = Datagrams { socket, shared, forwarder, rng: rand::rng(), full_batches: 0 };
        while !ending.load(Ordering::Relaxed) {
            match datagrams.serve(&mut headers, &mut buffers) {
                // What an earlier answer met on its way is not about this socket.
                Ok(()) | Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES) => {}
                Err(errno) => {
                    error!(%errno, "receive on the resolver's UDP socket; trying again in a second");
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    })?;
    Ok(answering)
}

/// What questions over UDP are answered with.
struct Datagrams {
    socket: Arc<UdpSocket>,
    shared: SharedBoard,
    forwarder: Forwarder,
    rng: ThreadRng,
    /// In a row.
    full_batches: u32,
}

impl Datagrams {
    /// Waits for a question and answers it, and what others have come by then.
    fn serve(&mut self, headers: &mut MultiHeaders<SockaddrIn>, buffers: &mut [[u8; REQUEST_BYTES_MAX]]) -> nix::Result<()> {
        let mut parts: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let received = recvmmsg(self.socket.as_raw_fd(), headers, parts.iter_mut(), MsgFlags::MSG_WAITFORONE, None)?;
        let crowded = self.full_batches >= CROWDED_BATCHES;
        let mut devices = Vec::new();
        for datagram in received {
            let device = datagram.cmsgs().ok().and_then(|mut controls| {
                controls.find_map(|control| match control {
                    ControlMessageOwned::Ipv4PacketInfo(info) => u32::try_from(info.ipi_ifindex).ok(),
                    _ => None,
                })
            });
            let sender = datagram.address.map(|sender| SocketAddr::from((sender.ip(), sender.port())));
            devices.push(device);
            let (Some(device), Some(sender)) = (device, sender) else { continue };
            if crowded && devices.iter().filter(|other| **other == Some(device)).count() > ANSWERS_WHEN_CROWDED {
                continue;
            }
            self.answer(datagram.iovs().next().unwrap_or_default(), device, sender);
        }
        self.full_batches = if devices.len() == BATCH_MAX { self.full_batches.saturating_add(1) } else { 0 };
        Ok(())
    }

    /// Answers what came in on a device, or has it answered.
    fn answer(&mut self, request: &[u8], device: u32, sender: SocketAddr) {
        self.shared.queries.fetch_add(1, Ordering::Relaxed);
        let board = self.shared.board.load();
        let asker = board.by_index.get(&device);
        match (respond(request, asker.map(|asker| &asker.sight), Transport::Udp, &mut self.rng), asker) {
            (Verdict::Answer(answer), _) => {
                if let Err(error) = self.socket.send_to(&answer, sender) {
                    debug!(asker = %sender, %error, "answer not sent");
                }
            }
            (Verdict::Foreign(question), Some(asker)) => {
                self.forwarder.answer_to(asker.pod.clone(), question, self.socket.clone(), sender);
            }
            (Verdict::Foreign(_), None) | (Verdict::Silence, _) => {}
        }
    }
}

/// Serves TCP until it is dropped.
pub async fn serve_tcp(listener: std::net::TcpListener, shared: SharedBoard, forwarder: Forwarder) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let shares = Arc::new(Mutex::new(Shares::new(CONNECTIONS_OF_ONE_MAX, CONNECTIONS_MAX)));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((stream, asker)) => {
                let Some(place) = Place::take(&shares, asker.ip()) else {
                    debug!(%asker, "connection refused: its address has {CONNECTIONS_OF_ONE_MAX}");
                    continue;
                };
                let connection = Connection { shared: shared.clone(), forwarder: forwarder.clone(), slots: slots.clone() };
                tokio::spawn(async move {
                    let served = timeout(CONNECTION_MAX, connection.serve(stream, asker)).await;
                    if let Err(error) = served.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                        debug!(%asker, %error, "connection ended");
                    }
                    drop((place, slot));
                });
            }
            Err(error) => {
                warn!(%error, "accept on the resolver's TCP socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection's place among those of its address; given back when dropped.
struct Place {
    shares: Arc<Mutex<Shares<IpAddr>>>,
    address: IpAddr,
}

impl Place {
    fn take(shares: &Arc<Mutex<Shares<IpAddr>>>, address: IpAddr) -> Option<Self> {
        let granted = shares.lock().unwrap_or_else(PoisonError::into_inner).take(&address);
        granted.then(|| Self { shares: shares.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).give_back(&self.address);
    }
}

/// What a connection is served with.
struct Connection {
    shared: SharedBoard,
    forwarder: Forwarder,
    slots: Arc<Semaphore>,
}

impl Connection {
    async fn serve(&self, mut stream: TcpStream, asker: SocketAddr) -> io::Result<()> {
        let IpAddr::V4(ip) = asker.ip() else { return Ok(()) };
        for _ in 0..CONNECTION_QUERIES_MAX {
            let len = match timeout(self.idle_max(), stream.read_u16()).await? {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => usize::from(other?),
            };
            let mut request = vec![0; len];
            timeout(self.idle_max(), stream.read_exact(&mut request)).await??;
            let Some(answer) = self.answer(&request, ip).await else { return Ok(()) };
            let mut framed = u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
            framed.extend(&answer);
            timeout(self.idle_max(), stream.write_all(&framed)).await??;
        }
        Ok(())
    }

    async fn answer(&self, request: &[u8], ip: Ipv4Addr) -> Option<Vec<u8>> {
        self.shared.queries.fetch_add(1, Ordering::Relaxed);
        let (verdict, pod) = {
            let board = self.shared.board.load();
            let asker = board.by_address.get(&ip);
            let verdict = respond(request, asker.map(|asker| &asker.sight), Transport::Tcp, &mut rand::rng());
            (verdict, asker.map(|asker| asker.pod.clone()))
        };
        match verdict {
            Verdict::Answer(answer) => Some(answer),
            Verdict::Foreign(question) => self.forwarder.answer(pod?, question).await,
            Verdict::Silence => None,
        }
    }

    /// How long it may be silent, by the slots that are free.
    fn idle_max(&self) -> Duration {
        if self.slots.available_permits() < CONNECTIONS_MAX / 2 { IDLE_MAX_WHEN_CROWDED } else { IDLE_MAX }
    }
}
