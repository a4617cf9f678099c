//! A lab's supervisor: one loop over hosts, commands and signals. What happens goes into the [`Machine`], what it returns is done here.
//!
//! It ends, and takes everything along, when it is told to, when the command that started it goes before it said that the lab is wanted,
//! when the process that the lab is tied to ends, and on SIGTERM and SIGINT. If it is killed, the hosts die with it; only cgroups and
//! directories are left then.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, stdin};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use nix::poll::PollTimeout;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{dup2_stderr, dup2_stdin, setsid};
use rcluster_base::ledger;
use rcluster_base::telemetry::{self, LogFormat};
use serde::Deserialize;
use tracing::{error, info, warn};

use crate::PART;
use crate::cgroup::Cgroups;
use crate::client::open_pid;
use crate::core::machine::{Client, Deed, Input, Machine, STARTER};
use crate::core::plan::{LabPlan, Role, cgroup_root, control_socket, log_dir, log_file, plan_file, run_root, state_root};
use crate::error::LabError;
use crate::host::{make_dirs, wait_for};
use crate::leftovers::{self, take_name};
use crate::line::Line;
use crate::logs;
use crate::protocol::{Begin, HostEvent, LabStatus, Reply, Request};
use crate::wire::Wire;

/// Longest time for a host to make itself ready for daemons.
const BOOT_MAX: Duration = Duration::from_secs(30);
/// Longest time for a cluster to be made.
const INIT_MS_MAX: u16 = 30_000;
/// How often deadlines and the length of logs are looked at.
const TICK_MS: u16 = 2000;
const CLIENTS_MAX: usize = 64;

/// Runs as a lab's supervisor: NAME, the command that starts it on the standard input.
pub fn main(_: &[String]) -> i32 {
    let Ok(fd) = stdin().as_fd().try_clone_to_owned() else { return 1 };
    let mut starter = Line::new(UnixStream::from(fd));
    let begun = match starter.hear::<Begin>() {
        Ok(Some(begin)) => begin_lab(begin, &starter),
        Ok(None) => return 1,
        Err(error) => Err(error),
    };
    let mut supervisor = match begun {
        Ok(supervisor) => supervisor,
        Err(error) => {
            // If the command has gone, nobody is left to be told.
            drop(starter.tell(&Reply::Refused(error.with_causes())));
            return 1;
        }
    };
    supervisor.clients.insert(STARTER, starter);
    match supervisor.supervise() {
        Ok(()) => 0,
        Err(error) => {
            error!(error = error.with_causes(), "the supervisor cannot go on: the lab goes");
            supervisor.give_up();
            1
        }
    }
}

/// Takes the name and gets ready; what is left when this fails is nothing.
fn begin_lab(begin: Begin, starter: &Line) -> Result<Supervisor, LabError> {
    let Begin { plan, owner_pid } = begin;
    let name = plan.name.clone();
    let owner = owner_pid.map(open_pid).transpose()?;
    let Some(lock) = take_name(&name)? else {
        return Err(LabError::Refused(format!(
            "there is a lab {name} already; take it down with `rclusterctl lab down --lab {name}`, or choose another name with --lab"
        )));
    };
    let cgroups = Cgroups::find()?;
    let prepared = prepare(&plan, &cgroups, starter);
    let made = prepared.and_then(|(listener, signals, own_pids)| {
        let wire = Wire::make(&plan)?;
        Ok((listener, signals, own_pids, wire))
    });
    match made {
        Ok((listener, signals, own_pids, wire)) => Ok(Supervisor {
            machine: Machine::new(plan),
            wire,
            cgroups,
            listener,
            signals,
            owner,
            own_pids,
            hosts: BTreeMap::new(),
            clients: BTreeMap::new(),
            next_client: STARTER + 1,
            finished: false,
            _name: lock,
        }),
        Err(error) => {
            leftovers::remove(&name, &cgroups)?;
            Err(error)
        }
    }
}

/// Everything that a supervisor has of its own before there is a wire: a clean place, its log, its ears.
fn prepare(plan: &LabPlan, cgroups: &Cgroups, starter: &Line) -> Result<(UnixListener, SignalFd, File), LabError> {
    let name = &plan.name;
    clear_old(name, cgroups, starter)?;
    make_dirs(&[&log_dir(name), &state_root(name)])?;
    let path = log_file(name, "lab", "supervisor");
    let log = OpenOptions::new().create(true).append(true).open(&path).map_err(LabError::io(format!("open {}", path.display())))?;
    dup2_stderr(&log).map_err(LabError::kernel("redirect the log"))?;
    let null = File::open("/dev/null").map_err(LabError::io("open /dev/null"))?;
    dup2_stdin(&null).map_err(LabError::kernel("close the input"))?;
    telemetry::start(LogFormat::Text);
    setsid().map_err(LabError::kernel("leave the terminal"))?;
    std::env::set_current_dir("/").map_err(LabError::io("go to the root directory"))?;
    found_cluster(plan)?;
    ledger::write(&plan_file(name), plan).map_err(|error| LabError::Refused(error.to_string()))?;
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        mask.add(signal);
    }
    mask.thread_block().map_err(LabError::kernel("block signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).map_err(LabError::kernel("watch signals"))?;
    let socket = control_socket(name);
    let listener = UnixListener::bind(&socket).map_err(LabError::io(format!("listen on {}", socket.display())))?;
    listener.set_nonblocking(true).map_err(LabError::io("set up the control socket"))?;
    let own_pids = File::open("/proc/self/ns/pid").map_err(LabError::io("open this process's PID namespace"))?;
    Ok((listener, signals, own_pids))
}

/// What the managers' `init` prints.
#[derive(Deserialize)]
struct Founded {
    manager_token: String,
    agent_token: String,
}

/// Makes the cluster on the first manager's disk, and puts on each other host's what lets it join.
fn found_cluster(plan: &LabPlan) -> Result<(), LabError> {
    let words = plan.init_command()?;
    let failed = || LabError::io(format!("run {}", words[0]));
    let mut init = Command::new(&words[0]);
    let mut init = init.args(&words[1..]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed())?;
    let ended = open_pid(init.id().cast_signed())?;
    if wait_for(&[ended.as_fd()], PollTimeout::from(INIT_MS_MAX))?.as_slice() != [true] {
        init.kill().and_then(|()| init.wait()).map_err(failed())?;
        return Err(LabError::Refused(format!("the cluster could not be made: {} has not ended within {INIT_MS_MAX} ms", words.join(" "))));
    }
    let output = init.wait_with_output().map_err(failed())?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LabError::Refused(format!("the cluster could not be made: {why}")));
    }
    let what = || format!("what {} printed", words[0]);
    let founded: Founded = serde_json::from_slice(&output.stdout).map_err(|source| LabError::Json { what: what(), source })?;
    for host in plan.hosts.iter().filter(|host| !plan.founds(host)) {
        let token = match host.role {
            Role::Manager => &founded.manager_token,
            Role::Node => &founded.agent_token,
        };
        make_dirs(&[&plan.state_dir(host)])?;
        ledger::write_secret_bytes(&plan.token_file(host), token.as_bytes()).map_err(|error| LabError::Refused(error.to_string()))?;
    }
    Ok(())
}

/// Removes what a lab of this name that was killed has left, and says so.
fn clear_old(name: &str, cgroups: &Cgroups, starter: &Line) -> Result<(), LabError> {
    let of_a_run = fs::read_dir(run_root(name)).is_ok_and(|mut entries| entries.next().is_some());
    if !of_a_run && !state_root(name).exists() && !cgroups.exists(&cgroup_root(name)) {
        return Ok(());
    }
    let note = format!("removed what an earlier lab {name} had left that was not taken down");
    cgroups.kill(&cgroup_root(name))?;
    cgroups.remove(&cgroup_root(name))?;
    for dir in [state_root(name), run_root(name)] {
        empty_dir(&dir)?;
    }
    starter.tell(&Reply::Note(note))
}

/// Empties a directory and leaves it: the lab's lock is on it.
fn empty_dir(dir: &Path) -> Result<(), LabError> {
    let failed = || format!("empty {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(LabError::io(failed()))?,
    };
    for entry in entries {
        let entry = entry.map_err(LabError::io(failed()))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.map_err(LabError::io(failed()))?;
    }
    Ok(())
}

/// A host that is on.
struct Running {
    init: Child,
    line: Line,
    since: Instant,
}

struct Supervisor {
    machine: Machine,
    wire: Wire,
    cgroups: Cgroups,
    listener: UnixListener,
    signals: SignalFd,
    owner: Option<OwnedFd>,
    /// The PID namespace of this process, to come back to.
    own_pids: File,
    hosts: BTreeMap<String, Running>,
    clients: BTreeMap<Client, Line>,
    next_client: Client,
    finished: bool,
    _name: Flock<File>,
}

impl Supervisor {
    fn supervise(&mut self) -> Result<(), LabError> {
        if let Some(starter) = self.clients.get(&STARTER) {
            starter.never_wait()?;
        }
        let mut inputs = VecDeque::from([Input::Begin]);
        let mut ticked = Instant::now();
        loop {
            while let Some(input) = inputs.pop_front() {
                for deed in self.machine.handle(input) {
                    inputs.extend(self.perform(deed));
                }
                if self.finished {
                    return Ok(());
                }
            }
            inputs.extend(self.listen()?);
            inputs.extend(self.late());
            if ticked.elapsed().as_millis() >= u128::from(TICK_MS) {
                ticked = Instant::now();
                logs::shorten(&self.machine.plan().name).unwrap_or_else(|error| warn!(error = error.with_causes(), "logs"));
            }
        }
    }

    /// Waits until something happens, and says what.
    fn listen(&mut self) -> Result<Vec<Input>, LabError> {
        let hosts: Vec<String> = self.hosts.keys().cloned().collect();
        let clients: Vec<Client> = self.clients.keys().copied().collect();
        let mut files: Vec<BorrowedFd<'_>> = vec![self.signals.as_fd(), self.listener.as_fd()];
        files.extend(self.hosts.values().map(|host| host.line.as_fd()));
        files.extend(self.clients.values().map(AsFd::as_fd));
        files.extend(self.owner.as_ref().map(AsFd::as_fd));
        let ready = wait_for(&files, PollTimeout::from(TICK_MS))?;
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        let (of_hosts, of_clients) = (2, 2 + hosts.len());
        let of_owner = of_clients + clients.len();
        let mut inputs = Vec::new();
        for (_, name) in hosts.iter().enumerate().filter(|(index, _)| is_ready(of_hosts + index)) {
            inputs.extend(self.hear_host(name));
        }
        if is_ready(0) {
            inputs.extend(self.signalled()?);
        }
        for (_, client) in clients.iter().enumerate().filter(|(index, _)| is_ready(of_clients + index)) {
            inputs.extend(self.hear_client(*client));
        }
        if self.owner.is_some() && is_ready(of_owner) {
            self.owner = None;
            inputs.push(Input::End { why: "the process that it was tied to has ended".to_owned() });
        }
        if is_ready(1) {
            self.accept()?;
        }
        Ok(inputs)
    }

    fn hear_host(&mut self, name: &str) -> Vec<Input> {
        let Some(host) = self.hosts.get_mut(name) else { return Vec::new() };
        match host.line.hear_all::<HostEvent>() {
            Ok((events, there)) => {
                let mut inputs: Vec<Input> = events.into_iter().map(|event| Input::Said { host: name.to_owned(), event }).collect();
                // An init that says no more has ended, or is about to: make sure of it, its death is told by SIGCHLD.
                if !there && let Err(error) = host.init.kill() {
                    inputs.push(Input::Failed { host: name.to_owned(), why: format!("kill its init: {error}") });
                }
                inputs
            }
            Err(error) => vec![Input::Failed { host: name.to_owned(), why: error.with_causes() }],
        }
    }

    fn signalled(&mut self) -> Result<Vec<Input>, LabError> {
        let mut inputs = Vec::new();
        while let Some(info) = self.signals.read_signal().map_err(LabError::kernel("read signals"))? {
            match i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()) {
                Some(Signal::SIGCHLD) | None => {}
                Some(signal) => inputs.push(Input::End { why: format!("its supervisor was sent {signal}") }),
            }
        }
        let mut dead = Vec::new();
        for (name, host) in &mut self.hosts {
            match host.init.try_wait() {
                Ok(None) => {}
                Ok(Some(_)) => dead.push(name.clone()),
                Err(error) => return Err(LabError::io(format!("wait for the init of {name}"))(error)),
            }
        }
        for name in dead {
            // Its last words come before its death.
            inputs.extend(self.hear_host(&name));
            self.hosts.remove(&name);
            inputs.push(Input::Died { host: name });
        }
        Ok(inputs)
    }

    fn hear_client(&mut self, client: Client) -> Vec<Input> {
        let Some(line) = self.clients.get_mut(&client) else { return Vec::new() };
        let (requests, there) = match line.hear_all::<Request>() {
            Ok(heard) => heard,
            Err(error) => {
                warn!(error = error.with_causes(), "a command cannot be understood");
                (Vec::new(), false)
            }
        };
        let mut inputs: Vec<Input> = requests.into_iter().map(|request| Input::Asked { by: client, request }).collect();
        if !there {
            inputs.push(Input::Left { by: client });
            self.clients.remove(&client);
        }
        inputs
    }

    fn accept(&mut self) -> Result<(), LabError> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) if self.clients.len() < CLIENTS_MAX => {
                    let line = Line::new(stream);
                    line.never_wait()?;
                    self.clients.insert(self.next_client, line);
                    self.next_client += 1;
                }
                Ok(_) => warn!(clients = CLIENTS_MAX, "too many commands at once: one was turned away"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(LabError::io("accept a command")(error)),
            }
        }
    }

    /// Hosts that should have been ready by now.
    fn late(&self) -> Vec<Input> {
        let is_late = |name: &String| self.hosts.get(name).is_some_and(|host| host.since.elapsed() > BOOT_MAX);
        let why = format!("it was not ready within {} s", BOOT_MAX.as_secs());
        self.machine.booting().into_iter().filter(is_late).map(|host| Input::Failed { host, why: why.clone() }).collect()
    }

    /// Does what is to be done; what came of it, if that matters.
    fn perform(&mut self, deed: Deed) -> Vec<Input> {
        match deed {
            Deed::Boot(host) => {
                let mut inputs = failure(&host, self.boot(&host));
                // Without an init there is nobody whose death would be told.
                if !self.hosts.contains_key(&host) {
                    inputs.push(Input::Died { host });
                }
                return inputs;
            }
            Deed::Plug(host) => return failure(&host, self.plug(&host)),
            Deed::Tell(host, command) => {
                let line = self.hosts.get(&host).map(|running| &running.line);
                return failure(&host, line.map_or(Ok(()), |line| line.tell(&command)));
            }
            Deed::CutPower(host) => self.cut_power(&host),
            Deed::Clear(host) => {
                info!(host, "off");
                self.clear(&host).unwrap_or_else(|error| error!(host, error = error.with_causes(), "something is left of the host"));
            }
            Deed::Freeze { by, hosts, on } => {
                let done = self.freeze(&hosts, on);
                self.answer(by, done);
            }
            Deed::Cut { by, host, other } => {
                let done = match other {
                    None => self.wire.cut(&host),
                    Some(other) => self.wire.cut_pair(self.machine.plan(), &host, &other),
                };
                self.answer(by, done);
            }
            Deed::Heal { by, host, other } => {
                let done = self.wire.heal(self.machine.plan(), host.as_deref(), other.as_deref());
                self.answer(by, done);
            }
            Deed::Tally(by) => self.reply(by, &Reply::Status(self.status())),
            Deed::Reply(by, reply) => self.reply(by, &reply),
            Deed::Finish(mourners) => {
                let done = leftovers::remove(&self.machine.plan().name, &self.cgroups);
                let reply = done.map_or_else(|error| Reply::Refused(error.with_causes()), |()| Reply::Done);
                mourners.into_iter().for_each(|by| self.reply(by, &reply));
                self.finished = true;
            }
        }
        Vec::new()
    }

    fn answer(&self, by: Client, done: Result<(), LabError>) {
        let reply = done.map_or_else(|error| Reply::Refused(error.with_causes()), |()| Reply::Done);
        self.reply(by, &reply);
    }

    /// A command that does not take its answer has gone; that is noticed when it is listened to.
    fn reply(&self, by: Client, reply: &Reply) {
        if let Some(line) = self.clients.get(&by)
            && let Err(error) = line.tell(reply)
        {
            warn!(error = error.with_causes(), "a command did not take its answer");
        }
    }

    fn status(&self) -> LabStatus {
        let mut status = self.machine.status(i32::try_from(std::process::id()).unwrap_or_default());
        for host in &mut status.hosts {
            let pid = self.hosts.get(&host.name).and_then(|running| i32::try_from(running.init.id()).ok());
            host.init_pid = pid.unwrap_or_default();
            host.cut = self.wire.is_cut(&host.name);
        }
        status.cuts = self.wire.pairs();
        status
    }

    fn boot(&mut self, name: &str) -> Result<(), LabError> {
        let plan = self.machine.plan();
        let host = plan.host(name)?.clone();
        let (cgroup, run_dir, state_dir) = (plan.cgroup(&host), plan.host_run_dir(&host), plan.state_dir(&host));
        let log = log_file(&plan.name, name, "init");
        make_dirs(&[&run_dir, &state_dir])?;
        self.cgroups.make(&format!("{cgroup}/system"))?;
        self.cgroups.make(&format!("{cgroup}/pods"))?;
        let (ours, theirs) = UnixStream::pair().map_err(LabError::io("make a socket"))?;
        let line = Line::new(ours);
        line.never_wait()?;
        let log = OpenOptions::new().create(true).append(true).open(&log).map_err(LabError::io(format!("open {}", log.display())))?;
        let program = std::env::current_exe().map_err(LabError::io("find this program"))?;
        let mut init = Command::new(program);
        init.args([PART, "host", name, &host.addr.to_string(), &run_dir.to_string_lossy(), &format!("{cgroup}/system")]);
        init.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(log);
        // Both calls concern only the next child: it is PID 1 of a namespace of its own.
        unshare(CloneFlags::CLONE_NEWPID).map_err(LabError::kernel("make a PID namespace"))?;
        let spawned = init.spawn().map_err(LabError::io(format!("start the init of {name}")));
        let back = setns(self.own_pids.as_fd(), CloneFlags::CLONE_NEWPID).map_err(LabError::kernel("return to the PID namespace"));
        self.hosts.insert(name.to_owned(), Running { init: spawned?, line, since: Instant::now() });
        info!(host = name, "boots");
        back
    }

    fn plug(&mut self, name: &str) -> Result<(), LabError> {
        let host = self.machine.plan().host(name)?;
        match self.hosts.get(name) {
            Some(running) => self.wire.plug(name, host.addr, running.init.id()),
            None => Ok(()),
        }
    }

    /// Each step is tried whatever became of the one before: in the end the host is off.
    fn cut_power(&mut self, name: &str) {
        let warn = |error: LabError| warn!(host = name, error = error.with_causes(), "while its power was cut");
        self.wire.silence(name).unwrap_or_else(warn);
        if let Some(running) = self.hosts.get_mut(name) {
            running.init.kill().map_err(LabError::io("kill its init")).unwrap_or_else(warn);
        }
        if let Ok(host) = self.machine.plan().host(name) {
            let cgroup = self.machine.plan().cgroup(host);
            // What is frozen, the host or a paused container on it, ends when it is thawed, before it does anything else.
            self.cgroups.signal(&cgroup).map(|_| ()).unwrap_or_else(warn);
            self.cgroups.thaw_all(&cgroup).unwrap_or_else(warn);
        }
    }

    fn clear(&mut self, name: &str) -> Result<(), LabError> {
        let cgroup = self.machine.plan().cgroup(self.machine.plan().host(name)?);
        let unplugged = self.wire.unplug(name);
        self.cgroups.kill(&cgroup)?;
        self.cgroups.remove(&cgroup)?;
        unplugged
    }

    fn freeze(&mut self, hosts: &[String], on: bool) -> Result<(), LabError> {
        for name in hosts {
            let cgroup = self.machine.plan().cgroup(self.machine.plan().host(name)?);
            self.cgroups.freeze(&cgroup, on)?;
            self.machine.frozen(std::slice::from_ref(name), on);
        }
        Ok(())
    }

    /// The way out when the loop itself has failed: the hosts die with this process, the rest is removed.
    fn give_up(&mut self) {
        for (name, host) in &mut self.hosts {
            if let Err(error) = host.init.kill().and_then(|()| host.init.wait()) {
                error!(host = name, %error, "cannot be killed");
            }
        }
        if let Err(error) = leftovers::remove(&self.machine.plan().name, &self.cgroups) {
            error!(error = error.with_causes(), "something is left");
        }
    }
}

fn failure(host: &str, done: Result<(), LabError>) -> Vec<Input> {
    done.err().map(|error| Input::Failed { host: host.to_owned(), why: error.with_causes() }).into_iter().collect()
}
