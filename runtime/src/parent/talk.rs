//! The talk of `create` and `exec` with a process they made, until it is ready (`sync` draws it).
//!
//! In: the messages of the child, and of the usher that may bear it. Out: the child, its terminal, notes; or what failed, with nothing of
//! what was made alive.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, WaitId, WaitIdOptions};

use super::bundle::Bundle;
use super::{hooks, listener, net_devices, userns};
use crate::core::hooks::HookKind;
use crate::core::plan::{Plan, Step};
use crate::core::signal;
use crate::core::status::Status;
use crate::state::Record;
use crate::sync::{Channel, Message};
use crate::sys;

/// What a child says.
pub enum Heard {
    Message(Message, Option<OwnedFd>),
    /// The descriptor of its seccomp notifications.
    Notifications(OwnedFd),
}

/// Hears the next message that is no note; a failure is the error.
fn hear(channel: &Channel, child: BorrowedFd<'_>, plan: &Plan, notes: &mut Vec<String>) -> Result<Heard> {
    let step = |place: u16| plan.steps.get(usize::from(place)).map_or_else(String::new, ToString::to_string);
    loop {
        match channel.receive().context("listen to the container's process")? {
            Some((Message::Note { step: place, text }, _)) => notes.push(format!("{}: {text}", step(place))),
            Some((Message::Failed { step: place, errno, text }, _)) => {
                let of_program = matches!(plan.steps.get(usize::from(place)), Some(Step::FindProgram(_)));
                let cause = match errno {
                    0 => String::new(),
                    _ if of_program => why_not_executed(errno),
                    _ => std::io::Error::from_raw_os_error(errno).to_string(),
                };
                let parts: Vec<String> = [step(place), text, cause].into_iter().filter(|part| !part.is_empty()).collect();
                bail!("{}", parts.join(": "));
            }
            Some((Message::Listener { .. }, Some(descriptor))) => return Ok(Heard::Notifications(descriptor)),
            Some((Message::Listener { number }, None)) => {
                let copy = rustix::process::pidfd_getfd(child, number, PidfdGetfdFlags::empty());
                return Ok(Heard::Notifications(copy.context(
                    "linux.seccomp: take a copy of the notifications' descriptor (a user who is not root cannot: let the profile allow sendmsg)",
                )?));
            }
            Some((message, descriptor)) => return Ok(Heard::Message(message, descriptor)),
            None => {
                return Err(anyhow!("the container's process was killed while it was set up")
                    .context("linux.resources.memory.limit may be too small, or someone killed it"));
            }
        }
    }
}

/// Why a program was not executed, as Go spells it under runc: Docker's exit codes 126 and 127 hang on "permission denied" and "no such file
/// or directory".
pub fn why_not_executed(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// A process this one made.
pub struct Process {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

impl Process {
    fn reap(&self) {
        // An error means that someone else has, as where SIGCHLD is ignored.
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// The processes at the other end of a channel: the one that was cloned and, where that is an usher, the one it bears.
pub struct Line {
    channel: Channel,
    first: Process,
    born: Option<Process>,
    has_usher: bool,
}

impl Line {
    pub fn new(channel: Channel, first: Process, plan: &Plan) -> Self {
        Self { channel, first, born: None, has_usher: plan.has_usher() }
    }

    /// The container's process, or the usher as long as it has borne none.
    pub fn child(&self) -> &Process {
        self.born.as_ref().unwrap_or(&self.first)
    }

    /// Hears the next message but the birth of the child, which is noted and answered.
    pub fn hear(&mut self, plan: &Plan, notes: &mut Vec<String>) -> Result<Heard> {
        loop {
            // An usher speaks before what it bears, and then no more.
            match hear(&self.channel, self.child().pidfd.as_fd(), plan, notes)? {
                Heard::Message(Message::Born { pid }, _) if self.has_usher && self.born.is_none() => {
                    self.born = Some(open_child(pid)?);
                    self.answer()?;
                }
                other => return Ok(other),
            }
        }
    }

    /// What comes once the child is ready; `None` when it closed its end.
    pub fn last_word(&self) -> Result<Option<Message>> {
        Ok(self.channel.receive().context("listen to the process")?.map(|(message, _)| message))
    }

    /// Lets it go on.
    pub fn answer(&self) -> Result<()> {
        self.channel.send(&Message::Go).context("answer the container's process")
    }

    /// The container's process.
    pub fn finish(self) -> Process {
        match self.born {
            Some(born) => {
                self.first.reap();
                born
            }
            None => self.first,
        }
    }

    /// Ends all that was made; the death of the last takes its mounts along.
    pub fn end(mut self) {
        let kill = |process: &Process| {
            // An error means that it is dead already.
            let _ = sys::send_signal(process.pidfd.as_fd(), signal::KILL);
        };
        self.born.iter().for_each(kill);
        if self.has_usher {
            // It, or what it bore and was not heard of yet, ends by itself when it hears no more.
            self.channel.fall_silent();
        } else {
            kill(&self.first);
        }
        while let Ok(Some((message, _))) = self.channel.receive() {
            if let Message::Born { pid } = message {
                self.born = open_child(pid).ok();
                self.born.iter().for_each(kill);
            }
        }
        self.first.reap();
        self.born.iter().for_each(Process::reap);
    }
}

/// The talk of `create` with the child, from its clone until it is ready.
pub struct Talk<'a> {
    line: Line,
    bundle: &'a Bundle,
    notes: Vec<String>,
    has_net_devices: bool,
}

impl<'a> Talk<'a> {
    pub fn new(channel: Channel, bundle: &'a Bundle, first: Process) -> Self {
        Self { line: Line::new(channel, first, &bundle.plan), bundle, notes: bundle.plan.notes.clone(), has_net_devices: false }
    }

    pub fn child(&self) -> &Process {
        self.line.child()
    }

    /// Hears the child out until it is ready; the master side of its terminal comes on the way.
    pub fn listen(&mut self, record: &Record) -> Result<Option<OwnedFd>> {
        let (plan, container) = (&self.bundle.plan, &self.bundle.container);
        let mut terminal = None;
        loop {
            match self.line.hear(plan, &mut self.notes)? {
                Heard::Message(Message::Ready, _) => {
                    self.move_net_devices()?;
                    return Ok(terminal);
                }
                Heard::Message(Message::Terminal, master) => terminal = master,
                Heard::Message(Message::Map, _) => {
                    userns::map(self.child().pid, &container.ids).context("linux")?;
                    self.answer()?;
                }
                Heard::Message(Message::Hooks, _) => {
                    self.move_net_devices()?;
                    for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
                        hooks::run(&container.hooks, kind, record, self.child().pid)?;
                    }
                    self.answer()?;
                }
                Heard::Notifications(notifications) => match container.seccomp.as_ref().and_then(|seccomp| seccomp.listener.as_ref()) {
                    Some(to) => listener::introduce(to, record, Status::Creating, self.child().pid, &notifications)?,
                    None => bail!("the container's process has notifications for nobody"),
                },
                Heard::Message(..) => bail!("the container's process answered nonsense"),
            }
        }
    }

    /// Before the hooks, which may want them, or once all else is done.
    fn move_net_devices(&mut self) -> Result<()> {
        let devices = if self.has_net_devices { &[][..] } else { &self.bundle.container.net_devices };
        self.has_net_devices = true;
        net_devices::move_all(devices, self.child().pid)
    }

    /// Lets it wait at the gate.
    pub fn answer(&self) -> Result<()> {
        self.line.answer()
    }

    /// The container's process, and what is weaker than asked for.
    pub fn finish(self) -> (Process, Vec<String>) {
        (self.line.finish(), self.notes)
    }

    /// Ends all that was made.
    pub fn end(self) {
        self.line.end();
    }
}

/// Opens a child by its id, which is its own as long as it is not reaped.
fn open_child(pid: i32) -> Result<Process> {
    let raw = Pid::from_raw(pid).context("the container's process has no id")?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).context("open the container's process")?;
    Ok(Process { pid, pidfd })
}
