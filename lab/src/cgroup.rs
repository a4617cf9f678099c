//! A host's cgroups in every hierarchy of this machine: v1 controllers, the unified one, or both.
//!
//! Source: Linux Documentation/admin-guide/cgroup-v1/{cgroups,cpusets,freezer-subsystem}.rst and cgroup-v2.rst.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::LabError;

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

    /// Moves a process into a cgroup; 0 is the caller.
    pub fn join(&self, path: &str, pid: i32) -> Result<(), LabError> {
        for hierarchy in &self.hierarchies {
            let file = hierarchy.mount.join(path).join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(LabError::io(format!("join {}", file.display())))?;
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
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
                Ok(())
            })?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// The names of the cgroups directly below one.
    pub fn children(&self, path: &str) -> Vec<String> {
        let dir = self.hierarchies.first().map(|hierarchy| hierarchy.mount.join(path));
        let entries = dir.and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Stops, or lets go on, everything in a cgroup and below.
    pub fn freeze(&self, path: &str, freeze: bool) -> Result<(), LabError> {
        let v1 = self.hierarchies.iter().find(|hierarchy| hierarchy.has("freezer"));
        let (file, word, report) = match v1 {
            Some(freezer) => {
                let file = freezer.mount.join(path).join("freezer.state");
                (file.clone(), if freeze { "FROZEN" } else { "THAWED" }, file)
            }
            None => {
                let unified = self.hierarchies.iter().find(|hierarchy| hierarchy.unified);
                let dir = unified.ok_or_else(|| LabError::Refused("no freezer is mounted".to_owned()))?.mount.join(path);
                (dir.join("cgroup.freeze"), if freeze { "1" } else { "0" }, dir.join("cgroup.events"))
            }
        };
        fs::write(&file, word).map_err(LabError::io(format!("write {}", file.display())))?;
        let wanted = if v1.is_some() { word.to_owned() } else { format!("frozen {word}") };
        settle(&format!("{} to say {wanted}", report.display()), || {
            let text = fs::read_to_string(&report).map_err(LabError::io(format!("read {}", report.display())))?;
            Ok(text.lines().any(|line| line == wanted))
        })
    }

    /// Ends everything in a cgroup and below.
    pub fn kill(&self, path: &str) -> Result<(), LabError> {
        settle(&format!("the processes of cgroup {path} to end"), || {
            let pids = self.processes(path)?;
            for pid in &pids {
                // It may have ended since it was listed.
                let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
            }
            Ok(pids.is_empty())
        })
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
                        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => all_gone = false,
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
    let has = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = has.split_whitespace().map(|controller| format!("+{controller}")).collect();
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
    use super::*;

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
