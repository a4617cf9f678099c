//! What must be there before anything is touched; everything that is missing is said at once.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::LabError;
use crate::cgroup::Cgroups;

/// The programs that a lab runs.
const PROGRAMS: [&str; 4] = ["rcluster-manager", "rcluster-agent", "rcluster-netd", "rcluster-runtime"];
/// File systems that hosts and containers need.
const FILE_SYSTEMS: [&str; 3] = ["overlay", "tmpfs", "proc"];
const NAMESPACES: [&str; 6] = ["pid", "mnt", "net", "uts", "ipc", "cgroup"];

/// Where the programs are: `RCLUSTER_BIN_DIR`, else beside the running one.
pub fn bin_dir(from_environment: Option<PathBuf>) -> Result<PathBuf, LabError> {
    if let Some(dir) = from_environment {
        return Ok(dir);
    }
    let own = std::env::current_exe().map_err(LabError::io("find this program"))?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_path_buf())
}

/// Checks the machine.
pub fn check(bin_dir: &Path, images: &[PathBuf]) -> Result<(), LabError> {
    if !geteuid().is_root() {
        return Err(LabError::Refused("a lab makes namespaces and cgroups and needs root; run it with sudo".to_owned()));
    }
    let mut missing = Vec::new();
    for program in PROGRAMS {
        if !bin_dir.join(program).is_file() {
            missing.push(format!(
                "{program} is not in {} (`make build` puts it there; RCLUSTER_BIN_DIR says where to look)",
                bin_dir.display()
            ));
        }
    }
    for image in images.iter().filter(|image| !image.exists()) {
        missing.push(format!("there is no image {}", image.display()));
    }
    let known = fs::read_to_string("/proc/filesystems").map_err(LabError::io("read /proc/filesystems"))?;
    for name in FILE_SYSTEMS {
        if !known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
            missing.push(format!("the kernel has no {name} file system (try `modprobe {name}`)"));
        }
    }
    for name in NAMESPACES {
        if !Path::new("/proc/self/ns").join(name).exists() {
            missing.push(format!("the kernel has no {name} namespaces"));
        }
    }
    if let Err(error) = Cgroups::find() {
        missing.push(error.to_string());
    }
    if missing.is_empty() { Ok(()) } else { Err(LabError::Refused(missing.join("\n"))) }
}
