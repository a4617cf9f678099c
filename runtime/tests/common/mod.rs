//! A bundle of busybox in a temporary directory, and calls of the real binary; everything is removed when a test ends, however it ends.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod client;
pub mod engines;
pub mod host_mount;
pub mod monitored;
pub mod own;
pub mod probe;
pub mod terminals;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const BUSYBOX: &str = "/bin/busybox";
const DEADLINE: Duration = Duration::from_secs(60);

/// A bundle, a state root and a container id of its own.
pub struct Bundle {
    pub dir: TempDir,
    pub id: String,
    pub config: Value,
    program: PathBuf,
}

impl Bundle {
    /// A container that runs a shell script, with the configuration of `spec`.
    pub fn new(script: &str) -> Self {
        assert!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: apt-get install busybox-static");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("rt-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        copy_program(Path::new(BUSYBOX), &bin.join("busybox"));
        for applet in [
            "sh", "true", "sleep", "cat", "ls", "echo", "id", "mount", "hostname", "env", "grep", "head", "dd", "tail", "stat", "readlink",
            "mkdir", "touch", "wc", "sort", "kill", "mknod", "pwd", "umask",
        ] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        let mut bundle = Self { dir, id, config: Value::Null, program: env!("CARGO_BIN_EXE_rcluster-runtime").into() };
        bundle.ok(&["spec", "--bundle", bundle.path("").to_str().unwrap()]);
        bundle.config = serde_json::from_slice(&fs::read(bundle.path("config.json")).unwrap()).unwrap();
        bundle.widen();
        bundle.config["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
        bundle.script(script);
        bundle
    }

    /// Calls a copy of the program from now on, for what could damage it.
    pub fn copy_program(&mut self) -> PathBuf {
        let copy = self.path("runtime");
        copy_program(&self.program, &copy);
        self.program.clone_from(&copy);
        copy
    }

    /// What `spec` writes is narrow and asks for a terminal: tests have none, and look at what engines' containers may do.
    pub fn widen(&mut self) {
        let may = [
            "AUDIT_WRITE",
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "MKNOD",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SETFCAP",
            "SETGID",
            "SETPCAP",
            "SETUID",
            "SYS_CHROOT",
        ]
        .map(|name| format!("CAP_{name}"));
        self.set("/process/terminal", json!(false));
        self.set("/process/capabilities", json!({"bounding": may, "effective": may, "permitted": may}));
        let namespaces = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        if namespaces.iter().all(|namespace| namespace["type"] != "cgroup") {
            namespaces.push(json!({"type": "cgroup"}));
        }
    }

    pub fn script(&mut self, script: &str) {
        self.config["process"]["args"] = json!(["sh", "-c", script]);
    }

    /// Sets a value at a JSON pointer; missing objects are made.
    pub fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        let (parents, last) = pointer.rsplit_once('/').unwrap();
        let mut at = &mut self.config;
        for key in parents.split('/').skip(1) {
            at = at.as_object_mut().unwrap().entry(key).or_insert_with(|| json!({}));
        }
        at[last] = value;
        self
    }

    pub fn push(&mut self, pointer: &str, value: Value) -> &mut Self {
        self.config.pointer_mut(pointer).unwrap().as_array_mut().unwrap().push(value);
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn rootfs(&self, name: &str) -> PathBuf {
        self.path("rootfs").join(name)
    }

    /// Gives the image to a user of the host.
    pub fn give_rootfs(&self, uid: u32) {
        fn give(path: &Path, uid: u32) {
            std::os::unix::fs::lchown(path, Some(uid), Some(uid)).unwrap();
            if path.is_dir() && !path.is_symlink() {
                fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), uid));
            }
        }
        give(&self.path("rootfs"), uid);
    }

    /// Any call, without the configuration being written.
    pub fn call(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.path("state")).args(args);
        command
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error of a call that must fail.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(!output.status.success(), "{args:?} did not fail");
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn write(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
    }

    /// `run`: what it printed on both outputs, and its exit code.
    pub fn run(&self) -> (String, String, i32) {
        self.write();
        let output = self.call(&["run", "--bundle", self.path("").to_str().unwrap(), &self.id]);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        (text(output.stdout), text(output.stderr), output.status.code().unwrap())
    }

    /// What a container printed that must end well.
    pub fn prints(&self) -> String {
        let (stdout, stderr, code) = self.run();
        assert_eq!(code, 0, "{stdout}\n{stderr}");
        stdout
    }

    /// `create`; its error, if it fails, and then nothing may be left.
    pub fn try_create(&self) -> Result<(), String> {
        let created = self.create_with_error();
        if created.is_err() {
            self.assert_nothing_is_left();
        }
        created
    }

    /// `create`, its output thrown away: a pipe would be held by the container.
    pub fn create(&self) {
        self.create_with_error().unwrap_or_else(|error| panic!("{error}"));
    }

    fn create_with_error(&self) -> Result<(), String> {
        self.write();
        let error = fs::File::create(self.path("create.err")).unwrap();
        let mut command = self.command(&["create", "--bundle", self.path("").to_str().unwrap(), &self.id]);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(error).status().unwrap();
        if status.success() { Ok(()) } else { Err(fs::read_to_string(self.path("create.err")).unwrap()) }
    }

    /// The error of a `create` that must fail and must leave nothing.
    pub fn create_fails(&self) -> String {
        // Not by a pipe: a container that comes into being all the same would hold it, and the test would wait for ever.
        let Err(error) = self.create_with_error() else { panic!("it was created") };
        self.assert_nothing_is_left();
        error
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).unwrap()
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub fn pid(&self) -> i32 {
        self.state()["pid"].as_i64().unwrap().try_into().unwrap()
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let own = |entry: &Path| entry.join(&self.id);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
        points.map(|point| own(Path::new(point))).filter(|path| path.exists()).collect()
    }

    /// The top of the hierarchy of a controller.
    pub fn cgroup_root(&self, controller: &str) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let v1 = |line: &&str| line.split_once(" - cgroup ").is_some_and(|(_, rest)| rest.split([',', ' ']).any(|name| name == controller));
        let line = mounts.lines().find(v1).or_else(|| mounts.lines().find(|line| line.contains(" - cgroup2 ")));
        line.and_then(|line| line.split(' ').nth(4)).unwrap().into()
    }

    /// The container's cgroup that has a file.
    pub fn cgroup_file(&self, names: &[&str]) -> String {
        let found = self.cgroups().into_iter().flat_map(|group| names.iter().map(move |name| group.join(name)));
        let path = found.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {names:?}"));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    pub fn assert_nothing_is_left(&self) {
        assert!(!self.path("state").join(&self.id).exists(), "the state directory is left");
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mounts are left: {mounts}");
        assert_eq!(self.processes(), Vec::<String>::new(), "processes are left");
    }

    /// Whether no state, cgroup or process is left.
    pub fn nothing_is_left(&self) -> bool {
        !self.path("state").join(&self.id).exists() && self.cgroups().is_empty() && self.processes().is_empty()
    }

    /// Processes that were started for this bundle and have not exec'ed, or have the bundle's root.
    fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let own = entry.file_name().to_str() == Some(&std::process::id().to_string());
            if !own && line.contains(self.dir.path().to_str().unwrap()) {
                found.push(line);
            }
        }
        found
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // A copy may have been damaged.
        self.program = env!("CARGO_BIN_EXE_rcluster-runtime").into();
        let output = self.call(&["delete", "--force", &self.id]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "clean up: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// Not by this process: one that another test forks meanwhile would have it open for writing, and it could not be executed.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// A program that can be executed at once, see [`copy_program`].
pub fn write_program(path: &Path, content: impl AsRef<[u8]>) {
    let aside = tempfile::NamedTempFile::new().unwrap();
    fs::write(aside.path(), content).unwrap();
    copy_program(aside.path(), path);
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Waits until a value is there, but not for ever.
pub fn eventually<T>(what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = value() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where two values differ, property by property.
pub fn differences(ours: &Value, theirs: &Value) -> Vec<String> {
    fn compare(ours: &Value, theirs: &Value, at: &str, found: &mut Vec<String>) {
        match (ours, theirs) {
            (Value::Object(ours), Value::Object(theirs)) => {
                let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
                for name in names {
                    let [ours, theirs] = [ours, theirs].map(|fields| fields.get(name).unwrap_or(&Value::Null));
                    compare(ours, theirs, &format!("{at}/{name}"), found);
                }
            }
            (ours, theirs) if ours != theirs => found.push(format!("{at}: {ours}, not {theirs}")),
            _ => {}
        }
    }
    let mut found = Vec::new();
    compare(ours, theirs, "", &mut found);
    found
}

pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

pub fn namespace(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

/// Whether a controller is mounted here, in version 1.
pub fn cgroup_v1(controller: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split_once(" - cgroup ").is_some_and(|(_, rest)| rest.split([',', ' ']).any(|name| name == controller)))
}

/// Whether version 2 has a controller here.
pub fn cgroup_v2(controller: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let unified = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let controllers = unified.map(|at| fs::read_to_string(Path::new(at).join("cgroup.controllers")).unwrap()).unwrap_or_default();
    controllers.split_whitespace().any(|name| name == controller)
}

/// The libraries that a program is linked with, and what loads them; none for a static one.
pub fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

pub fn tool(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}
