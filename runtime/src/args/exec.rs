//! The options of `exec`, and its command.

use super::{Args, EXEC_FAILED, Known, Refusal, Verb};
use crate::core::exec::{self, Asked};
use crate::parent::{ExecOptions, ProcessSource};

/// Reads them.
pub(super) fn exec(args: &mut Args) -> Result<Verb, Refusal> {
    const KNOWN: [Known; 17] = [
        ("--process", "-p", true),
        ("--cwd", "", true),
        ("--env", "-e", true),
        ("--user", "-u", true),
        ("--additional-gids", "-g", true),
        ("--cap", "-c", true),
        ("--no-new-privs", "", false),
        ("--tty", "-t", false),
        ("--console-socket", "", true),
        ("--apparmor", "", true),
        ("--process-label", "", true),
        ("--detach", "-d", false),
        ("--pid-file", "", true),
        ("--preserve-fds", "", true),
        ("--ignore-paused", "", false),
        ("--cgroup", "", true),
        // Without effect in runc as well; old callers give it.
        ("--no-subreaper", "", false),
    ];
    let mut options = args.collect_before_word("exec", &KNOWN)?;
    let mut words = std::mem::take(&mut options.words).into_iter();
    let id = words.next().ok_or("exec: give a container id")?;
    let args: Vec<String> = words.collect();
    // What an option says is refused as a failed execution is; that it is none, or no value of its kind, as any call.
    let refused = |why: String| Refusal { code: EXEC_FAILED, why };
    let terminal = options.has("--tty")?;
    let process = if let Some(path) = options.path("--process") {
        let own = ["--cwd", "--env", "--user", "--additional-gids", "--cap", "--no-new-privs", "--apparmor", "--process-label"];
        if let Some(other) = own.iter().find(|name| options.given(name)) {
            return Err(refused(format!("exec {other}: belongs into the file of --process, which tells all of the process")));
        }
        ProcessSource::File { path, terminal }
    } else {
        if args.is_empty() {
            return Err(refused("exec: give a program behind the container id, or --process".to_owned()));
        }
        ProcessSource::Options(Asked {
            args,
            cwd: options.filled("--cwd")?,
            env: options.texts("--env")?,
            user: options
                .filled("--user")?
                .map(|text| exec::parse_user(&text).ok_or_else(|| refused(format!("exec --user {text:?}: give UID or UID:GID as numbers"))))
                .transpose()?,
            additional_gids: options
                .texts("--additional-gids")?
                .iter()
                .map(|text| exec::parse_id(text).ok_or_else(|| format!("exec --additional-gids {text:?}: give a number")))
                .collect::<Result<_, String>>()?,
            capabilities: options.texts("--cap")?,
            no_new_privileges: options.has("--no-new-privs")?,
            terminal,
            apparmor_profile: options.filled("--apparmor")?,
            selinux_label: options.filled("--process-label")?,
        })
    };
    let cgroups = options
        .texts("--cgroup")?
        .iter()
        .map(|text| {
            exec::parse_sub_cgroup(text).ok_or_else(|| {
                let why = "give [CONTROLLER:]PATH, a path below the container's cgroup without \"..\"";
                refused(format!("exec --cgroup {text:?}: {why}"))
            })
        })
        .collect::<Result<_, Refusal>>()?;
    Ok(Verb::Exec {
        id,
        options: ExecOptions {
            process,
            detach: options.has("--detach")?,
            pid_file: options.path("--pid-file"),
            console_socket: options.path("--console-socket"),
            preserve_fds: options.number("exec", "--preserve-fds")?.unwrap_or(0),
            ignore_paused: options.has("--ignore-paused")?,
            is_bound: false,
            cgroups,
        },
    })
}
