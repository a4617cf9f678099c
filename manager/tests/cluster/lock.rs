//! Disks that are sealed, and managers that are locked when they start.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rcluster_api::client::{Door, door};
use rcluster_api::error::ApiError;
use rcluster_api::seal::{Key, UnlockKey};
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::AutolockAction::{Off, On, Rotate, Show};
use rcluster_api::wire::v1::door_client::DoorClient;
use rcluster_manager::found::open_seal;
use rcluster_manager::seal::{Opened, key_used, read_credentials};
use rcluster_manager::store::{LogError, StoreError, identity, keys_used, salvage};
use tonic::transport::Channel;

use crate::support::{Cluster, addr, run_program, start, until};

const SECRET: &str = "the secret that no disk may tell";

/// The files below `dir` that hold `text`.
fn holding(dir: &Path, text: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text)) {
            // What is gone by now holds nothing.
            found.push(path.display().to_string());
        }
    }
    found
}

async fn write_secret(cluster: &Cluster, name: &str) {
    let payload = Some(v1::Payload { bytes: SECRET.as_bytes().to_vec() });
    let data = v1::DataSpec { kind: v1::DataKind::Secret.into(), name: name.to_owned(), payload, ..v1::DataSpec::default() };
    let spec = v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 };
    let request = v1::ApplyRequest { specs: vec![spec] };
    cluster.control(&cluster.admin).await.unwrap().apply(request).await.unwrap();
}

async fn autolock(cluster: &Cluster, action: v1::AutolockAction) -> Result<Option<UnlockKey>, ApiError> {
    let request = v1::AutolockRequest { action: action.into() };
    let answer = cluster.control(&cluster.admin).await?.autolock(request).await?.into_inner();
    Ok(answer.unlock_key.map(|key| UnlockKey(Key::from_bytes(&key.bytes).unwrap())))
}

fn seal_file(dir: &Path) -> String {
    fs::read_to_string(dir.join("seal.json")).unwrap()
}

/// Waits until the disk in `dir` is locked with `key`, or, for `None`, not locked.
async fn wrapped_with(dir: &Path, key: Option<&UnlockKey>) {
    let wanted = key.map_or_else(|| "\"key\":".to_owned(), |key| format!("\"unlock-key\": \"{}\"", key.0.fingerprint()));
    until(&format!("{} is wrapped with {wanted}", dir.display()), || async { seal_file(dir).contains(&wanted).then_some(()) }).await;
}

/// Numbers of the keys in the file.
fn keys(dir: &Path) -> BTreeSet<u32> {
    let file: serde_json::Value = serde_json::from_str(&seal_file(dir)).unwrap();
    file["keys"].as_object().unwrap().keys().map(|number| number.parse().unwrap()).collect()
}

/// Waits until nothing in the files in `dir` is sealed with another key than the newest: log, snapshots, credentials, and what a segment
/// held that is to be used again.
async fn sealed_anew(dir: &Path) {
    until(&format!("{} is sealed anew", dir.display()), || async {
        let newest = *keys(dir).last()?;
        let mut used = keys_used(dir).unwrap();
        used.extend(key_used(dir).unwrap());
        let spare = fs::read(dir.join("raft/spare")).unwrap_or_default();
        (used == BTreeSet::from([newest]) && spare.iter().all(|byte| *byte == 0)).then_some(())
    })
    .await;
}

fn restart(cluster: &mut Cluster, name: &str) {
    let manager = cluster.manager(name);
    manager.kill();
    *manager = start(name, &manager.dir.clone(), &manager.addr.clone(), &[]);
}

/// A connection to a manager, once it is locked.
async fn locked(addr: &str, security: &Security) -> DoorClient<Channel> {
    until(&format!("{addr} is locked"), || async {
        match door(addr, security).await {
            Door::Locked(client) => Some(client),
            Door::Open | Door::Unreachable(_) => None,
        }
    })
    .await
}

/// Waits until a manager that is not locked answers.
async fn opens(addr: &str, security: &Security) {
    until(&format!("{addr} answers"), || async {
        match door(addr, security).await {
            Door::Open => Some(()),
            // A slow machine: it says nothing of the door.
            Door::Unreachable(_) => None,
            Door::Locked(_) => panic!("{addr} is locked"),
        }
    })
    .await;
}

/// Gives a key to a locked manager.
async fn unlock(addr: &str, security: &Security, key: &UnlockKey) -> Result<(), ApiError> {
    give(locked(addr, security).await, key).await
}

async fn give(mut client: DoorClient<Channel>, key: &UnlockKey) -> Result<(), ApiError> {
    let key = Some(v1::Payload { bytes: key.0.bytes().to_vec() });
    client.unlock(v1::UnlockRequest { key }).await?;
    Ok(())
}

#[tokio::test]
async fn no_secret_stands_on_a_disk_in_clear() {
    let cluster = Cluster::found().await;
    write_secret(&cluster, "a").await;
    let dir = cluster.managers[0].dir.clone();
    assert_eq!(holding(&dir, SECRET.as_bytes()), Vec::<String>::new());
    // What is in clear is found, so a secret would be.
    assert!(!holding(&dir, cluster.founded.cluster_id.as_bytes()).is_empty());
    assert!(fs::read_to_string(dir.join("credentials.json")).unwrap().contains("sealed_key"));
}

#[tokio::test]
async fn credentials_that_cannot_be_sealed_anew_are_told_of_and_tried_again() {
    let cluster = Cluster::found().await;
    let dir = cluster.managers[0].dir.clone();
    let credentials = fs::read(dir.join("credentials.json")).unwrap();
    fs::write(dir.join("credentials.json"), "no credentials").unwrap();
    let key = autolock(&cluster, On).await.unwrap().unwrap();
    wrapped_with(&dir, Some(&key)).await;
    let told = until("it is told", || async {
        let log = cluster.managers[0].log();
        log.lines().find(|line| line.contains("as the cluster asks")).map(str::to_owned)
    })
    .await;
    assert!(
        told.contains("seal the credentials anew: ") && told.contains("this manager's disk is not sealed and locked as the cluster asks"),
        "{told}"
    );
    fs::write(dir.join("credentials.json"), credentials).unwrap();
    sealed_anew(&dir).await;
}

#[tokio::test]
async fn a_locked_manager_waits_for_the_key_and_nothing_is_lost() {
    let mut cluster = Cluster::found().await;
    write_secret(&cluster, "a").await;
    cluster.write("before").await;
    let key = autolock(&cluster, On).await.unwrap().unwrap();
    assert_eq!(autolock(&cluster, Show).await.unwrap().unwrap(), key);
    let refused = autolock(&cluster, On).await.unwrap_err();
    assert!(refused.message.contains("autolock is on"), "{refused}");
    let (dir, addr) = (cluster.managers[0].dir.clone(), cluster.managers[0].addr.clone());
    wrapped_with(&dir, Some(&key)).await;
    cluster.write("after").await;
    for text in [SECRET.as_bytes(), key.0.bytes(), key.to_string().as_bytes()] {
        assert_eq!(holding(&dir, text), Vec::<String>::new());
    }
    restart(&mut cluster, "m1");
    let wrong = unlock(&addr, &cluster.admin, &UnlockKey(Key::random())).await.unwrap_err();
    let needed = format!("wrong key: the disk of manager m1 is locked with the key whose fingerprint is {}", key.0.fingerprint());
    assert_eq!(wrong.message, needed);
    // Who guesses keeps nobody out: once one guess is answered, the others stand in line, and the right key does not.
    let mut guesses = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let client = locked(&addr, &cluster.admin).await;
        // As many as a connection takes at once; a line of 40 seconds in all.
        for _ in 0..4 {
            let client = client.clone();
            guesses.spawn(async move { give(client, &UnlockKey(Key::random())).await });
        }
    }
    guesses.join_next().await.unwrap().unwrap().unwrap_err();
    let told = cluster.status().await.unwrap_err();
    assert!(told.message.contains("this manager is locked; run `rclusterctl cluster unlock`"), "{told}");
    unlock(&addr, &cluster.admin, &key).await.unwrap();
    let mut answered = 1;
    while let Some(guess) = guesses.join_next().await {
        // Those that still stand in line when the door goes are cut off.
        answered += u32::from(guess.unwrap().unwrap_err().message.contains("wrong key"));
    }
    assert!(answered < 40, "the right key stood in line");
    until("m1 leads", || async { cluster.status().await.ok().filter(|status| status.leader == "m1") }).await;
    assert_eq!(cluster.networks().await, 2);
    opens(&addr, &cluster.admin).await;
    cluster.write("unlocked").await;

    let rotated = autolock(&cluster, Rotate).await.unwrap().unwrap();
    assert_ne!(rotated, key);
    wrapped_with(&dir, Some(&rotated)).await;
    restart(&mut cluster, "m1");
    unlock(&addr, &cluster.admin, &key).await.unwrap_err();
    unlock(&addr, &cluster.admin, &rotated).await.unwrap();
    until("m1 leads", || async { cluster.status().await.ok().filter(|status| status.leader == "m1") }).await;
    let unlocks = until("both are told of", || async {
        let events = crate::audit::events(&cluster.managers[0]);
        let unlocks: Vec<_> = events.into_iter().filter(|event| event["method"] == "Door/Unlock").collect();
        (unlocks.iter().filter(|event| event["outcome"] == "ok").count() == 2).then_some(unlocks)
    })
    .await;
    let outcomes: Vec<_> = unlocks.iter().map(|event| event["outcome"].as_str().unwrap()).collect();
    // Of those who guessed at once, some had been answered.
    assert!(outcomes[0] == "permission_denied" && outcomes.ends_with(&["permission_denied", "ok"]), "{outcomes:?}");
    assert!(unlocks.iter().all(|event| event["from"].as_str().unwrap().starts_with("127.")));

    assert_eq!(autolock(&cluster, Off).await.unwrap(), None);
    wrapped_with(&dir, None).await;
    restart(&mut cluster, "m1");
    until("m1 leads by itself", || async { cluster.status().await.ok().filter(|status| status.leader == "m1") }).await;
    assert_eq!(cluster.networks().await, 3);
    let refused = autolock(&cluster, Rotate).await.unwrap_err();
    assert!(refused.message.contains("autolock is off"), "{refused}");
}

#[tokio::test]
async fn who_has_the_keys_of_before_finds_nothing_of_the_new_unlock_key_in_any_file() {
    let mut cluster = Cluster::found().await;
    let dir = cluster.managers[0].dir.clone();
    write_secret(&cluster, "a").await;
    let in_clear = seal_file(&dir);
    let first = autolock(&cluster, On).await.unwrap().unwrap();
    wrapped_with(&dir, Some(&first)).await;
    sealed_anew(&dir).await;
    let under_first = seal_file(&dir);
    // With no write in between: the log's last entry is the change itself.
    let second = autolock(&cluster, Rotate).await.unwrap().unwrap();
    wrapped_with(&dir, Some(&second)).await;
    sealed_anew(&dir).await;
    cluster.managers.clear();
    let identity = identity(&dir).unwrap().unwrap();
    let opened = |file: &str, key: &UnlockKey| {
        fs::write(dir.join("seal.json"), file).unwrap();
        let disk = match open_seal(&dir, &identity).unwrap() {
            Opened::Open(disk) => disk,
            Opened::Locked(locked) => locked.unlock(key).unwrap(),
        };
        let found = salvage(&dir, Some(disk.keys.clone())).map(|found| found.unwrap().state.cluster().unwrap().unlock_key.0.clone());
        (found, read_credentials(&dir, &disk.keys))
    };
    let now = seal_file(&dir);
    let (found, credentials) = opened(&now, &second);
    assert!(found.unwrap() == second.0.bytes() && credentials.unwrap().is_some(), "it is there for who has the key");
    for before in [&in_clear, &under_first] {
        let (found, credentials) = opened(before, &first);
        assert!(matches!(found, Err(StoreError::Log(LogError::NoKey { key: 3, .. }))), "{found:?}");
        assert!(credentials.is_err(), "{credentials:?}");
    }
}

#[tokio::test]
async fn a_locked_disk_is_recovered_from_with_its_key_alone() {
    let mut cluster = Cluster::found().await;
    cluster.write("before").await;
    let key = autolock(&cluster, On).await.unwrap().unwrap();
    let (dir, addr) = (cluster.managers[0].dir.clone(), cluster.managers[0].addr.clone());
    wrapped_with(&dir, Some(&key)).await;
    cluster.managers.clear();
    let file = cluster.dir.path().join("key");
    let recover = |flags: &[&str]| {
        let output = run_program(&[&["recover", "--state-dir", dir.to_str().unwrap()], flags].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let given = ["--unlock-key-file", file.to_str().unwrap(), "--yes"];
    let (done, said) = recover(&["--yes"]);
    assert!(!done && said.contains("is locked: give --unlock-key-file FILE"), "{said}");
    fs::write(&file, UnlockKey(Key::random()).to_string()).unwrap();
    let (done, said) = recover(&given);
    assert!(!done && said.contains("is locked with another unlock key"), "{said}");
    fs::write(&file, "rckey-1-nonsense").unwrap();
    let (done, said) = recover(&given);
    assert!(!done && said.contains("--unlock-key-file"), "{said}");
    fs::write(&file, key.to_string()).unwrap();
    let (done, said) = recover(&given);
    assert!(done && said.contains("Recovered.") && said.contains(&format!("the unlock key is {key}")), "{said}");
    goes_on_locked(&mut cluster, &dir, &addr, &key).await;
    assert_eq!(cluster.networks().await, 1);
}

/// Starts the manager m1 in `dir`, which is new and was locked before anything was written there.
async fn goes_on_locked(cluster: &mut Cluster, dir: &Path, addr: &str, key: &UnlockKey) {
    wrapped_with(dir, Some(key)).await;
    cluster.managers.push(start("m1", dir, addr, &[]));
    unlock(addr, &cluster.admin, key).await.unwrap();
    until("m1 leads alone", || async { cluster.status().await.ok().filter(|status| status.leader == "m1") }).await;
    // No other key was ever there, which would have stood in clear.
    assert_eq!(keys(dir), BTreeSet::from([1]));
    wrapped_with(dir, Some(key)).await;
}

#[tokio::test]
async fn a_backup_is_restored_to_a_disk_that_is_locked_from_the_first() {
    let mut cluster = Cluster::found().await;
    cluster.write("before").await;
    let key = autolock(&cluster, On).await.unwrap().unwrap();
    let mut pieces = cluster.control(&cluster.admin).await.unwrap().backup(v1::BackupRequest {}).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        bytes.extend_from_slice(&piece.data);
    }
    let (from, dir, addr) = (cluster.dir.path().join("backup"), cluster.dir.path().join("new"), cluster.managers[0].addr.clone());
    fs::write(&from, bytes).unwrap();
    cluster.managers.clear();
    let (from, to) = (from.to_str().unwrap(), dir.to_str().unwrap());
    let output = run_program(&["restore", "--from", from, "--name", "m1", "--state-dir", to, "--advertise", &addr, "--yes"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains(&format!("the unlock key is {key}")), "{said}");
    goes_on_locked(&mut cluster, &dir, &addr, &key).await;
    assert_eq!(cluster.networks().await, 1);
}

#[tokio::test]
async fn a_disk_that_joins_is_locked_before_anything_is_written_on_it() {
    let mut cluster = Cluster::found().await;
    let key = autolock(&cluster, On).await.unwrap().unwrap();
    let (dir, at, first) = (cluster.dir.path().join("m2"), addr(), cluster.addrs().join(","));
    let (to, token) = (dir.to_str().unwrap(), cluster.founded.manager_token.clone());
    let output = run_program(&["join", "--join", &first, "--name", "m2", "--state-dir", to, "--advertise", &at, "--token", &token]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("it waits for `rclusterctl cluster unlock`"), "{said}");
    wrapped_with(&dir, Some(&key)).await;
    cluster.managers.push(start("m2", &dir, &at, &[]));
    unlock(&at, &cluster.admin, &key).await.unwrap();
    cluster.settled(&["m1", "m2"]).await;
    // One that joins and goes on needs no key.
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    for name in ["m2", "m3"] {
        let dir = cluster.manager(name).dir.clone();
        wrapped_with(&dir, Some(&key)).await;
        assert_eq!(keys(&dir), BTreeSet::from([1]), "no other key was ever there, which would have stood in clear");
    }
}

#[tokio::test]
async fn managers_lock_as_they_join_and_one_that_was_away_needs_the_key_of_its_time() {
    let mut cluster = Cluster::found().await;
    let old = autolock(&cluster, On).await.unwrap().unwrap();
    cluster.join("m2");
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    let (dir, addr) = (cluster.manager("m3").dir.clone(), cluster.manager("m3").addr.clone());
    wrapped_with(&dir, Some(&old)).await;
    cluster.manager("m3").kill();
    let new = until("a new key", || async { autolock(&cluster, Rotate).await.ok() }).await.unwrap();
    cluster.write("away").await;
    restart(&mut cluster, "m3");
    let wrong = unlock(&addr, &cluster.admin, &new).await.unwrap_err();
    assert!(wrong.message.contains(&old.0.fingerprint()) && wrong.hint.contains("give the one of before"), "{wrong}");
    unlock(&addr, &cluster.admin, &old).await.unwrap();
    cluster.settled(&["m1", "m2", "m3"]).await;
    wrapped_with(&dir, Some(&new)).await;
    // What was in clear or under the old key opens nothing that is written now.
    for name in ["m1", "m2"] {
        let dir = cluster.manager(name).dir.clone();
        wrapped_with(&dir, Some(&new)).await;
    }
    // All at once: none is a majority before they are unlocked.
    for name in ["m1", "m2", "m3"] {
        cluster.manager(name).kill();
    }
    for name in ["m1", "m2", "m3"] {
        restart(&mut cluster, name);
        let addr = cluster.manager(name).addr.clone();
        unlock(&addr, &cluster.admin, &new).await.unwrap();
    }
    cluster.settled(&["m1", "m2", "m3"]).await;
    assert_eq!(cluster.networks().await, 1);
}

#[tokio::test]
async fn whenever_a_manager_dies_while_its_key_changes_one_of_the_two_opens_its_disk() {
    let mut cluster = Cluster::found().await;
    let addr = cluster.managers[0].addr.clone();
    let mut keys = vec![autolock(&cluster, On).await.unwrap().unwrap()];
    wrapped_with(&cluster.managers[0].dir, Some(&keys[0])).await;
    for round in 0..8 {
        cluster.write(&format!("n{round}")).await;
        keys.push(autolock(&cluster, Rotate).await.unwrap().unwrap());
        tokio::time::sleep(std::time::Duration::from_micros(rand::random_range(0..15_000))).await;
        restart(&mut cluster, "m1");
        let [.., before, now] = &keys[..] else { panic!("two keys at least") };
        if unlock(&addr, &cluster.admin, now).await.is_err() {
            unlock(&addr, &cluster.admin, before).await.unwrap();
        }
        until("m1 leads", || async { cluster.status().await.ok().filter(|status| status.leader == "m1") }).await;
        assert_eq!(cluster.networks().await, round + 1);
        wrapped_with(&cluster.managers[0].dir, keys.last()).await;
        sealed_anew(&cluster.managers[0].dir).await;
    }
}

#[tokio::test]
async fn a_cluster_in_plain_text_has_no_autolock() {
    let cluster = Cluster::found_with(&["--insecure"]).await;
    let refused = autolock(&cluster, On).await.unwrap_err();
    assert!(refused.message.contains("a cluster without TLS has no autolock"), "{refused}");
    write_secret(&cluster, "a").await;
    assert_eq!(holding(&cluster.managers[0].dir, SECRET.as_bytes()), Vec::<String>::new());
}
