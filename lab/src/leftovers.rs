//! What no kernel removes: cgroups and directories, all named after the lab. And the lock on that name, which the kernel does release.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cgroup::Cgroups;
use crate::core::plan::{cgroup_root, check_name, run_root, state_root};
use crate::error::LabError;

/// Makes a lab's directory in memory and locks it: who holds this owns the lab's name. `None` when another process holds it.
pub fn take_name(lab: &str) -> Result<Option<Flock<File>>, LabError> {
    let dir = run_root(lab);
    let failed = || format!("lock {}", dir.display());
    loop {
        match DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            // Another lab's end may just have removed the directory above.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.map_err(LabError::io(format!("make {}", dir.display())))?,
        }
        let file = match File::open(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.map_err(LabError::io(failed()))?,
        };
        let inode = file.metadata().map_err(LabError::io(failed()))?.ino();
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(LabError::kernel(failed())(errno)),
        };
        // The one who held it before may have removed it in the meantime.
        if fs::metadata(&dir).is_ok_and(|now| now.ino() == inode) {
            return Ok(Some(lock));
        }
    }
}

/// Whether something is left of a lab of this name, or it is up.
pub fn has_leftovers(lab: &str) -> bool {
    run_root(lab).exists() || state_root(lab).exists() || Cgroups::find().is_ok_and(|cgroups| cgroups.exists(&cgroup_root(lab)))
}

/// Removes what a lab whose supervisor was killed has left; refuses when it has a supervisor.
pub fn clean_leftovers(lab: &str) -> Result<(), LabError> {
    check_name(lab)?;
    match take_name(lab)? {
        Some(_lock) => remove(lab, &Cgroups::find()?),
        None => Err(LabError::Refused(format!("lab {lab} is up, or comes up just now"))),
    }
}

/// Removes everything; to be called by who holds the name. Goes on after an error and returns all of them.
pub fn remove(lab: &str, cgroups: &Cgroups) -> Result<(), LabError> {
    let root = cgroup_root(lab);
    let steps = [cgroups.kill(&root), cgroups.remove(&root), remove_dir(&state_root(lab)), remove_dir(&run_root(lab))];
    let failures: Vec<String> = steps.into_iter().filter_map(|step| step.err().map(|error| error.with_causes())).collect();
    if failures.is_empty() { Ok(()) } else { Err(LabError::Refused(format!("left of lab {lab}: {}", failures.join("; ")))) }
}

/// Removes a lab's directory, and those above it that hold labs when it was the last.
fn remove_dir(dir: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(LabError::io(format!("remove {}", dir.display()))(error)),
        Ok(()) | Err(_) => {}
    }
    for above in dir.ancestors().skip(1).take(2) {
        match fs::remove_dir(above) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => break,
            Err(error) => return Err(LabError::io(format!("remove {}", above.display()))(error)),
        }
    }
    Ok(())
}
