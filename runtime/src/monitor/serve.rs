//! Executes programs in the container for clients that connect to the monitor's socket, without a start of this program for each.
//!
//! In: connections. Out: for each a fork of the monitor, its servant, that serves one request and ends. The monitor itself reads nothing
//! and waits for nobody, so a slow or silent client costs it nothing; what a servant takes in memory goes with it; and it alone joins the
//! container's pid namespace.
//!
//! ```text
//! client                         monitor                  servant                       container
//!   │ connect ──────────────────► │ root? below the bound?
//!   │                             │ fork ────────────────► │ an alarm is set
//!   │ Exec{…} + stdin, stdout, stderr ───────────────────► │                                │
//!   │ ◄────────────────────────────────────────────  Taken │ as the verb `exec` does ─────► │ program
//!   │ ◄────────────────────────── Started{pid} + its pidfd │ the alarm is off               │
//!   │ ◄─────────────────────────────────────── Ended{code} │ ◄─────────────────────── ended │
//!   │                             │ ◄────────────── reaped │
//! ```
//!
//! Messages go over `SOCK_SEQPACKET`, so one is read whole or not at all. A client that hangs up wants its program no more: it is killed.
//! The kernel refuses `Taken` once the client has shut its end down (unix(7)), and then nothing is executed. So a client that is tired of
//! waiting shuts down and looks whether `Taken` was there: if not, it may do in another way what it asked for. After `Taken`, `Refused` says
//! that no program was begun; an end without either leaves that open.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::{End, open_null};
use crate::core::exec::Asked;
use crate::core::request::{REQUEST_BYTES_MAX, Reply, Request};
use crate::core::signal;
use crate::parent::{self, ExecOptions, Executed, ProcessSource};
use crate::sys::{self, Cloned};

/// So many requests are served at once.
const SERVANTS_MAX: usize = 32;
/// Connections that wait to be taken; more are refused by the kernel.
const BACKLOG: i32 = 16;
/// How long a servant may take until the program runs: for the request to come, and for the way into the container.
const START_SECONDS_MAX: u32 = 10;
/// Standard input, output and error.
const STREAMS: usize = 3;

/// The socket, and who serves.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    servants: Vec<Pid>,
}

/// Which process returned from [`Listener::accept`].
pub enum Side {
    Monitor,
    Servant(Connection),
}

/// One client.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Listener {
    /// Listens at a path, which only root and this user may connect to.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { socket: listen(path, SocketType::SEQPACKET)?, servants: Vec::new() })
    }

    /// Has one connection that waits served, if it may be.
    pub fn accept(&mut self) -> Side {
        // One that hung up before, or for which there are no descriptors, concerns its client only.
        let Ok(connection) = rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) else { return Side::Monitor };
        let connection = Connection(connection);
        if !may_ask(connection.0.as_fd()) {
            connection.refuse("only root, or the user a monitor runs as, may ask it for anything");
        } else if self.servants.len() >= SERVANTS_MAX {
            connection.refuse(&format!("the monitor serves {SERVANTS_MAX} requests already, and no more at once: try again later"));
        } else {
            match sys::clone_process(0, None) {
                Ok((Cloned::Parent { pid, .. }, _)) => self.servants.extend(Pid::from_raw(pid)),
                Ok((Cloned::Child, _)) => return Side::Servant(connection),
                Err(error) => connection.refuse(&format!("fork the monitor: {error}")),
            }
        }
        Side::Monitor
    }

    /// Takes note of a process that was reaped.
    pub fn forget(&mut self, reaped: Pid) {
        self.servants.retain(|pid| *pid != reaped);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket at a path, which only root and this user may connect to. It waits for nobody.
pub fn listen(path: &Path, kind: SocketType) -> Result<OwnedFd> {
    let named = || format!("listen at {}", path.display());
    let (directory, name) = path.parent().zip(path.file_name()).with_context(named)?;
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).with_context(named),
    }
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // An address has room for 107 bytes, a path of the agent's may be longer (unix(7)).
    let directory = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).with_context(named)?;
    let short = Path::new("/proc/self/fd").join(std::os::fd::AsRawFd::as_raw_fd(&directory).to_string()).join(name);
    rustix::net::bind(&socket, &SocketAddrUnix::new(&short).with_context(named)?).with_context(named)?;
    rustix::fs::chmodat(CWD, path, Mode::RUSR | Mode::WUSR, rustix::fs::AtFlags::empty()).with_context(named)?;
    rustix::net::listen(&socket, BACKLOG).with_context(named)?;
    Ok(socket)
}

/// Whether the other end is root's, or this user's.
pub fn may_ask(connection: BorrowedFd<'_>) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(connection).is_ok_and(|peer| peer.uid.is_root() || peer.uid == own)
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Whole,
    NoRoom,
    Gone,
}

/// Sends a message and a descriptor, and never waits.
pub fn send(connection: BorrowedFd<'_>, reply: &Reply, file: Option<BorrowedFd<'_>>) -> Sent {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(connection, &[IoSlice::new(&reply.encode())], &mut control, flags) {
        Ok(_) => Sent::Whole,
        Err(Errno::AGAIN | Errno::NOBUFS) => Sent::NoRoom,
        Err(_) => Sent::Gone,
    }
}

/// Serves one request; the servant ends with it. Nothing of the monitor's is open in it any more.
pub fn serve(root: &Path, id: &str, connection: &Connection) -> ExitCode {
    sys::reset_signals();
    // Kills it: a program on its way dies with its parent.
    sys::alarm(START_SECONDS_MAX);
    match execute(root, id, connection) {
        Ok(Some(code)) => connection.answer(&Reply::Ended { code }, None),
        // The client is gone.
        Ok(None) => {}
        Err(error) => connection.refuse(&format!("{error:#}")),
    }
    ExitCode::SUCCESS
}

/// The exit code; `None` when the client has gone away.
fn execute(root: &Path, id: &str, connection: &Connection) -> Result<Option<i32>> {
    let Some((request, [stdin, stdout, stderr])) = connection.receive()? else { return Ok(None) };
    // What can fail without the program is done before it: from its begin on no refusal is true any more.
    let null = open_null()?;
    if send(connection.0.as_fd(), &Reply::Taken, None) != Sent::Whole {
        return Ok(None);
    }
    let process = match request {
        Request::Exec { args } => ProcessSource::Options(Asked { args, ..Asked::default() }),
        Request::ExecProcess { process } => ProcessSource::Given(process),
    };
    rustix::stdio::dup2_stdin(&stdin).context("set standard input")?;
    rustix::stdio::dup2_stdout(&stdout).context("set standard output")?;
    rustix::stdio::dup2_stderr(&stderr).context("set standard error")?;
    drop((stdin, stdout, stderr));
    let options = ExecOptions {
        process,
        detach: true,
        pid_file: None,
        console_socket: None,
        preserve_fds: 0,
        ignore_paused: false,
        is_bound: true,
        cgroups: Vec::new(),
    };
    let executed = parent::execute(root, id, &options)?;
    sys::alarm(0);
    let ended = leave_streams(&null).and_then(|()| {
        connection.answer(&Reply::Started { pid: executed.pid }, Some(executed.pidfd.as_fd()));
        wait(connection, &executed)
    });
    Ok(ended.unwrap_or_else(|_| {
        // Nobody would end it with its client, and to say that it was refused would be wrong: the client hears the end of the talk.
        let _ = sys::send_signal(executed.pidfd.as_fd(), signal::KILL);
        None
    }))
}

/// Else whoever reads the program's output would wait for the servant's end too.
fn leave_streams(null: &OwnedFd) -> Result<()> {
    rustix::stdio::dup2_stdin(null).context("leave standard input")?;
    rustix::stdio::dup2_stdout(null).context("leave standard output")?;
    rustix::stdio::dup2_stderr(null).context("leave standard error")
}

/// Waits for the program's end, and ends it when the client hangs up.
fn wait(connection: &Connection, executed: &Executed) -> Result<Option<i32>> {
    let mut is_wanted = true;
    loop {
        let mut fds = vec![PollFd::new(&executed.pidfd, PollFlags::IN)];
        if is_wanted {
            fds.push(PollFd::new(&connection.0, PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for the process"),
        }
        let ended = rustix::process::waitid(WaitId::PidFd(executed.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        if let Some(status) = ended.context("wait for the process")? {
            return Ok(is_wanted.then(|| End::of_waited(&status).code));
        }
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            // It hung up, or says what it has no right to say now.
            is_wanted = false;
            sys::send_signal(executed.pidfd.as_fd(), signal::KILL).context("kill the process")?;
        }
    }
}

impl Connection {
    /// The request and its three descriptors; `None` when the client hung up instead.
    fn receive(&self) -> Result<Option<(Request, [OwnedFd; STREAMS])>> {
        // A byte more than is allowed shows that there was more.
        let mut bytes = vec![0; REQUEST_BYTES_MAX + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => return Ok(None),
                Ok(received) => break received.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                Err(errno) => return Err(errno).context("receive the request"),
            }
        };
        let files = control.drain().flat_map(|part| match part {
            RecvAncillaryMessage::ScmRights(files) => files.collect(),
            _ => Vec::new(),
        });
        let files: Vec<OwnedFd> = files.collect();
        let request = Request::decode(&bytes[..received]).map_err(anyhow::Error::msg)?;
        match files.try_into() {
            Ok(files) => Ok(Some((request, files))),
            Err(files) => bail!("exec: {} descriptors came along: standard input, output and error are wanted", files.len()),
        }
    }

    fn refuse(&self, why: &str) {
        self.answer(&Reply::Refused { why: why.to_owned() }, None);
    }

    /// There is room for the few replies of a connection, and who has gone away wants none.
    fn answer(&self, reply: &Reply, file: Option<BorrowedFd<'_>>) {
        let _ = send(self.0.as_fd(), reply, file);
    }
}
