//! The verbs on the same bundle: what `state`, `list` and `features` say, what ends with which code, and what both refuse.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::{Bundle, differences, eventually};
use crate::engine::{Engine, Kind, Said, check, refused, same};

/// What `look` sees under ours and under runc, line by line.
fn both(bundle: &Bundle, look: impl Fn(&Engine<'_>) -> Vec<String>) {
    bundle.write();
    let seen = [Kind::Ours, Kind::Runc].map(|kind| {
        let engine = Engine::new(kind, bundle)?;
        let seen = look(&engine);
        engine.delete();
        Some(seen)
    });
    if let [Some(ours), Some(theirs)] = seen {
        let differ: Vec<_> = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).collect();
        assert!(ours.len() == theirs.len() && differ.is_empty(), "ours and runc's: {differ:#?}");
    }
}

/// A state without what is never the same twice.
fn shape(state: &Value) -> String {
    let mut state = state.clone();
    if let Some(fields) = state.as_object_mut() {
        for (name, value) in fields.iter_mut() {
            match name.as_str() {
                "pid" if *value != json!(0) => *value = json!(value.is_u64()),
                "created" => *value = json!(value.as_str().is_some_and(|time| time.ends_with('Z') && time.len() >= 20)),
                "ociVersion" => *value = json!("some"),
                _ => {}
            }
        }
    }
    state.to_string()
}

#[test]
fn states_of_a_life() {
    let mut bundle = Bundle::new("");
    bundle.set("/process/args", json!(["sleep", "1000"])).set("/annotations", json!({"key":"value","other":"ü"}));
    both(&bundle, |engine| {
        let id = bundle.id.as_str();
        let mut seen = Vec::new();
        let mut look = |what: &str, code: i32| {
            let list: Value = serde_json::from_str(&engine.call(&["list", "--format", "json"]).stdout).unwrap();
            let listed = list.as_array().map(|list| list.iter().map(shape).collect::<Vec<_>>());
            let quiet = engine.call(&["list", "--quiet"]).stdout;
            seen.push(format!("{what}: {code}"));
            seen.push(format!("{what}: state {}", shape(&engine.state())));
            seen.push(format!("{what}: list {listed:?} {quiet}"));
        };
        look("before", 0);
        look("create", engine.create(&[]).code);
        look("create again", engine.create(&[]).code);
        look("delete of a created one", 0);
        look("start", engine.call(&["start", id]).code);
        look("start again", engine.call(&["start", id]).code);
        look("delete of a running one", engine.call(&["delete", id]).code);
        look("kill by 0", engine.call(&["kill", id, "0"]).code);
        look("kill by an unknown signal", engine.call(&["kill", id, "FLY"]).code);
        let killed = engine.call(&["kill", id, "SIGKILL"]).code;
        eventually("it stops", || (engine.state()["status"] == "stopped").then_some(()));
        look("kill", killed);
        look("start of a stopped one", engine.call(&["start", id]).code);
        look("kill of a stopped one", engine.call(&["kill", id, "KILL"]).code);
        look("exec in a stopped one", engine.call(&["exec", id, "true"]).code);
        look("pause of a stopped one", engine.call(&["pause", id]).code);
        look("update of a stopped one", engine.call(&["update", "--pids-limit", "5", id]).code);
        look("delete", engine.call(&["delete", id]).code);
        look("delete again", engine.call(&["delete", id]).code);
        look("delete by force", engine.call(&["delete", "--force", id]).code);
        seen
    });
}

/// The table's cells, where its columns begin, and whose a container is.
#[test]
fn lists_as_tables() {
    let mut bundle = Bundle::new("");
    bundle.set("/process/args", json!(["sleep", "1000"]));
    both(&bundle, |engine| {
        let table = || {
            let state = engine.state();
            let text = engine.call(&["list"]).stdout;
            let head = text.lines().next().unwrap();
            let mut seen: Vec<String> =
                ["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(|name| format!("{name} at {:?}", head.find(name))).into();
            let width = head.find("OWNER").unwrap() - head.find("CREATED").unwrap();
            seen.push(format!("OWNER follows: {}", width == state["created"].as_str().map_or(12, |time| time.len() + 3)));
            for line in text.lines().skip(1) {
                let mut cells: Vec<&str> = line.split_whitespace().collect();
                assert_eq!((json!(cells[1].parse::<u32>().unwrap()), cells[4]), (state["pid"].clone(), state["created"].as_str().unwrap()));
                cells.remove(4);
                cells[1] = if cells[1] == "0" { "0" } else { "a number" };
                seen.push(cells.join(" "));
            }
            seen
        };
        let mut seen = table();
        engine.started();
        seen.extend(table());
        engine.call(&["kill", &bundle.id, "KILL"]);
        eventually("it stops", || (engine.state()["status"] == "stopped").then_some(()));
        seen.extend(table());
        // As the owner of the state directory is called, if at all.
        let dir = engine.root().join(&bundle.id);
        for uid in [65_534, 54_399] {
            std::os::unix::fs::chown(&dir, Some(uid), None).unwrap();
            seen.push(engine.call(&["list"]).stdout.lines().last().unwrap().split(' ').next_back().unwrap().to_owned());
            seen.push(shape(&engine.state()));
        }
        seen
    });
}

#[test]
fn signals_by_every_name() {
    let bundle = Bundle::new(
        "trap 'echo HUP >> /dev/shm/got' HUP; trap 'echo USR1 >> /dev/shm/got' USR1; \
        trap 'echo TERM >> /dev/shm/got' TERM; : > /dev/shm/got; while :; do sleep 0.01; done",
    );
    both(&bundle, |engine| {
        engine.started();
        let got = format!("/proc/{}/root/dev/shm/got", engine.state()["pid"]);
        eventually("the traps", || fs::read_to_string(&got).ok());
        let mut seen = Vec::new();
        for (before, args) in [&["HUP"][..], &["SIGUSR1"], &["1"], &["term"], &[]].into_iter().enumerate() {
            let call: Vec<&str> = ["kill", &bundle.id].into_iter().chain(args.iter().copied()).collect();
            seen.push(format!("{args:?}: {}", engine.call(&call).code));
            let text = eventually("the signal", || {
                let text = fs::read_to_string(&got).ok()?;
                (text.lines().count() > before).then_some(text)
            });
            seen.push(text);
        }
        seen
    });
}

#[test]
fn nobody_of_that_name() {
    let bundle = Bundle::new("true");
    both(&bundle, |engine| {
        let verbs: [&[&str]; 12] = [
            &["state"],
            &["start"],
            &["kill"],
            &["delete"],
            &["exec", "true"],
            &["pause"],
            &["resume"],
            &["ps"],
            &["events", "--stats"],
            &["update", "--pids-limit", "5"],
            &["kill", "KILL"],
            &["delete", "--force"],
        ];
        let mut seen = Vec::new();
        for verb in verbs {
            let (options, rest): (Vec<&str>, Vec<&str>) = verb[1..].iter().copied().partition(|word| word.starts_with('-') || *word == "5");
            let call: Vec<&str> = [verb[0]].into_iter().chain(options).chain(["nosuch"]).chain(rest).collect();
            let Said { stdout, stderr, code } = engine.call(&call);
            seen.push(format!("{verb:?}: {code} {stdout:?} says why: {}", !stderr.is_empty()));
        }
        for id in ["", "a/b", "..", "ü", "a b"] {
            let path = bundle.path("");
            let code = engine.call(&["create", "--bundle", path.to_str().unwrap(), "--", id]).code;
            seen.push(format!("create {id:?}: {}", code != 0));
        }
        seen
    });
}

#[test]
fn exit_codes_of_run() {
    let host_pids = json!({"/linux/namespaces/-pid":null});
    let cases = [
        ("echo well", json!({})),
        ("echo ill; exit 1", json!({})),
        ("echo ill; exit 42", json!({})),
        ("echo ill; exit 255", json!({})),
        ("echo dying; kill -9 $$; sleep 1", host_pids.clone()),
        ("echo dying; kill -15 $$; sleep 1", host_pids.clone()),
        ("echo dying; kill -6 $$; sleep 1", host_pids),
        ("cat; echo read all", json!({})),
    ];
    check(cases.map(|(script, edits)| same(script, edits, script)));
}

/// Both refuse what is no configuration, and leave nothing.
#[test]
fn what_is_no_configuration() {
    check([
        refused("no process", json!({"/process":null}), "process"),
        refused("a number for a word", json!({"/hostname":5}), "hostname"),
        refused("a word for a list", json!({"/mounts":"none"}), "mounts"),
        refused("a word for a flag", json!({"/process/terminal":"no"}), "process.terminal"),
        refused("a list for an object", json!({"/linux":[]}), "linux"),
    ]);
    let bundle = Bundle::new("true");
    both(&bundle, |engine| {
        let path = bundle.path("config.json");
        let whole = fs::read_to_string(&path).unwrap();
        let mut seen = Vec::new();
        for text in ["", "{", "[]", "null", "5", &whole[..whole.len() / 2]] {
            fs::write(&path, text).unwrap();
            seen.push(format!("{text:?}: {}", engine.run(&[]).code != 0));
        }
        fs::remove_file(&path).unwrap();
        seen.push(format!("missing: {}", engine.run(&[]).code != 0));
        fs::write(&path, whole).unwrap();
        seen
    });
}

#[test]
fn options_of_run_and_create() {
    let bundle = Bundle::new("echo hello; echo $0");
    both(&bundle, |engine| {
        let pid_file = bundle.path("pid");
        let mut seen = Vec::new();
        for options in [&["--no-pivot"][..], &["--no-new-keyring"], &["--pid-file", pid_file.to_str().unwrap()], &["--keep"]] {
            let said = engine.run(options);
            seen.push(format!("{options:?}: {} {}", said.code, said.stdout));
        }
        let pid = fs::read_to_string(&pid_file).unwrap();
        seen.push(format!("the file is a number and no more: {}", pid.bytes().all(|byte| byte.is_ascii_digit()) && !pid.is_empty()));
        // The log, which engines read for the error.
        let log = bundle.path("log");
        let mut args = vec!["--log", log.to_str().unwrap(), "--log-format", "json", "run", "--bundle", "/no/such", bundle.id.as_str()];
        seen.push(format!("no bundle: {}", engine.call(&args).code));
        let text = fs::read_to_string(&log).unwrap_or_default();
        let last: Value = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
        seen.push(format!("{} {}", last["level"], last["msg"].is_string() && last["time"].is_string()));
        fs::remove_file(&log).unwrap();
        args[3] = "xml";
        seen.push(format!("an unknown format: {}", engine.call(&args).code != 0));
        let mut detached = engine.command(&["run", "--detach", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
        let status = detached.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        seen.push(format!("detached: {:?}", status.code()));
        eventually("it ends", || (engine.state()["status"] == "stopped").then_some(()));
        seen.push(format!("kept until deleted: {}", engine.call(&["delete", &bundle.id]).code));
        seen
    });
}

/// `spec` prints the same configuration, but for the version.
#[test]
fn the_configuration_to_begin_with() {
    let bundle = Bundle::new("true");
    let written = |kind: Kind, host: Option<&str>| {
        let engine = Engine::new(kind, &bundle)?;
        let dir = bundle.path("fresh");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        let spec = engine.command(&["spec", "--bundle", dir.to_str().unwrap()]);
        let mut call = Command::new("unshare");
        call.args(["--mount", "sh", "-ec", &format!("{}; exec \"$@\"", host.unwrap_or("true")), "sh"]);
        call.arg(spec.get_program()).args(spec.get_args());
        let output = call.output().unwrap();
        assert!(output.status.success(), "{kind:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(engine.call(&["spec", "--bundle", dir.to_str().unwrap()]).code, 1, "{kind:?} writes over what is there");
        let mut config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        assert!(config.as_object_mut().unwrap().remove("ociVersion").is_some());
        Some(config)
    };
    // As it is, and with version 2 alone.
    for host in [None, Some("mount -t cgroup2 cgroup2 /sys/fs/cgroup")] {
        let [Some(ours), Some(theirs)] = [Kind::Ours, Kind::Runc].map(|kind| written(kind, host)) else { return };
        assert_eq!(differences(&ours, &theirs), Vec::<String>::new(), "{host:?}");
        let namespaces = ours["linux"]["namespaces"].as_array().unwrap();
        assert!(host.is_none() || namespaces.contains(&json!({"type": "cgroup"})), "{namespaces:?}");
    }
}
