//! Runs hooks, on the host from the parent or in the container from its first process.
//!
//! In: hooks and the state they are told. Out: nothing, or which one failed, how, and the end of what it printed. A hook reads the state
//! from a file that ends, and prints into one that nobody waits for: neither a hook that does not read nor one that leaves a process
//! behind holds the container up.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::core::hooks::{Hook, HookKind, HookState, Hooks};

/// How much of what a failed hook printed is told.
const PRINTED_BYTES_MAX: u64 = 300;

/// Runs the hooks of a kind, one after the other, up to the first that fails. `directory`: where, if not where this process is.
pub fn run(hooks: &Hooks, kind: HookKind, state: &HookState, directory: Option<&Path>) -> Result<(), String> {
    match run_each(hooks, kind, state, directory).next() {
        Some(failed) => Err(failed),
        None => Ok(()),
    }
}

/// Runs the hooks of a kind as the results are asked for; gives those that failed.
pub fn run_each<'a>(
    hooks: &'a Hooks,
    kind: HookKind,
    state: &HookState,
    directory: Option<&'a Path>,
) -> impl Iterator<Item = String> + use<'a> {
    let state = HookState { status: kind.status(), ..state.clone() };
    hooks.of(kind).iter().enumerate().filter_map(move |(index, hook)| {
        let why = run_one(hook, &state, directory).err()?;
        Some(format!("hooks.{kind}[{index}]: {}: {why}", hook.path.display()))
    })
}

fn run_one(hook: &Hook, state: &HookState, directory: Option<&Path>) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let state = serde_json::to_vec(state).map_err(|error| text(&error))?;
    let memory = |name: &str| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map(File::from).map_err(|error| text(&error));
    let (mut input, mut output) = (memory("state")?, memory("output")?);
    input.write_all(&state).and_then(|()| input.rewind()).map_err(|error| text(&error))?;
    let copy = || output.try_clone().map(Stdio::from).map_err(|error| text(&error));
    let mut command = Command::new(&hook.path);
    command.args(hook.args.iter().skip(1)).env_clear().stdin(input).stdout(copy()?).stderr(copy()?);
    if let Some(name) = hook.args.first() {
        command.arg0(name);
    }
    command.envs(hook.env.iter().map(|pair| pair.split_once('=').unwrap_or((pair, ""))));
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    let mut child = command.spawn().map_err(|error| text(&error))?;
    let ended = match wait(&mut child, hook.timeout_s) {
        Ok(Some(status)) if status.success() => return Ok(()),
        Ok(Some(status)) => said(status),
        Ok(None) => format!("was killed: it did not end within {} s", hook.timeout_s.unwrap_or(0)),
        Err(error) => error.to_string(),
    };
    Err(match printed(&mut output) {
        text if text.is_empty() => ended,
        text => format!("{ended}: {text}"),
    })
}

/// `None` when it had to be killed for its time was over.
fn wait(child: &mut Child, timeout_s: Option<u64>) -> std::io::Result<Option<ExitStatus>> {
    let Some(timeout_s) = timeout_s else { return child.wait().map(Some) };
    let pid = Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = std::time::Instant::now() + Duration::from_secs(timeout_s);
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(&pidfd.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
        }
    }
}

fn said(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("ended with {}", status.code().unwrap_or_default()),
    }
}

/// The end of what it printed.
fn printed(output: &mut File) -> String {
    let mut bytes = Vec::new();
    let length = output.metadata().map_or(0, |metadata| metadata.len());
    let from = output.seek(SeekFrom::Start(length.saturating_sub(PRINTED_BYTES_MAX)));
    // What cannot be read is not told.
    let _ = from.and_then(|_| output.take(PRINTED_BYTES_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).trim().to_owned()
}
