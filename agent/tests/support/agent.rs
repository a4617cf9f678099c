//! An agent process with its two directories, and an end to everything it leaves behind, also when a test fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rcluster_agent::image::mount::unmount_all;
use rcluster_api::wire::v1::{ContainerSpec, Meta, NetworkAttachment, Resources, Task, TaskNetwork, TaskState, TaskStatus, TaskTemplate};
use serde_json::json;

use super::image::{Layout, shell_layer};
use super::manager::PATIENCE;

pub struct Agent {
    pub dir: tempfile::TempDir,
    run: tempfile::TempDir,
    managers: String,
    cgroup: String,
    more: Vec<String>,
    process: Option<Child>,
}

/// The runtime's binary, built if need be.
fn runtime() -> &'static Path {
    static RUNTIME: OnceLock<PathBuf> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        // Beside the agent, which is of the profile of the tests.
        let profile: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo).args(["build", "--quiet", "-p", "rcluster-runtime"]).args(profile).status().expect("run cargo");
        assert!(built.success(), "rcluster-runtime does not build");
        Path::new(env!("CARGO_BIN_EXE_rcluster-agent")).with_file_name("rcluster-runtime")
    })
}

impl Agent {
    /// Directories with the image `shell:1`, and an agent that runs on them.
    pub fn start(managers: &[std::net::SocketAddr]) -> Self {
        Self::start_with(managers, &[])
    }

    /// The same with more arguments.
    pub fn start_with(managers: &[std::net::SocketAddr], more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        // Gone with the host, as /run is; and no disk to wait for.
        let run = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        Layout::new(&dir.path().join("layout")).image("shell:1", &json!({"Cmd": ["/bin/sh"]}), &[shell_layer()]);
        let tag = dir.path().file_name().expect("a name").to_string_lossy().trim_start_matches('.').to_owned();
        let managers = managers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut agent = Self { dir, run, managers, cgroup: format!("/rcluster-test-{tag}/n1"), more: Vec::new(), process: None };
        agent.more.extend(more.iter().map(|argument| (*argument).to_owned()));
        agent.image_load("layout");
        agent.spawn();
        agent
    }

    pub fn image_load(&self, layout: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcluster-agent"));
        command.args(["image", "load"]).arg(self.dir.path().join(layout)).arg("--state-dir").arg(self.state()).stdout(Stdio::null());
        assert!(command.status().expect("run the agent's binary").success(), "image load");
    }

    pub fn spawn(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("agent.log")).expect("a log");
        self.process = Some(self.command().stderr(log).spawn().expect("run the agent"));
    }

    /// Runs another agent on the same directories, which ends at once; gives what it says.
    pub fn second(&mut self) -> String {
        let output = self.command().output().expect("run the agent");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The host goes down and comes up again: all processes are killed, mounts are gone, the run directory is empty.
    pub fn power_cut(&mut self, pids: &[u32]) {
        self.kill();
        for pid in pids {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
            // It may have gone with another.
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).or_else(gone).expect("kill");
        }
        self.remove_containers();
        for entry in fs::read_dir(self.run()).expect("list").flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.expect("empty the run directory");
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcluster-agent"));
        command.args(["run", "--name", "n1", "--addr", "127.0.0.1", "--managers", &self.managers]);
        if !self.state().join("credentials.json").exists() {
            command.arg("--insecure");
        }
        command.arg("--state-dir").arg(self.state()).arg("--run-dir").arg(self.run.path()).args(&self.more);
        command
            .args(["--cgroup-parent", &self.cgroup])
            .arg("--runtime")
            .arg(runtime())
            // The disk is this machine's, however full it is.
            .args(["--image-gc-high", "100"])
            .env("RCLUSTER_LOG", "debug,h2=info,hyper=info,tower=info");
        command
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn run(&self) -> &Path {
        self.run.path()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill the agent");
            process.wait().expect("reap the agent");
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// What of the task is left on the node: mounts, directories, cgroups.
    pub fn leftovers(&self, task: &str) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
        let mut left: Vec<String> = mounts.lines().filter(|line| line.contains(task)).map(str::to_owned).collect();
        left.extend(self.cgroups(&format!("{}/{task}", self.cgroup)).into_iter().map(|path| path.display().to_string()));
        for path in [self.state().join("tasks").join(task), self.run().join("runtime")] {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path().display().to_string());
            left.extend(entries.filter(|path| path.contains(task)));
        }
        left
    }

    fn cgroups(&self, path: &str) -> Vec<PathBuf> {
        let mounts = rcluster_agent::host::cgroup_mounts().expect("cgroups");
        mounts.iter().map(|mount| mount.path.join(path.trim_start_matches('/'))).filter(|path| path.exists()).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop((process.kill(), process.wait()));
        }
        if std::thread::panicking() {
            #[allow(clippy::print_stderr, reason = "the one place where a failing test shows why")]
            {
                eprintln!("the agent's log:\n{}", self.log());
            }
        }
        self.remove_containers();
        let top = self.cgroup.rsplit_once('/').expect("two parts").0.to_owned();
        for path in self.cgroups(&top) {
            remove_cgroups(&path);
        }
    }
}

impl Agent {
    fn remove_containers(&self) {
        let ids = fs::read_dir(self.run().join("tasks")).into_iter().flatten().flatten().map(|entry| entry.path());
        for task in ids {
            for bundle in fs::read_dir(&task).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let Some(name) = bundle.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("c-")) else {
                    continue;
                };
                let id = format!("{}-{name}", task.file_name().expect("a name").to_string_lossy());
                // Others by the names that their programs have.
                let others = fs::read_dir(self.run().join("runtimes")).into_iter().flatten().flatten();
                let others = others.map(|entry| (PathBuf::from(entry.file_name()), entry.path()));
                for (program, root) in others.chain([(runtime().to_owned(), self.run().join("runtime"))]) {
                    let mut command = Command::new(program);
                    command.arg("--root").arg(root).args(["delete", "--force", &id]);
                    drop(command.stderr(Stdio::null()).status());
                }
                drop(unmount_all(&bundle.join("rootfs")));
            }
        }
    }
}

fn remove_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    drop(fs::remove_dir(path));
}

/// A task of one container that runs this script.
pub fn shell_task(id: &str, script: &str) -> Task {
    task(id, vec![shell("web", script)])
}

/// A container that runs this script.
pub fn shell(name: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.into(),
        image: "shell:1".into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        ..ContainerSpec::default()
    }
}

/// The task with an address on a network.
pub fn on_network(mut task: Task) -> Task {
    if let Some(template) = &mut task.template {
        template.networks = vec![NetworkAttachment { network: "front".into(), aliases: Vec::new(), ip: String::new() }];
    }
    let network_id = "0123456789abcdef".into();
    task.networks =
        vec![TaskNetwork { network_id, network: "front".into(), ip: "10.128.0.2".into(), ip6: String::new(), aliases: Vec::new() }];
    task
}

/// A task that was assigned to the node and not seen there yet.
pub fn task(id: &str, containers: Vec<ContainerSpec>) -> Task {
    Task {
        meta: Some(Meta { id: id.into(), version: 1, ..Meta::default() }),
        service_id: "0123456789service".get(..16).expect("sixteen").into(),
        service: "web".into(),
        slot: 1,
        name: "web.1".into(),
        template: Some(TaskTemplate { containers, stop_grace_ms: 10_000, ..TaskTemplate::default() }),
        spec_version: 1,
        desired_state: TaskState::Running.into(),
        node_id: "0123456789abcdef".into(),
        node: "n1".into(),
        status: Some(TaskStatus { state: TaskState::Assigned.into(), ..TaskStatus::default() }),
        ..Task::default()
    }
}

pub fn memory_limit(bytes: u64) -> Option<Resources> {
    Some(Resources { memory_bytes: bytes, ..Resources::default() })
}

/// Looks again until it fits or the time is up.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended and waits for whoever reaps it.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn gone(error: rustix::io::Errno) -> rustix::io::Result<()> {
    if error == rustix::io::Errno::SRCH { Ok(()) } else { Err(error) }
}
