//! Stays with one container: keeps what it prints and how it ended, also while the agent is away.
//!
//! In: a bundle, and where to write. Out: one line on standard output once the container is created or was refused, then the log, then
//! the exit file. Decides nothing about the container: that is what `kill` and `delete` are for, so SIGTERM does not end it.
//!
//! ```text
//! caller ── monitor ─┬─ fork ──► the monitor: own session, reaper of orphans, no controlling terminal
//!                    │              create (ours in this process, or another runtime's)
//!    ◄── one line ── ┴─ ◄── pipe ── {"pid":…,"monitor_pid":…} | {"error":…}
//!                    exits          poll: stdout pipe, stderr pipe, SIGCHLD, socket
//!                                   log lines ──► FILE (→ FILE.1 when full) and a log daemon, if one is named
//!                                   a client at the socket ──► a fork that serves it (`serve`)
//!                                   of a terminal: the same output to those who look at it (`terminal`)
//!                                   the first process ended ──► exit file, exit
//! ```
//!
//! It is small: one thread, no buffer beyond a line, and while nothing happens it gives its memory back.

mod log;
mod oom;
mod serve;
mod sink;
mod stdin;
mod terminal;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf, absolute};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitIdStatus, WaitOptions, WaitStatus};
use serde_json::json;

use crate::args::MonitorOptions;
use crate::core::log_sink;
use crate::core::time::rfc3339;
use crate::output::{self, Log};
use crate::parent::{self, CreateOptions};
use crate::state::replace;
use crate::sys::{self, Cloned};
use log::{LogFile, Stream};
use terminal::Terminal;

/// How long nothing has to happen before memory is given back: a container that prints all the time should not pay for it.
const QUIET: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

const EXIT_BY_SIGNAL: i32 = 128;
const EXIT_UNKNOWN: i32 = 255;
const FAILED: u8 = 1;

/// Runs `monitor`: returns in the caller's process after the report, in the monitor's own after the container's end.
pub fn run(root: &Path, options: &MonitorOptions, log: &Log) -> Result<ExitCode> {
    // The caller's descriptors would otherwise stay open as long as the container lives.
    sys::close_from(3).context("close the caller's descriptors")?;
    let options = absolute_paths(options)?;
    let (reports, report) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
    match sys::clone_process(0, None).context("fork the monitor")?.0 {
        Cloned::Parent { .. } => {
            drop(report);
            relay(reports)
        }
        Cloned::Child => {
            drop(reports);
            stay(root, &options, log, File::from(report))
        }
    }
}

/// Passes the monitor's report on.
fn relay(reports: OwnedFd) -> Result<ExitCode> {
    let mut line = String::new();
    // One line, not the end of the pipe: the container's init holds it too until it starts its program.
    BufReader::new(File::from(reports)).read_line(&mut line).context("hear from the monitor")?;
    if line.is_empty() {
        bail!("the monitor died before it could report: was it killed?");
    }
    output::data(line.trim_end());
    Ok(if line.starts_with("{\"error\"") { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn absolute_paths(options: &MonitorOptions) -> Result<MonitorOptions> {
    let full = |path: &Path| absolute(path).with_context(|| format!("resolve {}", path.display()));
    let mut options = options.clone();
    options.bundle = full(&options.bundle)?;
    options.log = full(&options.log)?;
    options.exit_file = full(&options.exit_file)?;
    options.pid_file = options.pid_file.as_deref().map(full).transpose()?;
    options.socket = options.socket.as_deref().map(full).transpose()?;
    options.stdin = options.stdin.as_deref().map(full).transpose()?;
    options.tty = options.tty.as_deref().map(full).transpose()?;
    if let Some((_, Some(root))) = &mut options.runtime {
        *root = full(root)?;
    }
    Ok(options)
}

/// The monitor itself.
fn stay(root: &Path, options: &MonitorOptions, log: &Log, mut report: File) -> Result<ExitCode> {
    let created = detach().and_then(|()| create(root, options, log));
    let Container { pid, mut pipes, mut log_file, oom, mut listener, stdin, mut terminal } = match created {
        Ok(created) => created,
        Err(error) => {
            // The caller hears it, or there is nobody to hear it.
            let _ = writeln!(report, "{}", json!({ "error": format!("{error:#}") }));
            return Ok(ExitCode::from(FAILED));
        }
    };
    let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    sys::block_signals(&signals).context("hold signals back")?;
    let children = File::from(sys::signal_descriptor(&signals).context("watch children")?);
    // A caller that has gone away is no reason to leave the container.
    let _ = writeln!(report, "{{\"pid\":{},\"monitor_pid\":{}}}", pid.as_raw_nonzero(), std::process::id());
    drop(report);
    let end = match watch(pid, &children, &mut pipes, &mut log_file, listener.as_mut(), terminal.as_mut())? {
        Watched::Ended(end) => end,
        Watched::Asked(connection) => {
            drop((children, pipes, log_file, oom, listener, stdin, terminal));
            return Ok(serve::serve(root, &options.id, &connection));
        }
    };
    drop((listener, stdin));
    // What stays is removed with the bundle.
    options.socket.iter().chain(&options.stdin).chain(&options.tty).for_each(|path| drop(std::fs::remove_file(path)));
    show_rest(&mut pipes, &mut log_file, terminal.as_mut());
    log_file.finish();
    write_exit(&options.exit_file, &end, oom.is_some_and(|oom| oom.happened()), log_file.lost_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Copies what the container left behind; who looks at its terminal gets a moment to take it.
fn show_rest(pipes: &mut [log::Pipe], log_file: &mut LogFile, mut terminal: Option<&mut Terminal>) {
    let end = Instant::now() + terminal.as_deref().map(Terminal::patience).unwrap_or_default();
    terminal.iter_mut().for_each(|terminal| terminal.settle(end));
    for pipe in pipes {
        pipe.drain(log_file, |bytes| {
            terminal.iter_mut().for_each(|terminal| {
                terminal.show(bytes);
                terminal.settle(end);
            });
        });
    }
    terminal.iter_mut().for_each(|terminal| terminal.finish());
}

/// Becomes nobody's child but the system's, and the parent of what the container leaves behind.
fn detach() -> Result<()> {
    rustix::process::setsid().context("begin a session")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("become a reaper")?;
    std::env::set_current_dir("/").context("leave the working directory")?;
    let null = open_null()?;
    rustix::stdio::dup2_stdin(&null).context("leave standard input")?;
    Ok(())
}

/// What is watched.
struct Container {
    pid: Pid,
    pipes: Vec<log::Pipe>,
    log_file: LogFile,
    oom: Option<oom::Counter>,
    listener: Option<serve::Listener>,
    /// Held open: else the container would read the end when a writer leaves.
    stdin: Option<OwnedFd>,
    terminal: Option<Terminal>,
}

fn create(root: &Path, options: &MonitorOptions, log: &Log) -> Result<Container> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let output = options.log_sink.as_deref().map(|text| log_sink::parse(text, &host)).transpose().map_err(anyhow::Error::msg)?;
    let log_file = LogFile::open(&options.log, options.log_bytes_max, output)?;
    let (stdin, container_stdin) = match &options.stdin {
        Some(path) => stdin::open(path).map(|(held, end)| (Some(held), end))?,
        None => (None, open_null()?),
    };
    let (stdout, container_stdout) = pipe()?;
    let (stderr, container_stderr) = pipe()?;
    let console = options.tty.as_deref().map(terminal::Console::open).transpose()?;
    let console_socket = console.as_ref().map(terminal::Console::name);
    let pid = match &options.runtime {
        None => {
            // The child takes standard descriptors over as they are.
            rustix::stdio::dup2_stdin(&container_stdin).context("set standard input")?;
            rustix::stdio::dup2_stdout(&container_stdout).context("set standard output")?;
            let caller_stderr = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).context("keep standard error")?;
            rustix::stdio::dup2_stderr(&container_stderr).context("set standard error")?;
            let (bundle, pid_file) = (options.bundle.clone(), options.pid_file.clone());
            let create = CreateOptions { bundle, pid_file, console_socket, ..CreateOptions::default() };
            let created = parent::create(root, &options.id, &create);
            rustix::stdio::dup2_stderr(&caller_stderr).context("restore standard error")?;
            let created = created?;
            created.notes.iter().for_each(|note| log.say(output::Level::Warning, note));
            created.pid
        }
        Some((program, runtime_root)) => {
            let call = Foreign { program, root: runtime_root.as_deref(), options, console_socket };
            let mut errors = File::from(stderr.try_clone().context("copy a descriptor")?);
            let streams = [container_stdin.try_clone()?, container_stdout.try_clone()?, container_stderr.try_clone()?];
            call.create(streams, &mut errors)?
        }
    };
    drop((container_stdin, container_stdout, container_stderr));
    let null = open_null()?;
    rustix::stdio::dup2_stdin(&null).context("leave standard input")?;
    rustix::stdio::dup2_stdout(&null).context("leave standard output")?;
    rustix::stdio::dup2_stderr(&null).context("leave standard error")?;
    let pid = Pid::from_raw(pid).context("the runtime named no process")?;
    // Not before the container is there: its process would hold the sockets too until it executes its program.
    let sockets = || {
        let terminal = match console.as_ref().zip(options.tty.as_deref()) {
            Some((console, path)) => Some(Terminal::open(console.receive()?, path, options.tty_patience)?),
            None => None,
        };
        let pipes = match &terminal {
            Some(terminal) => vec![log::Pipe::terminal(terminal.reader()?)],
            None => vec![log::Pipe::new(Stream::Stdout, stdout), log::Pipe::new(Stream::Stderr, stderr)],
        };
        pipes.iter().try_for_each(log::Pipe::set_nonblocking)?;
        let listener = options.socket.as_deref().map(serve::Listener::open).transpose()?;
        Ok((terminal, pipes, listener))
    };
    let (terminal, pipes, listener) = sockets().inspect_err(|_: &anyhow::Error| {
        // The error of the socket is the one to be told.
        let _ = delete(root, options);
    })?;
    Ok(Container { pid, pipes, log_file, oom: oom::Counter::open(pid.as_raw_nonzero().get()), listener, stdin, terminal })
}

/// Removes a container that was created and is of no use.
fn delete(root: &Path, options: &MonitorOptions) -> Result<()> {
    match &options.runtime {
        None => parent::delete(root, &options.id, true).map(drop),
        Some((program, runtime_root)) => {
            let mut command = Command::new(program);
            command.args(runtime_root.iter().flat_map(|root| [OsStr::new("--root"), root.as_os_str()]));
            Ok(command.args(["delete", "--force", &options.id]).status().map(drop)?)
        }
    }
}

/// Another OCI runtime, by its command line.
struct Foreign<'a> {
    program: &'a Path,
    root: Option<&'a Path>,
    options: &'a MonitorOptions,
    console_socket: Option<PathBuf>,
}

impl Foreign<'_> {
    /// Creates the container and returns its process, which is left to this reaper when the runtime exits.
    fn create(&self, [stdin, stdout, stderr]: [OwnedFd; 3], errors: &mut File) -> Result<i32> {
        let pid_file = self.options.pid_file.clone().unwrap_or_else(|| with_suffix(&self.options.exit_file, ".pid"));
        let mut command = Command::new(self.program);
        if let Some(root) = self.root {
            command.arg("--root").arg(root);
        }
        command.arg("create").arg("--bundle").arg(&self.options.bundle).arg("--pid-file").arg(&pid_file);
        if let Some(socket) = &self.console_socket {
            command.arg("--console-socket").arg(socket);
        }
        command.arg(&self.options.id);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let status = command.status().with_context(|| format!("run {}", self.program.display()))?;
        drop(command);
        let pid = std::fs::read_to_string(&pid_file);
        if self.options.pid_file.is_none() {
            // Nobody asked for it; one left behind says nothing wrong.
            let _ = std::fs::remove_file(&pid_file);
        }
        if !status.success() {
            bail!("{} create: {status}: {}", self.program.display(), said(errors));
        }
        let pid = pid.with_context(|| format!("read {}", pid_file.display()))?;
        pid.trim().parse().with_context(|| format!("{}: {pid:?} is no process id", pid_file.display()))
    }
}

/// What a failed runtime left in its standard error, which nobody else reads.
fn said(errors: &mut File) -> String {
    const SAID_BYTES_MAX: usize = 2000;
    let mut text = vec![0; SAID_BYTES_MAX];
    let readable = rustix::fs::fcntl_setfl(&*errors, OFlags::NONBLOCK).is_ok();
    let count = if readable { errors.read(&mut text).unwrap_or(0) } else { 0 };
    String::from_utf8_lossy(&text[..count]).trim().to_owned()
}

/// How the container's first process ended.
struct End {
    code: i32,
    signal: Option<i32>,
}

impl End {
    fn of(status: WaitStatus) -> Self {
        Self::new(status.exit_status(), status.terminating_signal())
    }

    fn of_waited(status: &WaitIdStatus) -> Self {
        Self::new(status.exit_status(), status.terminating_signal())
    }

    fn new(code: Option<i32>, signal: Option<i32>) -> Self {
        Self { code: code.or(signal.map(|signal| EXIT_BY_SIGNAL + signal)).unwrap_or(EXIT_UNKNOWN), signal }
    }
}

/// Why the watch is over.
enum Watched {
    /// The container's first process has ended.
    Ended(End),
    /// In a fork of the monitor: this client is to be served.
    Asked(serve::Connection),
}

/// Copies output, reaps children and has clients served until the container's first process has ended.
fn watch(
    pid: Pid,
    children: &File,
    pipes: &mut [log::Pipe],
    log_file: &mut LogFile,
    mut listener: Option<&mut serve::Listener>,
    mut terminal: Option<&mut Terminal>,
) -> Result<Watched> {
    let mut trimmed = false;
    loop {
        if let Some(end) = reap(pid, listener.as_deref_mut())? {
            return Ok(Watched::Ended(end));
        }
        let held_up = terminal.as_deref().and_then(Terminal::held_up);
        let (ready, is_asked) = {
            let mut fds = vec![PollFd::new(children, PollFlags::IN)];
            fds.extend(listener.as_deref().map(|listener| PollFd::new(listener, PollFlags::IN)));
            let sockets = fds.len() - 1;
            fds.extend(terminal.as_deref().iter().flat_map(|terminal| terminal.poll()));
            let outputs = pipes.iter().filter(|_| held_up.is_none()).filter_map(|pipe| pipe.fd());
            fds.extend(outputs.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            fds.extend(log_file.waits_for().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT)));
            let patience = held_up.map(terminal::timespec).or((!trimmed).then_some(QUIET));
            match rustix::event::poll(&mut fds, patience.as_ref()) {
                Err(Errno::INTR) => continue,
                polled => polled.context("wait for the container")?,
            };
            let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            (fds.iter().any(is_ready), fds.iter().skip(1).take(sockets).any(is_ready))
        };
        trimmed = !ready && held_up.is_none();
        if trimmed {
            sys::trim_memory();
            continue;
        }
        discard(children);
        terminal.iter_mut().for_each(|terminal| terminal.attend());
        if terminal.as_deref().and_then(Terminal::held_up).is_none() {
            for pipe in pipes.iter_mut() {
                pipe.copy_some(log_file, |bytes| terminal.iter_mut().for_each(|terminal| terminal.show(bytes)));
            }
        }
        log_file.send_rest();
        if is_asked && let Some(serve::Side::Servant(connection)) = listener.as_deref_mut().map(serve::Listener::accept) {
            return Ok(Watched::Asked(connection));
        }
    }
}

/// Reaps what has ended: `Some` once the container's first process has; orphans of the container on the way.
fn reap(init: Pid, mut listener: Option<&mut serve::Listener>) -> Result<Option<End>> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == init => return Ok(Some(End::of(status))),
            Ok(Some((pid, _))) => listener.iter_mut().for_each(|listener| listener.forget(pid)),
            Err(Errno::INTR) => {}
            Ok(None) => return Ok(None),
            // The other runtime did not leave its container to this reaper, or someone else took its end.
            Err(Errno::CHILD) => return Ok(Some(End { code: EXIT_UNKNOWN, signal: None })),
            Err(errno) => return Err(io::Error::from(errno)).context("wait for the container"),
        }
    }
}

/// Empties the signal descriptor: that something ended is all it tells.
fn discard(mut children: &File) {
    let mut bytes = [0; 128];
    while children.read(&mut bytes).is_ok_and(|count| count > 0) {}
}

fn write_exit(path: &Path, end: &End, oom_killed: bool, lost_bytes: u64) -> Result<()> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut exit = json!({
        "exit_code": end.code,
        "signal": end.signal,
        "oom_killed": oom_killed,
        "finished_at": rfc3339(since.as_secs(), since.subsec_nanos()),
    });
    if lost_bytes > 0 {
        exit["log_lost_bytes"] = lost_bytes.into();
    }
    replace(path, exit.to_string().as_bytes())
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")
}

fn open_null() -> Result<OwnedFd> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    Ok(null.as_fd().try_clone_to_owned()?)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
