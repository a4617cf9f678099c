//! Certificates change under everything that runs: a user's changes go on, and no container notices.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rcluster_api::data::Payload;
use rcluster_api::identity;
use rcluster_api::rest::EventJson;
use rcluster_tests::lab::{Lab, wait_for};
use serde::Deserialize;

use crate::managers::Process;
use crate::{Turn, web};

const SOON: Duration = Duration::from_secs(60);
const HOSTS: [&str; 5] = ["m1", "m2", "m3", "n1", "n2"];
/// Between two writes: they are to go on, not to keep the machine busy.
const PACE: Duration = Duration::from_millis(100);
/// How long certificates are valid, in seconds, where they are renewed by time.
const TTL_S: i64 = 60;
/// After that a connection is cut whose certificate has expired.
const CUT_S: i64 = 5;

/// What a daemon keeps of who it is and whom it trusts; its key is none of a test's business.
#[derive(Debug, Deserialize)]
struct Kept {
    chain: Vec<Payload>,
    authorities: Vec<Payload>,
}

impl Kept {
    fn of(lab: &Lab, host: &str) -> Result<Self> {
        let daemon = if host.starts_with('m') { "manager" } else { "agent" };
        let path = Path::new("/var/lib/rcluster/labs").join(lab.name()).join(host).join(daemon).join("credentials.json");
        let kept: Self = serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("read {}", path.display()))?;
        ensure!(!kept.chain.is_empty() && !kept.authorities.is_empty(), "{} lacks a certificate", path.display());
        Ok(kept)
    }

    /// Whether its certificate is of the authority that issues, as far as it knows.
    fn is_current(&self) -> bool {
        identity::is_issued_by(&self.chain[0].0, &self.authorities[0].0)
    }

    /// Unix seconds.
    fn not_after(&self) -> i64 {
        identity::read(&self.chain[0].0).unwrap().not_after
    }
}

/// One change by command. It is tried again when no manager can be reached or leads, which the command tells by its exit code.
fn write(lab: &Lab, number: usize) {
    let label = format!("write={number}");
    wait_for("a write is accepted", SOON, || {
        let output = lab.command(&["node", "label", "n1", &label]).stdin(Stdio::null()).output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 3)), "a write was refused ({}): {told}", output.status);
        ensure!(output.status.success(), "{told}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Ends the writes, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does something while a user writes all the time; `deed` is given what waits until the writes have gone on.
fn amid_writes(lab: &Lab, deed: impl FnOnce(&dyn Fn())) {
    let (written, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    let go_on = || {
        let before = written.load(Ordering::Relaxed);
        // The first of them may have begun earlier.
        wait_for("writes go on", SOON, || Ok((written.load(Ordering::Relaxed) >= before + 2).then_some(()))).unwrap();
    };
    thread::scope(|scope| {
        let _end = End(&ended);
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                write(lab, written.load(Ordering::Relaxed));
                written.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PACE);
            }
        });
        go_on();
        deed(&go_on);
        go_on();
    });
}

/// The containers are those of before, no node was judged to have gone, and the cluster still does what it is told.
fn check_untouched(lab: &Lab, before: &BTreeSet<String>) {
    lab.deploy(&web("lab", "more", 2)).unwrap();
    lab.wait_running("more", 2, SOON).unwrap();
    assert_eq!(lab.fingerprint("web").unwrap(), *before);
    let events: Vec<EventJson> = lab.json(&["events"]).unwrap();
    let down: Vec<EventJson> = events.into_iter().filter(|event| event.kind == "node" && event.reason == "Down").collect();
    assert!(down.is_empty(), "healthy nodes were marked down: {down:?}");
}

/// A watch by another context's certificate, which has begun; what ends it is written into `told`.
fn watch(lab: &Lab, context: &Path, told: &Path) -> Process {
    let seen = told.with_extension("seen");
    let mut command = lab.command(&["get", "nodes", "-w"]);
    command.env("RCLUSTER_CONFIG", context).stdin(Stdio::null());
    command.stdout(fs::File::create(&seen).unwrap()).stderr(fs::File::create(told).unwrap());
    let watch = Process(command.spawn().unwrap());
    wait_for("the watch tells of nodes", SOON, || Ok((fs::metadata(&seen)?.len() > 0).then_some(()))).unwrap();
    watch
}

fn context_file(lab: &Lab, name: &str) -> PathBuf {
    Path::new("/run/rcluster/labs").join(lab.name()).join(name)
}

#[test]
fn the_authority_changes_and_the_old_one_is_dropped_while_writes_go_on() {
    let turn = Turn::new("rotate", 3, 2);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 2)).unwrap();
    lab.wait_running("web", 2, SOON).unwrap();
    let before = lab.fingerprint("web").unwrap();
    let old = context_file(lab, "old.yaml");
    fs::copy(context_file(lab, "context.yaml"), &old).unwrap();
    let told = context_file(lab, "old.told");
    let mut watch = watch(lab, &old, &told);
    amid_writes(lab, |go_on| {
        // Once more, if nobody knows whether it was done: the last one issues.
        let digest = wait_for("the authority changes", SOON, || lab.ctl(&["cluster", "rotate-ca"]).map(Some)).unwrap();
        for host in HOSTS {
            wait_for(&format!("{host} has a certificate of the new authority"), SOON, || {
                let kept = Kept::of(lab, host)?;
                Ok((kept.authorities[0].digest() == digest.trim() && kept.is_current()).then_some(()))
            })
            .unwrap();
        }
        go_on();
        assert!(watch.0.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&told).unwrap());
        wait_for("the old authority is dropped", SOON, || match lab.ctl(&["cluster", "rotate-ca", "--drop-old"]) {
            Err(error) if !error.to_string().contains("there is no old authority to drop") => Err(error),
            Ok(_) | Err(_) => Ok(Some(())),
        })
        .unwrap();
        for host in HOSTS {
            wait_for(&format!("{host} trusts the new authority alone"), SOON, || {
                let kept = Kept::of(lab, host)?;
                Ok((kept.authorities.len() == 1 && kept.authorities[0].digest() == digest.trim() && kept.is_current()).then_some(()))
            })
            .unwrap();
        }
    });
    let ended = wait_for("who watches by the old authority's certificate is told", SOON, || Ok(watch.0.try_wait()?)).unwrap();
    let words = fs::read_to_string(&told).unwrap();
    assert!(ended.code() == Some(1) && words.contains("the authority of the certificate of user admin was dropped"), "{ended}: {words}");
    let come = || lab.command(&["get", "nodes"]).env("RCLUSTER_CONFIG", &old).stdin(Stdio::null()).output();
    wait_for("who comes with the old authority's certificate is told why it is let in nowhere", SOON, || {
        let output = come()?;
        let told = String::from_utf8_lossy(&output.stderr);
        let why = "this certificate is refused: the authority that has issued it is not trusted there";
        ensure!(output.status.code() == Some(1) && told.contains(why) && told.contains("rclusterctl user create"), "{told}");
        Ok(Some(()))
    })
    .unwrap();
    for _ in 0..5 {
        assert!(!come().unwrap().status.success(), "it is let in again");
    }
    // Another leader: all agents and managers connect anew, by what they have now.
    let leader = lab.wait_leader("", SOON).unwrap();
    lab.host("kill", &[&leader]).unwrap();
    lab.wait_leader(&leader, SOON).unwrap();
    lab.host("start", &[&leader]).unwrap();
    wait_for("all managers are back", SOON, || Ok(lab.cluster()?.managers.iter().all(|manager| manager.reachable).then_some(()))).unwrap();
    check_untouched(lab, &before);
    turn.finish();
}

#[test]
fn certificates_are_renewed_before_they_expire_and_writes_go_on() {
    let turn = Turn::with("renew", 3, 2, &["--certificate-ttl", &format!("{TTL_S}s")]);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 2)).unwrap();
    lab.wait_running("web", 2, SOON).unwrap();
    let before = lab.fingerprint("web").unwrap();
    amid_writes(lab, |go_on| {
        let kept = || HOSTS.map(|host| Kept::of(lab, host).unwrap());
        let first_end = kept().iter().map(Kept::not_after).max().unwrap();
        for _ in 0..2 {
            for (host, had) in HOSTS.into_iter().zip(kept()) {
                let has = wait_for(&format!("{host} has another certificate"), SOON, || {
                    Ok(Some(Kept::of(lab, host)?).filter(|has| has.chain[0] != had.chain[0]))
                })
                .unwrap();
                let later_s = has.not_after() - had.not_after();
                assert!(later_s < TTL_S, "{host} has renewed its certificate {} s after it had expired", later_s - TTL_S);
            }
            go_on();
        }
        // No connection is left that was made with one of the first.
        wait_for("the first certificates have expired", SOON, || {
            let now_s = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
            Ok((now_s > first_end + CUT_S).then_some(()))
        })
        .unwrap();
    });
    check_untouched(lab, &before);
    turn.finish();
}
