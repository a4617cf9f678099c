//! What is done on this host alone, by its own `rcluster-manager`: `cluster init|join|restore|recover`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::{env, io};

use crate::args::{Format, Global, OnHost};
use crate::config;
use crate::error::CliError;

const PROGRAM: &str = "rcluster-manager";
/// Its flag for JSON, of `init`.
const JSON: &str = "--json";

/// Where the program may be: where it was said to be, beside this one, in the search path.
fn places() -> Vec<PathBuf> {
    let beside = env::current_exe().ok().and_then(|own| own.parent().map(PathBuf::from));
    let path = env::var_os("PATH").unwrap_or_default();
    config::bin_dir().into_iter().chain(beside).chain(env::split_paths(&path)).collect()
}

/// The flags of the manager's `verb`, with what was said before it of the output; what has no meaning on this host alone is refused.
fn flags(verb: &str, own: &OnHost, global: &Global) -> Result<Vec<OsString>, CliError> {
    let Global { context, managers, output: _ } = global;
    let given = [("--context", context.is_some()), ("--managers", !managers.is_empty())];
    if let Some((flag, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
        let why = format!("cluster {verb} takes no {flag}: it works on this host, and asks no managers for it");
        return Err(CliError::usage(why, format!("leave {flag} out")));
    }
    let mut flags = own.flags.clone();
    match (verb, global.format()?) {
        (_, Format::Table) => {}
        ("init", Format::Json) if flags.iter().any(|flag| flag == JSON) => {}
        ("init", Format::Json) => flags.push(JSON.into()),
        ("init", _) => return Err(CliError::usage("cluster init prints text or JSON", "give -o json, or leave --output out")),
        _ => return Err(CliError::usage(format!("cluster {verb} prints text only"), "leave --output out")),
    }
    Ok(flags)
}

/// Becomes `rcluster-manager VERB FLAGS`.
pub fn run(verb: &str, own: &OnHost, global: &Global) -> Result<(), CliError> {
    let flags = flags(verb, own, global)?;
    let Some(program) = places().into_iter().map(|dir| dir.join(PROGRAM)).find(|program| program.is_file()) else {
        return Err(CliError::refused(
            format!("{PROGRAM} is not on this host: cluster {verb} works on the host that is to be a manager"),
            format!("run it there, or put {PROGRAM} beside rclusterctl or into the search path"),
        ));
    };
    let error: io::Error = Command::new(&program).arg(verb).args(flags).exec();
    Err(CliError::refused(format!("start {}: {error}", program.display()), ""))
}
