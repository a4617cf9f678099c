//! A lab of stand-ins, and what there is of it on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcluster_lab::{Lab, LabError, LabStatus, UpOptions, clean_leftovers, exec, up};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// A place for one test's labs; whatever happens, they go with it.
pub struct Bench {
    dir: TempDir,
    name: String,
    before: BTreeSet<String>,
}

impl Bench {
    pub fn new(name: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let own = std::env::current_exe().unwrap();
        for program in ["rcluster-manager", "rcluster-agent", "rcluster-netd", "rcluster-runtime"] {
            symlink(&own, dir.path().join(program)).unwrap();
        }
        Self { dir, name: format!("{name}-{}", std::process::id()), before: around() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn bin_dir(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    pub fn image(&self, content: &str) -> PathBuf {
        let path = self.dir.path().join("image");
        fs::write(&path, content).unwrap();
        path
    }

    pub fn options(&self, managers: usize, agents: usize) -> UpOptions {
        let bin_dir = Some(self.bin_dir());
        UpOptions {
            name: self.name.clone(),
            managers,
            agents,
            images: Vec::new(),
            labels: Vec::new(),
            certificate_ttl: None,
            owner_pid: None,
            bin_dir,
        }
    }

    pub fn up(&self, managers: usize, agents: usize) -> Lab {
        up(self.options(managers, agents)).unwrap().keep().unwrap()
    }

    /// Fails with what is left of the lab, if that does not go soon.
    pub fn check_nothing_left(&self) {
        eventually("nothing is left", || {
            let left: Vec<String> = of_lab(&self.name).into_iter().chain(around().difference(&self.before).cloned()).collect();
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(lab) = Lab::open(&self.name) {
            lab.down().unwrap();
        }
        clean_leftovers(&self.name).unwrap();
    }
}

/// Asks until it is so; fails with the last reason why not.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) if started.elapsed() > SOON => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// What belongs to a lab: its processes, cgroups, directories.
pub fn of_lab(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
        if cgroup.contains(&format!("/rcluster-lab-{name}/")) || line.contains(&format!("lab-part supervisor {name}")) {
            found.insert(format!("process {} {line}", entry.file_name().to_string_lossy()));
        }
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]) {
        let cgroup = hierarchy.join(format!("rcluster-lab-{name}"));
        if cgroup.exists() {
            found.insert(cgroup.display().to_string());
        }
    }
    for dir in ["/run/rcluster/labs", "/var/lib/rcluster/labs"].map(|root| Path::new(root).join(name)) {
        if dir.exists() {
            found.insert(dir.display().to_string());
        }
    }
    found
}

/// Mounts and links of this process's own namespaces, which no lab may touch.
fn around() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let links = fs::read_to_string("/proc/self/net/dev").unwrap();
    let links = links.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| format!("link {}", name.trim()));
    mounts.lines().map(|line| line.split(' ').nth(4).unwrap_or_default()).map(|path| format!("mount {path}")).chain(links).collect()
}

/// The network namespaces that processes are in.
pub fn net_namespaces() -> BTreeSet<PathBuf> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read_link(entry.path().join("ns/net")).ok()).collect()
}

/// Runs this program's `command` on a host; its exit code.
pub fn on(lab: &Lab, host: &str, command: &[&str]) -> i32 {
    in_task(lab, host, None, command).unwrap()
}

/// Waits until `ping` or `tcp` from a host has an echo.
pub fn reaches(lab: &Lab, host: &str, kind: &str, to: &str) {
    eventually(&format!("{kind} from {host} reaches {to}"), || match on(lab, host, &[kind, to]) {
        0 => Ok(()),
        code => Err(format!("it ends with {code}")),
    });
}

pub fn in_task(lab: &Lab, host: &str, task: Option<&str>, command: &[&str]) -> Result<i32, LabError> {
    let program = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    let words: Vec<String> = std::iter::once(program).chain(command.iter().map(|word| (*word).to_owned())).collect();
    exec(lab, host, task, None, &words)
}

/// How long a daemon has been counting, by its disk.
pub fn beats(lab: &Lab, host: &str, daemon: &str) -> Option<u64> {
    let path = format!("/var/lib/rcluster/labs/{}/{host}/{daemon}/beats", lab.name());
    fs::read_to_string(path).ok()?.parse().ok()
}

/// Waits until a daemon counts on.
pub fn wait_alive(lab: &Lab, host: &str, daemon: &str) {
    let first = beats(lab, host, daemon);
    eventually(&format!("{daemon} of {host} counts"), || {
        let now = beats(lab, host, daemon);
        if now.is_some() && now != first { Ok(()) } else { Err(format!("it stands at {now:?}: {:?}", lab.logs(host, None))) }
    });
}

pub fn host_pid(status: &LabStatus, host: &str) -> i32 {
    status.hosts.iter().find(|known| known.name == host).unwrap().init_pid
}
