//! An OCI runtime by its command line; each call has a deadline, and what it says on stderr becomes the error.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

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
    /// Takes what the monitor says on stderr: a pipe would tie it to this process.
    pub errors: &'a Path,
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
const LOG_BYTES_MAX: u64 = 10 << 20;
const ERROR_BYTES_MAX: usize = 2000;

impl Runtime {
    /// Creates the container of a bundle under a monitor of its own.
    pub async fn monitor(&self, call: &MonitorCall<'_>) -> Result<Created, RuntimeError> {
        let refused = |why: String| RuntimeError::Refused { verb: "create", id: call.id.to_owned(), why };
        let spawn = |source| RuntimeError::Spawn { program: self.program.clone(), source };
        let mut command = Command::new(&self.program);
        match &self.foreign {
            None => command.arg("--root").arg(&self.root).arg("monitor"),
            Some(foreign) => command.args(["monitor", "--runtime"]).arg(foreign).arg("--runtime-root").arg(&self.root),
        };
        command.stdin(Stdio::null()).args(["--id", call.id, "--log-max-bytes", &LOG_BYTES_MAX.to_string()]);
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
    pub async fn exec(&self, id: &str, args: &[String]) -> Result<(), String> {
        let mut command = self.command();
        command.args(["exec", id]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| format!("run {}: {error}", self.program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        Err(said(text, &output.status.to_string()))
    }

    /// Freezes all processes of the container.
    pub async fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        self.call("pause", id, &["pause", id]).await.map(drop)
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
        let output = self.call("state", id, &["state", id]).await?;
        let state: State = serde_json::from_slice(&output.stdout).map_err(|error| RuntimeError::Refused {
            verb: "state",
            id: id.to_owned(),
            why: error.to_string(),
        })?;
        Ok(state.status == "running")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.foreign.as_ref().unwrap_or(&self.program));
        command.arg("--root").arg(&self.root).stdin(Stdio::null());
        command
    }

    async fn call(&self, verb: &'static str, id: &str, args: &[&str]) -> Result<Output, RuntimeError> {
        let mut command = self.command();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = timeout(CALL, command.output())
            .await
            .map_err(|_| RuntimeError::Silent { verb, id: id.to_owned(), seconds: CALL.as_secs() })?
            .map_err(|source| RuntimeError::Spawn { program: self.program.clone(), source })?;
        if output.status.success() {
            return Ok(output);
        }
        Err(RuntimeError::Refused { verb, id: id.to_owned(), why: said(&output.stderr, &output.status.to_string()) })
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
fn said(stderr: &[u8], otherwise: &str) -> String {
    let tail = &stderr[stderr.len().saturating_sub(ERROR_BYTES_MAX)..];
    let text = String::from_utf8_lossy(tail);
    let text = text.trim();
    if text.is_empty() { otherwise.to_owned() } else { text.strip_prefix("error: ").unwrap_or(text).to_owned() }
}
