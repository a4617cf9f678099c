//! An OCI runtime (runtime-spec 1.2): one small single-threaded program, started once per verb, that knows nothing of services.
//!
//! `core` decides and has no effects; `parent` prepares, starts, kills and deletes from outside; `init` is the container's first process until
//! it executes the user's program; `sync` is what the two say to each other; `hook_process` runs hooks for both; `kernel_file` reads what the kernel writes; `monitor` stays with a container and keeps its output and its
//! exit; `state` is what is remembered between calls; `sys` holds the system calls that have no safe form.

mod args;
mod output;

mod core;

mod parent;
mod sync;

mod hook_process;

mod kernel_file;

mod init;

mod monitor;
mod state;

mod sys;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use parent::{CreateOptions, ExecOptions};

use args::{Call, EXEC_FAILED, FAILED, ListFormat, PsOutput, Verb};
use output::{Level, Log};

fn main() -> ExitCode {
    let call = match args::parse(std::env::args_os().skip(1)) {
        Ok(call) => call,
        Err(refusal) => {
            Log::default().say(Level::Error, &refusal.why);
            return ExitCode::from(refusal.code);
        }
    };
    let log = call.log.clone();
    let needs_log = !matches!(call.verb, Verb::Help | Verb::Version);
    if let Err(error) = if needs_log { log.open() } else { Ok(()) } {
        Log::default().say(Level::Error, &error);
        return ExitCode::from(FAILED);
    }
    let (failed, what) = if matches!(call.verb, Verb::Exec { .. }) { (EXEC_FAILED, "exec failed: ") } else { (FAILED, "") };
    perform(call).unwrap_or_else(|error| {
        log.say(Level::Error, &format!("{what}{error:#}"));
        ExitCode::from(failed)
    })
}

fn perform(call: Call) -> Result<ExitCode> {
    let Call { root, log, verb } = call;
    let warn = |notes: &[String]| notes.iter().for_each(|note| log.say(Level::Warning, note));
    let tell = |created: &parent::Created| {
        warn(&created.notes);
        created.remark.iter().for_each(|remark| log.say(Level::Debug, remark));
    };
    if let Verb::Create { options: CreateOptions { preserve_fds, .. }, .. }
    | Verb::Run { options: CreateOptions { preserve_fds, .. }, .. }
    | Verb::Exec { options: ExecOptions { preserve_fds, .. }, .. } = &verb
    {
        parent::check_passed_fds(*preserve_fds)?;
    }
    // Where root keeps its state no other user may.
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
    let root = match of_user {
        Some(directory) if root == Path::new(args::ROOT_DEFAULT) => Path::new(&directory).join("rcluster-runtime"),
        _ => root,
    };
    let root = std::path::absolute(&root).with_context(|| format!("--root {}", root.display()))?;
    log.say(Level::Debug, &format!("{verb:?} under {}", root.display()));
    if matches!(verb, Verb::Create { .. } | Verb::Run { .. } | Verb::Exec { .. } | Verb::Monitor(_)) {
        parent::protect()?;
    }
    match verb {
        Verb::Create { id, options } => tell(&parent::create(&root, &id, &options)?),
        Verb::Start { id } => parent::start(&root, &id)?,
        Verb::State { id } => output::data(&serde_json::to_string_pretty(&parent::state(&root, &id)?)?),
        Verb::Kill { id, signal, all } => parent::kill(&root, &id, signal, all)?,
        Verb::Delete { id, force } => warn(&parent::delete(&root, &id, force)?),
        Verb::Run { id, options, keep } => {
            let code = parent::run(&root, &id, &options, keep, tell, warn)?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        Verb::Exec { id, options } => {
            let code = parent::exec(&root, &id, &options, warn)?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        Verb::Pause { id } => parent::pause(&root, &id)?,
        Verb::Resume { id } => parent::resume(&root, &id)?,
        Verb::Update { id, source, schemas } => parent::update(&root, &id, &source, &schemas)?,
        Verb::Ps { id, output: PsOutput::Json } => output::data(&serde_json::to_string(&parent::processes(&root, &id)?)?),
        Verb::Ps { id, output: PsOutput::Table(options) } => output::data(&parent::ps(&root, &id, &options)?),
        Verb::Events { id, interval: None } => output::data(&parent::stats(&root, &id)?.to_string()),
        Verb::Events { id, interval: Some(interval) } => parent::events(&root, &id, interval)?,
        Verb::List { format } => output::data(&list(&root, format)?),
        Verb::Spec { bundle, rootless } => write_spec(&bundle, rootless)?,
        Verb::Features => output::data(&serde_json::to_string_pretty(&parent::features())?),
        Verb::Monitor(options) => return monitor::run(&root, &options, &log),
        Verb::Version => {
            output::data(&format!("rcluster-runtime version {}\nspec: {}", env!("CARGO_PKG_VERSION"), core::check::OCI_VERSION))
        }
        Verb::Help => output::data(args::HELP.trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(root: &Path, format: ListFormat) -> Result<String> {
    let states = parent::list(root)?;
    Ok(match format {
        // An empty list of runc's.
        ListFormat::Json if states.is_empty() => "null".to_owned(),
        ListFormat::Json => serde_json::to_string(&states)?,
        ListFormat::Ids => states.iter().map(|state| state.id.as_str()).collect::<Vec<_>>().join("\n"),
        ListFormat::Table => {
            let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
            let row = |state: parent::State| {
                let parent::State { id, pid, status, bundle, created, owner, .. } = state;
                [id, pid.to_string(), status.to_string(), bundle.display().to_string(), created, owner]
            };
            core::table::lines(&[head].into_iter().chain(states.into_iter().map(row)).collect::<Vec<_>>())
        }
    })
}

/// Writes a configuration to begin with, but over none.
fn write_spec(bundle: &Path, rootless: bool) -> Result<()> {
    let path = bundle.join("config.json");
    if path.exists() {
        bail!("{} exists already: remove it first", path.display());
    }
    let user = rootless.then(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    let text = serde_json::to_string_pretty(&core::template::configuration(parent::only_version_2(), user))?;
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}
