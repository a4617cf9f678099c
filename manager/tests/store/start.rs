//! Starting: from what is on the disk, or not at all.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rcluster_api::tls::Security;
use rcluster_manager::seal::Keys;
use rcluster_manager::store::{RoleKind, Store, StoreConfig, StoreError, identity, keys_used, prepare, start};

use crate::world::{config, founded, has, make, soon, until};

fn lone(dir: &Path) -> StoreConfig {
    StoreConfig { dir: dir.to_path_buf(), snapshot_entries: 20, trailing_entries: 5, ..config(1, 1) }
}

async fn leading(config: StoreConfig) -> Store {
    if identity(&config.dir).unwrap().is_none() {
        prepare(&config, Some(&founded(&config.seeds))).unwrap();
    }
    let (store, _) = start(config, Security::plain()).unwrap();
    until("it leads", || (store.role().borrow().kind == RoleKind::Leader).then_some(())).await;
    store
}

fn refusal(config: StoreConfig) -> String {
    let error: StoreError = start(config, Security::plain()).unwrap_err();
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_there_after_a_restart_with_and_without_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let store = leading(lone(dir.path())).await;
        assert_eq!(store.state().events().len(), round * 13);
        for number in 0..13 {
            store.propose(make(&format!("{round}-{number:02}"))).await.unwrap();
        }
        soon("the end", store.shutdown()).await;
    }
    let store = leading(lone(dir.path())).await;
    let snapshots = || {
        let names = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("snapshot-")).count()
    };
    // Those that were on their way when a run ended go when the next one is kept.
    for number in 0..50 {
        store.propose(make(&format!("5-{number:02}"))).await.unwrap();
    }
    until("the one in use and at most one that is on its way are there", || (snapshots() <= 2).then_some(())).await;
    assert!(has(&store.state(), "0-00") && has(&store.state(), "4-12"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_without_its_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    leading(lone(dir.path())).await.shutdown().await;
    fs::remove_dir_all(dir.path().join("raft")).unwrap();
    let refusal = refusal(lone(dir.path()));
    assert!(refusal.contains("raft is missing") && refusal.contains("empty state directory"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_of_another_manager_or_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    leading(lone(dir.path())).await.shutdown().await;
    let other_cluster = StoreConfig { cluster_id: "other".to_owned(), ..lone(dir.path()) };
    assert!(refusal(other_cluster.clone()).contains("belongs to manager m1 (id 1) of cluster"));
    let other_manager = StoreConfig { id: 2, name: "m2".to_owned(), ..lone(dir.path()) };
    assert!(refusal(other_manager).contains("not to manager m2 (id 2)"));
    // The log itself knows as well.
    fs::remove_file(dir.path().join("identity.json")).unwrap();
    assert!(refusal(other_cluster).contains("belongs to manager m1"));
    let store = leading(lone(dir.path())).await;
    assert!(dir.path().join("identity.json").exists(), "it is made up for");
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = leading(lone(dir.path())).await;
    let refusal = refusal(lone(dir.path()));
    assert!(refusal.contains("is a manager running on this state directory?"), "{refusal}");
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    leading(lone(dir.path())).await.shutdown().await;
    let snapshot = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
    let snapshot = snapshot.into_iter().find(|path| path.to_string_lossy().contains("snapshot-")).unwrap();
    let mut bytes = fs::read(&snapshot).unwrap();
    bytes.push(0);
    fs::write(&snapshot, bytes).unwrap();
    let place = format!("{} is damaged: ", snapshot.display());
    let refused = refusal(lone(dir.path()));
    assert!(refused.starts_with(&place) && refused.contains("are not the") && refused.contains("rclusterctl node rm"), "{refused}");
    fs::remove_file(&snapshot).unwrap();
    let refused = refusal(lone(dir.path()));
    assert!(refused.starts_with(&place) && refused.contains("it is missing"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_first_start_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("raft")).unwrap();
    fs::write(dir.path().join("raft/new"), b"half a log").unwrap();
    leading(lone(dir.path())).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_go_while_their_keys_are_looked_for_are_sealed_with_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { keys: Some(Keys::random()), ..lone(dir.path()) };
    leading(config).await.shutdown().await;
    // Listed, and not there any more when they are opened.
    for name in ["raft/segment-0000000000000000", "snapshot-00000000000000000001-00000000.sealed"] {
        symlink("gone", dir.path().join(name)).unwrap();
    }
    assert_eq!(keys_used(dir.path()).unwrap(), BTreeSet::from([1]));
}
