//! Where things are on this node.
//!
//! ```text
//! STATE/node.json                    the node's id and its boots
//! STATE/images/                      see `image`
//! STATE/tasks/ID/CONTAINER/          what a container wrote: upper and work directory of its overlay
//! STATE/volumes/NAME/                what tasks on this node keep together
//! STATE/logs/ID/CONTAINER.log[.1]    written by its monitor
//! RUN/boot.json                      which boot this is; gone with the host
//! RUN/assignments.pb, RUN/view.pb    the last that the managers sent
//! RUN/tasks/ID/task.pb, record.json  a task and how far it has come
//! RUN/tasks/ID/etc/                  the pod's hosts, hostname and resolv.conf
//! RUN/tasks/ID/data/                 a tmpfs with the task's secrets and configs, if it has any
//! RUN/tasks/ID/c-CONTAINER/          the bundle: config.json, rootfs, exit.json, image.json,
//!                                    monitor.err, monitor.sock, stdin, tty.sock
//! RUN/runtime/, RUN/runtimes/NAME/   the OCI runtimes' own
//! RUN/netd.sock                      where netd listens
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prost::Message;
use rcluster_api::id::TaskId;

/// The agent's two directories.
#[derive(Debug, Clone)]
pub struct Places {
    /// Survives a power cut.
    pub state: PathBuf,
    /// Is empty after a boot of the host.
    pub run: PathBuf,
}

impl Places {
    pub fn node_file(&self) -> PathBuf {
        self.state.join("node.json")
    }

    /// The node's certificate and key.
    pub fn credentials_file(&self) -> PathBuf {
        self.state.join("credentials.json")
    }

    pub fn boot_file(&self) -> PathBuf {
        self.run.join("boot.json")
    }

    pub fn assignments_file(&self) -> PathBuf {
        self.run.join("assignments.pb")
    }

    pub fn view_file(&self) -> PathBuf {
        self.run.join("view.pb")
    }

    pub fn runtime_root(&self) -> PathBuf {
        self.run.join("runtime")
    }

    /// The state of another runtime, apart from ours: runtimes do not read one another's.
    pub fn foreign_runtime_root(&self, name: &str) -> PathBuf {
        self.run.join("runtimes").join(name)
    }

    pub fn netd_socket(&self) -> PathBuf {
        self.run.join("netd.sock")
    }

    /// Records of tasks.
    pub fn tasks(&self) -> PathBuf {
        self.run.join("tasks")
    }

    /// What containers wrote.
    pub fn writes(&self) -> PathBuf {
        self.state.join("tasks")
    }

    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// What tasks keep that stays when they go.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    pub fn of_task(&self, id: &TaskId) -> TaskPlaces {
        let id = id.as_str();
        TaskPlaces { run: self.tasks().join(id), writes: self.writes().join(id), logs: self.logs().join(id) }
    }
}

/// Where things of one task are. The id has been checked to be one: it is a name without `/` and is not `..`.
#[derive(Debug, Clone)]
pub struct TaskPlaces {
    pub run: PathBuf,
    pub writes: PathBuf,
    pub logs: PathBuf,
}

impl TaskPlaces {
    pub fn task_file(&self) -> PathBuf {
        self.run.join("task.pb")
    }

    pub fn record_file(&self) -> PathBuf {
        self.run.join("record.json")
    }

    /// Where the tmpfs with the task's secrets and configs is mounted.
    pub fn data(&self) -> PathBuf {
        self.run.join("data")
    }

    /// The pod's hosts, hostname and resolv.conf.
    pub fn files(&self) -> PathBuf {
        self.run.join("etc")
    }

    pub fn of_container(&self, name: &str) -> ContainerPlaces {
        ContainerPlaces {
            // A prefix keeps a container named "etc" apart from the pod's files.
            bundle: self.run.join(format!("c-{name}")),
            writes: self.writes.join(name),
            log: log_file(&self.logs, name),
        }
    }
}

/// The message in a file, or `None` when there is no such file.
pub fn read_message<M: Message + Default>(path: &Path) -> Result<Option<M>> {
    match std::fs::read(path) {
        Ok(bytes) => {
            M::decode(bytes.as_slice()).map(Some).with_context(|| format!("{} does not hold what this version writes", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// A container's log in its task's directory of logs.
pub fn log_file(logs: &Path, container: &str) -> PathBuf {
    logs.join(format!("{container}.log"))
}

/// What says on disk that a user has a container paused, and that one had it.
#[derive(Debug, Clone)]
pub struct PauseMark {
    now: PathBuf,
    past: PathBuf,
}

/// A container's pauses up to a moment: unequal to those of another moment when a pause began or ended in between.
#[derive(Debug, PartialEq, Eq)]
pub struct Pauses {
    pub paused: bool,
    /// Inode and time of change of the last pause's mark, which no other pause has.
    last: Option<(u64, i64, i64)>,
}

impl PauseMark {
    pub fn is_set(&self) -> bool {
        self.now.exists()
    }

    /// # Errors
    /// The file cannot be written.
    pub fn set(&self) -> io::Result<()> {
        fs::write(&self.now, b"")
    }

    /// Also when it is not set.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub fn clear(&self) -> io::Result<()> {
        match fs::rename(&self.now, &self.past) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub fn pauses(&self) -> Pauses {
        let last = fs::metadata(&self.past).ok().map(|at| (at.ino(), at.ctime(), at.ctime_nsec()));
        Pauses { paused: self.is_set(), last }
    }
}

/// How the names of files begin that go with commands in a container.
pub const COMMAND: &str = "exec-";

/// Where things of one container are.
#[derive(Debug, Clone)]
pub struct ContainerPlaces {
    pub bundle: PathBuf,
    pub writes: PathBuf,
    pub log: PathBuf,
}

impl ContainerPlaces {
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    pub fn config_file(&self) -> PathBuf {
        self.bundle.join("config.json")
    }

    pub fn image_file(&self) -> PathBuf {
        self.bundle.join("image.json")
    }

    pub fn exit_file(&self) -> PathBuf {
        self.bundle.join("exit.json")
    }

    /// The container's standard input, if it stays open.
    pub fn stdin(&self) -> PathBuf {
        self.bundle.join("stdin")
    }

    /// Where the monitor shows the container's terminal, if it has one.
    pub fn tty_socket(&self) -> PathBuf {
        self.bundle.join("tty.sock")
    }

    /// What says that a user has the container paused.
    pub fn pause(&self) -> PauseMark {
        PauseMark { now: self.bundle.join("paused"), past: self.bundle.join("was-paused") }
    }

    /// Of the process that checks the container's health; like those of users' commands, it is ended when the agent was killed meanwhile.
    pub fn check_pid_file(&self) -> PathBuf {
        self.command_file("check", "pid")
    }

    /// A file that goes with a command in the container.
    pub fn command_file(&self, id: &str, end: &str) -> PathBuf {
        self.bundle.join(format!("{COMMAND}{id}.{end}"))
    }

    /// Where the monitor executes commands for this agent.
    pub fn monitor_socket(&self) -> PathBuf {
        self.bundle.join("monitor.sock")
    }

    pub fn monitor_errors(&self) -> PathBuf {
        self.bundle.join("monitor.err")
    }
}
