//! containerd and Docker on directories, sockets and cgroups of their own, and scripts that must print the same under runc and under ours.
//! Whatever they started is ended and removed when a test ends, however it ends. No system service is touched.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::{copy_program, eventually, tool};

const OURS: &str = env!("CARGO_BIN_EXE_rcluster-runtime");

/// One container runtime under an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Runc,
    Ours,
}

/// A script for a shell on the host, and its name.
pub struct Case {
    pub name: &'static str,
    pub script: &'static str,
}

/// Says on the way why a test tests nothing here; `true` when all programs are installed.
pub fn installed(programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs.iter().filter(|name| tool(name).is_none()).collect();
    if !missing.is_empty() {
        std::io::stderr().write_all(format!("SKIPPED: not installed: {missing:?}: run `make tools`\n").as_bytes()).unwrap();
    }
    missing.is_empty()
}

/// A running containerd.
pub struct Containerd {
    dir: TempDir,
    /// Of all its containers; no other test's.
    pub cgroup: String,
    daemon: Option<Daemon>,
}

impl Containerd {
    pub fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("rcluster-engine-").tempdir().unwrap();
        let cgroup = format!("rcluster-engine-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut containerd = Self { dir, cgroup, daemon: None };
        let at = |name: &str| containerd.path(name).to_str().unwrap().to_owned();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("containerd.sock"),
            at("containerd.sock.ttrpc"),
        );
        fs::write(containerd.path("config.toml"), config).unwrap();
        // What is mounted goes with the namespace, and with these so do the files that lie in places of all engines.
        let hide = "mkdir -p /etc/docker /run/containerd && mount --make-rshared / && mount -t tmpfs engine /etc/docker && mount -t tmpfs engine /run/containerd";
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &format!("{hide} && exec containerd --config {}", at("config.toml")),
        ]);
        containerd.daemon = Some(Daemon::start(command, &containerd.path("containerd.log")));
        let answers = || containerd.ctr(&["version"]).status.success().then_some(());
        eventually("containerd answers", answers);
        containerd
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn ctr(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(tool("ctr").unwrap());
        command.arg("--address").arg(self.path("containerd.sock")).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Shims that still run for it, with their command lines.
    fn shims(&self) -> Vec<(i32, String)> {
        processes().filter(|(_, line)| line.contains("containerd-shim") && line.contains(self.dir.path().to_str().unwrap())).collect()
    }

    /// What a test must have removed by itself before it ends.
    pub fn assert_nothing_is_left(&self) {
        eventually("the shims are gone", || self.shims().is_empty().then_some(()));
        let cgroups: Vec<PathBuf> = self.cgroups().into_iter().flat_map(|parent| children(&parent)).collect();
        assert_eq!(cgroups, Vec::<PathBuf>::new(), "cgroups are left");
        let mounts = self.mounts();
        assert!(!mounts.iter().any(|mount| mount.contains("rootfs") || mount.contains("merged") || mount.contains("/shm")), "{mounts:?}");
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
        points.map(|point| Path::new(point).join(&self.cgroup)).filter(|path| path.exists()).collect()
    }

    /// Where something is mounted below its directory, in its own mount namespace.
    fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| Path::new(point).starts_with(self.dir.path())).map(str::to_owned).collect()
    }

    /// A command in its mount namespace, where its sockets and FIFOs are, that is ended when it takes too long.
    pub fn command(&self, seconds: u32) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--mount=/proc/{}/ns/mnt", self.pid()), "timeout", &seconds.to_string()]);
        command
    }

    fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("it runs until it is dropped").0.id()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.shims().iter().for_each(|(pid, _)| kill(*pid));
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        self.daemon.take();
    }
}

/// A running dockerd above a containerd of its own, with an image `bb` of busybox.
pub struct Docker {
    // Ended first.
    daemon: Option<Daemon>,
    pub containerd: Containerd,
}

impl Docker {
    pub fn start() -> Self {
        let mut docker = Self { daemon: None, containerd: Containerd::start() };
        docker.daemon = Some(docker.dockerd());
        docker.wait();
        let (_, code) = docker.shell(
            Runtime::Ours,
            "image",
            &format!("tar -C {} -c . | $D import -c 'ENV PATH=/bin' - bb", image(&docker.path("image")).display()),
        );
        assert_eq!(code, 0, "{}", fs::read_to_string(docker.path("dockerd.log")).unwrap());
        docker
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.containerd.path(name)
    }

    /// As by a crash of the daemon, or an upgrade.
    pub fn kill_and_start(&mut self) {
        self.daemon.take().unwrap().kill();
        let _ = fs::remove_file(self.path("docker.pid"));
        self.daemon = Some(self.dockerd());
        self.wait();
    }

    fn dockerd(&self) -> Daemon {
        let at = |name: &str| self.path(name).to_str().unwrap().to_owned();
        fs::write(self.path("daemon.json"), "{}").unwrap();
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.containerd.pid()));
        command.args(["dockerd", "--config-file", &at("daemon.json"), "--pidfile", &at("docker.pid")]);
        command.args(["--data-root", &at("docker"), "--exec-root", &at("exec"), "--containerd", &at("containerd.sock")]);
        command.args(["--host", &format!("unix://{}", at("docker.sock")), "--storage-driver", "overlay2", "--live-restore"]);
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]);
        command.args(["--add-runtime", &format!("ours={OURS}"), "--cgroup-parent", &format!("/{}", self.containerd.cgroup)]);
        Daemon::start(command, &self.path("dockerd.log"))
    }

    fn wait(&self) {
        let log = || fs::read_to_string(self.path("dockerd.log")).unwrap_or_default();
        let answers = || {
            assert!(!log().contains("failed to start daemon"), "{}", log());
            (self.shell(Runtime::Ours, "wait", "$D version").1 == 0).then_some(())
        };
        eventually("dockerd answers", answers);
    }

    /// A script's output and exit code. `$D` is docker, `$R` run with the runtime, `$N` a name of the script's own, `$T` a directory.
    pub fn shell(&self, runtime: Runtime, name: &str, script: &str) -> (String, i32) {
        let (option, short) = match runtime {
            Runtime::Runc => ("runc", "r"),
            Runtime::Ours => ("ours", "o"),
        };
        let docker = format!("/usr/bin/docker -H unix://{}", self.path("docker.sock").display());
        let name = format!("{}-{short}", name.replace(' ', "-"));
        let scratch = self.path("scratch").join(&name);
        fs::create_dir_all(&scratch).unwrap();
        let mut command = Command::new("timeout");
        command.args(["300", "sh"]);
        command
            .env("R", format!("{docker} run --runtime {option} --network none"))
            .env("C", format!("{docker} create --runtime {option} --network none"));
        command.env("D", docker).env("DOCKER_CONFIG", self.path("client")).env("N", &name).env("T", &scratch).env("RUNTIME", option);
        run_shell(command, script, &[(name.as_str(), "NAME"), (scratch.to_str().unwrap(), "SCRATCH")])
    }

    /// Runs every script under both runtimes; all that differ are told.
    pub fn compare(&self, cases: &[Case]) {
        compare(cases, |runtime, case| self.shell(runtime, case.name, case.script));
    }

    /// What a test must have removed by itself before it ends.
    pub fn assert_nothing_is_left(&self) {
        let (left, _) = self.shell(Runtime::Ours, "left", "$D ps -a --format '{{.Names}} {{.Status}}'");
        assert_eq!(left, "", "containers are left");
        self.containerd.assert_nothing_is_left();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Containers before their daemons: what runs is found by its cgroup.
        for cgroup in self.containerd.cgroups() {
            remove_cgroup(&cgroup);
        }
        self.daemon.take();
    }
}

/// Runs every script under both; all that differ are told.
pub fn compare(cases: &[Case], run: impl Fn(Runtime, &Case) -> (String, i32) + Sync) {
    let told = |case: &Case| {
        let (theirs, ours) = (run(Runtime::Runc, case), run(Runtime::Ours, case));
        (theirs != ours || theirs.0.is_empty()).then(|| difference(case.name, &theirs, &ours))
    };
    let next = AtomicU32::new(0);
    let take = || cases.get(next.fetch_add(1, Ordering::Relaxed) as usize);
    let worker = || std::iter::from_fn(take).filter_map(told).collect::<Vec<_>>();
    let differences: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn difference(name: &str, theirs: &(String, i32), ours: &(String, i32)) -> String {
    let mut text = format!("== {name}: runc ended with {}, ours with {}\n", theirs.1, ours.1);
    if theirs == ours {
        text.push_str("  nothing was compared: nothing was printed\n");
    }
    let (theirs, ours): (Vec<&str>, Vec<&str>) = (theirs.0.lines().collect(), ours.0.lines().collect());
    let ordered_alike = theirs.iter().any(|line| !ours.contains(line)) || ours.iter().any(|line| !theirs.contains(line));
    for (who, lines, others) in [("runc", &theirs, &ours), ("ours", &ours, &theirs)] {
        for line in lines.iter().filter(|line| !ordered_alike || !others.contains(line)) {
            text.push_str(&format!("  {who}: {line}\n"));
        }
    }
    text
}

/// What a script printed, then its errors, which come on a stream of their own, without what differs from run to run.
pub fn run_shell(mut command: Command, script: &str, replaced: &[(&str, &str)]) -> (String, i32) {
    let output = command.args(["-c", script]).stdin(Stdio::null()).output().unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in String::from_utf8_lossy(&output.stderr).lines().filter(|line| !line.starts_with("time=")) {
        text.push_str(&format!("error: {line}\n"));
    }
    text = text.replace('\r', "");
    for (from, to) in replaced {
        text = text.replace(from, to);
    }
    (hide_ids(&text).trim_end().to_owned(), output.status.code().unwrap_or(-1))
}

/// Ids of containers, images and the like.
fn hide_ids(text: &str) -> String {
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        if matches!(word, 12 | 64) && rest[..word].chars().all(is_hex) {
            out.push_str("ID");
        } else {
            out.push_str(&rest[..word]);
        }
        let separator = rest[word..].chars().next().map_or(0, char::len_utf8);
        out.push_str(&rest[word..word + separator]);
        rest = &rest[word + separator..];
    }
    out
}

/// The files of an image: busybox with all its applets and two users.
pub fn image(dir: &Path) -> PathBuf {
    for name in ["bin", "etc", "tmp", "root", "data", "work"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::set_permissions(dir.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    let busybox = tool("busybox").expect("busybox-static is installed: make tools");
    copy_program(&busybox, &dir.join("bin/busybox"));
    let list = Command::new(busybox).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(list).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/tmp:/bin/sh\n").unwrap();
    fs::write(dir.join("etc/group"), "root:x:0:\nuser:x:1001:\nextra:x:2000:user\n").unwrap();
    fs::write(dir.join("data/file"), "of the image\n").unwrap();
    dir.to_owned()
}

/// A process that is ended with its owner.
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command, log: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let errors = log.try_clone().unwrap();
        Self(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process(Pid::from_child(&self.0), Signal::TERM);
            let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while matches!(self.0.try_wait(), Ok(None)) && std::time::Instant::now() < patience {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn processes() -> impl Iterator<Item = (i32, String)> {
    fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// With all that runs in it, and all below.
fn remove_cgroup(cgroup: &Path) {
    for below in children(cgroup) {
        remove_cgroup(&below);
    }
    let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while fs::remove_dir(cgroup).is_err() && cgroup.exists() && std::time::Instant::now() < patience {
        let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        members.lines().filter_map(|pid| pid.parse().ok()).for_each(kill);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
