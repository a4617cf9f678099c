//! Commands in a container through its monitor's socket, for which no program is started but the command itself; and a container's terminal,
//! which its monitor shows.
//!
//! Each call has a deadline. What was begun ends with what holds it: the monitor kills a command whose connection is closed, and so does
//! this agent, by the descriptor that came with the answer, should the monitor stand still.
//!
//! A command may be executed in another way only while it is certain that the monitor has not begun it and never will: as long as the
//! monitor has not said `Taken`, which it cannot say any more to an end that is shut down (`runtime/src/monitor/serve.rs`).

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown,
    SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Signal, pidfd_send_signal};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::time::timeout;
use tracing::warn;

use super::runtime_cli::{keep_end, read_until_ended, said};
use crate::core::monitor_message::{self, REPLY_BYTES_MAX, Reply};

/// Why a command was not executed, or how it ended.
#[derive(Debug, Error)]
pub enum MonitorError {
    #[error("reach the monitor at {path}", path = path.display())]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("the monitor at {path} did not answer within {millis} ms", path = path.display())]
    Silent { path: PathBuf, millis: u128 },
    /// It does not take it, or not now.
    #[error("the monitor at {path} refuses: {why}", path = path.display())]
    Refused { path: PathBuf, why: String },
    /// It cannot be begun in the container, and was not.
    #[error("{0}")]
    NotBegun(String),
    #[error("it is not known whether the monitor at {path} has begun the command: {why}", path = path.display())]
    Unknown { path: PathBuf, why: String },
    /// The end of what it printed, or its exit code.
    #[error("{0}")]
    Failed(String),
}

impl MonitorError {
    /// Whether it is the monitor's doing that it was not begun, and not the command's or the container's.
    pub fn is_of_monitor(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Refused { .. } => true,
            Self::NotBegun(_) | Self::Unknown { .. } | Self::Failed(_) => false,
        }
    }

    /// Whether it may have been begun, and so must not be executed in another way.
    pub fn may_have_begun(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Refused { .. } | Self::NotBegun(_) => false,
            Self::Unknown { .. } | Self::Failed(_) => true,
        }
    }
}

const NONSENSE: &str = "the monitor answered nonsense";
/// How long a command that was taken may take to begin: longer than the monitor tries (`START_SECONDS_MAX` of `runtime/src/monitor/serve.rs`).
const BEGIN: Duration = Duration::from_secs(15);

/// Runs a command in the monitor's container until it ends or the caller no longer waits, and then it is killed. The monitor has so long to
/// take it.
pub async fn run(socket: &Path, args: &[String], start: Duration) -> Result<(), MonitorError> {
    let unreachable = |source| MonitorError::Unreachable { path: socket.to_owned(), source };
    let request = monitor_message::exec(args).map_err(MonitorError::NotBegun)?;
    let ((out, their_out), (err, their_err)) = (output().map_err(unreachable)?, output().map_err(unreachable)?);
    let null = File::open("/dev/null").map_err(unreachable)?;
    let mut command = begin(socket, &request, [null.as_fd(), their_out.as_fd(), their_err.as_fd()], start).await?;
    drop((null, their_out, their_err));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let reading = async {
        tokio::join!(keep_end(Some(out), &mut stdout), keep_end(Some(err), &mut stderr));
    };
    let code = read_until_ended(reading, command.ended()).await.map_err(|error| MonitorError::Failed(error.to_string()))?;
    if code == 0 {
        return Ok(());
    }
    Err(MonitorError::Failed(said(if stderr.is_empty() { &stdout } else { &stderr }, &format!("exit status: {code}"))))
}

/// Begins a command that is described as a `process` of runtime-spec; its standard streams are these. The monitor has so long to take it.
pub async fn begin_process(socket: &Path, process: &[u8], streams: [BorrowedFd<'_>; 3], start: Duration) -> Result<Command, MonitorError> {
    let request = monitor_message::exec_process(process).map_err(MonitorError::NotBegun)?;
    begin(socket, &request, streams, start).await
}

async fn begin(socket: &Path, request: &[u8], streams: [BorrowedFd<'_>; 3], start: Duration) -> Result<Command, MonitorError> {
    let unreachable = |source| MonitorError::Unreachable { path: socket.to_owned(), source };
    let connection = ask(socket, request, streams).map_err(unreachable)?;
    match timeout(start, receive(&connection)).await {
        Ok(Ok((Reply::Taken, _))) => begun(socket, connection).await,
        Ok(answer) => Err(not_taken(socket, answer)),
        Err(_) => Err(give_up(socket, &connection, start)),
    }
}

/// Waits for a command that was taken.
async fn begun(socket: &Path, connection: AsyncFd<OwnedFd>) -> Result<Command, MonitorError> {
    let unknown = |why: String| MonitorError::Unknown { path: socket.to_owned(), why };
    let answer = timeout(BEGIN, receive(&connection)).await;
    match answer.map_err(|_| unknown(format!("it has taken it, and said no more within {} s", BEGIN.as_secs())))? {
        Ok((Reply::Started, Some(process))) => Ok(Command { connection, process: Arc::new(process), ended: false }),
        Ok((Reply::Refused { why }, _)) => Err(MonitorError::NotBegun(why)),
        Ok(_) => Err(unknown("it has taken it, and then answered nonsense".to_owned())),
        Err(error) => Err(unknown(format!("it has taken it, and then: {error}"))),
    }
}

/// What it means that the first answer is another than that the command is taken.
fn not_taken(socket: &Path, answer: io::Result<(Reply, Option<OwnedFd>)>) -> MonitorError {
    let path = socket.to_owned();
    match answer {
        Ok((Reply::Refused { why }, _)) => MonitorError::Refused { path, why },
        // What it says to this may be of a later release, and mean that it has begun.
        Ok(_) => MonitorError::Unknown { path, why: NONSENSE.to_owned() },
        Err(error) if error.kind() == io::ErrorKind::InvalidData => MonitorError::Unknown { path, why: error.to_string() },
        Err(source) => MonitorError::Unreachable { path, source },
    }
}

/// Has the monitor not take the command any more, if it has not yet.
fn give_up(socket: &Path, connection: &AsyncFd<OwnedFd>, waited: Duration) -> MonitorError {
    let path = socket.to_owned();
    let connection = connection.get_ref();
    if let Err(errno) = rustix::net::shutdown(connection, Shutdown::Both) {
        return MonitorError::Unknown { path, why: format!("the connection cannot be shut down: {errno}") };
    }
    // What was said before is still there; what is said from now on the kernel refuses.
    match receive_now(connection) {
        Ok((Reply::Taken, _)) => MonitorError::Unknown { path, why: "it took it as it was waited for no longer".to_owned() },
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => MonitorError::Silent { path, millis: waited.as_millis() },
        answer => not_taken(socket, answer),
    }
}

/// A command that runs; killed when dropped before its end.
#[derive(Debug)]
pub struct Command {
    connection: AsyncFd<OwnedFd>,
    process: Arc<OwnedFd>,
    ended: bool,
}

impl Command {
    /// A pidfd of it.
    pub fn process(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.process)
    }

    /// Waits for its end; out: its exit code, or 128 and the signal that killed it.
    pub async fn ended(&mut self) -> io::Result<i32> {
        let answer = receive(&self.connection).await;
        match answer? {
            (Reply::Ended { code }, _) => {
                self.ended = true;
                Ok(code)
            }
            (Reply::Refused { why }, _) => Err(io::Error::other(why)),
            _ => Err(io::Error::other(NONSENSE)),
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => warn!(%error, "cannot kill a command"),
        }
    }
}

/// A container's terminal as its monitor shows it, from when it was opened.
#[derive(Debug)]
pub struct Screen {
    connection: AsyncFd<OwnedFd>,
}

/// What is seen of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Output(Vec<u8>),
    /// So many bytes were left out.
    Missed(u32),
    /// The container has ended, or its monitor was killed.
    End,
}

/// Looks at the terminal that the monitor shows at a socket; its master side takes input and the size. The monitor has so long to answer.
pub async fn terminal(socket: &Path, wait: Duration) -> Result<(Screen, OwnedFd), MonitorError> {
    let unreachable = |source| MonitorError::Unreachable { path: socket.to_owned(), source };
    let connection = readable(connect(socket).map_err(unreachable)?).map_err(unreachable)?;
    let silent = || MonitorError::Silent { path: socket.to_owned(), millis: wait.as_millis() };
    match timeout(wait, receive(&connection)).await.map_err(|_| silent())?.map_err(unreachable)? {
        (Reply::Terminal, Some(master)) => Ok((Screen { connection }, master)),
        (Reply::Refused { why }, _) => Err(MonitorError::Failed(why)),
        _ => Err(MonitorError::Failed(NONSENSE.to_owned())),
    }
}

impl Screen {
    /// What comes next.
    pub async fn next(&self) -> io::Result<Seen> {
        match receive(&self.connection).await {
            Ok((Reply::Output { bytes }, _)) => Ok(Seen::Output(bytes)),
            Ok((Reply::Missed { bytes }, _)) => Ok(Seen::Missed(bytes)),
            Ok(_) => Err(io::Error::other(NONSENSE)),
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Ok(Seen::End),
            Err(error) => Err(error),
        }
    }
}

/// A pipe that is read here and written there.
pub fn output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// A pipe that is written here and read there.
pub fn input() -> io::Result<(pipe::Sender, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK)?;
    Ok((pipe::Sender::from_owned_fd(write)?, read))
}

/// Sends a request without waiting.
fn ask(path: &Path, request: &[u8], streams: [BorrowedFd<'_>; 3]) -> io::Result<AsyncFd<OwnedFd>> {
    let socket = connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&streams)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    rustix::net::sendmsg(&socket, &[IoSlice::new(request)], &mut control, SendFlags::NOSIGNAL)?;
    readable(socket)
}

/// Connects without waiting: a monitor that stands still has its kernel's queue full at some time, which is an error then.
fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Err(io::ErrorKind::NotFound.into()) };
    // An address has room for 107 bytes, this path may be longer (unix(7)).
    let directory = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    rustix::net::connect(&socket, &SocketAddrUnix::new(&short)?)?;
    Ok(socket)
}

fn readable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(deprecated, reason = "its successor is unsafe; what it guards against, a descriptor not its own, an OwnedFd is not")]
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// The next answer, and the descriptor that comes along.
async fn receive(connection: &AsyncFd<OwnedFd>) -> io::Result<(Reply, Option<OwnedFd>)> {
    loop {
        let mut ready = connection.readable().await?;
        if let Ok(received) = ready.try_io(|socket| receive_now(socket.get_ref())) {
            return received;
        }
    }
}

fn receive_now(socket: &OwnedFd) -> io::Result<(Reply, Option<OwnedFd>)> {
    let mut bytes = [0; REPLY_BYTES_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let count = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let file = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    if count == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the monitor hung up"));
    }
    let reply = monitor_message::reply(&bytes[..count]).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    Ok((reply, file))
}
