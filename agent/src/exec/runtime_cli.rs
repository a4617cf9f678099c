//! An OCI runtime by its command line; each call has a deadline, and what it says on stderr becomes the error.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::process::PidFile;
use crate::core::logging::LogPlan;
use crate::core::task::Exit;

/// Why a call to the runtime failed.
#[derive(Debug, Error)]
pub enum RuntimeError {
    #[error("run {program}", program = program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("{verb} container {id}: {why}")]
    Refused { verb: &'static str, id: String, why: String },
    #[error("{verb} container {id}: no answer within {seconds} s")]
    Silent { verb: &'static str, id: String, seconds: u64 },
}

/// A created container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Created {
    pub pid: u32,
    pub monitor_pid: u32,
}

/// The runtime's binary and where it keeps its state.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Our own, which also is the monitor of others.
    pub program: PathBuf,
    pub root: PathBuf,
    /// Another runtime, which then has the root.
    pub foreign: Option<PathBuf>,
}

/// What a monitor is told.
#[derive(Debug)]
pub struct MonitorCall<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    pub log: &'a Path,
    pub exit_file: &'a Path,
    /// Where it executes commands for this agent, if the container's runtime is our own.
    pub socket: &'a Path,
    /// Takes what the monitor says on stderr: a pipe would tie it to this process.
    pub errors: &'a Path,
    pub output: &'a LogPlan,
    /// A FIFO to be made, if the container's standard input is to stay open.
    pub stdin: Option<&'a Path>,
    /// A socket to be made, if the container has a terminal.
    pub tty: Option<&'a Path>,
}

/// A command to run in a container.
#[derive(Debug)]
pub struct ExecCall<'a> {
    pub id: &'a str,
    /// The process as runtime-spec describes it.
    pub process: &'a Path,
    /// Where the runtime says the command's number.
    pub pid_file: &'a Path,
    pub streams: Streams,
}

/// A command's standard streams.
#[derive(Debug)]
pub enum Streams {
    /// Pipes.
    Pipes,
    /// Pipes, and an empty input.
    OutputOnly,
    /// The runtime's own are this terminal, which it passes on; what it says itself goes to a pipe.
    Terminal(OwnedFd),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Reply {
    Created(Created),
    Failed { error: String },
}

#[derive(Debug, Deserialize)]
struct State {
    status: String,
}

#[derive(Debug, Deserialize)]
struct ExitFile {
    exit_code: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    oom_killed: bool,
}

const CREATE: Duration = Duration::from_secs(20);
const CALL: Duration = Duration::from_secs(10);
/// The runtime itself waits 10 s for another call, and as long for the kernel, before it gives up and thaws.
const FREEZE: Duration = Duration::from_secs(30);
const LATE: Duration = Duration::from_millis(50);
const ERROR_BYTES_MAX: usize = 2000;
/// What let this node join is nothing for runtimes, nor for their hooks.
const JOIN_TOKEN: &str = "RCLUSTER_JOIN_TOKEN";

impl Runtime {
    /// Creates the container of a bundle under a monitor of its own.
    pub async fn monitor(&self, call: &MonitorCall<'_>) -> Result<Created, RuntimeError> {
        let refused = |why: String| RuntimeError::Refused { verb: "create", id: call.id.to_owned(), why };
        let spawn = |source| RuntimeError::Spawn { program: self.program.clone(), source };
        let mut command = Command::new(&self.program);
        command.env_remove(JOIN_TOKEN);
        match &self.foreign {
            None => command.arg("--root").arg(&self.root).arg("monitor").arg("--socket").arg(call.socket),
            Some(foreign) => command.args(["monitor", "--runtime"]).arg(foreign).arg("--runtime-root").arg(&self.root),
        };
        command.stdin(Stdio::null()).args(["--id", call.id, "--log-max-bytes", &call.output.file_bytes_max.to_string()]);
        if let Some(sink) = &call.output.sink {
            command.args(["--log-sink", sink]);
        }
        if let Some(fifo) = call.stdin {
            command.arg("--stdin").arg(fifo);
        }
        if let Some(socket) = call.tty {
            command.arg("--tty").arg(socket);
        }
        command.arg("--bundle").arg(call.bundle).arg("--log").arg(call.log).arg("--exit-file").arg(call.exit_file);
        let errors = File::create(call.errors).map_err(|error| refused(format!("write {}: {error}", call.errors.display())))?;
        let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn().map_err(spawn)?;
        let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        let mut line = String::new();
        // Left to itself, the monitor is reaped by the runtime of tasks: nothing waits for it here.
        match timeout(CREATE, BufReader::new(stdout).read_line(&mut line)).await {
            Err(_) => Err(RuntimeError::Silent { verb: "create", id: call.id.to_owned(), seconds: CREATE.as_secs() }),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Ok(Ok(_)) => match serde_json::from_str(&line) {
                Ok(Reply::Created(created)) => Ok(created),
                Ok(Reply::Failed { error }) => Err(refused(error)),
                Err(_) => Err(refused(said(&std::fs::read(call.errors).unwrap_or_default(), "the monitor ended without a word"))),
            },
        }
    }

    /// Lets a created container run.
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.call("start", id, &["start", id]).await.map(drop)
    }

    /// Begins a command in a running container. The runtime stays in the foreground and ends with the command's exit code; its own
    /// standard streams are the command's.
    pub fn begin_exec(&self, call: ExecCall<'_>) -> Result<Child, RuntimeError> {
        let mut command = self.command();
        command.arg("exec").arg("--process").arg(call.process).arg("--pid-file").arg(call.pid_file);
        let failed = |source| RuntimeError::Spawn { program: self.program.clone(), source };
        let (stdin, stdout) = match call.streams {
            Streams::Pipes => (Stdio::piped(), Stdio::piped()),
            Streams::OutputOnly => (Stdio::null(), Stdio::piped()),
            Streams::Terminal(terminal) => (terminal.try_clone().map_err(failed)?.into(), terminal.into()),
        };
        command.arg(call.id).stdin(stdin).stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true).spawn().map_err(failed)
    }

    /// Sends a signal, by name or number, to the container's first process.
    pub async fn kill(&self, id: &str, signal: &str) -> Result<(), RuntimeError> {
        self.call("kill", id, &["kill", id, signal]).await.map(drop)
    }

    /// Runs a program in the container until it ends or the caller no longer waits; the error is what it said, or how it ended.
    ///
    /// The program is then killed, by what the runtime wrote to `pid_file`. Of its output only the end is kept, and its end is its own: not
    /// that of a child which still holds the output.
    pub async fn exec(&self, id: &str, args: &[String], pid_file: PidFile) -> Result<(), String> {
        let failed = |error: io::Error| format!("run {}: {error}", self.program.display());
        let mut command = self.command();
        command.args(["exec", "--pid-file"]).arg(pid_file.path()).arg(id).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut guard = UntilEnded { pid_file, ended: false };
        let mut child = command.kill_on_drop(true).spawn().map_err(failed)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let reading = async {
            tokio::join!(keep_end(out, &mut stdout), keep_end(err, &mut stderr));
        };
        let ending = async {
            let status = child.wait().await;
            guard.ended = true;
            status
        };
        let status = read_until_ended(reading, ending).await.map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(said(if stderr.is_empty() { &stdout } else { &stderr }, &status.to_string()))
    }

    /// Freezes all processes of the container.
    pub async fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        self.call_within("pause", id, &["pause", id], FREEZE).await.map(drop)
    }

    /// Lets them go on.
    pub async fn resume(&self, id: &str) -> Result<(), RuntimeError> {
        self.call("resume", id, &["resume", id]).await.map(drop)
    }

    /// Removes the container with whatever still runs in it; with `--force`, one that is not there is no error.
    pub async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        self.call("delete", id, &["delete", "--force", id]).await.map(drop)
    }

    /// Whether the container's process was started and has not ended.
    pub async fn is_running(&self, id: &str) -> Result<bool, RuntimeError> {
        Ok(self.status(id).await? == "running")
    }

    /// Whether all processes of the container are frozen.
    pub async fn is_paused(&self, id: &str) -> Result<bool, RuntimeError> {
        Ok(self.status(id).await? == "paused")
    }

    async fn status(&self, id: &str) -> Result<String, RuntimeError> {
        let output = self.call("state", id, &["state", id]).await?;
        let state: State = serde_json::from_slice(&output.stdout).map_err(|error| RuntimeError::Refused {
            verb: "state",
            id: id.to_owned(),
            why: error.to_string(),
        })?;
        Ok(state.status)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.foreign.as_ref().unwrap_or(&self.program));
        command.env_remove(JOIN_TOKEN);
        command.arg("--root").arg(&self.root).stdin(Stdio::null());
        command
    }

    async fn call(&self, verb: &'static str, id: &str, args: &[&str]) -> Result<Output, RuntimeError> {
        self.call_within(verb, id, args, CALL).await
    }

    /// A call that is not waited for any more goes on by itself: half a start is worse than a late one.
    async fn call_within(&self, verb: &'static str, id: &str, args: &[&str], limit: Duration) -> Result<Output, RuntimeError> {
        let mut command = self.command();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = timeout(limit, command.output())
            .await
            .map_err(|_| RuntimeError::Silent { verb, id: id.to_owned(), seconds: limit.as_secs() })?
            .map_err(|source| RuntimeError::Spawn { program: self.program.clone(), source })?;
        if output.status.success() {
            return Ok(output);
        }
        Err(RuntimeError::Refused { verb, id: id.to_owned(), why: said(&output.stderr, &output.status.to_string()) })
    }
}

/// Kills the command when dropped before its end.
struct UntilEnded {
    pid_file: PidFile,
    ended: bool,
}

impl Drop for UntilEnded {
    fn drop(&mut self) {
        if !self.ended {
            // Nothing is said yet of one that the runtime, which is killed too, has not executed: it dies with the runtime.
            self.pid_file.signal(Signal::KILL);
        }
    }
}

/// Reads while the process runs, and a moment longer, for what is still on its way.
pub async fn read_until_ended<T>(reading: impl Future<Output = ()>, ending: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let (mut reading, mut ending) = (std::pin::pin!(reading), std::pin::pin!(ending));
    tokio::select! {
        () = &mut reading => ending.await,
        status = &mut ending => {
            // A child that goes on writing is not waited for.
            drop(timeout(LATE, reading).await);
            status
        }
    }
}

/// The last bytes of a stream.
pub async fn keep_end(stream: Option<impl AsyncRead + Unpin>, end: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        end.extend_from_slice(&piece[..count]);
        end.drain(..end.len().saturating_sub(ERROR_BYTES_MAX));
    }
}

/// What the monitor wrote of the container's end; `None` when it wrote nothing.
pub fn read_exit(path: &Path) -> io::Result<Option<Exit>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        done => done?,
    };
    let ExitFile { exit_code, signal, oom_killed } = serde_json::from_slice(&bytes)?;
    Ok(Some(Exit { exit_code, signal, oom_killed, problem: None }))
}

/// What a program said before it gave up, else `otherwise`.
pub fn said(stderr: &[u8], otherwise: &str) -> String {
    let tail = &stderr[stderr.len().saturating_sub(ERROR_BYTES_MAX)..];
    let text = String::from_utf8_lossy(tail);
    let text = text.trim();
    if text.is_empty() { otherwise.to_owned() } else { text.strip_prefix("error: ").unwrap_or(text).to_owned() }
}
