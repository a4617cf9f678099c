//! A host's cgroups in every hierarchy of this machine: v1 controllers, the unified one, or both.
//!
//! Source: Linux Documentation/admin-guide/cgroup-v1/{cgroups,cpusets,freezer-subsystem}.rst and cgroup-v2.rst.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::LabError;

/// Longest wait for dying processes to leave a cgroup, and for a freezer.
const SETTLE_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    unified: bool,
    controllers: String,
}

/// How a hierarchy freezes.
struct Freezer<'a> {
    hierarchy: &'a Hierarchy,
    file: &'static str,
    word: &'static str,
    report: &'static str,
    line: String,
}

/// All mounted hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

/// The hierarchies in a mountinfo (proc_pid_mountinfo(5)).
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let read = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mount = PathBuf::from(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1)?.to_owned();
        match kind {
            "cgroup" => Some(Hierarchy { mount, unified: false, controllers: options }),
            "cgroup2" => Some(Hierarchy { mount, unified: true, controllers: String::new() }),
            _ => None,
        }
    };
    let mut found: Vec<Hierarchy> = Vec::new();
    for hierarchy in mountinfo.lines().filter_map(read) {
        let known = found.iter().any(|other| other.unified == hierarchy.unified && other.controllers == hierarchy.controllers);
        if !known {
            found.push(hierarchy);
        }
    }
    found
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|own| own == controller)
    }
}

impl Cgroups {
    /// The hierarchies as this process sees them.
    pub fn find() -> Result<Self, LabError> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(LabError::io("read /proc/self/mountinfo"))?;
        let hierarchies = hierarchies(&mountinfo);
        if hierarchies.is_empty() {
            return Err(LabError::Refused("no cgroup hierarchy is mounted; mount one under /sys/fs/cgroup".to_owned()));
        }
        Ok(Self { hierarchies })
    }

    /// Makes a cgroup and those above it.
    pub fn make(&self, path: &str) -> Result<(), LabError> {
        for hierarchy in &self.hierarchies {
            let mut dir = hierarchy.mount.clone();
            for part in Path::new(path) {
                if hierarchy.unified {
                    delegate(&dir)?;
                }
                let parent = dir.clone();
                dir.push(part);
                match fs::create_dir(&dir) {
                    Ok(()) => {}
                    // Every v1 cgroup has files of the kernel's names, such as `tasks`: only a directory will do.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => continue,
                    Err(error) => return Err(LabError::io(format!("make cgroup {}", dir.display()))(error)),
                }
                if hierarchy.has("cpuset") {
                    inherit_cpuset(&parent, &dir)?;
                }
            }
        }
        Ok(())
    }

    /// Moves the calling process into a cgroup, in every hierarchy that has it.
    pub fn join(&self, path: &str) -> Result<(), LabError> {
        let there = self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(path)).filter(|dir| dir.exists());
        for dir in there {
            fs::write(dir.join("cgroup.procs"), "0").map_err(LabError::io(format!("join {}", dir.display())))?;
        }
        Ok(())
    }

    /// The processes in a cgroup and those below it.
    pub fn processes(&self, path: &str) -> Result<Vec<i32>, LabError> {
        let mut pids = Vec::new();
        for hierarchy in &self.hierarchies {
            walk(&hierarchy.mount.join(path), &mut |dir| {
                let file = dir.join("cgroup.procs");
                let text = fs::read_to_string(&file).map_err(LabError::io(format!("read {}", file.display())))?;
                // 0 stands for a process that this PID namespace does not see.
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
                Ok(())
            })?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// The names of the cgroups directly below one, in order.
    pub fn children(&self, path: &str) -> Vec<String> {
        let dirs = self.hierarchies.iter().filter_map(|hierarchy| fs::read_dir(hierarchy.mount.join(path)).ok()).flatten().flatten();
        let dirs = dirs.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let names: BTreeSet<String> = dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.into_iter().collect()
    }

    /// Whether a cgroup is there in any hierarchy.
    pub fn exists(&self, path: &str) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.mount.join(path).exists())
    }

    /// The hierarchy that freezes, the word for it, and where it reports with which line.
    fn freezer(&self, on: bool) -> Result<Freezer<'_>, LabError> {
        if let Some(hierarchy) = self.hierarchies.iter().find(|hierarchy| hierarchy.has("freezer")) {
            let word = if on { "FROZEN" } else { "THAWED" };
            return Ok(Freezer { hierarchy, file: "freezer.state", word, report: "freezer.state", line: word.to_owned() });
        }
        let unified = self.hierarchies.iter().find(|hierarchy| hierarchy.unified);
        let hierarchy = unified.ok_or_else(|| LabError::Refused("no cgroup hierarchy that freezes is mounted".to_owned()))?;
        let word = if on { "1" } else { "0" };
        Ok(Freezer { hierarchy, file: "cgroup.freeze", word, report: "cgroup.events", line: format!("frozen {word}") })
    }

    /// Stops, or lets go on, everything in a cgroup and below. Returns when it stands still, or may go on.
    ///
    /// The word is written again until it is so: a v1 freezer stays at FREEZING when a process was in the middle of vfork(2).
    pub fn freeze(&self, path: &str, on: bool) -> Result<(), LabError> {
        let freezer = self.freezer(on)?;
        let dir = freezer.hierarchy.mount.join(path);
        let (file, report) = (dir.join(freezer.file), dir.join(freezer.report));
        settle(&format!("{} to say {}", report.display(), freezer.line), || {
            fs::write(&file, freezer.word).map_err(LabError::io(format!("write {}", file.display())))?;
            let text = fs::read_to_string(&report).map_err(LabError::io(format!("read {}", report.display())))?;
            Ok(text.lines().any(|line| line == freezer.line))
        })
    }

    /// Thaws a cgroup and each one below.
    pub fn thaw_all(&self, path: &str) -> Result<(), LabError> {
        let freezer = self.freezer(false)?;
        walk(&freezer.hierarchy.mount.join(path), &mut |dir| {
            let file = dir.join(freezer.file);
            fs::write(&file, freezer.word).map_err(LabError::io(format!("write {}", file.display())))
        })
    }

    /// Ends everything in a cgroup and below, also what is frozen. Returns when it has ended.
    pub fn kill(&self, path: &str) -> Result<(), LabError> {
        if self.signal(path)? > 0 {
            self.thaw_all(path)?;
        }
        settle(&format!("the processes of cgroup {path} to end"), || {
            let pids = self.processes(path)?;
            for pid in &pids {
                // It may have ended since it was listed.
                let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
            }
            Ok(pids.is_empty())
        })
    }

    /// Sends SIGKILL to everything in a cgroup and below, and returns to how many; what is frozen ends once it is thawed.
    pub fn signal(&self, path: &str) -> Result<usize, LabError> {
        let pids = self.processes(path)?;
        for pid in &pids {
            match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                // It may have ended since it was listed.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(LabError::kernel(format!("kill process {pid}"))(errno)),
            }
        }
        Ok(pids.len())
    }

    /// Removes a cgroup and those below it, once their processes have gone.
    pub fn remove(&self, path: &str) -> Result<(), LabError> {
        for hierarchy in &self.hierarchies {
            let top = hierarchy.mount.join(path);
            settle(&format!("cgroup {} to be empty", top.display()), || {
                let mut all_gone = true;
                walk(&top, &mut |dir| {
                    match fs::remove_dir(dir) {
                        Ok(()) => {}
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => all_gone = false,
                        Err(error) => return Err(LabError::io(format!("remove cgroup {}", dir.display()))(error)),
                    }
                    Ok(())
                })?;
                Ok(all_gone)
            })?;
        }
        Ok(())
    }
}

/// Lets children of a unified cgroup use what it has.
fn delegate(dir: &Path) -> Result<(), LabError> {
    let words = |file: &str| {
        let path = dir.join(file);
        let text = fs::read_to_string(&path).map_err(LabError::io(format!("read {}", path.display())))?;
        Ok::<BTreeSet<String>, LabError>(text.split_whitespace().map(str::to_owned).collect())
    };
    let (has, gives) = (words("cgroup.controllers")?, words("cgroup.subtree_control")?);
    let wanted: Vec<String> = has.difference(&gives).map(|controller| format!("+{controller}")).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let file = dir.join("cgroup.subtree_control");
    fs::write(&file, wanted.join(" ")).map_err(LabError::io(format!("write {}", file.display())))
}

/// A new v1 cpuset is empty and takes no process before it has CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), LabError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = fs::read_to_string(parent.join(file)).map_err(LabError::io(format!("read {}", parent.join(file).display())))?;
        fs::write(dir.join(file), value.trim()).map_err(LabError::io(format!("write {}", dir.join(file).display())))?;
    }
    Ok(())
}

/// Visits a tree of directories, children first; one that is not there has nothing to visit.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path) -> Result<(), LabError>) -> Result<(), LabError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(LabError::io(format!("list {}", dir.display()))(error)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit)?;
        }
    }
    match visit(dir) {
        Err(LabError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Asks until it is so, or for too long.
fn settle(what: &str, mut is_so: impl FnMut() -> Result<bool, LabError>) -> Result<(), LabError> {
    let started = Instant::now();
    while !is_so()? {
        if started.elapsed() > SETTLE_MAX {
            return Err(LabError::Refused(format!("waited {} s in vain for {what}", SETTLE_MAX.as_secs())));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// Processes that start others without end, in a cgroup of their own; all go however the test ends.
    struct Storm {
        cgroups: Cgroups,
        path: String,
        shells: Vec<Child>,
    }

    impl Storm {
        fn new() -> Self {
            let cgroups = Cgroups::find().unwrap();
            let path = format!("rcluster-lab-storm-{}", std::process::id());
            cgroups.make(&path).unwrap();
            let mut storm = Self { cgroups, path, shells: Vec::new() };
            let freezer = storm.cgroups.freezer(true).unwrap();
            let procs = freezer.hierarchy.mount.join(&storm.path).join("cgroup.procs");
            for _ in 0..6 {
                let script = format!("echo 0 > {}; while :; do /bin/true; done", procs.display());
                storm.shells.push(Command::new("sh").args(["-c", &script]).spawn().unwrap());
            }
            storm
        }
    }

    impl Drop for Storm {
        fn drop(&mut self) {
            for shell in &mut self.shells {
                shell.kill().unwrap();
            }
            self.cgroups.thaw_all(&self.path).unwrap();
            for shell in &mut self.shells {
                shell.wait().unwrap();
            }
            self.cgroups.kill(&self.path).unwrap();
            self.cgroups.remove(&self.path).unwrap();
        }
    }

    #[test]
    fn what_starts_processes_all_the_time_is_frozen() {
        let storm = Storm::new();
        for _ in 0..200 {
            storm.cgroups.freeze(&storm.path, true).unwrap();
            storm.cgroups.freeze(&storm.path, false).unwrap();
            thread::sleep(Duration::from_millis(3));
        }
    }

    #[test]
    fn hierarchies_are_read_from_mountinfo() {
        let text = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    31 30 0:27 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
                    33 30 0:27 / /mnt/again rw,relatime - cgroup cgroup rw,cpuset\n\
                    32 30 0:28 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n";
        let found = hierarchies(text);
        let mounts: Vec<_> = found.iter().map(|hierarchy| hierarchy.mount.to_string_lossy().into_owned()).collect();
        assert_eq!(mounts, ["/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/unified"]);
        assert!(found[0].has("cpuset") && found[1].unified);
    }
}
