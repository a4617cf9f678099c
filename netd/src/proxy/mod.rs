//! The host's own published ports: kept from other programs, and served to the host itself.
//!
//! What comes to a published port from elsewhere is sent on by the host's rules before it can arrive (`core::rules::host`). netd has the port
//! all the same, for two reasons: nobody else can take it, and who has it already is found out and told; and connections of the host to itself,
//! which the rules do not see, are taken here and connected on from the router's namespace, under this node's own address there.
//!
//! ```text
//! owner ── ports, targets (watch) ──► desk (thread `proxy`): one task a port ──► one a connection, or a sender of datagrams
//! process of the host ──► 127.0.0.1:8080 or the host's address ──► task ══ socket in the router's namespace ══► backend
//! ```
//!
//! By its addresses of IPv6 the host reaches ports of TCP behind which tasks have IPv6; they are connected on by IPv4, which these have too.
//!
//! - A port belongs to netd when `keep` answers; it is given up soon after. Of UDP over IPv6 it is only found out whether somebody has it.
//! - Taken are connections and datagrams whose sender's address is one of the host's own. Others, which come only when the host's rules are
//!   broken, are reset and passed over: the backend would not see who they are, nor would `allow_from`.
//! - Connections outlive their port. They end with either side, with netd, or when a backend's host is silent for long; datagrams of one sender
//!   keep their backend until none comes for `SILENCE_MAX`, or less once they are answered, and until others need the sender's place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;
use rand::seq::IndexedRandom;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::core::flows::Transport;
use crate::core::ingress::Target;
use crate::core::published::Opening;
use crate::kernel::{KernelError, netns};

use self::holder::Holder;

mod holder;

mod datagram;

/// Connections, or senders of datagrams, of one port at one time, by IPv6 as many again; more wait, or are passed over.
const OF_ONE_PORT_MAX: usize = 256;

/// How long a backend may take to answer.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long a connection may be silent before its other end is asked whether it is there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Senders of datagrams of all ports together, each of which takes a socket.
const SENDERS_MAX: usize = 2048;

/// How long a sender of datagrams is remembered that is not answered, and one that has been.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const SILENCE_WHEN_ANSWERED_MAX: Duration = Duration::from_secs(15);

/// Datagrams of one sender that may wait for the backend's socket.
const DATAGRAMS_MAX: usize = 16;

/// More than any datagram has.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// A socket at a port of the host.
#[derive(Debug, Clone)]
enum Door {
    Stream(Arc<TcpListener>),
    Datagrams(Arc<UdpSocket>),
    /// Nobody had it when it was to be kept; what comes is refused.
    Free,
}

/// Which socket: of a port, and a family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    opening: Opening,
    six: bool,
}

/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;

impl Door {
    /// In the calling thread's network namespace.
    fn open(Place { opening, six }: Place) -> io::Result<Self> {
        let at = (Ipv4Addr::UNSPECIFIED, opening.port);
        match (opening.transport, six) {
            (Transport::Tcp, true) => {
                let socket = of_six(Type::STREAM, Protocol::TCP)?;
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, opening.port)).into())?;
                socket.listen(BACKLOG)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Stream(Arc::new(socket.into())))
            }
            (Transport::Udp, true) => {
                of_six(Type::DGRAM, Protocol::UDP)?.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, opening.port)).into())?;
                Ok(Self::Free)
            }
            (Transport::Tcp, false) => {
                let listener = TcpListener::bind(at)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Stream(Arc::new(listener)))
            }
            (Transport::Udp, false) => {
                let socket = UdpSocket::bind(at)?;
                datagram::prepare(&socket)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Datagrams(Arc::new(socket)))
            }
        }
    }

    /// Nobody is let in from now on; what was opened by the desk's task goes with that.
    fn shut(&self) {
        match self {
            Self::Stream(listener) => {
                if let Err(error) = SockRef::from(&**listener).shutdown(Shutdown::Both) {
                    debug!(%error, "a port is given up a moment later");
                }
            }
            // It says nothing to anybody.
            Self::Datagrams(_) | Self::Free => {}
        }
    }

    /// Whether it is the same socket.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stream(one), Self::Stream(other)) => Arc::ptr_eq(one, other),
            (Self::Datagrams(one), Self::Datagrams(other)) => Arc::ptr_eq(one, other),
            (Self::Free, Self::Free) => true,
            (Self::Stream(_) | Self::Datagrams(_) | Self::Free, _) => false,
        }
    }
}

type Doors = BTreeMap<Place, Door>;

type Targets = BTreeMap<Opening, Vec<Target>>;

/// The owner's side of the desk.
#[derive(Debug)]
pub struct Proxy {
    doors: watch::Sender<Doors>,
    targets: watch::Sender<Targets>,
    /// Ports that others had when they were to be kept, and have still.
    taken: BTreeMap<Place, Holder>,
}

impl Proxy {
    /// Opens the desk, in the network namespace of the thread that calls; `router` is the pin of the router's.
    pub fn start(router: PathBuf) -> io::Result<Self> {
        let (doors, opened) = watch::channel(Doors::new());
        let (targets, leads) = watch::channel(Targets::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let desk = Arc::new(Desk { router, targets: leads, senders: Arc::new(Semaphore::new(SENDERS_MAX)) });
        thread::Builder::new().name("proxy".to_owned()).spawn(move || runtime.block_on(serve(desk, opened)))?;
        Ok(Self { doors, targets, taken: BTreeMap::new() })
    }

    /// Keeps these ports and gives up others; those that somebody else has, and who: also of ports that were to be kept once, as long as they
    /// are not free. `six` are those to be kept of IPv6, too.
    pub fn keep(&mut self, ports: &BTreeSet<Opening>, six: &BTreeSet<Opening>) -> BTreeMap<Opening, String> {
        let of = |openings: &BTreeSet<Opening>, six| openings.iter().map(|opening| Place { opening: *opening, six }).collect::<Vec<_>>();
        let places: BTreeSet<Place> = [of(ports, false), of(six, true)].concat().into_iter().collect();
        let mut doors = self.doors.borrow().clone();
        let before = doors.len();
        doors.retain(|place, door| {
            let stays = places.contains(place);
            if !stays {
                door.shut();
            }
            stays
        });
        let mut changed = doors.len() != before;
        let mut known = mem::take(&mut self.taken);
        // Who has a port of IPv6 does not withhold it where it is kept of IPv4 alone.
        let once = known.keys().filter(|place| !ports.contains(&place.opening));
        let asked: BTreeSet<Place> = places.iter().chain(once).copied().filter(|place| !doors.contains_key(place)).collect();
        for place in asked {
            match Door::open(place) {
                Ok(door) if places.contains(&place) => {
                    doors.insert(place, door);
                    changed = true;
                }
                // It is free, and nobody's.
                Ok(_) => {}
                Err(error) => {
                    let holder = Holder::find(place.opening, &error, known.remove(&place));
                    self.taken.insert(place, holder);
                }
            }
        }
        if changed {
            self.doors.send_replace(doors);
        }
        self.taken.iter().map(|(place, holder)| (place.opening, holder.words.clone())).collect()
    }

    /// Sends what begins from here on to these.
    pub fn lead(&self, targets: Targets) {
        self.targets.send_if_modified(|known| {
            let changed = *known != targets;
            *known = targets;
            changed
        });
    }
}

/// What the tasks have in common.
#[derive(Debug)]
struct Desk {
    /// The pin of the router's namespace.
    router: PathBuf,
    targets: watch::Receiver<Targets>,
    /// Places for senders of datagrams.
    senders: Arc<Semaphore>,
}

/// Who sends datagrams, and to which address of this host.
type Ends = (SocketAddrV4, Ipv4Addr);

/// A sender of datagrams.
#[derive(Debug)]
struct Sender {
    datagrams: mpsc::Sender<Vec<u8>>,
    /// When it was heard last.
    heard: Instant,
}

/// Has a task at every port, until the owner is gone.
async fn serve(desk: Arc<Desk>, mut doors: watch::Receiver<Doors>) {
    let mut tasks = JoinSet::new();
    let mut open: BTreeMap<Place, (Door, AbortHandle)> = BTreeMap::new();
    loop {
        let due = doors.borrow_and_update().clone();
        open.retain(|place, (door, task)| {
            let stays = due.get(place).is_some_and(|due| due.is(door));
            if !stays {
                task.abort();
            }
            stays
        });
        for (place, door) in due {
            open.entry(place).or_insert_with(|| (door.clone(), tasks.spawn(attend(desk.clone(), place.opening, door))));
        }
        while tasks.try_join_next().is_some() {}
        if doors.changed().await.is_err() {
            return;
        }
    }
}

async fn attend(desk: Arc<Desk>, opening: Opening, door: Door) {
    let attended = match door {
        Door::Stream(listener) => desk.accept(opening, &listener).await,
        Door::Datagrams(socket) => desk.receive(opening, &socket).await,
        Door::Free => Ok(()),
    };
    if let Err(error) = attended {
        warn!(%opening, %error, "the port is kept, but this host does not reach it under its own address");
    }
}

impl Desk {
    async fn accept(self: Arc<Self>, opening: Opening, listener: &TcpListener) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        let slots = Arc::new(Semaphore::new(OF_ONE_PORT_MAX));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
            match listener.accept().await {
                Ok((stream, peer)) if is_own(peer.ip()) => {
                    let desk = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = desk.pass(opening, stream).await {
                            debug!(%opening, %peer, %error, "connection ended");
                        }
                        drop(slot);
                    });
                }
                Ok((stream, peer)) => {
                    debug!(%opening, %peer, "connection of a stranger reset");
                    reset(stream);
                }
                // It was shut.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
                Err(error) => {
                    warn!(%opening, %error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// A connection from its beginning to its end; what ends otherwise than well is reset.
    async fn pass(&self, opening: Opening, mut stream: TcpStream) -> io::Result<()> {
        let joined = async {
            let mut backend = self.connect(opening).await?;
            keep_alive(&stream)?;
            copy_bidirectional(&mut stream, &mut backend).await
        };
        let joined = joined.await;
        if joined.is_err() {
            reset(stream);
        }
        joined.map(drop)
    }

    async fn connect(&self, opening: Opening) -> io::Result<TcpStream> {
        let target = self.target(opening)?;
        let socket = self.socket(target, Type::STREAM, Protocol::TCP)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        let stream = timeout(CONNECT_MAX, socket.connect(target.address.into())).await??;
        keep_alive(&stream)?;
        Ok(stream)
    }

    async fn receive(self: Arc<Self>, opening: Opening, socket: &UdpSocket) -> io::Result<()> {
        let socket = Arc::new(tokio::net::UdpSocket::from_std(socket.try_clone()?)?);
        let mut senders: BTreeMap<Ends, Sender> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let (len, from, at) = match datagram::receive(&socket, &mut buffer).await {
                Ok(received) => received,
                // What an earlier answer met on its way.
                Err(error) => {
                    debug!(%opening, %error, "receive a datagram");
                    continue;
                }
            };
            while tasks.try_join_next().is_some() {}
            senders.retain(|_, sender| !sender.datagrams.is_closed());
            let ends = (from, at);
            if !senders.contains_key(&ends) {
                if !is_own(IpAddr::V4(*from.ip())) {
                    continue;
                }
                if senders.len() >= OF_ONE_PORT_MAX {
                    forget_idlest(&mut senders);
                }
                match self.relayed(opening, &socket, ends, &mut tasks).await {
                    Ok(datagrams) => drop(senders.insert(ends, Sender { datagrams, heard: Instant::now() })),
                    Err(error) => {
                        debug!(%opening, %from, %error, "datagram passed over");
                        continue;
                    }
                }
            }
            let Some(sender) = senders.get_mut(&ends) else { continue };
            sender.heard = Instant::now();
            // A datagram too many is lost, as on any way.
            drop(sender.datagrams.try_send(buffer[..len].to_vec()));
        }
    }

    /// Where a new sender's datagrams go.
    async fn relayed(
        &self,
        opening: Opening,
        socket: &Arc<tokio::net::UdpSocket>,
        ends: Ends,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<mpsc::Sender<Vec<u8>>> {
        let place = self.senders.clone().try_acquire_owned().map_err(io::Error::other)?;
        let backend = self.backend(opening).await?;
        let (datagrams, queue) = mpsc::channel(DATAGRAMS_MAX);
        let relayed = relay(backend, queue, socket.clone(), ends);
        tasks.spawn(async move {
            relayed.await;
            drop(place);
        });
        Ok(datagrams)
    }

    /// A socket that speaks with a backend alone.
    async fn backend(&self, opening: Opening) -> io::Result<tokio::net::UdpSocket> {
        let target = self.target(opening)?;
        let socket = tokio::net::UdpSocket::from_std(self.socket(target, Type::DGRAM, Protocol::UDP)?.into())?;
        socket.connect(target.address).await?;
        Ok(socket)
    }

    /// Any of those behind the port.
    fn target(&self, opening: Opening) -> io::Result<Target> {
        let targets = self.targets.borrow();
        let target = targets.get(&opening).and_then(|targets| targets.choose(&mut rand::rng()));
        target.copied().ok_or_else(|| io::Error::new(io::ErrorKind::ConnectionRefused, "nobody serves this port"))
    }

    /// A socket in the router's namespace that sends to this backend.
    fn socket(&self, target: Target, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let failed = |source: io::Error| KernelError::Namespace { path: self.router.clone(), source };
        let made = netns::inside(&self.router, || {
            let make = || -> io::Result<Socket> {
                let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
                socket.set_nonblocking(true)?;
                socket.set_mark(target.mark)?;
                socket.bind(&SocketAddr::from((target.source, 0)).into())?;
                Ok(socket)
            };
            make().map_err(failed)
        });
        made.map_err(io::Error::other)
    }
}

/// A socket of IPv6 alone.
fn of_six(kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(true)?;
    Ok(socket)
}

/// The sender that was heard least lately has no place any more; one that goes on begins anew.
fn forget_idlest(senders: &mut BTreeMap<Ends, Sender>) {
    let idlest = senders.iter().min_by_key(|(_, sender)| sender.heard).map(|(ends, _)| *ends);
    if let Some(ends) = idlest {
        senders.remove(&ends);
    }
}

/// Datagrams of one sender to a backend and back, until there are none for a while or the backend refuses them.
async fn relay(
    backend: tokio::net::UdpSocket,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    socket: Arc<tokio::net::UdpSocket>,
    (sender, at): Ends,
) {
    let mut silence = SILENCE_MAX;
    loop {
        let turn = async {
            tokio::select! {
                datagram = datagrams.recv() => match datagram {
                    Some(datagram) => backend.send(&datagram).await.map(|_| Turn::Sent),
                    None => Ok(Turn::Over),
                },
                ready = backend.readable() => ready.map(|()| Turn::Answered),
            }
        };
        let turn = match timeout(silence, turn).await {
            Ok(Ok(Turn::Answered)) => pass_on(&backend, &socket, (sender, at)).await.map(|()| Turn::Answered),
            Ok(turn) => turn,
            Err(_) => return,
        };
        match turn {
            Ok(Turn::Sent) => {}
            Ok(Turn::Answered) => silence = SILENCE_WHEN_ANSWERED_MAX,
            Ok(Turn::Over) => return,
            Err(error) => return debug!(%sender, %error, "datagrams end"),
        }
    }
}

/// What happened to a sender's datagrams.
enum Turn {
    Sent,
    Answered,
    Over,
}

/// An answer. Room for it is taken when it is there: most senders wait.
async fn pass_on(backend: &tokio::net::UdpSocket, socket: &tokio::net::UdpSocket, (sender, at): Ends) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    match backend.try_recv(&mut buffer) {
        Ok(len) => datagram::answer(socket, &buffer[..len], sender, at).await,
        // It was another's to hear, like an error that has been told.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether an address is one of this host's.
fn is_own(ip: IpAddr) -> bool {
    let has = |interface: InterfaceAddress| {
        let address = interface.address.as_ref();
        let four = address.and_then(SockaddrStorage::as_sockaddr_in).map(|own| IpAddr::V4(own.ip()));
        let six = address.and_then(SockaddrStorage::as_sockaddr_in6).map(|own| IpAddr::V6(own.ip()));
        four.or(six) == Some(ip)
    };
    ip.is_loopback() || getifaddrs().is_ok_and(|mut interfaces| interfaces.any(has))
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))
}

/// Ends a connection as if nobody listened.
fn reset(stream: TcpStream) {
    if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        debug!(%error, "a connection ends in order instead of by a reset");
    }
    drop(stream);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_that_was_heard_least_lately_makes_room() {
        let begin = Instant::now();
        let sender = |ms| Sender { datagrams: mpsc::channel(1).0, heard: begin + Duration::from_millis(ms) };
        let at = |port| (SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), Ipv4Addr::LOCALHOST);
        let mut senders = BTreeMap::from([(at(1), sender(20)), (at(2), sender(10)), (at(3), sender(30))]);
        forget_idlest(&mut senders);
        assert_eq!(senders.keys().copied().collect::<Vec<_>>(), [at(1), at(3)]);
    }
}
