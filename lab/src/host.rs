//! A host: a shell that makes the namespaces, and the init that lives in them as PID 1.
//!
//! The shell unshares, says so, waits until it is plugged in, starts the init and waits for its end. The init mounts what a host has of its
//! own, then does what it is told on its standard input: start a daemon, kill one. It reaps everything. When its input ends it ends, and
//! with it the host.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Stdout, stdin, stdout};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};

use crate::cgroup::Cgroups;
use crate::protocol::{HostCommand, HostEvent, hear, tell};
use crate::{HOST, LabError, wire};

/// Runs as a host's shell or init; the arguments say which.
pub fn main(arguments: &[String]) -> i32 {
    let mut out = stdout();
    let done = match arguments {
        [part, name, addr, run_dir, cgroup] if part == "shell" => shell(name, addr, run_dir, cgroup, &mut out),
        [part, name, addr, run_dir, _] if part == "init" => init(name, addr, Path::new(run_dir), &mut out),
        _ => Err(LabError::Refused("this is a part of a lab and not to be started by hand".to_owned())),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            let why = with_causes(&error);
            // If the supervisor has gone, so has the reader.
            drop(tell(&mut out, &HostEvent::Failed { why }));
            1
        }
    }
}

/// An error with its causes, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        words = format!("{words}: {source}");
        cause = source.source();
    }
    words
}

/// Asks to be killed with the parent. One that has gone before is noticed by the end of the input.
pub fn die_with_parent() -> Result<(), LabError> {
    set_pdeathsig(Signal::SIGKILL).map_err(LabError::kernel("ask to die with the parent"))
}

fn shell(name: &str, addr: &str, run_dir: &str, cgroup: &str, out: &mut Stdout) -> Result<(), LabError> {
    die_with_parent()?;
    Cgroups::find()?.join(&format!("{cgroup}/system"), 0)?;
    let all =
        CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    unshare(all).map_err(LabError::kernel("make the host's namespaces"))?;
    tell(out, &HostEvent::Unshared)?;
    let mut word = [0u8; 1];
    // One byte says that the wire is plugged in; the rest of the input is the init's.
    if nix::unistd::read(stdin().as_fd(), &mut word).map_err(LabError::kernel("wait for the wire"))? == 0 {
        return Err(LabError::Refused("the supervisor has gone".to_owned()));
    }
    let program = std::env::current_exe().map_err(LabError::io("find this program"))?;
    let mut child =
        Command::new(program).args([HOST, "init", name, addr, run_dir, cgroup]).spawn().map_err(LabError::io("start the host's init"))?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    tell(out, &HostEvent::Booted { pid })?;
    child.wait().map_err(LabError::io("wait for the host's init"))?;
    Ok(())
}

/// A daemon that was started.
struct Daemon {
    name: String,
    pid: Pid,
}

fn init(name: &str, addr: &str, run_dir: &Path, out: &mut Stdout) -> Result<(), LabError> {
    die_with_parent()?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().map_err(LabError::kernel("block signals"))?;
    let reaper =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(LabError::kernel("watch children"))?;
    furnish(name, addr, run_dir)?;
    tell(out, &HostEvent::Ready)?;
    let input = stdin();
    let mut reader = BufReader::new(input.lock());
    let mut daemons: BTreeMap<String, Daemon> = BTreeMap::new();
    loop {
        let ready = wait_for(&[stdin().as_fd(), reaper.as_fd()])?;
        if ready[1] {
            while let Ok(Some(_)) = reaper.read_signal() {}
            reap(&mut daemons, out)?;
        }
        if ready[0] {
            loop {
                let Some(command) = hear::<HostCommand>(&mut reader)? else { return Ok(()) };
                obey(command, &mut daemons, out)?;
                if reader.buffer().is_empty() {
                    break;
                }
            }
        }
    }
}

/// Which of the files can be read.
pub fn wait_for(files: &[BorrowedFd<'_>]) -> Result<Vec<bool>, LabError> {
    let mut polled: Vec<PollFd<'_>> = files.iter().map(|file| PollFd::new(*file, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(LabError::kernel("wait for something to do")(errno)),
            Ok(_) => return Ok(polled.iter().map(|file| file.any().unwrap_or(true)).collect()),
        }
    }
}

/// What a host has of its own: name, process list, memory for its run directory, its end of the wire.
fn furnish(name: &str, addr: &str, run_dir: &Path) -> Result<(), LabError> {
    let none: Option<&str> = None;
    let addr: Ipv4Addr = addr.parse().map_err(|_| LabError::Refused(format!("{addr} is not an address")))?;
    sethostname(name).map_err(LabError::kernel("set the host's name"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(LabError::kernel("make mounts private"))?;
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), hardened, none).map_err(LabError::kernel("mount /proc"))?;
    let options = Some("mode=0755");
    mount(Some("tmpfs"), run_dir, Some("tmpfs"), MsFlags::MS_NOSUID, options).map_err(LabError::kernel("mount the run directory"))?;
    wire::configure_host(addr)
}

fn obey(command: HostCommand, daemons: &mut BTreeMap<String, Daemon>, out: &mut Stdout) -> Result<(), LabError> {
    match command {
        HostCommand::Spawn { daemon, words, log } => match spawn(&words, Path::new(&log)) {
            Ok(pid) => {
                daemons.insert(daemon.clone(), Daemon { name: daemon.clone(), pid });
                tell(out, &HostEvent::Spawned { daemon, pid: pid.as_raw() })
            }
            Err(error) => tell(out, &HostEvent::Exited { daemon, how: with_causes(&error) }),
        },
        HostCommand::Kill { daemon } => {
            if let Some(running) = daemons.get(&daemon) {
                kill(running.pid, Signal::SIGKILL).map_err(LabError::kernel(format!("kill {daemon}")))?;
            }
            Ok(())
        }
    }
}

fn spawn(words: &[String], log: &Path) -> Result<Pid, LabError> {
    let (program, arguments) = words.split_first().ok_or_else(|| LabError::Refused("no program is given".to_owned()))?;
    let open = || fs::OpenOptions::new().create(true).append(true).open(log);
    let file = open().map_err(LabError::io(format!("open {}", log.display())))?;
    let other = file.try_clone().map_err(LabError::io(format!("open {}", log.display())))?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(other)
        .process_group(0)
        .spawn()
        .map_err(LabError::io(format!("start {program}")))?;
    Ok(Pid::from_raw(i32::try_from(child.id()).unwrap_or_default()))
}

/// Buries everyone who has died, and tells of daemons.
fn reap(daemons: &mut BTreeMap<String, Daemon>, out: &mut Stdout) -> Result<(), LabError> {
    loop {
        let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, format!("code {code}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal.as_str().to_owned()),
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(LabError::kernel("wait for children")(errno)),
        };
        let died = daemons.values().find(|daemon| daemon.pid == pid).map(|daemon| daemon.name.clone());
        if let Some(daemon) = died {
            daemons.remove(&daemon);
            tell(out, &HostEvent::Exited { daemon, how })?;
        }
    }
}

/// The directory on which a host's run directory is mounted must exist outside.
pub fn make_dirs(dirs: &[PathBuf]) -> Result<(), LabError> {
    for dir in dirs {
        fs::create_dir_all(dir).map_err(LabError::io(format!("make {}", dir.display())))?;
    }
    Ok(())
}
