//! A host's init: PID 1 in namespaces of its own.
//!
//! ```text
//!   supervisor                        init
//!     starts it in a new PID namespace ─►  joins the host's cgroup, unshares the other namespaces
//!     plugs in the host's link  ◄─ Unshared
//!     Furnish ──────────────────────────►  name, /proc, tmpfs on the run directory, link up
//!     Spawn, Kill …  ◄─────────── Ready
//!                    ◄─ Spawned, Exited
//! ```
//!
//! It starts and kills daemons as it is told, reaps everyone, restarts nothing. When the supervisor goes, it goes, and the host with it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, stdin};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};

use crate::cgroup::Cgroups;
use crate::error::LabError;
use crate::line::Line;
use crate::protocol::{Exit, HostCommand, HostEvent};
use crate::wire;

/// How much of a daemon's log is told when it fails.
const LAST_WORDS_BYTES: u64 = 2048;
const LAST_WORDS_LINES: usize = 4;

/// Runs as a host's init: NAME ADDR RUN_DIR CGROUP, the supervisor on the standard input.
pub fn main(arguments: &[String]) -> i32 {
    let Ok(fd) = stdin().as_fd().try_clone_to_owned() else { return 1 };
    let mut supervisor = Line::new(UnixStream::from(fd));
    let done = match arguments {
        [name, addr, run_dir, cgroup] => init(name, addr, Path::new(run_dir), cgroup, &mut supervisor),
        _ => Err(LabError::Refused("this is a part of a lab and not to be started by hand".to_owned())),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            // If the supervisor has gone, nobody is left to be told.
            drop(supervisor.tell(&HostEvent::Failed { why: error.with_causes() }));
            1
        }
    }
}

/// A daemon that runs.
struct Daemon {
    pid: Pid,
    log: String,
    /// Killed because it was asked for: its end needs no explanation.
    asked: bool,
}

fn init(name: &str, addr: &str, run_dir: &Path, cgroup: &str, supervisor: &mut Line) -> Result<(), LabError> {
    set_pdeathsig(Signal::SIGKILL).map_err(LabError::kernel("ask to die with the supervisor"))?;
    // The supervisor blocks signals and a child inherits that.
    SigSet::all().thread_unblock().map_err(LabError::kernel("unblock signals"))?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().map_err(LabError::kernel("block SIGCHLD"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let deaths = SignalFd::with_flags(&children, flags).map_err(LabError::kernel("watch children"))?;
    Cgroups::find()?.join(cgroup)?;
    let others = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    unshare(others).map_err(LabError::kernel("make the host's namespaces"))?;
    supervisor.never_wait()?;
    supervisor.tell(&HostEvent::Unshared)?;
    let mut daemons: BTreeMap<String, Daemon> = BTreeMap::new();
    loop {
        let ready = wait_for(&[supervisor.as_fd(), deaths.as_fd()], PollTimeout::NONE)?;
        if ready.get(1) == Some(&true) {
            while let Ok(Some(_)) = deaths.read_signal() {}
        }
        // Also after a command: SIGCHLD may have come while it was unblocked for a spawn.
        if ready.first() == Some(&true) {
            let (commands, there) = supervisor.hear_all::<HostCommand>()?;
            for command in commands {
                match command {
                    HostCommand::Furnish => {
                        furnish(name, addr, run_dir)?;
                        supervisor.tell(&HostEvent::Ready)?;
                    }
                    other => obey(other, &children, &mut daemons, supervisor)?,
                }
            }
            if !there {
                return Ok(());
            }
        }
        reap(&mut daemons, supervisor)?;
    }
}

/// Which of the files can be read, or have ended; none when the time is over.
pub fn wait_for(files: &[BorrowedFd<'_>], limit: PollTimeout) -> Result<Vec<bool>, LabError> {
    let mut polled: Vec<PollFd<'_>> = files.iter().map(|file| PollFd::new(*file, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut polled, limit) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(LabError::kernel("wait for something to do")(errno)),
            Ok(_) => return Ok(polled.iter().map(|file| file.any().unwrap_or(true)).collect()),
        }
    }
}

/// What a host has of its own: its name, its list of processes, memory for its run directory, its end of the link.
fn furnish(name: &str, addr: &str, run_dir: &Path) -> Result<(), LabError> {
    let none: Option<&str> = None;
    let addr: Ipv4Addr = addr.parse().map_err(|_| LabError::Refused(format!("{addr} is not an address")))?;
    sethostname(name).map_err(LabError::kernel("set the host's name"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(LabError::kernel("make mounts private"))?;
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), hardened, none).map_err(LabError::kernel("mount /proc"))?;
    mount(Some("tmpfs"), run_dir, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
        .map_err(LabError::kernel("mount the run directory"))?;
    wire::configure_host(addr)
}

fn obey(command: HostCommand, blocked: &SigSet, daemons: &mut BTreeMap<String, Daemon>, supervisor: &Line) -> Result<(), LabError> {
    match command {
        HostCommand::Furnish => Ok(()),
        HostCommand::Spawn { daemon, words, log } => {
            blocked.thread_unblock().map_err(LabError::kernel("unblock SIGCHLD for a daemon"))?;
            let spawned = spawn(&words, Path::new(&log));
            blocked.thread_block().map_err(LabError::kernel("block SIGCHLD"))?;
            match spawned {
                Ok(pid) => {
                    daemons.insert(daemon.clone(), Daemon { pid, log, asked: false });
                    supervisor.tell(&HostEvent::Spawned { daemon, pid: pid.as_raw() })
                }
                Err(error) => {
                    let end = Exit { how: error.with_causes(), last_words: String::new() };
                    supervisor.tell(&HostEvent::Exited { daemon, end })
                }
            }
        }
        HostCommand::Kill { daemon } => match daemons.get_mut(&daemon) {
            Some(running) => {
                running.asked = true;
                kill(running.pid, Signal::SIGKILL).map_err(LabError::kernel(format!("kill {daemon}")))
            }
            None => Ok(()),
        },
    }
}

/// Starts a daemon as the leader of a process group of its own, so that a terminal's signals do not reach it.
fn spawn(words: &[String], log: &Path) -> Result<Pid, LabError> {
    let (program, arguments) = words.split_first().ok_or_else(|| LabError::Refused("no program is given".to_owned()))?;
    let opening = || format!("open {}", log.display());
    let file = OpenOptions::new().create(true).append(true).open(log).map_err(LabError::io(opening()))?;
    let other = file.try_clone().map_err(LabError::io(opening()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(file).stderr(other).process_group(0);
    let child = command.spawn().map_err(LabError::io(format!("start {program}")))?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(|_| LabError::Refused(format!("{program} got a PID out of range")))
}

/// Buries everyone who has died, and tells of daemons.
fn reap(daemons: &mut BTreeMap<String, Daemon>, supervisor: &Line) -> Result<(), LabError> {
    loop {
        let (pid, how, failed) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, format!("code {code}"), code != 0),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal.as_str().to_owned(), true),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(errno) => return Err(LabError::kernel("wait for children")(errno)),
        };
        let Some(name) = daemons.iter().find(|(_, daemon)| daemon.pid == pid).map(|(name, _)| name.clone()) else { continue };
        if let Some(daemon) = daemons.remove(&name) {
            let last_words = if failed && !daemon.asked { last_words(Path::new(&daemon.log)) } else { String::new() };
            supervisor.tell(&HostEvent::Exited { daemon: name, end: Exit { how, last_words } })?;
        }
    }
}

/// The last lines of a log; a log that cannot be read has none.
fn last_words(log: &Path) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LAST_WORDS_LINES)..).unwrap_or_default().join("\n")
}

/// The directories that a host needs outside of itself.
pub fn make_dirs(dirs: &[&Path]) -> Result<(), LabError> {
    for dir in dirs {
        fs::create_dir_all(dir).map_err(LabError::io(format!("make {}", dir.display())))?;
    }
    Ok(())
}
