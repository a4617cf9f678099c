//! `hooks`: which run, in what order, what they are told, and what becomes of the container when one fails.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::{Bundle, eventually};
use crate::engine::{Engine, Kind};

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

fn hook(script: &str) -> Value {
    json!({"path":"/bin/sh","args":["sh","-c",script],"env":["PATH=/usr/bin:/bin"]})
}

/// A bundle with two hooks of each kind that write down what they are, the second one how it is told the state; one of the kind
/// `failing` comes between them and does `script`.
fn recording(failing: Option<(&str, Value)>) -> Bundle {
    let mut bundle = Bundle::new("");
    bundle.set("/process/args", json!(["sh", "-c", "echo ran >> /record/order; exit 7"]));
    bundle.set("/annotations", json!({"key":"value","other":"ü"}));
    fs::create_dir(bundle.path("record")).unwrap();
    bundle.push("/mounts", json!({"destination":"/record","source":"record","type":"bind","options":["bind"]}));
    for kind in KINDS {
        let at = if kind == "startContainer" { PathBuf::from("/record") } else { bundle.path("record") };
        let at = at.display();
        let mut hooks = vec![hook(&format!("echo {kind} >> {at}/order"))];
        hooks.extend(failing.iter().filter(|(failing, _)| *failing == kind).map(|(_, hook)| hook.clone()));
        hooks.push(hook(&format!("echo {kind} again >> {at}/order; cat > {at}/{kind}")));
        bundle.set(&format!("/hooks/{kind}"), json!(hooks));
    }
    bundle
}

/// The lines of the record; runc runs `poststart` beside the program and what it does, so that they are sorted.
fn record(bundle: &Bundle) -> Vec<String> {
    let text = fs::read_to_string(bundle.path("record/order")).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let place = |line: &String| KINDS.iter().position(|kind| line.starts_with(kind)).unwrap_or(3);
    lines.sort_by_key(place);
    lines
}

/// What each kind was told; not the process id, and not what runc tells while it races with itself.
fn told(bundle: &Bundle) -> Vec<String> {
    let states = KINDS.map(|kind| {
        let bytes = fs::read(bundle.path("record").join(kind)).ok()?;
        let mut state: Value = serde_json::from_slice(&bytes).unwrap();
        let state = state.as_object_mut().unwrap();
        let pid = state.remove("pid");
        if kind == "startContainer" || kind == "createContainer" {
            assert_eq!(pid, Some(json!(1)), "{kind}");
        }
        if kind == "poststart" {
            state.remove("status");
        }
        state.remove("ociVersion");
        Some(format!("{kind}: {}", json!(state)))
    });
    states.into_iter().flatten().collect()
}

/// Runs a bundle by `create`, `start` and `delete` under ours and runc; what was written down, whether each verb did well, what is left.
fn lives(make: impl Fn() -> Bundle) -> [Vec<String>; 2] {
    [Kind::Ours, Kind::Runc].map(|kind| {
        let bundle = make();
        bundle.write();
        let Some(engine) = Engine::new(kind, &bundle) else { return Vec::new() };
        let mut seen = Vec::new();
        let verdict = |code: i32| if code == 0 { "well" } else { "failed" };
        let created = engine.create(&[]).code;
        seen.push(format!("create: {}", verdict(created)));
        if created == 0 {
            let started = engine.call(&["start", &bundle.id]).code;
            seen.push(format!("start: {}", verdict(started)));
            eventually("it stops", || (engine.state()["status"] == "stopped").then_some(()));
            seen.push(format!("delete: {}", verdict(engine.call(&["delete", &bundle.id]).code)));
        }
        seen.extend(record(&bundle));
        seen.extend(
            told(&bundle).into_iter().map(|told| told.replace(&bundle.id, "ID").replace(bundle.dir.path().to_str().unwrap(), "DIR")),
        );
        seen.push(format!("left: {}", engine.call(&["state", &bundle.id]).code == 0));
        seen
    })
}

/// Not compared, as the specification asks for what ours does: runc's `start` does not see `startContainer` fail and goes on to
/// `poststart`; and after a `poststop` that failed it runs no other.
fn agree(name: &str, failing: &str, make: impl Fn() -> Bundle) -> Vec<String> {
    let [mut ours, mut theirs] = lives(make);
    if !theirs.is_empty() {
        let passed_over: &[&str] = match failing {
            "startContainer" => &["start: ", "poststart"],
            "poststop" => &["poststop again", "poststop: "],
            _ => &[],
        };
        for seen in [&mut ours, &mut theirs] {
            seen.retain(|line| !passed_over.iter().any(|start| line.starts_with(start)));
        }
        assert_eq!(ours, theirs, "{name}: ours and runc's");
    }
    ours
}

#[test]
fn all_kinds_twice() {
    let seen = agree("all", "", || recording(None));
    assert_eq!(seen.iter().filter(|line| line.ends_with(" again")).count(), 6, "{seen:?}");
}

#[test]
fn failures_of_each_kind() {
    for kind in KINDS {
        for (name, failing) in
            [("ends with 3", hook("exit 3")), ("is killed", hook("kill -9 $$")), ("is missing", json!({"path":"/no/such"}))]
        {
            // poststart fails the container since 1.3 only.
            if kind != "poststart" {
                agree(&format!("{kind} {name}"), kind, || recording(Some((kind, failing.clone()))));
            }
        }
    }
}

#[test]
fn what_takes_too_long() {
    // Each takes the second that it is given, twice.
    std::thread::scope(|scope| {
        for kind in ["prestart", "createContainer", "startContainer", "poststop"] {
            scope.spawn(move || {
                let slow = json!({"path":"/bin/sh","args":["sh","-c","exec sleep 1000"],"env":["PATH=/usr/bin:/bin"],"timeout":1});
                agree(kind, kind, || recording(Some((kind, slow.clone()))));
            });
        }
    });
}

#[test]
fn arguments_and_environment() {
    for (name, given) in [
        ("arguments", json!({"path":"/bin/sh","args":["name","-c","echo $0 $# \"$@\" > RECORD/shown","a b","","ü"]})),
        (
            "environment",
            json!({"path":"/bin/sh","args":["sh","-c","env | grep -v -E '^(PWD|_|SHLVL|OLDPWD)=' | sort > RECORD/shown"],
            "env":["PATH=/usr/bin:/bin","A=b=c","E="]}),
        ),
        (
            "a working directory",
            json!({"path":"/bin/sh","args":["sh","-c","ls -d bin dev proc > RECORD/shown"],"env":["PATH=/usr/bin:/bin"]}),
        ),
    ] {
        let kind = if name == "a working directory" { "createContainer" } else { "createRuntime" };
        let shown = [Kind::Ours, Kind::Runc].map(|runtime| {
            let mut bundle = recording(None);
            let at = bundle.path("record").display().to_string();
            bundle.set(&format!("/hooks/{kind}"), serde_json::from_str(&json!([given]).to_string().replace("RECORD", &at)).unwrap());
            bundle.write();
            let engine = Engine::new(runtime, &bundle)?;
            let code = engine.run(&[]).code;
            Some((code, fs::read_to_string(bundle.path("record/shown")).unwrap()))
        });
        if let [Some(ours), Some(theirs)] = shown {
            assert_eq!(ours, theirs, "{name}");
            assert_eq!(ours.0, 7, "{name}");
        }
    }
}

/// A relative path is refused by both; of `poststop`, runc only tells when it is too late.
#[test]
fn paths() {
    let refused =
        KINDS.into_iter().take(5).map(|kind| crate::engine::refused(kind, json!({format!("/hooks/{kind}"):[{"path":"bin/sh"}]}), "hooks."));
    crate::engine::check(refused);
}
