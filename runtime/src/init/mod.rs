//! The container's first process, from its clone to its program.
//!
//! In: the plan and what the parent opened for it. Out: messages over [`Channel`], then execve(2). Decides nothing: it performs one step
//! after another and stops at the first that fails. It never returns to the parent's code, and everything it does is undone by its
//! death, but for what lies in the cgroups and the state directory, which are the parent's.

mod caps;
mod console;
mod copy_up;
mod devices;
mod mounts;
mod perform;
mod program;
mod reaper;
mod root;
mod seccomp;
mod userns;

pub use mounts::clone_tree;

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::process::Signal;

use crate::core::hooks::{HookKind, HookState, Hooks};
use crate::core::plan::Plan;
use crate::hook_process;
use crate::sync::{Channel, EXECUTE, HOOK, Message};
use crate::sys;

/// What the child takes from the parent besides the plan.
#[derive(Debug)]
pub struct Work {
    /// Opened for the steps that name a handle; `None` where the clone itself did the step.
    pub handles: Vec<Option<OwnedFd>>,
    pub args: Vec<CString>,
    /// `NAME=value` each.
    pub env: Vec<CString>,
    pub uid: u32,
    pub channel: Channel,
    pub start: Start,
    /// The program dies with the process that made it.
    pub is_bound: bool,
    /// Those that run in the container, and what they are told.
    pub hooks: Option<(Hooks, HookState)>,
}

/// When the program is executed, and who hears that it could not be.
#[derive(Debug)]
pub enum Start {
    /// Once a byte comes through the gate; the failure goes to `result`.
    /// With `reaper` another process is the container's first, and the program its child.
    Gated { gate: std::fs::File, result: std::fs::File, reaper: bool },
    /// As soon as all steps are done; the failure goes to the channel.
    AtOnce,
}

/// Why a step failed.
#[derive(Debug)]
pub struct Failure {
    /// 0 when no system call failed.
    pub errno: i32,
    /// What was being done, beyond the step's own text; may be empty.
    pub detail: String,
}

impl Failure {
    fn refused(detail: impl Into<String>) -> Self {
        Self { errno: 0, detail: detail.into() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(0),
            detail: if error.raw_os_error().is_some() { String::new() } else { error.to_string() },
        }
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Says what was being done when a system call failed.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| {
            let failure = error.into();
            let detail = if failure.detail.is_empty() { what() } else { format!("{}: {}", what(), failure.detail) };
            Failure { detail, ..failure }
        })
    }
}

const GONE: i32 = 1;
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Becomes the container's process.
pub fn run(plan: &Plan, work: Work) -> ! {
    sys::reset_signals();
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut performer = perform::Performer::new(&work);
    for (place, step) in plan.steps.iter().enumerate() {
        let place = u16::try_from(place).unwrap_or(u16::MAX);
        let said = match performer.perform(step) {
            Ok(None) => continue,
            Ok(Some(text)) => work.channel.send(&Message::Note { step: place, text }),
            Err(Failure { errno, detail }) => {
                // The parent hears the reason or, when it is gone, nobody does.
                let _ = work.channel.send(&Message::Failed { step: place, errno, text: detail });
                sys::exit(GONE);
            }
        };
        if said.is_err() {
            sys::exit(GONE);
        }
    }
    let perform::Ready { program, env, outlives_parent } = performer.finish();
    // From here on the container outlives the process that created it, unless it is bound to it.
    if !outlives_parent && leave_parent(work.is_bound).is_err() || work.channel.send(&Message::Ready).is_err() {
        sys::exit(GONE);
    }
    drop(work.handles);
    let listener = match work.start {
        Start::Gated { mut gate, mut result, reaper } => {
            // Until it is recorded nobody could find it, should the parent be killed.
            if work.channel.wait().is_err() {
                sys::exit(GONE);
            }
            drop(work.channel);
            if gate.read_exact(&mut [0]).is_err() {
                sys::exit(GONE);
            }
            if let Err(text) = run_hooks(work.hooks.as_ref(), HookKind::StartContainer) {
                // Whoever waits for the start hears it; the exit code tells anyone else.
                let _ = result.write_all(&Message::Failed { step: HOOK, errno: 0, text }.encode());
                sys::exit(GONE);
            }
            drop(gate);
            match if reaper { reaper::split() } else { Ok(None) } {
                Ok(None) => Listener::File(result),
                Ok(Some(first)) => {
                    // Its end tells the waiting start that the program was executed: only the program's process keeps it open.
                    drop(result);
                    first.stay()
                }
                Err(error) => {
                    let text = format!("begin the process beside the reaper: {error}");
                    let _ = result.write_all(&Message::Failed { step: HOOK, errno: 0, text }.encode());
                    sys::exit(GONE);
                }
            }
        }
        Start::AtOnce => Listener::Channel(work.channel),
    };
    let error = sys::execve(&program, &work.args, &env);
    let errno = error.raw_os_error().unwrap_or(0);
    let message = Message::Failed { step: EXECUTE, errno, text: program.to_string_lossy().into_owned() };
    // Whoever waits for the start hears it; the exit code tells anyone else.
    let _ = match listener {
        Listener::File(mut result) => result.write_all(&message.encode()),
        Listener::Channel(channel) => channel.send(&message),
    };
    sys::exit(if errno == libc::ENOENT { NOT_FOUND } else { CANNOT_EXECUTE })
}

/// Runs hooks here, where the container's process has another id than on the host.
fn run_hooks(hooks: Option<&(Hooks, HookState)>, kind: HookKind) -> Result<(), String> {
    let Some((hooks, state)) = hooks.filter(|(hooks, _)| !hooks.of(kind).is_empty()) else { return Ok(()) };
    // A filter may not allow it any more: then it is not told.
    let pid = i32::try_from(std::process::id()).ok().filter(|pid| *pid > 0);
    hook_process::run(hooks, kind, &HookState { pid, ..state.clone() }, None)
}

/// Who hears that the program could not be executed.
enum Listener {
    File(std::fs::File),
    Channel(Channel),
}

/// Set anew for who is bound: a change of the user has ended what was set before (PR_SET_PDEATHSIG(2const)).
fn leave_parent(is_bound: bool) -> Result<(), Failure> {
    if is_bound { die_with_parent() } else { Ok(rustix::process::set_parent_process_death_signal(None)?) }
}

/// Dies with the parent as long as the container is not created.
fn die_with_parent() -> Result<(), Failure> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}
