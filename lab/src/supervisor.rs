//! The lab's owner: one loop over the hosts, the wire and the commands that come in.
//!
//! It ends, and takes everything along, when it is told to, when the command that started it goes before saying that the lab is wanted,
//! or when the process that the lab is tied to ends. If it is killed, the hosts die with it; only cgroups and directories are left then.

use std::fs;
use std::io::{BufReader, ErrorKind, Write, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, setsid};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::cgroup::Cgroups;
use crate::host::{make_dirs, wait_for, with_causes};
use crate::plan::{HostPlan, LabPlan, cgroup_root, log_file, run_root, state_root};
use crate::protocol::{
    DaemonState, DaemonStatus, HostCommand, HostEvent, HostState, HostStatus, LabStatus, Progress, Reply, Request, hear, tell,
};
use crate::wire::Wire;
use crate::{HOST, LabError};

/// The word by which the starting command says that the lab is wanted.
pub const KEEP: u8 = b'k';
/// Longest time for a client to say what it wants.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs as a lab's supervisor; the arguments are the lab's name and the PID that it is tied to (0: none).
pub fn main(arguments: &[String]) -> i32 {
    let mut out = stdout();
    let run = || {
        let [name, owner] = arguments else {
            return Err(LabError::Refused("this is a part of a lab and not to be started by hand".to_owned()));
        };
        let text = fs::read(plan_file(name)).map_err(LabError::io("read the lab's plan"))?;
        let plan: LabPlan = serde_json::from_slice(&text).map_err(|source| LabError::Json { what: "the lab's plan".to_owned(), source })?;
        Supervisor::new(plan, owner.parse().unwrap_or_default())
    };
    match run() {
        Ok(supervisor) => supervisor.supervise(),
        Err(error) => {
            // If the command has gone, so has the reader.
            drop(tell(&mut out, &Progress::Failed(with_causes(&error))));
            1
        }
    }
}

/// Where the plan is written for the supervisor.
pub fn plan_file(lab: &str) -> PathBuf {
    run_root(lab).join("lab.json")
}

/// Where the supervisor is to be reached.
pub fn socket_file(lab: &str) -> PathBuf {
    run_root(lab).join("control.sock")
}

/// A host that is on.
struct Running {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    init_pid: i32,
    paused: bool,
    daemons: Vec<DaemonStatus>,
}

struct Host {
    plan: HostPlan,
    running: Option<Running>,
}

struct Supervisor {
    plan: LabPlan,
    wire: Wire,
    cgroups: Cgroups,
    hosts: Vec<Host>,
    listener: UnixListener,
    signals: SignalFd,
    owner: Option<OwnedFd>,
    /// Whether the starting command has said that the lab is wanted.
    kept: bool,
}

/// What woke the loop.
enum Wake {
    Client,
    Host(usize),
    Starter,
    Owner,
    Signal,
}

impl Supervisor {
    fn new(plan: LabPlan, owner: i32) -> Result<Self, LabError> {
        setsid().map_err(LabError::kernel("leave the terminal"))?;
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().map_err(LabError::kernel("block signals"))?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(LabError::kernel("watch signals"))?;
        let owner = match owner {
            0 => None,
            pid => Some(open_pid(pid)?),
        };
        let socket = socket_file(&plan.name);
        let listener = UnixListener::bind(&socket).map_err(LabError::io(format!("listen on {}", socket.display())))?;
        let wire = Wire::make()?;
        let hosts = plan.hosts.iter().map(|plan| Host { plan: plan.clone(), running: None }).collect();
        Ok(Self { wire, cgroups: Cgroups::find()?, hosts, listener, signals, owner, kept: false, plan })
    }

    fn supervise(mut self) -> i32 {
        let mut out = stdout();
        let names: Vec<String> = self.plan.hosts.iter().map(|host| host.name.clone()).collect();
        let up = self.start(&names);
        let progress = match &up {
            Ok(()) => Progress::Up,
            Err(error) => Progress::Failed(with_causes(error)),
        };
        let told = tell(&mut out, &progress);
        if up.is_ok() && told.is_ok() {
            while let Ok(true) = self.turn() {}
        }
        match self.clean() {
            Ok(()) => i32::from(up.is_err()),
            Err(error) => {
                drop(tell(&mut out, &Progress::Failed(with_causes(&error))));
                1
            }
        }
    }

    /// One wake-up; false when the lab is to go.
    fn turn(&mut self) -> Result<bool, LabError> {
        let input = stdin();
        let mut files = vec![self.listener.as_fd(), self.signals.as_fd()];
        let mut wakes = vec![Wake::Client, Wake::Signal];
        if let Some(owner) = &self.owner {
            files.push(owner.as_fd());
            wakes.push(Wake::Owner);
        }
        if !self.kept {
            files.push(input.as_fd());
            wakes.push(Wake::Starter);
        }
        for (index, host) in self.hosts.iter().enumerate() {
            if let Some(running) = &host.running {
                files.push(running.output.get_ref().as_fd());
                wakes.push(Wake::Host(index));
            }
        }
        let ready = wait_for(&files)?;
        let woken: Vec<Wake> = wakes.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(wake, _)| wake).collect();
        for wake in woken {
            match wake {
                Wake::Signal | Wake::Owner => return Ok(false),
                Wake::Starter => {
                    let mut word = [0u8; 1];
                    let read = nix::unistd::read(stdin().as_fd(), &mut word).map_err(LabError::kernel("hear the starting command"))?;
                    if read == 0 || word[0] != KEEP {
                        return Ok(false);
                    }
                    self.kept = true;
                }
                Wake::Host(index) => self.listen_to(index)?,
                Wake::Client => {
                    if !self.serve()? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Answers one client; false when it asked for the end.
    fn serve(&mut self) -> Result<bool, LabError> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(LabError::io("accept a client")(error)),
        };
        let Some(request) = read_request(&stream) else { return Ok(true) };
        let down = request == Request::Down;
        let reply = if down { self.clean().map(|()| Reply::Done) } else { self.carry_out(request) };
        let reply = reply.unwrap_or_else(|error| Reply::Refused(with_causes(&error)));
        // A client that has gone does not need the answer.
        drop(tell(&mut &stream, &reply));
        Ok(!down)
    }

    fn carry_out(&mut self, request: Request) -> Result<Reply, LabError> {
        match request {
            Request::Status => return Ok(Reply::Status(self.status())),
            Request::Kill { targets } => self.kill(&targets)?,
            Request::Start { targets } => self.start(&targets)?,
            Request::Pause { hosts } => self.pause(&hosts, true)?,
            Request::Resume { hosts } => self.pause(&hosts, false)?,
            Request::Cut { host, other } => {
                self.plan.host(&host)?;
                if let Some(other) = &other {
                    self.plan.host(other)?;
                    if *other == host {
                        return Err(LabError::Refused(format!("{host} cannot be cut off from itself")));
                    }
                }
                self.wire.cut(&host, other.as_deref())?;
            }
            Request::Heal => self.wire.heal()?,
            Request::Down => {}
        }
        Ok(Reply::Done)
    }

    fn status(&self) -> LabStatus {
        let host = |host: &Host| HostStatus {
            name: host.plan.name.clone(),
            role: host.plan.role,
            addr: host.plan.addr,
            state: match &host.running {
                None => HostState::Off,
                Some(running) if running.paused => HostState::Paused,
                Some(_) => HostState::Up,
            },
            cut: self.wire.is_cut(&host.plan.name),
            init_pid: host.running.as_ref().map_or(0, |running| running.init_pid),
            daemons: match &host.running {
                Some(running) => running.daemons.clone(),
                None => daemons_off(&host.plan),
            },
        };
        LabStatus {
            name: self.plan.name.clone(),
            supervisor_pid: i32::try_from(std::process::id()).unwrap_or_default(),
            managers: self.plan.managers(),
            hosts: self.hosts.iter().map(host).collect(),
            cuts: self.wire.pairs(),
        }
    }

    /// HOST or HOST/DAEMON, checked.
    fn target(&self, target: &str) -> Result<(usize, Option<String>), LabError> {
        let (name, daemon) = target.split_once('/').map_or((target, None), |(host, daemon)| (host, Some(daemon)));
        let plan = self.plan.host(name)?;
        if let Some(daemon) = daemon
            && !plan.role.daemons().contains(&daemon)
        {
            return Err(LabError::Refused(format!("{name} runs no {daemon}; it runs {}", plan.role.daemons().join(" and "))));
        }
        let index = self.hosts.iter().position(|host| host.plan.name == name);
        Ok((index.ok_or_else(|| LabError::Refused(format!("no host {name}")))?, daemon.map(str::to_owned)))
    }

    fn targets(&self, targets: &[String]) -> Result<Vec<(usize, Option<String>)>, LabError> {
        targets.iter().map(|target| self.target(target)).collect()
    }

    /// Boots hosts, or starts single daemons of hosts that are on.
    fn start(&mut self, targets: &[String]) -> Result<(), LabError> {
        let targets = self.targets(targets)?;
        for (index, daemon) in &targets {
            let host = &self.hosts[*index];
            match (&host.running, daemon) {
                (Some(_), None) => return Err(LabError::Refused(format!("{} is on", host.plan.name))),
                (None, Some(_)) => return Err(LabError::Refused(format!("{} is off; start the host", host.plan.name))),
                (Some(running), Some(daemon)) if running.daemons.iter().any(|d| d.name == *daemon && d.state == DaemonState::Running) => {
                    return Err(LabError::Refused(format!("{}/{daemon} runs", host.plan.name)));
                }
                _ => {}
            }
        }
        // All hosts boot side by side: each step is done for all before the next.
        let boots: Vec<usize> = targets.iter().filter(|(_, daemon)| daemon.is_none()).map(|(index, _)| *index).collect();
        self.load_images(&boots)?;
        for index in &boots {
            self.begin_boot(*index)?;
        }
        for index in &boots {
            self.plug(*index)?;
        }
        for index in &boots {
            self.await_event(*index, |event| matches!(event, HostEvent::Ready))?;
        }
        for (index, daemon) in targets {
            match daemon {
                Some(daemon) => self.spawn(index, &daemon)?,
                None => {
                    for daemon in self.hosts[index].plan.role.daemons() {
                        self.spawn(index, daemon)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_boot(&mut self, index: usize) -> Result<(), LabError> {
        let plan = self.hosts[index].plan.clone();
        let cgroup = self.plan.cgroup(&plan);
        let run_dir = self.plan.host_run_dir(&plan);
        make_dirs(&[run_dir.clone(), self.plan.state_dir(&plan), run_root(&self.plan.name).join("logs")])?;
        self.cgroups.make(&format!("{cgroup}/system"))?;
        self.cgroups.make(&format!("{cgroup}/pods"))?;
        let program = std::env::current_exe().map_err(LabError::io("find this program"))?;
        let mut shell = Command::new(program)
            .args([HOST, "shell", &plan.name, &plan.addr.to_string(), &run_dir.to_string_lossy(), &cgroup])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(LabError::io(format!("start host {}", plan.name)))?;
        let (Some(input), Some(output)) = (shell.stdin.take(), shell.stdout.take()) else {
            return Err(LabError::Refused("a new process has no pipes".to_owned()));
        };
        let daemons = daemons_off(&plan);
        self.hosts[index].running = Some(Running { shell, input, output: BufReader::new(output), init_pid: 0, paused: false, daemons });
        Ok(())
    }

    /// Images are on a node's disk before its first boot; a later boot finds them there.
    fn load_images(&self, hosts: &[usize]) -> Result<(), LabError> {
        let nodes = hosts.iter().map(|index| &self.hosts[*index].plan).filter(|plan| plan.role == crate::plan::Role::Node);
        let new: Vec<&HostPlan> = nodes.filter(|plan| !self.images_marker(plan).exists()).collect();
        let mut loads = Vec::new();
        for node in &new {
            make_dirs(&[self.plan.state_dir(node)])?;
            for image in &self.plan.images {
                let program = self.plan.bin_dir.join("rcluster-agent");
                let load = Command::new(&program)
                    .args(["image", "load"])
                    .arg(image)
                    .arg("--state-dir")
                    .arg(self.plan.state_dir(node).join("agent"))
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .map_err(LabError::io(format!("run {}", program.display())))?;
                loads.push((node.name.clone(), image, load));
            }
        }
        let mut failures = Vec::new();
        for (node, image, load) in loads {
            let output = load.wait_with_output().map_err(LabError::io("wait for an image to be loaded"))?;
            if !output.status.success() {
                failures.push(format!("load {} on {node}: {}", image.display(), String::from_utf8_lossy(&output.stderr).trim()));
            }
        }
        if !failures.is_empty() {
            return Err(LabError::Refused(failures.join("; ")));
        }
        for node in new {
            let marker = self.images_marker(node);
            fs::write(&marker, "").map_err(LabError::io(format!("write {}", marker.display())))?;
        }
        Ok(())
    }

    fn images_marker(&self, host: &HostPlan) -> PathBuf {
        self.plan.state_dir(host).join("images-loaded")
    }

    fn plug(&mut self, index: usize) -> Result<(), LabError> {
        self.await_event(index, |event| matches!(event, HostEvent::Unshared))?;
        let host = &mut self.hosts[index];
        let Some(running) = &mut host.running else { return Ok(()) };
        let pid = i32::try_from(running.shell.id()).unwrap_or_default();
        self.wire.plug(&host.plan.name, host.plan.addr, pid)?;
        running.input.write_all(b"\n").and_then(|()| running.input.flush()).map_err(LabError::io("tell a host that it is plugged in"))
    }

    /// Listens to a host until it says what is waited for; a host that fails or ends instead is an error.
    fn await_event(&mut self, index: usize, is_it: impl Fn(&HostEvent) -> bool) -> Result<(), LabError> {
        loop {
            let host = &mut self.hosts[index];
            let Some(running) = &mut host.running else {
                return Err(LabError::Refused(format!("host {} is off", host.plan.name)));
            };
            match hear::<HostEvent>(&mut running.output)? {
                None => return Err(LabError::Refused(format!("host {} ended while it was starting", host.plan.name))),
                Some(HostEvent::Failed { why }) => return Err(LabError::Refused(format!("host {}: {why}", host.plan.name))),
                Some(event) => {
                    let done = is_it(&event);
                    running.note(event);
                    if done {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn spawn(&mut self, index: usize, daemon: &str) -> Result<(), LabError> {
        let host = &mut self.hosts[index];
        let words = self.plan.command(&host.plan, daemon);
        let log = log_file(&self.plan.name, &host.plan.name, daemon).to_string_lossy().into_owned();
        if let Some(running) = &mut host.running {
            tell(&mut running.input, &HostCommand::Spawn { daemon: daemon.to_owned(), words, log })?;
        }
        let name = daemon.to_owned();
        self.await_event(
            index,
            move |event| matches!(event, HostEvent::Spawned { daemon, .. } | HostEvent::Exited { daemon, .. } if *daemon == name),
        )
    }

    /// Cuts the power of hosts, or kills single daemons.
    fn kill(&mut self, targets: &[String]) -> Result<(), LabError> {
        let targets = self.targets(targets)?;
        for (index, _) in &targets {
            let host = &self.hosts[*index];
            if host.running.is_none() {
                return Err(LabError::Refused(format!("{} is off", host.plan.name)));
            }
        }
        for (index, _) in targets.iter().filter(|(_, daemon)| daemon.is_none()) {
            self.wire.silence(&self.hosts[*index].plan.name)?;
        }
        for (index, daemon) in targets {
            match daemon {
                None => self.power_off(index)?,
                Some(daemon) => {
                    if let Some(running) = &mut self.hosts[index].running {
                        tell(&mut running.input, &HostCommand::Kill { daemon: daemon.clone() })?;
                        let runs = running.daemons.iter().any(|d| d.name == daemon && d.state == DaemonState::Running);
                        if runs {
                            self.await_event(
                                index,
                                move |event| matches!(event, HostEvent::Exited { daemon: ended, .. } if *ended == daemon),
                            )?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Everything on the host ends at once; its wire has been silenced.
    fn power_off(&mut self, index: usize) -> Result<(), LabError> {
        let plan = self.hosts[index].plan.clone();
        let cgroup = self.plan.cgroup(&plan);
        if let Some(mut running) = self.hosts[index].running.take() {
            if running.init_pid > 0 {
                // A host whose init has just ended is off already.
                let _off = kill(Pid::from_raw(running.init_pid), Signal::SIGKILL);
            } else {
                drop(running.shell.kill());
            }
            if running.paused {
                self.cgroups.freeze(&cgroup, false)?;
            }
            running.shell.wait().map_err(LabError::io(format!("wait for host {}", plan.name)))?;
        }
        self.cgroups.kill(&cgroup)?;
        self.wire.unplug(&plan.name)?;
        self.cgroups.remove(&cgroup)
    }

    fn pause(&mut self, hosts: &[String], pause: bool) -> Result<(), LabError> {
        for name in hosts {
            let (index, daemon) = self.target(name)?;
            let cgroup = self.plan.cgroup(&self.hosts[index].plan);
            let Some(running) = &mut self.hosts[index].running else { return Err(LabError::Refused(format!("{name} is off"))) };
            if daemon.is_some() {
                return Err(LabError::Refused(format!("{name}: only whole hosts can be paused")));
            }
            self.cgroups.freeze(&cgroup, pause)?;
            running.paused = pause;
        }
        Ok(())
    }

    /// Takes in what a host says; a host that has ended by itself is off.
    fn listen_to(&mut self, index: usize) -> Result<(), LabError> {
        let Some(running) = &mut self.hosts[index].running else { return Ok(()) };
        loop {
            match hear::<HostEvent>(&mut running.output)? {
                None => return self.power_off(index),
                Some(event) => running.note(event),
            }
            if running.output.buffer().is_empty() {
                return Ok(());
            }
        }
    }

    /// Takes everything away. Errors are gathered: one host that resists does not keep the others.
    fn clean(&mut self) -> Result<(), LabError> {
        let mut failures = Vec::new();
        for index in 0..self.hosts.len() {
            if let Err(error) = self.power_off(index) {
                failures.push(with_causes(&error));
            }
        }
        if let Err(error) = remove_files(&self.plan.name, &self.cgroups) {
            failures.push(with_causes(&error));
        }
        if failures.is_empty() { Ok(()) } else { Err(LabError::Refused(failures.join("; "))) }
    }
}

impl Running {
    fn note(&mut self, event: HostEvent) {
        let mut set = |name: &str, state: DaemonState, pid: i32| {
            if let Some(daemon) = self.daemons.iter_mut().find(|daemon| daemon.name == name) {
                daemon.state = state;
                daemon.pid = pid;
            }
        };
        match event {
            HostEvent::Booted { pid } => self.init_pid = pid,
            HostEvent::Spawned { daemon, pid } => set(&daemon, DaemonState::Running, pid),
            HostEvent::Exited { daemon, how } => set(&daemon, DaemonState::Exited(how), 0),
            HostEvent::Unshared | HostEvent::Ready | HostEvent::Failed { .. } => {}
        }
    }
}

fn daemons_off(plan: &HostPlan) -> Vec<DaemonStatus> {
    let off = |name: &&str| DaemonStatus { name: (*name).to_owned(), state: DaemonState::Off, pid: 0 };
    plan.role.daemons().iter().map(off).collect()
}

/// What a client wants; `None` when it does not say so in time or in words that fit.
fn read_request(stream: &UnixStream) -> Option<Request> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT)).ok()?;
    hear(&mut BufReader::new(stream)).ok().flatten()
}

/// A file that tells when a process ends.
pub fn open_pid(pid: i32) -> Result<OwnedFd, LabError> {
    let none = || LabError::Refused(format!("there is no process {pid}"));
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(none)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| LabError::Io { what: format!("watch process {pid:?}"), source: errno.into() })
}

/// Removes what no kernel removes: cgroups and directories, all named after the lab.
pub fn remove_files(lab: &str, cgroups: &Cgroups) -> Result<(), LabError> {
    cgroups.kill(&cgroup_root(lab))?;
    cgroups.remove(&cgroup_root(lab))?;
    for dir in [state_root(lab), run_root(lab)] {
        remove_dir(&dir)?;
        // The directory that holds all labs goes with the last of them.
        if let Some(parent) = dir.parent() {
            drop(fs::remove_dir(parent));
        }
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(LabError::io(format!("remove {}", dir.display()))(error)),
    }
}
