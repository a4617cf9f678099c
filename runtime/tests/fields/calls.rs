//! Command lines that are right, wrong or in vain: what each ends with, under ours and under runc.

use std::fs;

use serde_json::json;

use crate::common::Bundle;
use crate::engine::{Engine, Kind};

/// Compares the exit codes of calls; words are split at spaces, `''` is an empty one, `ID` the bundle's container.
fn codes(bundle: &Bundle, lines: &[&str], prepare: impl Fn(&Engine<'_>)) {
    bundle.write();
    let seen = [Kind::Ours, Kind::Runc].map(|kind| {
        let engine = Engine::new(kind, bundle)?;
        prepare(&engine);
        let code = |line: &&str| {
            let words = line.split_whitespace().map(|word| match word {
                "''" => "",
                "ID" => &bundle.id,
                _ => word,
            });
            let said = engine.call(&words.collect::<Vec<_>>());
            assert!(
                [0, 7].contains(&said.code) || !said.stderr.is_empty(),
                "{kind:?} {line}: ends with {} and does not say why",
                said.code
            );
            format!("{line}: {}", said.code)
        };
        let codes: Vec<String> = lines.iter().map(code).collect();
        engine.delete();
        Some(codes)
    });
    let [Some(ours), theirs] = seen else { panic!("ours is built") };
    let differ: Vec<_> = theirs.iter().flat_map(|theirs| ours.iter().zip(theirs)).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(differ.is_empty(), "ours and runc's: {differ:#?}");
}

#[test]
fn what_is_no_call() {
    let mut lines: Vec<String> = [
        "",
        "fly",
        "--fly",
        "--fly state ID",
        "-x",
        "help",
        "h",
        "-h",
        "--help",
        "--version",
        "-v",
        "help state",
        "help state more",
        "help fly",
        "help --fly",
        "h fly",
        "fly --help",
        "--help fly",
        "--version fly",
        "-v -x",
        "--debug",
        "--log",
        "--root",
        "--log-format xml list",
        "--log-format '' list",
        "--log '' list",
        "--log /no/such/log list",
        "--log /no/such/log state ID",
        "--log /no/such/log exec ID true",
        "--log /no/such/log --version",
        "--log /no/such/log --help",
        "--debug=perhaps list",
        "--rootless perhaps list",
        "--rootless perhaps state ID",
        "--rootless perhaps delete ID",
        "--rootless perhaps run ID",
        "--systemd-cgroup=perhaps list",
        "list",
        "list -q",
        "list --format json",
        "list --format x",
        "list more",
        "list --fly",
        "features",
        "features more",
        "features --fly",
        "spec more",
        "spec --fly",
        "spec --bundle",
        "spec --bundle /no/such",
        "create --preserve-fds x ID",
        "create --keep ID",
        "create --detach ID",
        "create --bundle",
        "create --bundle /no/such ID",
        "run --bundle /no/such ID",
        "delete --force=perhaps ID",
        "kill ID KILL more",
        "exec -g x ID true",
        "exec --preserve-fds x ID true",
        "exec --tty=perhaps ID true",
        "exec --user",
        "events --interval x ID",
        "state ''",
        "state ..",
        "state a/b",
        "checkpoint",
        "checkpoint ID",
        "restore",
        "restore ID",
    ]
    .map(str::to_owned)
    .into();
    for verb in ["create", "delete", "events", "exec", "kill", "pause", "ps", "resume", "run", "start", "state", "update"] {
        let wrong = ["", "--fly", "--fly ID", "ID --help", "--help --fly", "-h ID", "--fly -h"];
        lines.extend(wrong.iter().filter(|rest| (verb, **rest) != ("exec", "ID --help")).map(|rest| format!("{verb} {rest}")));
        if !["exec", "kill", "ps"].contains(&verb) {
            lines.push(format!("{verb} ID more"));
        }
    }
    let bundle = Bundle::new("true");
    codes(&bundle, &lines.iter().map(String::as_str).collect::<Vec<_>>(), |_| {});
}

#[test]
fn calls_for_nobody() {
    let bundle = Bundle::new("true");
    let lines = [
        "state ID",
        "start ID",
        "pause ID",
        "resume ID",
        "delete ID",
        "delete --force ID",
        "delete ID -f",
        "kill ID",
        "kill ID NOPE",
        "kill ID 999",
        "kill --all ID KILL",
        "ps ID",
        "ps --format x ID",
        "events ID",
        "events --stats ID",
        "events --interval 0s ID",
        "update ID",
        "update --memory x ID",
        "update --cpu-share -1 ID",
        "update --resources /no/such ID",
        "exec ID",
        "exec ID true",
        "exec -u root ID true",
        "exec --cwd / --process /no/such ID",
        "exec --cgroup ../x ID true",
        "exec --process /no/such ID",
    ];
    codes(&bundle, &lines, |_| {});
}

#[test]
fn calls_for_a_running_container() {
    let mut bundle = Bundle::new("");
    bundle.set("/process/args", json!(["sleep", "1000"]));
    let lines = [
        "state ID",
        "start ID",
        "resume ID",
        "delete ID",
        "create --bundle BUNDLE ID",
        "run --bundle BUNDLE ID",
        "kill ID NOPE",
        "kill ID 999",
        "kill ID 65",
        "kill ID -- -5",
        "kill ID 0",
        "update ID",
        "update --memory x ID",
        "update --memory '' ID",
        "update --cpu-share x ID",
        "update --cpu-share -1 ID",
        "update -r /no/such ID",
        "update -r /dev/null ID",
        "update --mem-bw-schema L3:0=1 ID",
        "ps ID",
        "ps --format x ID",
        "ps ID -o args",
        "ps ID --nosuch",
        "events --interval 0s ID",
        "events --interval -1s ID",
        "exec ID",
        "exec ID true",
        "exec ID nosuch",
        "exec ID --help",
        "exec ID sh -c exit${IFS}7",
        "exec -u root ID true",
        "exec -u 1:x ID true",
        "exec -u -1 ID true",
        "exec -u '' ID true",
        "exec --cgroup ../x ID true",
        "exec -p /no/such ID",
        "exec -p '' ID true",
        "exec --cwd /no/such ID true",
        "exec --cwd '' ID true",
        "exec --cap CAP_FLY ID true",
        "exec -e '' ID true",
        "exec -e A ID true",
        "exec --preserve-fds 9 ID true",
        "exec --console-socket /x ID true",
        "exec -t --console-socket /x ID true",
        "exec -t -d ID true",
        "exec --pid-file /no/such/x ID true",
        "--rootless perhaps ps ID",
        "--rootless perhaps pause ID",
        "--rootless perhaps exec ID true",
        "--rootless perhaps update --pids-limit 50 ID",
    ];
    let bundle_path = bundle.path("").to_str().unwrap().to_owned();
    let lines: Vec<String> = lines.iter().map(|line| line.replace("BUNDLE", &bundle_path)).collect();
    codes(&bundle, &lines.iter().map(String::as_str).collect::<Vec<_>>(), |engine| engine.started());
    // None of them was taken for a change.
    assert!(!fs::exists("/x").unwrap());
}

#[test]
fn calls_for_a_stopped_container() {
    let bundle = Bundle::new("true");
    let lines = [
        "state ID",
        "start ID",
        "pause ID",
        "resume ID",
        "kill ID KILL",
        "kill ID NOPE",
        "ps ID",
        "ps --format json ID",
        "events --stats ID",
        "events ID",
        "update --pids-limit 5 ID",
        "update ID",
        "exec ID true",
        "exec ID",
        "delete ID",
        "delete ID",
    ];
    codes(&bundle, &lines, |engine| {
        engine.create(&[]);
        engine.call(&["start", &bundle.id]);
        crate::common::eventually("it ends", || (engine.state()["status"] == "stopped").then_some(()));
    });
}
