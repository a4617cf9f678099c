//! What earlier versions have written: a state directory and a backup that the program made (`fixtures/README.md`). Through the library, as
//! nobody is let in by certificates when those of the fixture have expired.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use raft::eraftpb::{HardState, Snapshot};
use rcluster_api::backup::{self, Backup, Header};
use rcluster_api::cluster::ManagerRole;
use rcluster_api::data::{DataKind, Payload};
use rcluster_api::identity::{self, Part};
use rcluster_api::object::Kind;
use rcluster_api::policy::NodePolicy;
use rcluster_api::rest::{DataJson, EventJson, NetworkJson, NodeJson, ServiceJson, TaskJson, UserJson};
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_manager::core::state::{Change, SNAPSHOT_FORMAT, State, Transaction, decode_snapshot, encode_snapshot};
use rcluster_manager::disaster::{self, Restore};
use rcluster_manager::found::open_seal;
use rcluster_manager::rpc::admission::join_token;
use rcluster_manager::seal::{Opened, Seal, read_credentials};
use rcluster_manager::store::{self, Identity, Member, RoleKind, Salvaged, StoreConfig, Wal};
use serde::Serialize;
use serde_json::{Value, json};

use crate::support::{addr, contents, copy, start, until};

/// Bytes of a segment that is made ready.
const SEGMENT_BYTES: u64 = 16 << 20;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// What was there when the fixture was made.
fn then() -> Value {
    serde_json::from_slice(&fs::read(fixture("state-1.json")).unwrap()).unwrap()
}

fn backup_bytes() -> Vec<u8> {
    fs::read(fixture("backup-1")).unwrap()
}

/// Whose directory it is, and the keys of its disk.
fn opened(dir: &Path) -> (Identity, Seal) {
    let identity = store::identity(dir).unwrap().unwrap();
    match open_seal(dir, &identity).unwrap() {
        Opened::Open(disk) => (identity, disk),
        Opened::Locked(_) => panic!("{} is locked", dir.display()),
    }
}

fn salvaged(dir: &Path) -> Salvaged {
    let (_, disk) = opened(dir);
    store::salvage(dir, Some(disk.keys)).unwrap().unwrap()
}

fn list<T: Serialize>(objects: impl Iterator<Item = T>) -> Value {
    serde_json::to_value(objects.collect::<Vec<_>>()).unwrap()
}

/// The tables as `rclusterctl get -o json` shows them, by id.
fn shown(state: &State) -> Value {
    let tasks = || state.tasks().values().map(|task| &**task);
    let data = |kind: DataKind| list(state.data().values().filter(move |data| data.spec.kind == kind).map(|data| DataJson::from(&**data)));
    json!({
        "service": list(state.services().values().map(|service| ServiceJson::new(service, tasks()))),
        "task": list(tasks().map(TaskJson::from)),
        "node": list(state.nodes().values().map(|node| NodeJson::new(node, tasks()))),
        "network": list(state.networks().values().map(|network| NetworkJson::new(network, tasks()))),
        "secret": data(DataKind::Secret),
        "config": data(DataKind::Config),
        "event": list(state.events().values().map(|event| EventJson::from(&**event))),
        "user": list(state.users().values().map(|user| UserJson::from(&**user))),
    })
}

/// Where `now` lacks what `then` has, or has it otherwise. Fields that came later count for nothing.
fn lost(then: &Value, now: &Value, place: &str) -> Vec<String> {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            then.iter().flat_map(|(key, then)| lost(then, now.get(key).unwrap_or(&Value::Null), &format!("{place}.{key}"))).collect()
        }
        (Value::Array(then), Value::Array(now)) if then.len() == now.len() => {
            then.iter().zip(now).enumerate().flat_map(|(at, (then, now))| lost(then, now, &format!("{place}[{at}]"))).collect()
        }
        (then, now) if then == now => Vec::new(),
        (then, now) => vec![format!("{place} was {then}, is {now}")],
    }
}

/// Holds that these kinds of objects are what they were.
fn check_shown(state: &State, kinds: &[&str]) {
    let (then, now) = (then(), shown(state));
    for kind in kinds {
        assert!(then[kind].as_array().is_some_and(|objects| !objects.is_empty()), "the fixture has no {kind}");
        assert_eq!(lost(&then[kind], &now[kind], kind), Vec::<String>::new());
    }
}

/// Holds that the tables are those of the fixture, also where nobody is shown them.
fn check(state: &State) {
    check_shown(state, &["service", "task", "node", "network", "secret", "config", "event", "user"]);
    let then = then();
    assert_eq!((state.cluster_id(), state.revision()), ("9dm3d9ftxdrb11zw", 18));
    let web = state.find_service("web").unwrap();
    let tasks = state.tasks_of_service(&web.id).collect::<Vec<_>>();
    assert!(
        tasks.iter().all(|task| task.template == web.spec.template() && task.spec_version == 1 && task.networks[0].aliases == ["front"])
    );
    let again = tasks.iter().find(|task| task.restarts == 1).unwrap();
    assert_eq!((again.restarts_in_window, again.window_start_ms), (1, 1_795_325_937_856));
    let node = state.find_node("n1").unwrap();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let policy = NodePolicy { runtimes: words(&["other"]), privileged: true, binds: words(&["/opt/in"]), devices: words(&["/dev/fuse"]) };
    assert_eq!((node.incarnation, node.description.os.as_str(), &node.description.policy), (3, "linux", &policy));
    assert_eq!(state.find_network("inner").unwrap().ip_cursor, 4);
    let bytes = |kind, name| state.find_data(kind, name).unwrap().spec.data.clone().unwrap().0;
    assert_eq!(bytes(DataKind::Secret, "password"), b"not very secret");
    assert_eq!(bytes(DataKind::Config, "motd"), b"good morning\n");
    let rita = then["tokens"]["rita"].as_str().unwrap();
    assert_eq!(state.find_user("rita").unwrap().token_digest, Payload(rita.as_bytes().to_vec()).digest());
    let manager = state.find_manager("m1").unwrap();
    assert_eq!((manager.raft_id, manager.addr.as_str(), manager.role), (1, "127.77.13.5:7443", ManagerRole::Voter));
    let cluster = state.cluster().unwrap();
    assert_eq!((cluster.managers_made, cluster.certificate_ttl_ms), (1, 7300 * 86_400_000));
    for (part, manager) in [("manager", true), ("agent", false)] {
        assert_eq!(join_token(cluster, manager).unwrap().to_string(), then["tokens"][part].as_str().unwrap());
    }
    let [issuing, retired] = cluster.authorities.as_slice() else { panic!("{} authorities", cluster.authorities.len()) };
    assert!(identity::is_issued_by(&issuing.cross.0, &retired.certificate.0), "who trusts the one before can trust the one that issues");
    assert!(!issuing.key.0.is_empty() && !retired.key.0.is_empty());
    assert_eq!((issuing.retired_at_ms, retired.retired_at_ms), (0, 1_795_325_940_552));
    let answered = state.answers().iter().map(|answered| (answered.revision, answered.answer.as_str())).collect::<Vec<_>>();
    assert_eq!(answered.len(), 6);
    assert_eq!(answered[5], (18, "\"NodeUpdated\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_of_an_earlier_version_is_read_and_its_manager_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture("state-1"), dir.path());
    let (own, disk) = opened(dir.path());
    let member = Member { id: 1, name: "m1".to_owned(), addr: "127.77.13.5:7443".to_owned() };
    let cluster_id = "9dm3d9ftxdrb11zw".to_owned();
    assert_eq!(own, Identity { cluster_id: cluster_id.clone(), name: "m1".to_owned(), id: 1, seeds: vec![member], etcd: false });
    let before = salvaged(dir.path());
    assert_eq!((&before.identity, before.term, before.committed, before.last), (&own, 2, 17, 18));
    check(&before.state);
    // What its log tells is what the backup of that moment holds.
    let bytes = backup_bytes();
    assert_eq!(encode_snapshot(&before.state), encode_snapshot(&decode_snapshot(backup::decode(&bytes).unwrap().data).unwrap()));
    let credentials = read_credentials(dir.path(), &disk.keys).unwrap().unwrap();
    let certified = credentials.certificate().unwrap().identity;
    let id = before.state.find_manager("m1").unwrap().id.to_string();
    assert_eq!(certified, identity::Identity { part: Part::Manager, id, cluster_id });
    assert!(credentials.is_current());
    Security::new(credentials).unwrap();
    let rita = before.state.find_user("rita").unwrap().clone();
    drop(before);
    let config = StoreConfig::new(own.cluster_id, own.name, own.id, own.seeds, dir.path().to_path_buf());
    let (store, _) = store::start(StoreConfig { keys: Some(disk.keys), ..config }, Security::plain()).unwrap();
    let ready = || store.role().borrow().kind == RoleKind::Leader && store.state().revision() == 18;
    until("it leads and has applied its log", || async { ready().then_some(()) }).await;
    check_shown(&store.state(), &["service", "task", "node", "network", "secret", "config", "event", "user"]);
    let change = Change::Delete { expected: rita.stamp.version, kind: Kind::User, id: rita.id.to_string() };
    store.propose(Transaction { at_ms: rita.stamp.updated_at_ms, changes: vec![change] }).await.unwrap();
    store.shutdown().await;
    let after = until("it has let go of the directory", || async {
        let (_, disk) = opened(dir.path());
        store::salvage(dir.path(), Some(disk.keys)).ok().flatten()
    })
    .await;
    assert!(after.last > 18 && after.state.find_user("rita").is_none() && after.state.find_user("dan").is_some());
}

#[test]
fn a_backup_of_an_earlier_version_is_read_and_restored() {
    let bytes = backup_bytes();
    let Backup { header, data } = backup::decode(&bytes).unwrap();
    let made = Header {
        cluster_id: "9dm3d9ftxdrb11zw".to_owned(),
        revision: 18,
        term: 2,
        made_at_ms: 1_795_325_972_280,
        manager: "m1".to_owned(),
        version: "0.1.0".to_owned(),
        data_bytes: 10_044,
        seal: String::new(),
    };
    assert_eq!(header, made);
    let state = decode_snapshot(data).unwrap();
    check(&state);
    // No field of it was passed over. A version that writes more than that one did has to say here what.
    assert_eq!(encode_snapshot(&state), data);
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("m2");
    let asked = asked(&fixture("backup-1"), &new);
    let mut said = Vec::new();
    disaster::restore(&asked, &mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    let inventory = "It restores: 2 services, 4 tasks, 1 node, 1 network, 1 secret, 1 config, 1 manager, 3 users";
    assert!(said.contains("at revision 18, made by manager m1 at 2026-11-22T05:39:32.280Z") && said.contains(inventory), "{said}");
    let restored = salvaged(&new).state;
    check_shown(&restored, &["service", "task", "node", "user"]);
    let [then, now] = [&state, &restored].map(|state| state.find_network("inner").unwrap().clone());
    assert_eq!((&now.spec, now.vni, now.subnet), (&then.spec, then.vni, then.subnet));
    assert_eq!((then.ip_cursor, now.ip_cursor), (4, 130), "what was given after the backup is not given again at once");
    let bytes = |state: &State| state.find_data(DataKind::Secret, "password").unwrap().spec.data.clone();
    assert_eq!(bytes(&restored), bytes(&state));
    assert_eq!(restored.managers().values().map(|manager| manager.name.as_str()).collect::<Vec<_>>(), ["m2"]);
}

fn asked(from: &Path, state_dir: &Path) -> Restore {
    Restore {
        from: from.to_path_buf(),
        name: "m2".to_owned(),
        state_dir: state_dir.to_path_buf(),
        advertise: "h:1".to_owned(),
        await_nodes_ms: 1000,
        yes: true,
    }
}

/// The tables as a later version may write them.
fn later(data: &[u8]) -> Vec<u8> {
    let snapshot = v1::StateSnapshot::decode(data).unwrap();
    v1::StateSnapshot { format: SNAPSHOT_FORMAT + 1, ..snapshot }.encode_to_vec()
}

const REFUSAL: &str = "the snapshot has format 2, newer than this version reads (1); upgrade this manager";

#[tokio::test]
async fn tables_of_a_later_version_are_refused_by_name_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("m1");
    copy(&fixture("state-1"), &own);
    let (identity, disk) = opened(&own);
    let newer = later(&encode_snapshot(&salvaged(&own).state));
    // The same manager's log, with these tables in it.
    fs::remove_dir_all(own.join("raft")).unwrap();
    for entry in fs::read_dir(&own).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("snapshot-") {
            fs::remove_file(path).unwrap();
        }
    }
    let mut snapshot = Snapshot::default();
    snapshot.set_data(newer.into());
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (18, 2);
    metadata.mut_conf_state().set_voters(vec![1]);
    let hard_state = HardState { term: 2, vote: 1, commit: 18, ..HardState::default() };
    drop(Wal::create(&own, Some(disk.keys), &serde_json::to_vec(&identity).unwrap(), &hard_state, snapshot).unwrap());
    // As a start leaves a segment.
    fs::File::options().write(true).open(own.join("raft/segment-0000000000000001")).unwrap().set_len(SEGMENT_BYTES).unwrap();
    let before = contents(&own);
    for run in 1..=2 {
        let mut manager = start("m1", &own, &addr(), &[]);
        assert_eq!(manager.end().await, 1);
        assert!(manager.log().matches(REFUSAL).count() >= run, "{}", manager.log());
        assert!(contents(&own) == before, "a file was changed");
    }
    let (_, disk) = opened(&own);
    let refused = store::salvage(&own, Some(disk.keys)).unwrap_err();
    assert_eq!(std::error::Error::source(&refused).unwrap().to_string(), REFUSAL);
    assert!(contents(&own) == before, "a file was changed");
}

#[test]
fn a_backup_of_later_tables_is_refused_by_name_and_nothing_is_made() {
    let bytes = backup_bytes();
    let Backup { header, data } = backup::decode(&bytes).unwrap();
    let newer = later(data);
    let dir = tempfile::tempdir().unwrap();
    let (file, new) = (dir.path().join("backup"), dir.path().join("m2"));
    fs::write(&file, backup::encode(&Header { data_bytes: newer.len() as u64, ..header }, &newer)).unwrap();
    let refused = format!("{:#}", disaster::restore(&asked(&file, &new), &mut Vec::new()).unwrap_err());
    assert!(refused.contains(file.to_str().unwrap()) && refused.contains(REFUSAL), "{refused}");
    assert!(!new.exists());
}
