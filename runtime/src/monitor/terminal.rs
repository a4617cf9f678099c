//! A container's terminal: held as long as the container lives, and shown to whoever connects.
//!
//! In: the master side as the runtime sends it over its console socket, connections, what the container writes. Out: to each viewer the
//! master side, then what is written from then on. Input and size are the kernel's: a viewer writes and sets them by the master side
//! itself, and the monitor reads nothing from anybody. A viewer that falls behind holds the container up, as a slow terminal does, but
//! for a moment only (`--tty-patience-ms`); then it misses what it has no room for, and is told how much.
//!
//! ```text
//! viewer                          monitor                         container
//!   │ connect ───────────────────► │ root, or its own user? below the bound?
//!   │ ◄──── Terminal + master side │
//!   │ ◄──────────────────── Output │ ◄──────────── master side ◄── writes
//!   │ ◄──────────────────── Missed │ (was behind)
//!   │ input, size ──────────────── master side ──────────────────► │
//! ```

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

use super::serve::{self, Sent};
use crate::core::request::Reply;

/// So many look at once.
const VIEWERS_MAX: usize = 16;
/// Of what a viewer has not taken, the kernel keeps so much, or twice that with its own part (socket(7), SO_SNDBUF).
const UNTAKEN_BYTES: usize = 32 << 10;

/// Where the runtime sends the master side: a socket that is there while the container is created.
#[derive(Debug)]
pub struct Console {
    socket: OwnedFd,
    directory: OwnedFd,
    path: PathBuf,
}

impl Console {
    /// Listens beside a path.
    pub fn open(beside: &Path) -> Result<Self> {
        let mut path = beside.as_os_str().to_owned();
        path.push(".console");
        let path = PathBuf::from(path);
        let named = || format!("listen at {}", path.display());
        let directory = path.parent().with_context(named)?;
        let directory =
            rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).with_context(named)?;
        let socket = serve::listen(&path, SocketType::STREAM)?;
        Ok(Self { socket, directory, path })
    }

    /// A name for it that is short enough for an address, in this and other processes.
    pub fn name(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        Path::new("/proc").join(std::process::id().to_string()).join("fd").join(self.directory.as_raw_fd().to_string()).join(name)
    }

    /// The master side; the runtime has sent it before it said that the container is there.
    pub fn receive(&self) -> Result<OwnedFd> {
        const WHY: &str = "process.terminal: the runtime sent no terminal over its console socket";
        let stream = rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).context(WHY)?;
        let mut name = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut name)];
        rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).context(WHY)?;
        let master = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let Some(master) = master else { bail!(WHY) };
        if !rustix::termios::isatty(&master) {
            bail!("process.terminal: what the runtime sent over its console socket is no terminal");
        }
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Another's, or swept with the bundle.
        let _ = rustix::fs::unlink(&self.path);
    }
}

/// The terminal and who looks at it.
#[derive(Debug)]
pub struct Terminal {
    /// Without it the kernel would hang the container's side up.
    master: OwnedFd,
    socket: OwnedFd,
    viewers: Vec<Viewer>,
    /// How long a viewer that takes nothing holds the container up.
    patience: Duration,
}

#[derive(Debug)]
struct Viewer {
    connection: OwnedFd,
    /// What it had no room for, and since when.
    waiting: Option<(Instant, Vec<u8>)>,
    missed_bytes: u64,
}

impl Terminal {
    /// Listens for viewers at a path, which only root and this user may connect to.
    pub fn open(master: OwnedFd, path: &Path, patience: Duration) -> Result<Self> {
        Ok(Self { master, socket: serve::listen(path, SocketType::SEQPACKET)?, viewers: Vec::new(), patience })
    }

    /// How long a viewer that takes nothing holds the container up.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// To be read, for the log.
    pub fn reader(&self) -> Result<OwnedFd> {
        self.master.try_clone().context("copy the terminal's descriptor")
    }

    /// What there is to wait for besides output.
    pub fn poll(&self) -> impl Iterator<Item = PollFd<'_>> {
        let viewers = self.viewers.iter().map(|viewer| {
            let room = if viewer.waiting.is_some() { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::new(&viewer.connection, room)
        });
        std::iter::once(PollFd::new(&self.socket, PollFlags::IN)).chain(viewers)
    }

    /// How much longer no output is to be read, for the sake of a viewer that has no room.
    pub fn held_up(&self) -> Option<Duration> {
        let since = self.viewers.iter().filter_map(|viewer| viewer.waiting.as_ref()).map(|(since, _)| *since).min()?;
        Some(self.patience.saturating_sub(since.elapsed()))
    }

    /// Takes in who has come, lets go who has left, and gives those behind what they have room for.
    pub fn attend(&mut self) {
        if !self.viewers.is_empty() {
            let mut fds: Vec<PollFd<'_>> = self.viewers.iter().map(|viewer| PollFd::new(&viewer.connection, PollFlags::empty())).collect();
            // An error tells of nobody, and nobody leaves then.
            let _ = rustix::event::poll(&mut fds, Some(&Timespec::default()));
            let mut has_left = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
            let patience = self.patience;
            self.viewers.retain_mut(|viewer| !has_left.next().unwrap_or(false) && viewer.catch_up(patience));
        }
        self.accept();
    }

    /// Shows what the container has written, no more than a message holds.
    pub fn show(&mut self, bytes: &[u8]) {
        self.viewers.retain_mut(|viewer| viewer.show(bytes));
    }

    /// Waits, until `end` at the latest, for viewers to take what they had no room for.
    pub fn settle(&mut self, end: Instant) {
        while self.held_up().is_some() {
            let left = timespec(end.saturating_duration_since(Instant::now()));
            let mut fds: Vec<PollFd<'_>> = self.poll().skip(1).collect();
            if !matches!(rustix::event::poll(&mut fds, Some(&left)), Ok(1..) | Err(Errno::INTR)) {
                return;
            }
            self.attend();
        }
    }

    /// There is no more: viewers that have missed something hear of it, if they take anything at all.
    pub fn finish(&mut self) {
        self.viewers.iter().for_each(|viewer| {
            let _ = viewer.tell_missed();
        });
    }

    fn accept(&mut self) {
        let Ok(connection) = rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
        let refuse = |why: String| {
            let _ = serve::send(connection.as_fd(), &Reply::Refused { why }, None);
        };
        if !serve::may_ask(connection.as_fd()) {
            refuse("only root, or the user a monitor runs as, may look at a container's terminal".to_owned());
        } else if self.viewers.len() >= VIEWERS_MAX {
            refuse(format!("{VIEWERS_MAX} look at this terminal already, and no more may at once: try again when one has left"));
        } else if let Err(errno) = rustix::net::sockopt::set_socket_send_buffer_size(&connection, UNTAKEN_BYTES) {
            refuse(format!("bound what waits for a viewer: {errno}"));
        } else if serve::send(connection.as_fd(), &Reply::Terminal, Some(self.master.as_fd())) == Sent::Whole {
            self.viewers.push(Viewer { connection, waiting: None, missed_bytes: 0 });
        }
    }
}

impl Viewer {
    /// Sends, or keeps for later, or counts as missed; `false` once it has gone.
    fn show(&mut self, piece: &[u8]) -> bool {
        let length = piece.len() as u64;
        if self.waiting.is_some() {
            self.missed_bytes += length;
            return true;
        }
        if self.missed_bytes > 0 {
            match self.tell_missed() {
                Sent::Whole => self.missed_bytes = 0,
                Sent::NoRoom => {
                    self.missed_bytes += length;
                    return true;
                }
                Sent::Gone => return false,
            }
        }
        match self.send(&Reply::Output { bytes: piece.to_vec() }) {
            Sent::Whole => true,
            Sent::NoRoom => {
                self.waiting = Some((Instant::now(), piece.to_vec()));
                true
            }
            Sent::Gone => false,
        }
    }

    fn catch_up(&mut self, patience: Duration) -> bool {
        let Some((since, piece)) = self.waiting.take() else { return true };
        match self.send(&Reply::Output { bytes: piece.clone() }) {
            Sent::Whole => true,
            Sent::NoRoom if since.elapsed() < patience => {
                self.waiting = Some((since, piece));
                true
            }
            Sent::NoRoom => {
                self.missed_bytes += piece.len() as u64;
                true
            }
            Sent::Gone => false,
        }
    }

    fn tell_missed(&self) -> Sent {
        let waiting_bytes = self.waiting.as_ref().map_or(0, |(_, piece)| piece.len() as u64);
        match self.missed_bytes + waiting_bytes {
            0 => Sent::Whole,
            bytes => self.send(&Reply::Missed { bytes: i32::try_from(bytes).unwrap_or(i32::MAX) }),
        }
    }

    fn send(&self, reply: &Reply) -> Sent {
        serve::send(self.connection.as_fd(), reply, None)
    }
}

/// For poll(2).
pub fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: i64::from(duration.subsec_nanos()) }
}
