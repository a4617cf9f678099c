//! The way to a lab from outside: make one, find one, ask its supervisor.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::PollTimeout;
use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::core::plan::{LabPlan, check_name, control_socket, plan_file};
use crate::error::LabError;
use crate::host::wait_for;
use crate::leftovers::has_leftovers;
use crate::line::Line;
use crate::logs::{self, LogOptions};
use crate::protocol::{Begin, LabStatus, Reply, Request};
use crate::{PART, preflight};

/// Longest time for an answer: booting all hosts of a large lab takes some seconds.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// Longest time for a supervisor to end after it said that everything has gone.
const END_MS_MAX: u16 = 10_000;

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct UpOptions {
    pub name: String,
    pub managers: usize,
    pub agents: usize,
    /// OCI layouts, tar files or directories, to be loaded on every node.
    pub images: Vec<PathBuf>,
    /// Node, key, value.
    pub labels: Vec<(String, String, String)>,
    /// How long certificates are valid, as `rcluster-manager init` takes it; none: as long as it says.
    pub certificate_ttl: Option<String>,
    /// The lab goes when this process ends.
    pub owner_pid: Option<i32>,
    /// Where the programs are; none: beside the running one.
    pub bin_dir: Option<PathBuf>,
}

/// A lab whose hosts are up and whose daemons are started. It goes when this value or its process goes, unless it is kept.
#[derive(Debug)]
pub struct Starting {
    lab: Lab,
    line: Option<Line>,
    supervisor: Child,
    notes: Vec<String>,
}

impl Starting {
    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What the user should know about how it came up, such as what was removed for it.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The lab is wanted: it outlives this process.
    pub fn keep(mut self) -> Result<Lab, LabError> {
        if let Some(line) = &mut self.line {
            line.tell(&Request::Keep)?;
            hear_done(line, &self.lab.name)?;
        }
        self.line = None;
        Ok(self.lab.clone())
    }

    /// The lab is not wanted: returns when it has gone.
    pub fn give_up(mut self) -> Result<(), LabError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), LabError> {
        match self.line.take() {
            Some(line) => {
                drop(line);
                self.supervisor.wait().map(|_| ()).map_err(LabError::io("wait for the lab's supervisor"))
            }
            None => Ok(()),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Closing the line is what ends the lab; a failure to wait for that has nobody to be told.
        drop(self.end());
    }
}

/// Makes a lab: returns when its hosts are up and their daemons started, not yet when they are ready.
pub fn up(options: UpOptions) -> Result<Starting, LabError> {
    let UpOptions { name, managers, agents, images, labels, certificate_ttl, owner_pid, bin_dir } = options;
    let absolute = |image: &PathBuf| fs::canonicalize(image).unwrap_or_else(|_| image.clone());
    let images = images.iter().map(absolute).collect();
    let plan = LabPlan::new(&name, managers, agents, &labels, images, preflight::bin_dir(bin_dir)?)?;
    let plan = LabPlan { certificate_ttl, ..plan };
    preflight::check(&plan.bin_dir, &plan.images)?;
    let (ours, theirs) = UnixStream::pair().map_err(LabError::io("make a socket"))?;
    let program = std::env::current_exe().map_err(LabError::io("find this program"))?;
    let mut supervisor = Command::new(program)
        .args([PART, "supervisor", &name])
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(LabError::io("start the lab's supervisor"))?;
    let mut line = Line::new(ours);
    let mut notes = Vec::new();
    line.tell(&Begin { plan, owner_pid })?;
    let refused = loop {
        match line.hear::<Reply>()? {
            Some(Reply::Note(note)) => notes.push(note),
            Some(Reply::Done) => break None,
            Some(Reply::Refused(why)) => break Some(why),
            Some(Reply::Status(_)) => break Some("the supervisor gave another kind of answer".to_owned()),
            None => break Some("the lab's supervisor ended before the lab was up".to_owned()),
        }
    };
    match refused {
        None => Ok(Starting { lab: Lab { name }, line: Some(line), supervisor, notes }),
        Some(why) => {
            drop(line);
            supervisor.wait().map_err(LabError::io("wait for the lab's supervisor"))?;
            Err(LabError::Refused(why))
        }
    }
}

/// A running lab.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
}

impl Lab {
    /// Finds a running lab.
    pub fn open(name: &str) -> Result<Self, LabError> {
        check_name(name)?;
        let lab = Self { name: name.to_owned() };
        lab.status()?;
        Ok(lab)
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn connect(&self) -> Result<Line, LabError> {
        let (name, socket) = (&self.name, control_socket(&self.name));
        let stream = UnixStream::connect(&socket).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused if has_leftovers(name) => LabError::Refused(format!(
                "lab {name} has no supervisor, so that its hosts have died; `rclusterctl lab down --lab {name}` removes what is left"
            )),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                LabError::Refused(format!("there is no lab {name}; `rclusterctl lab up --lab {name}` makes one"))
            }
            ErrorKind::PermissionDenied => LabError::Refused(format!("lab {name} belongs to root; run it with sudo")),
            _ => LabError::io(format!("connect to {}", socket.display()))(error),
        })?;
        let line = Line::new(stream);
        line.wait_at_most(ANSWER_MAX)?;
        Ok(line)
    }

    fn ask(&self, request: &Request) -> Result<(), LabError> {
        let mut line = self.connect()?;
        line.tell(request)?;
        hear_done(&mut line, &self.name)
    }

    /// The lab's hosts and what runs on them.
    pub fn status(&self) -> Result<LabStatus, LabError> {
        let mut line = self.connect()?;
        line.tell(&Request::Status)?;
        match line.hear()? {
            Some(Reply::Status(status)) => Ok(status),
            Some(Reply::Refused(why)) => Err(LabError::Refused(why)),
            Some(Reply::Done | Reply::Note(_)) => Err(LabError::Refused("the supervisor gave another kind of answer".to_owned())),
            None => Err(gone(&self.name)),
        }
    }

    fn plan(&self) -> Result<LabPlan, LabError> {
        let path = plan_file(&self.name);
        let bytes = fs::read(&path).map_err(LabError::io(format!("read {}", path.display())))?;
        serde_json::from_slice(&bytes).map_err(|source| LabError::Json { what: path.display().to_string(), source })
    }

    /// The managers' addresses, to be reached from the wire.
    pub fn managers(&self) -> Result<Vec<String>, LabError> {
        Ok(self.status()?.managers)
    }

    /// A file with the administrator's way to the cluster, as `rcluster-manager init` writes it.
    pub fn access_file(&self) -> Result<PathBuf, LabError> {
        let plan = self.plan()?;
        let first = plan.hosts.iter().find(|host| plan.founds(host));
        let first = first.ok_or_else(|| LabError::Refused(format!("lab {} has no manager", self.name)))?;
        Ok(plan.state_dir(first).join("manager/admin.json"))
    }

    /// Cuts the power of hosts, or kills single processes (HOST/DAEMON); all or, when one does not fit, none. Returns when they are gone.
    pub fn kill(&self, targets: Vec<String>) -> Result<(), LabError> {
        self.ask(&Request::Kill { targets })
    }

    /// Boots hosts on their old disks, or starts single processes again. Returns when the processes run, not yet when they are ready.
    pub fn start(&self, targets: Vec<String>) -> Result<(), LabError> {
        self.ask(&Request::Start { targets })
    }

    /// Freezes hosts.
    pub fn pause(&self, hosts: Vec<String>) -> Result<(), LabError> {
        self.ask(&Request::Pause { hosts })
    }

    /// Lets frozen hosts go on.
    pub fn resume(&self, hosts: Vec<String>) -> Result<(), LabError> {
        self.ask(&Request::Resume { hosts })
    }

    /// Cuts a host off from everyone, or two from each other.
    pub fn cut(&self, host: String, other: Option<String>) -> Result<(), LabError> {
        self.ask(&Request::Cut { host, other })
    }

    /// Mends every cut.
    pub fn heal(&self) -> Result<(), LabError> {
        self.ask(&Request::Heal { host: None, other: None })
    }

    /// Mends every cut of a host, or the one between two hosts.
    pub fn heal_host(&self, host: String, other: Option<String>) -> Result<(), LabError> {
        self.ask(&Request::Heal { host: Some(host), other })
    }

    /// What a daemon of a host has logged; all of the host's when none is named.
    pub fn logs(&self, host: &str, daemon: Option<&str>) -> Result<String, LabError> {
        let mut text = Vec::new();
        let options = LogOptions { daemon: daemon.map(str::to_owned), ..LogOptions::default() };
        logs::write(&self.plan()?, host, &options, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Writes what a host's daemons have logged, and log.
    pub fn write_logs(&self, host: &str, options: &LogOptions, to: &mut dyn Write) -> Result<(), LabError> {
        logs::write(&self.plan()?, host, options, to)
    }

    /// Moves the calling thread onto the lab's wire, from which the managers can be reached.
    pub fn enter_wire(&self) -> Result<(), LabError> {
        let path = format!("/proc/{}/ns/net", self.status()?.supervisor_pid);
        let file = File::open(&path).map_err(LabError::io(format!("open {path}")))?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(LabError::kernel("enter the lab's wire"))
    }

    /// Takes everything away; returns when the supervisor has gone too.
    pub fn down(self) -> Result<(), LabError> {
        let pid = self.status()?.supervisor_pid;
        let supervisor = open_pid(pid)?;
        self.ask(&Request::Down)?;
        match wait_for(&[supervisor.as_fd()], PollTimeout::from(END_MS_MAX))?.as_slice() {
            [true] => Ok(()),
            _ => Err(LabError::Refused(format!("the hosts of lab {} have gone, but its supervisor (PID {pid}) goes on", self.name))),
        }
    }
}

fn hear_done(line: &mut Line, lab: &str) -> Result<(), LabError> {
    match line.hear()? {
        Some(Reply::Done) => Ok(()),
        Some(Reply::Refused(why)) => Err(LabError::Refused(why)),
        Some(Reply::Status(_) | Reply::Note(_)) => Err(LabError::Refused("the supervisor gave another kind of answer".to_owned())),
        None => Err(gone(lab)),
    }
}

fn gone(lab: &str) -> LabError {
    LabError::Refused(format!("the supervisor of lab {lab} ended without an answer"))
}

/// A file that tells when a process ends.
pub fn open_pid(pid: i32) -> Result<OwnedFd, LabError> {
    let none = || LabError::Refused(format!("there is no process {pid}"));
    let known = Pid::from_raw(pid).ok_or_else(none)?;
    pidfd_open(known, PidfdFlags::empty()).map_err(|errno| match errno {
        rustix::io::Errno::SRCH => none(),
        other => LabError::io(format!("watch process {pid}"))(other.into()),
    })
}
