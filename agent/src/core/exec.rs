//! Decides the process of a command that is run in a container (runtime-spec 1.2, config.md, "process").
//!
//! In: the container's own process as its `config.json` has it, what a user asks for, the identity found in the container when another
//! user is asked for. Out: the process as the runtime's `exec --process` reads it. Never gives a command more than the container's own
//! process has: its capabilities, limits, labels and `noNewPrivileges` are taken over.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::user::Identity;

/// What a user asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub args: &'a [String],
    /// KEY=VALUE.
    pub env: &'a [String],
    /// Empty: the container's.
    pub workdir: &'a str,
    /// `None`: the container's.
    pub user: Option<&'a Identity>,
    pub tty: bool,
}

/// The process, and what the search for its program needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    pub process: Value,
    pub cwd: String,
    /// The command's own `PATH`.
    pub path: String,
}

/// Where a program is sought when the command has no `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// As docker sets it for what has a terminal.
pub const TERM: &str = "xterm";

/// The command in the container whose own process is `own`.
pub fn command(own: &Value, asked: &Asked<'_>) -> Result<Command, String> {
    if asked.args.first().is_none_or(String::is_empty) {
        return Err("no command is given".into());
    }
    if let Some(arg) = asked.args.iter().find(|arg| arg.contains('\0')) {
        return Err(format!("argument {arg:?} holds a NUL"));
    }
    let mut process = own.as_object().cloned().ok_or("the container's configuration has no process")?;
    let env = env(&process, asked)?;
    let cwd = if asked.workdir.is_empty() { process.get("cwd").and_then(Value::as_str).unwrap_or("/") } else { asked.workdir }.to_owned();
    if !cwd.starts_with('/') {
        return Err(format!("working directory {cwd:?} is not absolute"));
    }
    if let Some(user) = asked.user {
        become_user(&mut process, user);
    }
    let path = env.get("PATH").cloned().unwrap_or_else(|| PATH.to_owned());
    process.insert("args".into(), json!(asked.args));
    process.insert("env".into(), json!(env.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()));
    process.insert("cwd".into(), json!(cwd));
    process.insert("terminal".into(), json!(asked.tty));
    process.remove("consoleSize");
    Ok(Command { process: Value::Object(process), cwd, path })
}

/// The container's, then what comes with another user or a terminal, then what the user asks for: the later wins.
fn env(process: &serde_json::Map<String, Value>, asked: &Asked<'_>) -> Result<BTreeMap<String, String>, String> {
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let own = process.get("env").and_then(Value::as_array).into_iter().flatten();
    let mut env: BTreeMap<String, String> = own.filter_map(|entry| pair(entry.as_str()?)).collect();
    if let Some(user) = asked.user {
        env.insert("HOME".into(), user.home.clone());
    }
    if asked.tty {
        env.insert("TERM".into(), TERM.into());
    }
    for entry in asked.env {
        let (key, value) = pair(entry)
            .filter(|(key, value)| !key.is_empty() && !key.contains('\0') && !value.contains('\0'))
            .ok_or_else(|| format!("{entry:?} is not KEY=VALUE"))?;
        env.insert(key, value);
    }
    Ok(env)
}

fn become_user(process: &mut serde_json::Map<String, Value>, user: &Identity) {
    let Identity { uid, gid, additional_gids, home: _ } = user;
    let umask = process.get("user").and_then(|own| own.get("umask")).cloned();
    let mut numbers = json!({ "uid": uid, "gid": gid });
    if !additional_gids.is_empty() {
        numbers["additionalGids"] = json!(additional_gids);
    }
    if let Some(umask) = umask {
        numbers["umask"] = umask;
    }
    process.insert("user".into(), numbers);
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else { return };
    // As execve does (capabilities(7)): root gets what the bounding set allows, others get nothing of their own.
    let bounding = sets.get("bounding").cloned().unwrap_or_else(|| json!([]));
    let own = if *uid == 0 { bounding } else { json!([]) };
    for set in ["effective", "permitted"] {
        sets.insert(set.into(), own.clone());
    }
    sets.insert("ambient".into(), json!([]));
}

/// The paths at which the program of `args[0]` may be, in order: itself when it has a `/`, else one for each part of `PATH`.
pub fn candidates(program: &str, cwd: &str, path: &str) -> Vec<String> {
    let full = |path: &str| if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", cwd.trim_end_matches('/')) };
    if program.contains('/') {
        return vec![full(program)];
    }
    let dirs = path.split(':').map(|dir| if dir.is_empty() { "." } else { dir });
    dirs.map(|dir| full(&format!("{}/{program}", dir.trim_end_matches('/')))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Value {
        json!({
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/serve"], "env": ["PATH=/bin:/opt", "HOME=/root", "A=1"], "cwd": "/srv",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"], "inheritable": [], "ambient": []},
            "noNewPrivileges": true
        })
    }

    fn asked(args: &[String]) -> Asked<'_> {
        Asked { args, env: &[], workdir: "", user: None, tty: false }
    }

    #[test]
    fn a_command_is_the_containers_own_process_with_other_arguments() {
        let args = ["ls".to_owned()];
        let command = command(&own(), &asked(&args)).unwrap();
        let mut expected = own();
        expected["args"] = json!(["ls"]);
        expected["env"] = json!(["A=1", "HOME=/root", "PATH=/bin:/opt"]);
        assert_eq!((command.process, command.cwd.as_str(), command.path.as_str()), (expected, "/srv", "/bin:/opt"));
    }

    #[test]
    fn another_user_has_their_home_and_no_capabilities_of_root() {
        let args = ["id".to_owned()];
        let user = Identity { uid: 33, gid: 34, additional_gids: vec![40], home: "/var/web".into() };
        let env = ["A=2".to_owned()];
        let asked = Asked { user: Some(&user), env: &env, workdir: "/", tty: true, ..asked(&args) };
        let process = command(&own(), &asked).unwrap().process;
        assert_eq!(process["user"], json!({"uid": 33, "gid": 34, "additionalGids": [40]}));
        assert_eq!(process["env"], json!(["A=2", "HOME=/var/web", "PATH=/bin:/opt", "TERM=xterm"]));
        assert_eq!(process["capabilities"]["effective"], json!([]));
        assert_eq!(process["capabilities"]["bounding"], json!(["CAP_KILL"]));
        assert_eq!((&process["cwd"], &process["terminal"], &process["noNewPrivileges"]), (&json!("/"), &json!(true), &json!(true)));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let run = |args: &[&str], env: &[&str], workdir: &str| {
            let (args, env): (Vec<String>, Vec<String>) =
                (args.iter().map(|s| (*s).to_owned()).collect(), env.iter().map(|s| (*s).to_owned()).collect());
            command(&own(), &Asked { env: &env, workdir, ..asked(&args) }).map(drop)
        };
        for (args, env, workdir, expected) in [
            (&[][..], &[][..], "", "no command is given"),
            (&["a\0"], &[], "", "argument \"a\\0\" holds a NUL"),
            (&["a"], &["=x"], "", "\"=x\" is not KEY=VALUE"),
            (&["a"], &["x"], "", "\"x\" is not KEY=VALUE"),
            (&["a"], &[], "srv", "working directory \"srv\" is not absolute"),
        ] {
            assert_eq!(run(args, env, workdir), Err(expected.to_owned()));
        }
    }

    #[test]
    fn a_program_is_sought_as_a_shell_does() {
        assert_eq!(candidates("/bin/ls", "/srv", "/bin"), ["/bin/ls"]);
        assert_eq!(candidates("./ls", "/srv", "/bin"), ["/srv/./ls"]);
        assert_eq!(candidates("ls", "/", "/bin:/opt/:"), ["/bin/ls", "/opt/ls", "/./ls"]);
    }
}
