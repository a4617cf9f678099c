//! Runs a command in a container for a user.
//!
//! ```text
//! user ──data──► queue ──► standard input ─┐
//!                                          ├ the container's monitor, or the runtime's `exec` in the foreground
//! user ◄──frames── stdout, stderr ◄────────┘
//! ```
//!
//! The monitor begins a command faster. It has no terminals for commands, and there is none that executes in containers of other runtimes; one
//! that is of an older release, does not answer or refuses leaves the command to the runtime, whose words the user then reads. A command that
//! the monitor may have begun is never begun a second time: the user is told.
//!
//! When the user goes, the command gets SIGHUP and soon SIGKILL; a terminal hangs up as well.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1::{self, relay_input, relay_output};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::terminal::{self, Control};
use super::{DATA_BYTES_MAX, Gone, Line, Speaker, Target, chain, internal, invalid, opened};
use crate::core::exec::{Asked, Command, candidates, command};
use crate::core::user::{Identity, identify};
use crate::exec::monitor::MonitorError;
use crate::exec::process::PidFile;
use crate::exec::runtime_cli::{ExecCall, Streams};
use crate::exec::{Tools, monitor, process};

/// Pieces of input that wait for a command that does not read.
const PIECES_MAX: usize = 4;
/// How long the monitor may take to take a command, before that is left to the runtime.
const START: Duration = Duration::from_secs(3);
/// How long a command may take to end after SIGHUP.
const HANGUP: Duration = Duration::from_secs(1);
/// How long the output may pause after the command's end before no more is expected: what it left running in the container may hold
/// the pipes for ever.
const REST: Duration = Duration::from_millis(200);
/// What a shell answers for a program that is not there, and for one that cannot be executed (POSIX, "Exit Status for Commands").
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Runs the command and says how it ended.
pub async fn run(tools: &Tools, target: &Target, asked: v1::RelayExec, line: &mut Line) -> Result<(), ApiError> {
    let command = plan(target, &asked)?;
    let not_found = missing(target, &asked.args[0], &command)?;
    // From here on a user who has gone is no error: nobody is left to hear of it.
    if line.say(opened(tools, target)).await.is_err() {
        return Ok(());
    }
    if let Some((code, why)) = not_found {
        let said = line.say(relay_output::Kind::Stderr(format!("{why}\n").into_bytes())).await;
        if said.is_ok() {
            let _ = line.say(exit(code)).await;
        }
        return Ok(());
    }
    let mut running = Running::begin(tools, target, &asked, &command, &line.id).await?;
    let ended = running.converse(line).await;
    match ended {
        Ok(Ok(code)) => drop(line.say(exit(code)).await),
        Ok(Err(error)) => return Err(ended_unknown(target, &error)),
        Err(Gone) => running.hang_up().await,
    }
    Ok(())
}

fn ended_unknown(target: &Target, error: &io::Error) -> ApiError {
    let message = format!(
        "how the command in container {} ended is not known, and what is left of it is killed: {}",
        target.container.name,
        chain(error)
    );
    ApiError::new(ErrorCode::Conflict, message).hint("look what it has done; rclusterctl ps -a shows what became of the container")
}

fn exit(code: i32) -> relay_output::Kind {
    relay_output::Kind::Exit(v1::RelayExit { code })
}

fn plan(target: &Target, asked: &v1::RelayExec) -> Result<Command, ApiError> {
    let path = target.place.config_file();
    let bytes = fs::read(&path).map_err(|error| internal("read the container's configuration", &error))?;
    let config: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| internal("read the container's configuration", &error))?;
    let user = if asked.user.is_empty() { None } else { Some(identity(target, &asked.user)?) };
    let asked = Asked { args: &asked.args, env: &asked.env, workdir: &asked.workdir, user: user.as_ref(), tty: asked.tty };
    command(&config["process"], &asked).map_err(|why| invalid(&why))
}

fn identity(target: &Target, user: &str) -> Result<Identity, ApiError> {
    let root = target.root()?;
    let read = |path: &str| {
        let text = root.read_text(Path::new(path)).map_err(|error| internal(&format!("read /{path} in the container"), &error))?;
        Ok::<_, ApiError>(text.unwrap_or_default())
    };
    identify(user, &read("etc/passwd")?, &read("etc/group")?).map_err(|why| invalid(&why))
}

/// What a shell would say of a command that cannot be run, and its exit code; `None` when it can, as far as can be seen from here.
fn missing(target: &Target, program: &str, command: &Command) -> Result<Option<(i32, String)>, ApiError> {
    let root = target.root()?;
    if let Err(error) = root.dir(Path::new(&command.cwd)) {
        return Err(invalid(&format!("working directory {}: {error}", command.cwd)).hint("choose another with -w DIR"));
    }
    let name = &target.container.name;
    let mut found = None;
    for path in candidates(program, &command.cwd, &command.path) {
        match root.find(Path::new(&path)).and_then(|file| Ok(fstat(&file)?)) {
            Ok(stat) => {
                let is_program = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0;
                if is_program {
                    return Ok(None);
                }
                found.get_or_insert(path);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            // A link into /proc, say: the kernel has the last word when the command is run.
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(match found {
        Some(path) => (NOT_EXECUTABLE, format!("exec: {path} in container {name} is not an executable file")),
        None if program.contains('/') => (NOT_FOUND, format!("exec: {program}: there is no such file in container {name}")),
        None => (NOT_FOUND, format!("exec: {program}: not found in container {name} (its PATH: {})", command.path)),
    }))
}

/// A command that runs. Killed when dropped, as far as it has begun.
struct Running {
    runner: Runner,
    signals: Signals,
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    outputs: Vec<(Stream, Box<dyn AsyncRead + Send + Unpin>)>,
    /// Of a terminal, with the runtime's number.
    control: Option<(Control, Option<u32>)>,
    ended: bool,
}

/// Who tells of the command's end.
enum Runner {
    Monitor { command: monitor::Command, _permit: OwnedSemaphorePermit },
    Runtime(Child),
}

impl Runner {
    /// Waits for the end; out: the exit code. The error is that nobody is left who knows it.
    async fn ended(&mut self) -> io::Result<i32> {
        match self {
            Self::Monitor { command, _permit } => command.ended().await,
            Self::Runtime(child) => child.wait().await.map(code),
        }
    }
}

/// The way to the command's process.
enum Signals {
    Process(Arc<OwnedFd>),
    Files(Files),
}

impl Signals {
    fn send(&self, signal: Signal) {
        match self {
            Self::Process(process) => match pidfd_send_signal(process, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => warn!(%error, "cannot send a command a signal"),
            },
            Self::Files(files) => files.pid.signal(signal),
        }
    }
}

/// Files that go with the command.
struct Files {
    process: PathBuf,
    pid: PidFile,
}

impl Drop for Files {
    fn drop(&mut self) {
        // Not there, or swept with the task's bundle.
        drop(fs::remove_file(&self.process));
    }
}

impl Running {
    async fn begin(tools: &Tools, target: &Target, asked: &v1::RelayExec, command: &Command, id: &str) -> Result<Self, ApiError> {
        let process = serde_json::to_vec(&command.process).map_err(|error| internal("encode the command", &error))?;
        let permit = Arc::clone(&tools.by_monitor).try_acquire_owned().ok();
        if let Some(permit) = permit.filter(|_| !asked.tty && tools.runtime(&target.task).foreign.is_none()) {
            match Self::by_monitor(target, asked, &process, permit).await {
                Ok(running) => return Ok(running),
                Err(error) if error.may_have_begun() => return Err(unknown(target, &error)),
                Err(error) if error.is_of_monitor() => {
                    warn!(container = target.container.id, why = chain(&error), "its monitor runs no command: the runtime does");
                }
                Err(error) => debug!(container = target.container.id, why = chain(&error), "a command is left to the runtime"),
            }
        }
        Self::by_runtime(tools, target, asked, &process, id)
    }

    async fn by_monitor(
        target: &Target,
        asked: &v1::RelayExec,
        process: &[u8],
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, MonitorError> {
        let socket = target.place.monitor_socket();
        let unreachable = |source| MonitorError::Unreachable { path: socket.clone(), source };
        let ((out, their_out), (err, their_err)) = (monitor::output().map_err(unreachable)?, monitor::output().map_err(unreachable)?);
        let (stdin, their_in) = if asked.stdin {
            let (stdin, their_in) = monitor::input().map_err(unreachable)?;
            (Some(Box::new(stdin) as _), their_in)
        } else {
            (None, File::open("/dev/null").map_err(unreachable)?.into())
        };
        let streams = [their_in.as_fd(), their_out.as_fd(), their_err.as_fd()];
        let command = monitor::begin_process(&socket, process, streams, START).await?;
        Ok(Self {
            signals: Signals::Process(command.process()),
            runner: Runner::Monitor { command, _permit: permit },
            stdin,
            outputs: vec![(Stream::Stdout, Box::new(out)), (Stream::Stderr, Box::new(err))],
            control: None,
            ended: false,
        })
    }

    fn by_runtime(tools: &Tools, target: &Target, asked: &v1::RelayExec, process: &[u8], id: &str) -> Result<Self, ApiError> {
        let file = |end: &str| target.place.command_file(id, end);
        let files = Files { process: file("json"), pid: PidFile::new(file("pid")) };
        fs::write(&files.process, process).map_err(|error| internal("write the command for the runtime", &error))?;
        let (terminal, streams) = if asked.tty {
            let (terminal, runtimes) = terminal::open().map_err(|error| internal("make a terminal", &error))?;
            if let Some(size) = &asked.size {
                adjust(&terminal.control, size);
            }
            (Some(terminal), Streams::Terminal(runtimes))
        } else {
            (None, if asked.stdin { Streams::Pipes } else { Streams::OutputOnly })
        };
        let call = ExecCall { id: &target.container.id, process: &files.process, pid_file: files.pid.path(), streams };
        let mut child = tools.runtime(&target.task).begin_exec(call).map_err(|error| internal("begin the command", &error))?;
        let mut outputs: Vec<(Stream, Box<dyn AsyncRead + Send + Unpin>)> = Vec::new();
        let mut control = None;
        let stdin: Option<Box<dyn AsyncWrite + Send + Unpin>> = match terminal {
            Some(terminal) => {
                control = Some((terminal.control, child.id()));
                outputs.push((Stream::Stdout, Box::new(terminal.reader)));
                asked.stdin.then(|| Box::new(terminal.writer) as _)
            }
            None => {
                outputs.extend(child.stdout.take().map(|stdout| (Stream::Stdout, Box::new(stdout) as _)));
                child.stdin.take().map(|stdin| Box::new(stdin) as _)
            }
        };
        outputs.extend(child.stderr.take().map(|stderr| (Stream::Stderr, Box::new(stderr) as _)));
        Ok(Self { runner: Runner::Runtime(child), signals: Signals::Files(files), stdin, outputs, control, ended: false })
    }

    /// Passes data on both ways until the command ends; the answer is its exit code, if that is known.
    async fn converse(&mut self, line: &mut Line) -> Result<io::Result<i32>, Gone> {
        let (speaker, line) = line.split();
        let (pieces, queue) = mpsc::channel(PIECES_MAX);
        let control = self.control.take();
        let tty = control.is_some();
        let hear = hear(line, pieces, control, &self.signals);
        let stdin = self.stdin.take();
        let feed = async {
            if let Some(stdin) = stdin {
                feed(stdin, queue, tty).await;
            } else {
                discard(queue).await;
            }
            std::future::pending::<()>().await;
        };
        let code = tokio::select! {
            Gone = hear => Err(Gone),
            () = speaker.closed() => Err(Gone),
            () = feed => Err(Gone),
            code = pass_out(&mut self.runner, std::mem::take(&mut self.outputs), &speaker) => code,
        };
        self.ended = matches!(code, Ok(Ok(_)));
        code
    }

    /// The user has gone: the command is asked to end, and then killed.
    async fn hang_up(&mut self) {
        for signal in [Signal::HUP, Signal::KILL] {
            self.signals.send(signal);
            if matches!(timeout(HANGUP, self.runner.ended()).await, Ok(Ok(_))) {
                self.ended = true;
                return;
            }
        }
        warn!("a command's end is not told after it was killed: who was to tell is left or killed too");
    }
}

/// A command that has perhaps had its effect.
fn unknown(target: &Target, error: &MonitorError) -> ApiError {
    let message = format!("container {}: {}", target.container.name, chain(error));
    ApiError::new(ErrorCode::Conflict, message).hint("it is not tried in another way: look what it has done, then run it again if need be")
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.signals.send(Signal::KILL);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

fn adjust(control: &Control, size: &v1::RelayResize) {
    if let Err(error) = control.resize(size.rows, size.columns) {
        debug!(%error, "a terminal keeps its size");
    }
}

/// Takes the user's frames; returns when the user has gone.
async fn hear(line: &mut Line, pieces: mpsc::Sender<Vec<u8>>, control: Option<(Control, Option<u32>)>, signals: &Signals) -> Gone {
    let mut pieces = Some(pieces);
    loop {
        match line.hear().await {
            Err(Gone) => return Gone,
            Ok(relay_input::Kind::Data(data)) => {
                if let Some(queue) = &pieces
                    && queue.send(data).await.is_err()
                {
                    pieces = None;
                }
            }
            Ok(relay_input::Kind::CloseInput(_)) => pieces = None,
            Ok(relay_input::Kind::Resize(size)) => {
                if let Some((control, runtime)) = &control {
                    adjust(control, &size);
                    // It is in no session of the terminal's, to which the kernel would tell it.
                    let runtime = runtime.and_then(|pid| process::look(pid).ok().flatten());
                    if let Some(Err(error)) = runtime.map(|runtime| process::signal(runtime, Signal::WINCH)) {
                        debug!(%error, "the runtime does not learn of the terminal's size");
                    }
                }
            }
            Ok(relay_input::Kind::Signal(name)) => match signal(&name) {
                Some(signal) => signals.send(signal),
                None => debug!(name, "not a signal that is passed on"),
            },
            Ok(relay_input::Kind::Open(_)) => debug!("a relay is opened once"),
        }
    }
}

/// The signals that a terminal's user can give.
pub fn signal(name: &str) -> Option<Signal> {
    Some(match name {
        "SIGHUP" => Signal::HUP,
        "SIGINT" => Signal::INT,
        "SIGQUIT" => Signal::QUIT,
        "SIGTERM" => Signal::TERM,
        "SIGUSR1" => Signal::USR1,
        "SIGUSR2" => Signal::USR2,
        _ => return None,
    })
}

/// Writes what the user sends; a command that no longer reads is no reason to end.
async fn feed(mut stdin: Box<dyn AsyncWrite + Send + Unpin>, mut queue: mpsc::Receiver<Vec<u8>>, tty: bool) {
    while let Some(piece) = queue.recv().await {
        if stdin.write_all(&piece).await.is_err() {
            return discard(queue).await;
        }
    }
    if tty {
        // A terminal has no end of input of its own: its end-of-file character is sent (termios(3), VEOF).
        let _ = stdin.write_all(&[4]).await;
    }
    let _ = stdin.shutdown().await;
}

async fn discard(mut queue: mpsc::Receiver<Vec<u8>>) {
    while queue.recv().await.is_some() {}
}

/// Sends what the command writes; returns its exit code after its end, when all it wrote is sent.
async fn pass_out(
    runner: &mut Runner,
    streams: Vec<(Stream, Box<dyn AsyncRead + Send + Unpin>)>,
    speaker: &Speaker,
) -> Result<io::Result<i32>, Gone> {
    let (over, is_over) = tokio::sync::watch::channel(false);
    let reading =
        futures::future::try_join_all(streams.into_iter().map(|(stream, reader)| pass_stream(stream, reader, speaker, is_over.clone())));
    let waiting = async {
        let code = runner.ended().await;
        over.send_replace(true);
        Ok::<_, Gone>(code)
    };
    let (_, code) = tokio::try_join!(reading, waiting)?;
    Ok(code)
}

async fn pass_stream(
    stream: Stream,
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    speaker: &Speaker,
    mut over: tokio::sync::watch::Receiver<bool>,
) -> Result<(), Gone> {
    let mut buffer = vec![0; DATA_BYTES_MAX];
    loop {
        let count = tokio::select! {
            biased;
            read = reader.read(&mut buffer) => read,
            () = pause(&mut over) => return Ok(()),
        };
        match count {
            // EIO is how a terminal says that nobody has it open any more.
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => {
                let data = buffer[..count].to_vec();
                let kind = match stream {
                    Stream::Stdout => relay_output::Kind::Stdout(data),
                    Stream::Stderr => relay_output::Kind::Stderr(data),
                };
                speaker.say(kind).await?;
            }
        }
    }
}

/// Returns when the command has ended and a while has passed.
async fn pause(over: &mut tokio::sync::watch::Receiver<bool>) {
    // The sender lives as long as the wait for the end.
    let _ = over.wait_for(|over| *over).await;
    tokio::time::sleep(REST).await;
}

/// As a shell counts.
fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(i32::from(u8::MAX))
}
