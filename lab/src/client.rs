//! The way to a lab from outside: start one, find one, ask its supervisor.

use std::fs;
use std::io::{BufReader, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sched::{CloneFlags, setns};

use crate::cgroup::Cgroups;
use crate::host::{make_dirs, wait_for, with_causes};
use crate::plan::{LabPlan, check_name, log_file, run_root, state_root};
use crate::protocol::{LabStatus, Progress, Reply, Request, hear, tell};
use crate::supervisor::{KEEP, open_pid, plan_file, remove_files, socket_file};
use crate::{LabError, SUPERVISOR, preflight};

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct UpOptions {
    pub name: String,
    pub managers: usize,
    pub agents: usize,
    /// To be loaded on every node.
    pub images: Vec<PathBuf>,
    /// Node, key, value.
    pub labels: Vec<(String, String, String)>,
    /// The lab goes when this process ends.
    pub owner_pid: Option<i32>,
    /// Where the programs are; none: beside the running one.
    pub bin_dir: Option<PathBuf>,
}

/// A lab whose hosts are up, and which goes with this process unless it is kept.
#[derive(Debug)]
pub struct Starting {
    lab: Lab,
    supervisor: Child,
    lifeline: ChildStdin,
}

impl Starting {
    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The lab is wanted: it outlives this process.
    pub fn keep(mut self) -> Result<Lab, LabError> {
        self.lifeline.write_all(&[KEEP]).and_then(|()| self.lifeline.flush()).map_err(LabError::io("tell the supervisor to go on"))?;
        Ok(self.lab)
    }

    /// The lab is not wanted: returns when it has gone.
    pub fn give_up(self) -> Result<(), LabError> {
        let Self { lifeline, mut supervisor, .. } = self;
        drop(lifeline);
        supervisor.wait().map(|_| ()).map_err(LabError::io("wait for the supervisor"))
    }
}

/// Makes a lab: returns when its hosts are up and their daemons started, not yet when they are ready.
pub fn up(options: UpOptions) -> Result<Starting, LabError> {
    let UpOptions { name, managers, agents, images, labels, owner_pid, bin_dir } = options;
    let bin_dir = preflight::bin_dir(bin_dir)?;
    let absolute = |image: &PathBuf| fs::canonicalize(image).unwrap_or_else(|_| image.clone());
    let images: Vec<PathBuf> = images.iter().map(absolute).collect();
    let plan = LabPlan::new(&name, managers, agents, &labels, images, bin_dir)?;
    preflight::check(&plan.bin_dir, &plan.images)?;
    match Lab::open(&name) {
        Ok(_) => {
            return Err(LabError::Refused(format!(
                "there is a lab {name} already; take it down with `rclusterctl lab down --lab {name}`, or choose another name"
            )));
        }
        Err(_) => clean_leftovers(&name)?,
    }
    make_dirs(&[run_root(&name).join("logs"), state_root(&name)])?;
    let text = serde_json::to_vec_pretty(&plan).map_err(|source| LabError::Json { what: "the lab's plan".to_owned(), source })?;
    fs::write(plan_file(&name), text).map_err(LabError::io("write the lab's plan"))?;
    let log = log_file(&name, "lab", "supervisor");
    let log = fs::File::create(&log).map_err(LabError::io(format!("open {}", log.display())))?;
    let program = std::env::current_exe().map_err(LabError::io("find this program"))?;
    let mut supervisor = Command::new(program)
        .args([SUPERVISOR, &name, &owner_pid.unwrap_or_default().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(LabError::io("start the lab's supervisor"))?;
    let (Some(lifeline), Some(output)) = (supervisor.stdin.take(), supervisor.stdout.take()) else {
        return Err(LabError::Refused("a new process has no pipes".to_owned()));
    };
    match hear::<Progress>(&mut BufReader::new(output))? {
        Some(Progress::Up) => Ok(Starting { lab: Lab::open(&name)?, supervisor, lifeline }),
        Some(Progress::Failed(why)) => {
            drop(lifeline);
            supervisor.wait().map_err(LabError::io("wait for the supervisor"))?;
            clean_leftovers(&name)?;
            Err(LabError::Refused(why))
        }
        None => {
            supervisor.wait().map_err(LabError::io("wait for the supervisor"))?;
            clean_leftovers(&name)?;
            Err(LabError::Refused("the lab's supervisor ended before the lab was up".to_owned()))
        }
    }
}

/// Whether there is something left of a lab of this name.
pub fn has_leftovers(name: &str) -> bool {
    run_root(name).exists() || state_root(name).exists()
}

/// Removes what a lab whose supervisor was killed has left: cgroups and directories.
pub fn clean_leftovers(name: &str) -> Result<(), LabError> {
    check_name(name)?;
    remove_files(name, &Cgroups::find()?)
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

    fn ask(&self, request: &Request) -> Result<Reply, LabError> {
        let socket = socket_file(&self.name);
        let stream = UnixStream::connect(&socket).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                LabError::Refused(format!("there is no lab {}; `rclusterctl lab up --lab {}` makes one", self.name, self.name))
            }
            _ => LabError::io(format!("connect to {}", socket.display()))(error),
        })?;
        tell(&mut &stream, request)?;
        match hear(&mut BufReader::new(&stream))? {
            Some(Reply::Refused(why)) => Err(LabError::Refused(why)),
            Some(reply) => Ok(reply),
            None => Err(LabError::Refused(format!("the supervisor of lab {} ended without an answer", self.name))),
        }
    }

    /// The lab's hosts and what runs on them.
    pub fn status(&self) -> Result<LabStatus, LabError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(status),
            Reply::Done | Reply::Refused(_) => Err(LabError::Refused("the supervisor gave another kind of answer".to_owned())),
        }
    }

    /// The managers' addresses, to be reached from the wire.
    pub fn managers(&self) -> Result<Vec<String>, LabError> {
        Ok(self.status()?.managers)
    }

    /// Cuts the power of hosts, or kills single processes (HOST/DAEMON).
    pub fn kill(&self, targets: Vec<String>) -> Result<(), LabError> {
        self.ask(&Request::Kill { targets }).map(|_| ())
    }

    /// Boots hosts on their old disks, or starts single processes again.
    pub fn start(&self, targets: Vec<String>) -> Result<(), LabError> {
        self.ask(&Request::Start { targets }).map(|_| ())
    }

    /// Freezes hosts.
    pub fn pause(&self, hosts: Vec<String>) -> Result<(), LabError> {
        self.ask(&Request::Pause { hosts }).map(|_| ())
    }

    /// Lets frozen hosts go on.
    pub fn resume(&self, hosts: Vec<String>) -> Result<(), LabError> {
        self.ask(&Request::Resume { hosts }).map(|_| ())
    }

    /// Cuts a host off from everyone, or two from each other.
    pub fn cut(&self, host: String, other: Option<String>) -> Result<(), LabError> {
        self.ask(&Request::Cut { host, other }).map(|_| ())
    }

    /// Mends every cut.
    pub fn heal(&self) -> Result<(), LabError> {
        self.ask(&Request::Heal).map(|_| ())
    }

    /// What a daemon of a host has logged; all of the host's when none is named.
    pub fn logs(&self, host: &str, daemon: Option<&str>) -> Result<String, LabError> {
        let status = self.status()?;
        let known = status.hosts.iter().find(|known| known.name == host);
        let names: Vec<&str> = status.hosts.iter().map(|host| host.name.as_str()).collect();
        let known = known.ok_or_else(|| LabError::Refused(format!("lab {} has no host {host}; it has {}", self.name, names.join(", "))))?;
        let daemons: Vec<&str> = known.daemons.iter().map(|known| known.name.as_str()).collect();
        if let Some(daemon) = daemon
            && !daemons.contains(&daemon)
        {
            return Err(LabError::Refused(format!("{host} runs no {daemon}; it runs {}", daemons.join(" and "))));
        }
        let mut text = String::new();
        for name in daemons.into_iter().filter(|name| daemon.is_none_or(|wanted| wanted == *name)) {
            let file = log_file(&self.name, host, name);
            match fs::read_to_string(&file) {
                Ok(lines) => text.push_str(&lines),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(LabError::io(format!("read {}", file.display()))(error)),
            }
        }
        Ok(text)
    }

    /// Moves the calling thread onto the lab's wire, from which the managers can be reached.
    pub fn enter_wire(&self) -> Result<(), LabError> {
        let pid = self.status()?.supervisor_pid;
        let path = format!("/proc/{pid}/ns/net");
        let file = fs::File::open(&path).map_err(LabError::io(format!("open {path}")))?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(LabError::kernel("enter the lab's wire"))
    }

    /// Takes everything away; returns when the supervisor has gone too.
    pub fn down(self) -> Result<(), LabError> {
        let supervisor = open_pid(self.status()?.supervisor_pid)?;
        let done = self.ask(&Request::Down);
        wait_for(&[supervisor.as_fd()])?;
        match done {
            Ok(_) => Ok(()),
            Err(error) => Err(LabError::Refused(format!("lab {}: {}", self.name, with_causes(&error)))),
        }
    }
}
