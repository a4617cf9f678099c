//! What is done on this host alone, by its own `rcluster-manager`: `cluster init|join|restore|recover`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::{env, io};

use crate::config;
use crate::error::CliError;

const PROGRAM: &str = "rcluster-manager";

/// Where the program may be: where it was said to be, beside this one, in the search path.
fn places() -> Vec<PathBuf> {
    let beside = env::current_exe().ok().and_then(|own| own.parent().map(PathBuf::from));
    let path = env::var_os("PATH").unwrap_or_default();
    config::bin_dir().into_iter().chain(beside).chain(env::split_paths(&path)).collect()
}

/// Becomes `rcluster-manager VERB FLAGS`.
pub fn run(verb: &str, flags: &[OsString]) -> Result<(), CliError> {
    let Some(program) = places().into_iter().map(|dir| dir.join(PROGRAM)).find(|program| program.is_file()) else {
        return Err(CliError::refused(
            format!("{PROGRAM} is not on this host: cluster {verb} works on the host that is to be a manager"),
            format!("run it there, or put {PROGRAM} beside rclusterctl or into the search path"),
        ));
    };
    let error: io::Error = Command::new(&program).arg(verb).args(flags).exec();
    Err(CliError::refused(format!("start {}: {error}", program.display()), ""))
}
