//! Backups, and clusters that begin anew from one, or from the disk of one manager.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use rcluster_api::backup::{self, Header};
use rcluster_api::client::{self, idempotency_key, keyed};
use rcluster_api::data::{DataKind, Payload};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::JoinToken;
use rcluster_api::tls::{Credentials, Security};
use rcluster_api::wire::v1;
use rcluster_manager::core::state::{State, decode_snapshot};
use rcluster_manager::store::Identity;
use serde::Deserialize;

use crate::support::{self, Cluster, addr, led, run_program, start, token, until, user};

async fn take(cluster: &Cluster, security: &Security) -> Result<Vec<u8>, ApiError> {
    led(async || take_once(cluster, security).await).await
}

async fn take_once(cluster: &Cluster, security: &Security) -> Result<Vec<u8>, ApiError> {
    let mut pieces = cluster.control(security).await?.backup(v1::BackupRequest {}).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await? {
        bytes.extend_from_slice(&piece.data);
    }
    Ok(bytes)
}

fn read(bytes: &[u8]) -> (Header, State) {
    let backup = backup::decode(bytes).unwrap();
    (backup.header, decode_snapshot(backup.data).unwrap())
}

fn identity(dir: &Path) -> Identity {
    serde_json::from_slice(&std::fs::read(dir.join("identity.json")).unwrap()).unwrap()
}

/// Every file below a directory, with the digest of its bytes; a spare segment holds nothing.
fn picture(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() == "spare" {
            continue;
        }
        if path.is_dir() {
            files.extend(picture(&path));
        } else {
            files.insert(path.clone(), Payload(std::fs::read(path).unwrap()).digest());
        }
    }
    files
}

/// All files and directories, with the time when each was written last as well.
fn times(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, String)> {
    let mut files = BTreeMap::from([(dir.to_path_buf(), (std::fs::metadata(dir).unwrap().modified().unwrap(), String::new()))]);
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(times(&path));
        } else {
            let written = std::fs::metadata(&path).unwrap().modified().unwrap();
            files.insert(path.clone(), (written, Payload(std::fs::read(path).unwrap()).digest()));
        }
    }
    files
}

/// Runs a verb of the program: how it ended, and all it said.
fn verb(arguments: &[&str]) -> (bool, String) {
    let output = run_program(arguments);
    (output.status.success(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
}

/// The way in that a restored or recovered manager writes.
fn way_in(dir: &Path) -> Security {
    #[derive(Deserialize)]
    struct Access {
        credentials: Credentials,
    }
    let access: Access = serde_json::from_slice(&std::fs::read(dir.join("admin.json")).unwrap()).unwrap();
    Security::new(access.credentials).unwrap()
}

/// Writes two configs with the same bytes in one transaction.
async fn write_pair(cluster: &Cluster, pair: usize, bytes: &str) {
    let config = |half: &str| v1::Spec {
        kind: Some(v1::spec::Kind::Data(v1::DataSpec {
            kind: v1::DataKind::Config.into(),
            name: format!("{half}-{pair}"),
            payload: Some(v1::Payload { bytes: bytes.as_bytes().to_vec() }),
            ..v1::DataSpec::default()
        })),
        expected_version: 0,
    };
    let request = v1::ApplyRequest { specs: vec![config("left"), config("right")] };
    // Under one key: a leader may go, and no repetition overwrites what comes after.
    let key = idempotency_key();
    until("a pair is written", || async { cluster.control(&cluster.admin).await.ok()?.apply(keyed(&key, request.clone())).await.ok() })
        .await;
}

#[tokio::test]
async fn a_backup_under_writes_is_the_state_at_one_revision_and_has_all_that_was_confirmed_before() {
    const PAIRS: usize = 4;
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    let confirmed: [AtomicU64; PAIRS] = Default::default();
    let enough = AtomicBool::new(false);
    let write = |pair: usize| {
        let (cluster, confirmed, enough) = (&cluster, &confirmed[pair], &enough);
        async move {
            for n in 1.. {
                write_pair(cluster, pair, &n.to_string()).await;
                confirmed.store(n, Ordering::SeqCst);
                if enough.load(Ordering::SeqCst) {
                    break;
                }
            }
        }
    };
    let back_up = async {
        let mut last = 0;
        for _ in 0..12 {
            let before: Vec<u64> = confirmed.iter().map(|n| n.load(Ordering::SeqCst)).collect();
            let taken = until("a backup", || async { take(&cluster, &cluster.admin).await.ok() }).await;
            let (header, state) = read(&taken);
            assert_eq!((header.revision, &header.cluster_id), (state.revision(), &cluster.founded.cluster_id));
            assert!(header.revision >= last && header.term > 0);
            last = header.revision;
            for (pair, least) in before.into_iter().enumerate() {
                let half = |half: &str| {
                    let found = state.find_data(DataKind::Config, &format!("{half}-{pair}"));
                    found.map_or(0, |data| String::from_utf8(data.spec.data.clone().unwrap().0).unwrap().parse::<u64>().unwrap())
                };
                assert_eq!(half("left"), half("right"), "written together");
                assert!(half("left") >= least, "{} was confirmed before, the backup has {}", least, half("left"));
            }
        }
        enough.store(true, Ordering::SeqCst);
    };
    tokio::join!(back_up, write(0), write(1), write(2), write(3));
    let dan = user(&cluster, "dan", v1::UserRole::Deploy).await;
    let refused = take(&cluster, &dan).await.unwrap_err();
    assert!(refused.message.contains("making a backup needs admin"), "{refused}");
}

#[tokio::test]
async fn a_backup_that_is_damaged_or_cut_off_is_refused_with_its_name_and_nothing_is_written() {
    let cluster = Cluster::found().await;
    cluster.write("net").await;
    let good = take(&cluster, &cluster.admin).await.unwrap();
    let (file, dir) = (cluster.dir.path().join("b"), cluster.dir.path().join("new"));
    let check = |bytes: &[u8], why: &str| {
        std::fs::write(&file, bytes).unwrap();
        let (from, to) = (file.to_str().unwrap(), dir.to_str().unwrap());
        let (done, said) = verb(&["restore", "--from", from, "--name", "m1", "--state-dir", to, "--advertise", "h:1", "--yes"]);
        assert!(!done && said.contains(from) && said.contains(why), "{said}");
        assert!(!dir.exists());
    };
    for at in [20, good.len() / 2, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        check(&bytes, "use another copy or another backup");
    }
    check(&good[..good.len() - 7], "it is cut off");
    check(&good[..10], "it is cut off");
    check(b"", "it is cut off");
    check(&[b'x'; 100], "it is not a backup of rcluster");
    let mut newer = good.clone();
    newer[8] = 9;
    check(&newer, "it has format 9");
}

#[tokio::test]
async fn a_restored_cluster_knows_its_users_and_hosts_and_goes_on_above_what_was_seen() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.settled(&["m1", "m2"]).await;
    let dan = user(&cluster, "dan", v1::UserRole::Deploy).await;
    let bearer = token(&cluster, "rita", v1::UserRole::ReadOnly).await;
    let agent_token: JoinToken = cluster.founded.agent_token.parse().unwrap();
    let joined = support::join(&cluster.addrs(), &agent_token, "n1", "").await.unwrap();
    let agent = Security::new(joined.credentials.unwrap()).unwrap();
    cluster.write("before").await;
    let bytes = take(&cluster, &cluster.admin).await.unwrap();
    let seen = cluster.write("after").await;
    let old = cluster.manager("m1").addr.clone();
    let m2 = (cluster.manager("m2").dir.clone(), cluster.manager("m2").addr.clone());
    cluster.managers.clear();
    let (file, dir) = (cluster.dir.path().join("backup"), cluster.dir.path().join("restored"));
    std::fs::write(&file, &bytes).unwrap();
    let (from, to) = (file.to_str().unwrap(), dir.to_str().unwrap());
    let arguments = ["restore", "--from", from, "--name", "m9", "--state-dir", to, "--advertise", &old];
    // It says first what it would do.
    let (done, said) = verb(&arguments);
    assert!(done && said.contains("Nothing was changed") && said.contains("m2 at") && said.contains("2 managers, 3 users"), "{said}");
    assert!(!dir.exists());
    let (done, said) = verb(&[arguments.as_slice(), &["--yes"]].concat());
    assert!(done && said.contains("rclusterctl context create NAME --from"), "{said}");
    let (done, said) = verb(&[arguments.as_slice(), &["--yes"]].concat());
    assert!(!done && said.contains("give an empty directory"), "{said}");
    cluster.managers.push(start("m9", &dir, &old, &[]));
    let status = cluster.settled(&["m9"]).await;
    assert_eq!(status.cluster_id, cluster.founded.cluster_id);
    assert!(status.revision > seen && status.managers[0].id > 2, "{status:?}");
    assert_eq!(cluster.networks().await, 1, "what came after the backup is gone");
    // Those that the backup knows need nothing new.
    cluster.try_write(&dan, "dan").await.unwrap();
    cluster.list(&way_in(&dir), v1::Kind::User).await.unwrap();
    let nobody = Security::joining(&agent_token).unwrap();
    let mut by_token = cluster.control(&nobody).await.unwrap();
    let mut request = tonic::Request::new(v1::ListRequest { kind: v1::Kind::Network.into(), ..v1::ListRequest::default() });
    request.metadata_mut().insert("authorization", format!("Bearer {bearer}").parse().unwrap());
    assert_eq!(by_token.list(request).await.unwrap().into_inner().objects.len(), 2);
    client::renew(cluster.connect(&agent).await.unwrap()).await.unwrap();
    // A manager of before is told that it is none any more, and joins again with an empty directory.
    let mut back = start("m2", &m2.0, &m2.1, &[]);
    assert_eq!(back.end().await, 1);
    assert!(back.log().contains("this manager was removed from its cluster"), "{}", back.log());
    std::fs::remove_dir_all(&m2.0).unwrap();
    cluster.join_at("m2", &m2.0, &m2.1);
    cluster.settled(&["m2", "m9"]).await;
    cluster.write("both").await;
}

#[tokio::test]
async fn one_of_three_managers_goes_on_alone_and_the_lost_are_told_when_they_return() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    cluster.write("before").await;
    let dir = cluster.manager("m2").dir.clone();
    let own = identity(&dir).id;
    let arguments = ["recover", "--state-dir", dir.to_str().unwrap()];
    let (done, said) = verb(&[arguments.as_slice(), &["--yes"]].concat());
    assert!(!done && said.contains("is a manager running on this state directory?"), "{said}");
    // A majority without this one may have confirmed what was written.
    let seen = cluster.whole().await;
    let place = |cluster: &mut Cluster, name: &str| (cluster.manager(name).dir.clone(), cluster.manager(name).addr.clone());
    let [m1, m2, m3] = ["m1", "m2", "m3"].map(|name| place(&mut cluster, name));
    cluster.managers.clear();
    // A start would put this one back, write the end of the log again and have a spare segment made.
    let known = std::fs::read(dir.join("identity.json")).unwrap();
    std::fs::remove_file(dir.join("identity.json")).unwrap();
    let before = times(&dir);
    let (done, said) = verb(&arguments);
    assert!(done && said.contains("Nothing was changed") && said.contains(&format!("m1 at {}, m3 at {}", m1.1, m3.1)), "{said}");
    assert_eq!(times(&dir), before);
    std::fs::write(dir.join("identity.json"), known).unwrap();
    let (done, said) = verb(&[arguments.as_slice(), &["--yes"]].concat());
    assert!(done && said.contains("Recovered."), "{said}");
    let kept = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let kept = kept.filter(|path| path.to_str().unwrap().contains("before-recovery-")).collect::<Vec<_>>();
    assert_eq!(identity(&kept[0]).id, own);
    assert!(identity(&dir).id > 3);
    cluster.managers.push(start("m2", &m2.0, &m2.1, &[]));
    let status = cluster.settled(&["m2"]).await;
    assert!(status.revision > seen.revision && status.term > seen.term, "{status:?}");
    cluster.write("alone").await;
    assert_eq!(cluster.networks().await, 2, "what was confirmed is there");
    cluster.list(&way_in(&dir), v1::Kind::User).await.unwrap();
    // The others come back with their old disks, and would be a quorum of the old cluster.
    let mut lost = [start("m1", &m1.0, &m1.1, &[]), start("m3", &m3.0, &m3.1, &[])];
    for manager in &mut lost {
        assert_eq!(manager.end().await, 1);
        assert!(manager.log().contains("this manager was removed from its cluster"), "{}", manager.log());
    }
    for (dir, addr) in [&m1, &m3] {
        std::fs::remove_dir_all(dir).unwrap();
        let name = dir.file_name().unwrap().to_str().unwrap();
        cluster.join_at(name, dir, addr);
    }
    cluster.settled(&["m1", "m2", "m3"]).await;
    cluster.write("again").await;
}

#[tokio::test]
async fn entries_that_are_not_known_to_be_confirmed_are_counted_and_kept_and_what_is_lost_is_told() {
    const NAMES: [&str; 3] = ["m1", "m2", "m3"];
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    cluster.write("confirmed").await;
    let network = v1::NetworkSpec { name: "unconfirmed".to_owned(), ..v1::NetworkSpec::default() };
    let spec = v1::Spec { kind: Some(v1::spec::Kind::Network(network)), expected_version: 0 };
    let request = v1::ApplyRequest { specs: vec![spec] };
    let mut tries = 0..10;
    let (left, confirmed, said) = loop {
        assert!(tries.next().is_some(), "no leader takes a write in before it misses the others");
        let v1::ClusterResponse { leader, committed, .. } = cluster.whole().await;
        let (dir, addr) = (cluster.manager(&leader).dir.clone(), cluster.manager(&leader).addr.clone());
        let mut control = support::control(&[addr], &cluster.admin).await.unwrap();
        for name in NAMES.into_iter().filter(|name| *name != leader) {
            cluster.manager(name).kill();
        }
        let answer = control.apply(request.clone()).await;
        assert!(answer.is_err(), "nobody is left to confirm it");
        cluster.manager(&leader).kill();
        let (done, said) = verb(&["recover", "--state-dir", dir.to_str().unwrap()]);
        assert!(done, "{said}");
        if said.contains("2 networks") {
            break (leader, committed, said);
        }
        for name in NAMES {
            let manager = cluster.manager(name);
            *manager = start(name, &manager.dir.clone(), &manager.addr.clone(), &[]);
        }
    };
    let number = |before: &str, after: &str| -> u64 {
        let number = said.split_once(before).and_then(|(_, rest)| Some(rest.split_once(after)?.0.parse().unwrap()));
        number.unwrap_or_else(|| panic!("no number between {before:?} and {after:?}: {said}"))
    };
    let last = number("All entries of its log are kept, through ", ". Of the last ");
    let uncertain = number(". Of the last ", " it does not know whether they were confirmed; they are kept all the same.\n");
    assert!(uncertain > 0 && last - uncertain >= confirmed, "{confirmed} were confirmed: {said}");
    let (_, lost) = said.split_once("\n\nLost:\n").unwrap_or_else(|| panic!("{said}"));
    let others = cluster.managers.iter().filter(|manager| manager.name != left);
    let others: Vec<String> = others.map(|manager| format!("{} at {}", manager.name, manager.addr)).collect();
    let untold = "  - what the other managers confirmed without this one, if there was any; from here it cannot be told\n";
    let dropped = format!("  - these managers: {}. Their certificates are taken no more.", others.join(", "));
    assert!(lost.starts_with(&format!("{untold}{dropped}")), "{said}");
    let (dir, addr) = (cluster.manager(&left).dir.clone(), cluster.manager(&left).addr.clone());
    cluster.managers.clear();
    let (done, said) = verb(&["recover", "--state-dir", dir.to_str().unwrap(), "--yes"]);
    assert!(done, "{said}");
    cluster.managers.push(start(&left, &dir, &addr, &[]));
    cluster.settled(&[&left]).await;
    assert_eq!(cluster.networks().await, 2, "what may have been confirmed is kept");
}

#[tokio::test]
async fn a_recovery_that_was_cut_off_is_ended_by_the_next_and_nothing_starts_before() {
    let mut cluster = Cluster::found().await;
    cluster.write("before").await;
    let (dir, at) = (cluster.manager("m1").dir.clone(), cluster.manager("m1").addr.clone());
    cluster.managers.clear();
    let arguments = ["recover", "--state-dir", dir.to_str().unwrap(), "--yes"];
    let (done, said) = verb(&arguments);
    assert!(done, "{said}");
    // As a power cut leaves it: some of the old files are aside, none of the new ones in their place.
    let (new, aside) = (dir.join("recovered"), dir.join("before-recovery-1"));
    std::fs::create_dir(&new).unwrap();
    std::fs::create_dir(&aside).unwrap();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() && name != "raft.lock" || name == "raft" {
            std::fs::rename(&path, new.join(name)).unwrap();
        }
    }
    std::fs::write(dir.join("identity.json"), "the old one").unwrap();
    std::fs::write(dir.join("recovery.json"), r#"{"kept":"before-recovery-1","emptied":false}"#).unwrap();
    let mut refused = start("m1", &dir, &at, &[]);
    assert_eq!(refused.end().await, 1);
    assert!(refused.log().contains("a recovery was begun"), "{}", refused.log());
    let (done, said) = verb(&arguments[..3]);
    assert!(!done && said.contains("rclusterctl cluster recover"), "{said}");
    let (done, said) = verb(&[arguments.as_slice(), &["--advertise", "elsewhere:1"]].concat());
    assert!(done && said.contains("has ended, as it was asked for then; --advertise"), "{said}");
    assert_eq!(std::fs::read(aside.join("identity.json")).unwrap(), b"the old one");
    cluster.managers.push(start("m1", &dir, &at, &[]));
    cluster.settled(&["m1"]).await;
    assert_eq!(cluster.networks().await, 1);
}

#[tokio::test]
async fn a_directory_that_cannot_be_recovered_from_is_refused_and_left_alone() {
    let mut cluster = Cluster::found().await;
    let dir = cluster.manager("m1").dir.clone();
    cluster.managers.clear();
    let nothing = cluster.dir.path().join("nothing");
    let (done, said) = verb(&["recover", "--state-dir", nothing.to_str().unwrap(), "--yes"]);
    assert!(!done && said.contains("holds no manager") && !nothing.exists(), "{said}");
    let segment = dir.join("raft/segment-0000000000000001");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let before = picture(&dir);
    let (done, said) = verb(&["recover", "--state-dir", dir.to_str().unwrap(), "--yes"]);
    assert!(!done && said.contains("cannot be recovered from") && said.contains("segment-0000000000000001"), "{said}");
    assert_eq!(picture(&dir), before);
}

#[tokio::test]
async fn join_makes_a_manager_that_run_starts() {
    let mut cluster = Cluster::found().await;
    let (dir, at, first) = (cluster.dir.path().join("m2"), addr(), cluster.addrs().join(","));
    let to = dir.to_str().unwrap();
    let arguments =
        ["join", "--join", &first, "--name", "m2", "--state-dir", to, "--advertise", &at, "--token", &cluster.founded.manager_token];
    let (done, said) = verb(&arguments);
    assert!(done && said.contains("manager m2 has joined"), "{said}");
    let (done, said) = verb(&arguments);
    assert!(!done && said.contains("already"), "{said}");
    cluster.managers.push(start("m2", &dir, &at, &[]));
    cluster.settled(&["m1", "m2"]).await;
    let error = support::join(&cluster.addrs(), &cluster.founded.manager_token.parse().unwrap(), "m2", &addr()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
}
