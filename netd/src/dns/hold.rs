//! The keeper of the resolver's sockets: a process of its own, so that what pods ask waits while netd is started anew.
//!
//! ```text
//!  netd ──spawns──► rcluster-netd hold R/dns.hold: has the UDP and the TCP socket too, and never reads them
//!   └ ends or is killed; questions wait in the sockets
//!  netd, the next ──connects──► R/dns.hold: is given both, answers what waits, and stays connected as long as it lives
//! ```
//!
//! - Descriptors go over the connection (SCM_RIGHTS). The first netd's connection is the keeper's standard input; on it come the sockets, and
//!   the listener, which is made first and handed on last: whoever is killed at whatever moment, either R/dns.hold leads to one who has
//!   the sockets, or nobody has them and they can be bound anew.
//! - netd looks now and then whether it is there, and has another one if not.
//! - The keeper ends when no netd has been connected for `ALONE_MAX`, and when R/dns.hold is gone or another's.
//!
//! Never: reads a question, or outlives the run directory for more than `LOOK_EVERY_MS`.

use std::fs::{self, Permissions};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::kernel::linux::ResolverSockets;

/// netd's first argument that makes it a keeper; the second is where it is found.
pub const VERB: &str = "hold";

/// Without netd. More than it takes to be started anew, also for one who does it by hand.
const ALONE_MAX: Duration = Duration::from_secs(60);

/// While it is there, so is the router namespace that the sockets are of, with its devices. Whether R/dns.hold is there is looked at and not
/// told by the kernel (inotify): a user has few such ears (`fs.inotify.max_user_instances`), and the keeper is to end where none is left, too.
const LOOK_EVERY_MS: u16 = 250;

/// For the keeper to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Two sockets and a listener.
const FILES_MAX: usize = 3;

/// netd's side: while it is there, the keeper is not alone.
#[derive(Debug)]
pub struct Kept {
    /// Does not block.
    connection: UnixStream,
    /// Of who has spawned it.
    keeper: Option<Child>,
}

/// The sockets that netd uses, and who keeps them.
pub struct Keeping {
    path: PathBuf,
    sockets: ResolverSockets,
    kept: Option<Kept>,
}

impl Keeping {
    /// Of sockets that are kept already, or are to be from `renew` on.
    pub fn new(path: &Path, sockets: &ResolverSockets, kept: Option<Kept>) -> io::Result<Self> {
        let sockets = ResolverSockets { udp: sockets.udp.try_clone()?, tcp: sockets.tcp.try_clone()? };
        Ok(Self { path: path.to_path_buf(), sockets, kept })
    }

    /// Has them kept anew if nobody does.
    pub fn renew(&mut self) -> io::Result<()> {
        let lives = self.kept.as_ref().is_some_and(|kept| is_there(&kept.connection));
        if !lives {
            if let Some(mut keeper) = self.kept.take().and_then(|kept| kept.keeper) {
                // It has ended or is about to, for it has closed its end.
                keeper.try_wait()?;
            }
            self.kept = Some(start(&self.path, &self.sockets)?);
        }
        Ok(())
    }
}

/// Has whoever keeps sockets at `path` end, soon.
pub fn dismiss(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// The sockets from the keeper at `path`, if there is one.
pub fn take(path: &Path) -> io::Result<Option<(ResolverSockets, Kept)>> {
    let connection = match UnixStream::connect(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        connected => connected?,
    };
    connection.set_read_timeout(Some(ANSWER_MAX))?;
    let mut files = receive(&connection)?.into_iter();
    let (Some(udp), Some(tcp)) = (files.next(), files.next()) else { return Ok(None) };
    connection.set_nonblocking(true)?;
    Ok(Some((ResolverSockets { udp: udp.into(), tcp: tcp.into() }, Kept { connection, keeper: None })))
}

/// Has the sockets kept by a new process, which is found at `path` from then on; what is there is one that nobody answers at.
pub fn start(path: &Path, sockets: &ResolverSockets) -> io::Result<Kept> {
    let aside = path.with_extension("hold.new");
    dismiss(&aside)?;
    dismiss(path)?;
    let listener = UnixListener::bind(&aside)?;
    fs::set_permissions(&aside, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    fs::rename(&aside, path)?;
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(VERB).arg(path).current_dir("/").process_group(0);
    let keeper = command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    send(&ours, &[sockets.udp.as_fd(), sockets.tcp.as_fd(), listener.as_fd()])?;
    ours.set_nonblocking(true)?;
    Ok(Kept { connection: ours, keeper: Some(keeper) })
}

/// The keeper's life.
pub fn keep(path: &Path) -> io::Result<()> {
    nix::sys::prctl::set_name(c"rcluster-hold")?;
    let spawner = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut files = receive(&spawner)?.into_iter();
    // Without them netd was killed before it could send them.
    let (Some(udp), Some(tcp), Some(listener)) = (files.next(), files.next(), files.next()) else { return Ok(()) };
    let listener = UnixListener::from(listener);
    let own = place(path)?;
    spawner.set_nonblocking(true)?;
    let mut netd = Some(spawner);
    let mut alone_since = Instant::now();
    loop {
        wait(&listener, netd.as_ref())?;
        if place(path).ok() != Some(own) {
            return Ok(());
        }
        if let Ok((next, _)) = listener.accept() {
            next.set_nonblocking(true)?;
            if send(&next, &[udp.as_fd(), tcp.as_fd()]).is_ok() {
                netd = Some(next);
            }
        }
        netd = netd.filter(is_there);
        if netd.is_some() {
            alone_since = Instant::now();
        } else if alone_since.elapsed() >= ALONE_MAX {
            return Ok(());
        }
    }
}

/// What makes a file this one and no other of its name.
fn place(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Until there is something to do, or to look at.
fn wait(listener: &UnixListener, netd: Option<&UnixStream>) -> io::Result<()> {
    let mut polled = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    polled.extend(netd.map(|netd| PollFd::new(netd.as_fd(), PollFlags::POLLIN)));
    match poll(&mut polled, LOOK_EVERY_MS) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the other end of a connection that does not block is there; it never says anything.
fn is_there(connection: &UnixStream) -> bool {
    let mut connection = connection;
    matches!(connection.read(&mut [0]), Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted))
}

fn send(to: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("no room for the sockets' descriptors"));
    }
    sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The descriptors that come next; none when the other end is gone.
fn receive(from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    match recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(_) => {}
        Err(rustix::io::Errno::CONNRESET) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    }
    let mut received = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = part {
            received.extend(files);
        }
    }
    Ok(received)
}
