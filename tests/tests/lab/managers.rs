//! Who the managers are, and how their disks are locked: what a user types, and what comes of it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rcluster_api::rest::ManagerJson;
use rcluster_tests::lab::{Lab, wait_for};

use crate::Turn;

const SOON: Duration = Duration::from_secs(30);

fn state_dir(lab: &Lab, host: &str) -> PathBuf {
    Path::new("/var/lib/rcluster/labs").join(lab.name()).join(host).join("manager")
}

fn manager(lab: &Lab, name: &str) -> Option<ManagerJson> {
    lab.cluster().ok()?.managers.into_iter().find(|manager| manager.name == name)
}

/// Waits until the managers are these, all reachable, and these of them vote.
fn wait_managers(lab: &Lab, names: &[&str], voters: &[&str]) {
    wait_for(&format!("{names:?} are managers and {voters:?} vote"), SOON, || {
        let managers = lab.cluster()?.managers;
        let found: Vec<&str> = managers.iter().filter(|manager| manager.reachable).map(|manager| manager.name.as_str()).collect();
        let voting: Vec<&str> = managers.iter().filter(|manager| manager.voter).map(|manager| manager.name.as_str()).collect();
        Ok((managers.len() == names.len() && found == names && voting == voters).then_some(()))
    })
    .unwrap();
}

/// The leader, and the others.
fn roles(lab: &Lab) -> (String, Vec<String>) {
    let leader = lab.wait_leader("", SOON).unwrap();
    let others = lab.cluster().unwrap().managers.into_iter().map(|manager| manager.name).filter(|name| *name != leader).collect();
    (leader, others)
}

/// What a command says beside what it prints, and how it ends.
fn said(lab: &Lab, arguments: &[&str], input: &str) -> (bool, String) {
    let mut command = lab.command(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap())
}

#[test]
fn managers_are_shown_promoted_demoted_and_removed_by_command() {
    let turn = Turn::new("managers", 3, 0);
    let lab = turn.lab();
    let all = ["m1", "m2", "m3"];
    let shown = wait_for("the leader knows how fast all disks are", SOON, || {
        let cluster = lab.cluster()?;
        let is_known = cluster.managers.iter().all(|manager| manager.write_us > 0 && manager.matched > 0);
        Ok((cluster.answered_by == cluster.leader && is_known).then_some(cluster))
    })
    .unwrap();
    // Another may lead at any later time.
    let stays = shown.leader.as_str();
    let mut others = all.into_iter().filter(|name| *name != stays);
    let (lost, kept) = (others.next().unwrap(), others.next().unwrap());
    assert!(shown.term > 0 && shown.committed >= shown.applied && shown.applied > 0, "{shown:?}");
    assert!(shown.managers.iter().all(|manager| manager.role == if manager.name == stays { "leader" } else { "follower" }));
    let (_, text) = said(lab, &["cluster", "status"], "");
    for column in ["Leader", "(term ", "Committed", "(applied ", "MANAGER", "ROLE", "VOTES", "REACHABLE", "LAG", "WRITE", "ADDRESS", "ms"] {
        assert!(text.contains(column), "{column} in {text}");
    }
    assert!(!text.contains("two managers vote"), "{text}");
    // One that votes no more keeps a copy, and two that vote are warned of.
    lab.ctl(&["node", "demote", kept]).unwrap();
    let mut voters = [stays, lost];
    voters.sort_unstable();
    wait_managers(lab, &all, &voters);
    let (done, text) = said(lab, &["cluster", "status"], "");
    assert!(done && text.contains("warning: two managers vote"), "{text}");
    lab.ctl(&["node", "promote", kept]).unwrap();
    wait_managers(lab, &all, &all);
    // With one lost, no other may go.
    lab.host("kill", &[lost]).unwrap();
    wait_for("the leader sees the loss", SOON, || {
        let cluster = lab.cluster()?;
        let is_seen = cluster.managers.iter().any(|manager| manager.name == lost && !manager.reachable);
        Ok((cluster.answered_by == cluster.leader && is_seen).then_some(()))
    })
    .unwrap();
    for (verb, deed) in [(["node", "demote"], "demoting"), (["cluster", "leave"], "removing"), (["node", "rm"], "removing")] {
        let refused = lab.ctl(&[verb.as_slice(), &[kept]].concat()).unwrap_err().to_string();
        let arithmetic = format!("{deed} {kept} leaves 1 of 2 voters reachable; quorum needs 2, and would be lost");
        assert!(refused.contains(&arithmetic) && refused.contains(&format!("bring back or remove {lost} first")), "{refused}");
    }
    // The lost one may.
    lab.ctl(&["node", "rm", lost]).unwrap();
    let mut left = [stays, kept];
    left.sort_unstable();
    wait_managers(lab, &left, &left);
    lab.ctl(&["cluster", "leave", kept]).unwrap();
    wait_managers(lab, &[stays], &[stays]);
    let refused = lab.ctl(&["cluster", "leave", stays]).unwrap_err().to_string();
    assert!(refused.contains(&format!("removing {stays} leaves no manager that votes")), "{refused}");
    assert!(refused.contains("join or promote another manager first"), "{refused}");
    turn.finish();
}

/// A process of a test's own in a lab.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_manager_moves_to_another_address_by_command() {
    let turn = Turn::new("moves", 3, 0);
    let lab = turn.lab();
    let (_, others) = roles(lab);
    let moving = others[0].as_str();
    let old = manager(lab, moving).unwrap().addr;
    let new = old.replace(":7443", ":7444");
    let taken = manager(lab, &others[1]).unwrap().addr;
    let refused = lab.ctl(&["node", "update", moving, "--addr", &taken]).unwrap_err().to_string();
    assert!(refused.contains(&format!("manager {} has the address {taken}", others[1])), "{refused}");
    lab.host("kill", &[&format!("{moving}/manager")]).unwrap();
    lab.ctl(&["node", "update", moving, "--addr", &new]).unwrap();
    let (program, dir) = (rcluster_tests::lab::bin_dir().unwrap().join("rcluster-manager"), state_dir(lab, moving));
    let run = ["run", "--listen", &new, "--state-dir", dir.to_str().unwrap()];
    let line = [&["lab", "exec", "--lab", lab.name(), moving, "--", program.to_str().unwrap()], run.as_slice()].concat();
    let moved = Process(lab.command(&line).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_for("it is reached where it is now", SOON, || Ok(manager(lab, moving).filter(|manager| manager.reachable && manager.addr == new)))
        .unwrap();
    wait_managers(lab, &["m1", "m2", "m3"], &["m1", "m2", "m3"]);
    drop(moved);
    turn.finish();
}

/// Waits until a manager's disk is locked with the key of this fingerprint.
fn wait_locked_with(lab: &Lab, host: &str, fingerprint: &str) {
    let path = state_dir(lab, host).join("seal.json");
    wait_for(&format!("{host} is locked with {fingerprint}"), SOON, || {
        Ok(fs::read_to_string(&path)?.contains(&format!("\"unlock-key\": \"{fingerprint}\"")).then_some(()))
    })
    .unwrap();
}

/// The unlock key, and its fingerprint.
fn key(lab: &Lab, arguments: &[&str]) -> (String, String) {
    let shown: serde_json::Value = lab.json(arguments).unwrap();
    assert_eq!(shown["autolock"], true);
    (shown["unlock_key"].as_str().unwrap().to_owned(), shown["fingerprint"].as_str().unwrap().to_owned())
}

/// Starts a manager again; it is locked, and the status says so.
fn start_locked(lab: &Lab, host: &str) {
    lab.host("kill", &[host]).unwrap();
    lab.host("start", &[host]).unwrap();
    wait_for(&format!("{host} is shown as locked"), SOON, || Ok(manager(lab, host).filter(|manager| manager.role == "locked"))).unwrap();
    assert!(!manager(lab, host).unwrap().reachable);
}

#[test]
fn managers_lock_and_are_unlocked_by_command() {
    let turn = Turn::new("autolock", 3, 0);
    let lab = turn.lab();
    let all = ["m1", "m2", "m3"];
    let (_, others) = roles(lab);
    let host = others[0].as_str();
    let (first, fingerprint) = key(lab, &["cluster", "autolock", "on"]);
    assert_eq!(key(lab, &["cluster", "unlock-key"]).0, first);
    all.iter().for_each(|host| wait_locked_with(lab, host, &fingerprint));
    start_locked(lab, host);
    let (done, text) = said(lab, &["cluster", "unlock"], &format!("{first}\n"));
    assert!(done && text.contains(&format!("manager {host} is unlocked")) && text.contains("1 manager was unlocked"), "{text}");
    wait_managers(lab, &all, &all);
    // After a rotation it is the new key that opens, and who has the old one is told which is needed.
    let (second, fingerprint) = key(lab, &["cluster", "unlock-key", "--rotate"]);
    assert_ne!(second, first);
    all.iter().for_each(|host| wait_locked_with(lab, host, &fingerprint));
    start_locked(lab, host);
    let (done, text) = said(lab, &["cluster", "unlock"], &first);
    assert!(!done && text.contains("wrong key") && text.contains(&fingerprint) && text.contains("stay locked"), "{text}");
    let file = Path::new("/run/rcluster/labs").join(lab.name()).join("key");
    fs::write(&file, &second).unwrap();
    let (done, text) = said(lab, &["cluster", "unlock", "--key-file", file.to_str().unwrap()], "");
    assert!(done && text.contains("1 manager was unlocked"), "{text}");
    wait_managers(lab, &all, &all);
    // All at once: without a leader the managers of the context are asked, and those that they know.
    wait_for("one call unlocks all", SOON * 2, || {
        lab.host("kill", &all)?;
        lab.host("start", &all)?;
        wait_for("all answer that they are locked", SOON, || {
            let told = lab.ctl(&["cluster", "status"]).err().map(|error| error.to_string()).unwrap_or_default();
            Ok((told.matches("this manager is locked").count() == all.len()).then_some(()))
        })?;
        let (done, text) = said(lab, &["cluster", "unlock"], &second);
        // A manager that stands still for longer than is waited for it is left out, and told of.
        if text.contains("cannot be reached") {
            return Ok(None);
        }
        assert!(done && all.iter().all(|host| text.contains(&format!("manager {host} is unlocked"))), "{text}");
        assert!(text.contains("3 managers were unlocked"), "{text}");
        Ok(Some(()))
    })
    .unwrap();
    wait_managers(lab, &all, &all);
    let (done, text) = said(lab, &["cluster", "autolock", "off"], "");
    assert!(done && text.contains("autolock is off"), "{text}");
    turn.finish();
}
