//! Images of all nodes, by way of the managers. The wire of a lab leads to no registry: pulling is tested with the agent.

use std::fs::{self, File};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::Result;
use rcluster_tests::lab::{Lab, bin_dir, wait_for};
use serde_json::{Value, json};

use crate::Turn;

const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "rcluster/busybox:test";

/// Asks again as long as a node is away for a moment and nothing was done.
fn run(lab: &Lab, arguments: &[&str]) -> Output {
    wait_for("the nodes are connected", SOON, || {
        let output = lab.command(arguments).stdin(Stdio::null()).output()?;
        let said = text(&output.stderr);
        let is_away = said.lines().any(|line| line.contains("is not connected to the leader") && !line.contains("(down)"));
        Ok((!is_away || !output.stdout.is_empty()).then_some(output))
    })
    .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What was said on stdout, stderr and how it ended.
fn said(lab: &Lab, arguments: &[&str]) -> (String, String, i32) {
    let output = run(lab, arguments);
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

fn archive() -> String {
    bin_dir().unwrap().join("busybox.tar").to_string_lossy().into_owned()
}

/// The images by name, and the nodes that have each; without the one that every lab has.
fn there(lab: &Lab) -> Result<Vec<(String, Value)>> {
    let images: Vec<Value> = lab.json(&["image", "ls"])?;
    let entry = |image: &Value| (image["name"].as_str().unwrap().to_owned(), image["nodes"].clone());
    Ok(images.iter().map(entry).filter(|(name, _)| name != "rcluster/probe:demo").collect())
}

/// Asks again as long as a node is away for a moment: what it has is left out then.
fn assert_there(lab: &Lab, expected: &[(String, Value)]) {
    let mut found = Vec::new();
    let outcome = wait_for("the images that are expected", SOON, || {
        found = there(lab)?;
        Ok((found == expected).then_some(()))
    });
    assert!(outcome.is_ok(), "{found:?}, not {expected:?}: {outcome:?}");
}

fn entry(name: &str, nodes: &[&str]) -> (String, Value) {
    (name.to_owned(), json!(nodes))
}

#[test]
fn an_image_is_loaded_named_saved_and_removed_on_the_nodes_that_are_meant() {
    let turn = Turn::new("images", 3, 3);
    let lab = turn.lab();
    assert_eq!(said(lab, &["image", "prune", "--all"]).2, 0);
    assert_eq!(said(lab, &["image", "ls"]), (String::new(), "no images\n".into(), 0));
    let (out, err, code) = said(lab, &["image", "load", &archive(), "--node", "n1"]);
    assert!(out.starts_with("n1: rcluster/busybox:test ") && code == 0, "{out}{err}");
    assert_there(lab, &[entry(NAME, &["n1"])]);

    // Through standard input, to all.
    let output = lab.command(&["image", "load", "-"]).stdin(File::open(archive()).unwrap()).output().unwrap();
    let lines: Vec<String> = text(&output.stdout).lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!((lines, output.status.code()), (vec!["n1:".into(), "n2:".into(), "n3:".into()], Some(0)), "{}", text(&output.stderr));
    assert_there(lab, &[entry(NAME, &["n1", "n2", "n3"])]);
    let (table, ..) = said(lab, &["get", "images"]);
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((&words[0][..], words[1][0], words[1].last()), (&["NAME", "DIGEST", "SIZE", "AGE", "NODES"][..], NAME, Some(&"n1,n2,n3")));
    assert_eq!(said(lab, &["get", "images", "-o", "name"]).0, "image/rcluster/busybox:test\n");

    let (out, ..) = said(lab, &["image", "tag", NAME, "web:2", "--node", "n2", "--node", "n3"]);
    assert_eq!(out.lines().map(|line| line.split(' ').take(2).collect()).collect::<Vec<Vec<_>>>(), [["n2:", "web:2"], ["n3:", "web:2"]]);
    assert_there(lab, &[entry(NAME, &["n1", "n2", "n3"]), entry("web:2", &["n2", "n3"])]);

    // What is saved is what was loaded, to the byte of each blob: it can be loaded again where it is not.
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("web.tar").to_string_lossy().into_owned();
    let (_, err, code) = said(lab, &["image", "save", "web:2", "-o", &saved]);
    assert!(err.starts_with(&format!("web:2 from n2 to {saved}: ")) && code == 0, "{err}");
    let piped = run(lab, &["image", "save", "docker.io/library/web:2"]);
    assert_eq!(piped.stdout, fs::read(&saved).unwrap(), "the same image is the same archive");
    let (out, err, code) = said(lab, &["image", "load", &saved, "--node", "n1"]);
    assert!(out.starts_with("n1: web:2 ") && code == 0, "{out}{err}");
    let digests = lab.json::<Vec<Value>>(&["image", "ls"]).unwrap();
    assert_eq!(digests[0]["digest"], digests[1]["digest"], "{digests:?}");

    let (out, err, code) = said(lab, &["image", "rm", "web:2", "--node", "n3"]);
    assert!(out.starts_with("n3: removed web:2\nn3: ") && code == 0, "{out}{err}");
    assert_there(lab, &[entry(NAME, &["n1", "n2", "n3"]), entry("web:2", &["n1", "n2"])]);
    assert_eq!(said(lab, &["rm", "image", "web:2"]).2, 0);
    assert_there(lab, &[entry(NAME, &["n1", "n2", "n3"])]);
    let (out, ..) = said(lab, &["image", "history", NAME]);
    assert!(out.starts_with("LAYER ") && out.lines().count() > 1, "{out}");
    let inspected: Value = lab.json(&["image", "inspect", NAME]).unwrap();
    assert_eq!((&inspected["names"], &inspected["nodes"]), (&json!([NAME]), &json!(["n1", "n2", "n3"])));
    turn.finish();
}

#[test]
fn what_runs_stays_what_does_not_goes_and_a_node_that_is_down_is_told() {
    let turn = Turn::with("images-gc", 1, 2, &["--image", &archive()]);
    let lab = turn.lab();
    assert_eq!(said(lab, &["image", "tag", NAME, "idle:1"]).2, 0);
    assert_eq!(said(lab, &["image", "rm", "rcluster/probe:demo"]).2, 0);
    lab.deploy(
        "kind: Service\nname: box\nspec:\n  stop_grace: 0s\n  placement: {constraints: [node.name==n1]}\n  containers:\n    - image: \
         rcluster/busybox:test\n      pull: never\n      command: [/bin/busybox, sleep, \"100000\"]\n",
    )
    .unwrap();
    let task = lab.wait_running("box", 1, SOON).unwrap().remove(0);
    let images: Vec<Value> = lab.json(&["image", "ls", NAME]).unwrap();
    assert_eq!(images[0]["in_use"], json!(["n1"]));

    let (out, ..) = said(lab, &["image", "prune", "--all", "--dry-run"]);
    assert!(out.contains("n2: would remove idle:1\nn2: would remove rcluster/busybox:test\n") && !out.contains("n1: would"), "{out}");
    // Nothing is removed.
    assert_there(lab, &[entry("idle:1", &["n1", "n2"]), entry(NAME, &["n1", "n2"])]);

    // The last name of what runs goes by force only; where nothing runs, it goes.
    assert_eq!(said(lab, &["image", "rm", "idle:1"]).2, 0);
    let (out, err, code) = said(lab, &["image", "rm", NAME]);
    assert!(out.contains("n2: removed rcluster/busybox:test\n") && code == 1, "{out}{err}");
    assert!(err.contains("n1: image \"rcluster/busybox:test\": a container on this node runs on it"), "{err}");
    assert!(err.contains("error: removing image rcluster/busybox:test failed on 1 of 2 nodes: n1\n"), "{err}");
    let (out, ..) = said(lab, &["image", "prune", "--all"]);
    assert!(!out.contains("removed"), "{out}");
    assert_there(lab, &[entry(NAME, &["n1"])]);
    assert_eq!(lab.exec(&task, &["/bin/busybox", "echo", "alive"]).unwrap().trim(), "alive");

    for (arguments, code, expected) in [
        (&["image", "rm", "none:1"][..], 1, "error: image none:1 is not on n1, n2\nhint: rclusterctl image ls"),
        (&["image", "inspect", NAME, "--node", "n2"], 1, "error: image rcluster/busybox:test is not on n2\n"),
        (&["image", "ls", "--node", "n9"], 1, "error: there is no node n9\n"),
        (&["image", "tag", NAME, "No:1"], 1, "lower case"),
        (&["image", "load", "/no/such.tar"], 1, "error: read /no/such.tar: No such file"),
        (&["image", "load", "/etc/passwd", "--node", "n1"], 1, "error: n1: the archive: it is not a readable tar archive"),
        (&["image", "pull", "127.0.0.1:1/x:1", "--node", "n1"], 1, "error: n1: registry 127.0.0.1:1 cannot be reached"),
        (&["image", "ls", "-o", "table.txt"], 2, "error: --output table.txt: there is no such format\nhint: formats are table"),
        (&["image", "build", "."], 2, "rclusterctl image build is not built yet"),
    ] {
        let (_, err, ended) = said(lab, arguments);
        assert!(err.contains(expected) && ended == code, "{arguments:?}: {ended} {err}");
    }

    lab.host("kill", &["n2"]).unwrap();
    let (out, ..) = wait_for("the node is known to be down", SOON, || {
        Ok(Some(said(lab, &["image", "ls"])).filter(|(_, err, _)| err == "node n2 is down: left out\n"))
    })
    .unwrap();
    assert!(out.contains("rcluster/busybox:test"), "the others are shown: {out}");
    let (_, err, code) = said(lab, &["image", "load", &archive(), "--node", "n1", "--node", "n2"]);
    assert!(err.contains("n2: node n2 (down) is not connected to the leader"), "{err}");
    assert!(err.contains("failed on 1 of 2 nodes: n2") && code == 1, "{err}");
    turn.finish();
}
