//! What a store in etcd promises: as every store does, and while etcd or a manager is away.

use std::time::Duration;

use rcluster_base::scope::Scope;
use rcluster_manager::core::state::{Change, Transaction, encode_snapshot};
use rcluster_manager::store::etcd::{Access, CallError, Fatal, Held, found};
use rcluster_manager::store::{MemberChange, ProposeError, RoleKind};

use crate::promises::{self, has, make, make_large, soon, until};
use crate::server::Server;
use crate::stores::{Stores, begin, config, first, give_up, join, steady, within};

#[tokio::test(flavor = "multi_thread")]
async fn what_every_store_promises() {
    let before_a_leader = Stores::start(3).await;
    promises::reads_asked_before_there_is_a_leader_are_answered(&before_a_leader.stores()).await;
    promises::one_leads_and_all_know_it(&before_a_leader.stores()).await;
    promises::a_write_is_in_the_tables_when_it_is_answered_and_soon_everywhere(&before_a_leader.stores()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_conflict_and_leadership_is_handed_over() {
    let cluster = Stores::start(3).await;
    promises::a_conflict_changes_nothing_and_is_told(&cluster.stores()).await;
    drop(cluster);
    let cluster = Stores::start_timed(3, steady()).await;
    promises::a_store_that_stops_hands_leadership_over(&cluster.stores()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_given_up_for_another_that_runs_and_for_nobody_else() {
    let mut cluster = Stores::start_timed(1, steady()).await;
    // A manager that never runs.
    cluster.write(&[0], &join(2)).await;
    let term = cluster.store(0).role().borrow().term;
    cluster.store(0).hand_over().await;
    let role = cluster.store(0).role().borrow().clone();
    assert_eq!((role.kind, role.term), (RoleKind::Leader, term), "nobody else can lead");
    cluster.running.push(begin(config(2), &cluster.server.access()).await.unwrap());
    until("it is heard", || cluster.store(0).status().members.iter().all(|member| member.reachable).then_some(())).await;
    let handed_over = async {
        loop {
            cluster.store(0).hand_over().await;
            // One that is late does not get it.
            if within(Duration::from_secs(2), cluster.leader_among(&[1])).await.is_some() {
                return;
            }
        }
    };
    soon("the other leads", handed_over).await;
    assert!(cluster.store(1).role().borrow().term > term);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_transactions_and_many_at_once() {
    let cluster = Stores::start(3).await;
    promises::a_follower_says_who_leads_and_a_transaction_too_large_is_refused(&cluster.stores()).await;
    drop(cluster);
    let cluster = Stores::start(3).await;
    promises::many_proposals_at_once_are_all_made(&cluster.stores()).await;
    let leader = cluster.leader().await;
    let state = cluster.store(leader).state();
    for index in 0..3 {
        cluster.store(index).read_barrier().await.unwrap();
        assert!(encode_snapshot(&cluster.store(index).state()) == encode_snapshot(&state), "the same on every manager");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_s_read_sees_what_the_leader_has_answered() {
    let cluster = Stores::start(3).await;
    promises::a_follower_s_read_sees_what_the_leader_has_answered(&cluster.stores()).await;
}

/// The leader is cut off from the other tasks of its process by being dropped with its runtime: as a process that is killed, it says nothing.
#[test]
fn a_leader_that_dies_is_replaced_by_the_end_of_its_lease() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (here, doomed) = (runtime(), runtime());
    let mut cluster = here.block_on(Stores::start(1));
    here.block_on(cluster.write(&[0], &make("before")));
    here.block_on(cluster.write(&[0], &join(2)));
    let second = doomed.block_on(begin(config(2), &cluster.server.access())).unwrap();
    // The first gives up, so that the doomed one leads.
    here.block_on(async {
        give_up(cluster.store(0), 2, &second.store).await;
        second.store.propose(make("by the second")).await.unwrap();
    });
    let term = second.store.role().borrow().term;
    drop(doomed);
    here.block_on(async {
        cluster.write(&[0], &make("after")).await;
        assert!(cluster.store(0).role().borrow().term > term);
        assert!(has(&cluster.store(0).state(), "by the second"));
        until("the dead one is missed", || cluster.store(0).status().members.iter().any(|member| !member.reachable).then_some(())).await;
        // It comes back and follows.
        let back = begin(config(2), &cluster.server.access()).await.unwrap();
        cluster.running.push(back);
        cluster.all_have(&[0, 1], "after").await;
        until("it is heard", || cluster.store(0).status().members.iter().all(|member| member.reachable).then_some(())).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_stand_still_without_etcd_and_go_on_with_it() {
    let mut cluster = Stores::start(3).await;
    cluster.write(&[0, 1, 2], &make("before")).await;
    cluster.all_have(&[0, 1, 2], "before").await;
    let leader = cluster.leader().await;
    let term = cluster.store(leader).role().borrow().term;
    cluster.server.stop();
    let during = tokio::spawn({
        let store = cluster.store(leader).clone();
        async move { store.propose(make("during")).await }
    });
    // Nobody leads, the tables stay, and reads that must be of now are refused.
    until("nobody leads", || {
        let nobody = cluster.stores().iter().all(|store| store.role().borrow().kind != RoleKind::Leader);
        nobody.then_some(())
    })
    .await;
    assert!(cluster.stores().iter().all(|store| has(&store.state(), "before")));
    let refused = soon("an answer", cluster.store(0).read_barrier()).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Unavailable));
    let refused = soon("an answer", cluster.store(leader).propose(make("refused"))).await.unwrap_err();
    assert!(matches!(refused, ProposeError::NotLeader { leader: None }), "{refused}");
    let during = soon("the end of what was under way", during).await.unwrap();
    assert!(matches!(during, Err(ProposeError::Unavailable | ProposeError::NotLeader { .. })), "{during:?}");
    cluster.server.again().await;
    let revision = cluster.write(&[0, 1, 2], &make("after")).await;
    cluster.all_have(&[0, 1, 2], "after").await;
    let leader = cluster.leader().await;
    assert!(cluster.store(leader).role().borrow().term > term);
    let state = cluster.store(leader).state();
    assert!(has(&state, "before") && !has(&state, "refused") && state.revision() >= revision);
    assert!(cluster.running.iter().all(|running| running.fatal.borrow().is_none()));
}

async fn count(client: &mut etcd_client::Client, below: &str) -> i64 {
    let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
    client.get(format!("/test/cluster/{below}"), Some(options)).await.unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_cut_by_snapshots_and_a_manager_starts_from_them() {
    let mut cluster = Stores::start_tuned(2, |config| config.snapshot_entries = 20).await;
    for number in 0..100 {
        cluster.write_whatever_comes(&make(&format!("{number:03}"))).await;
    }
    let mut client = cluster.server.client().await;
    let cut = async {
        loop {
            let (log, parts) = (count(&mut client, "live/log/").await, count(&mut client, "parts/").await);
            // One snapshot of one part.
            if log < 40 && parts == 1 {
                return;
            }
        }
    };
    soon("the log is cut, and one snapshot is kept", cut).await;
    cluster.running.push(begin(config(1), &cluster.server.access()).await.unwrap());
    // The first ends: two programs do not run as one manager.
    cluster.all_have(&[1, 2], "099").await;
    assert_eq!(cluster.store(2).state().events().len(), 100);
    assert!(encode_snapshot(&cluster.store(2).state()) == encode_snapshot(&cluster.store(1).state()));
}

/// Large transactions stand in pieces beside the log: they count, whoever wrote them.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_many_bytes_is_cut_by_who_has_only_read_it() {
    let cluster = Stores::start_with(2, steady(), |config| config.snapshot_bytes = if config.id == 1 { u64::MAX } else { 5 << 20 }).await;
    cluster.lead(0).await;
    for id in ["a", "b", "c"] {
        cluster.write(&[0], &make_large(id, 2 << 20)).await;
    }
    cluster.all_have(&[1], "c").await;
    let mut client = cluster.server.client().await;
    assert_eq!(count(&mut client, "live/log/").await, 3);
    cluster.lead(1).await;
    soon("the log is cut", async { while count(&mut client, "live/log/").await > 0 {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_many_bytes_is_cut_by_who_starts_with_it() {
    let mut cluster = Stores::start_tuned(1, |config| config.snapshot_bytes = u64::MAX).await;
    for id in ["a", "b", "c"] {
        cluster.write(&[0], &make_large(id, 2 << 20)).await;
    }
    cluster.running.pop().unwrap().store.shutdown().await;
    let mut tuned = config(1);
    tuned.snapshot_bytes = 5 << 20;
    cluster.running.push(begin(tuned, &cluster.server.access()).await.unwrap());
    let mut client = cluster.server.client().await;
    soon("the log is cut", async { while count(&mut client, "live/log/").await > 0 {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_do_not_run_as_one_manager() {
    let mut cluster = Stores::start(1).await;
    cluster.leader().await;
    cluster.running.push(begin(config(1), &cluster.server.access()).await.unwrap());
    until("the first ends", || cluster.running[0].fatal.borrow().clone()).await;
    cluster.write(&[1], &make("a")).await;
    assert!(cluster.running[1].fatal.borrow().is_none());
}

/// Their leases stand in the backup as well: nothing else ends their sessions.
#[tokio::test(flavor = "multi_thread")]
async fn managers_end_when_etcd_has_less_than_they_have_seen() {
    let mut cluster = Stores::start(2).await;
    cluster.write(&[0, 1], &make("before")).await;
    cluster.server.back_up().await;
    cluster.write_whatever_comes(&make("after")).await;
    cluster.all_have(&[0, 1], "after").await;
    cluster.server.go_back().await;
    for running in &cluster.running {
        let told = until("it ends", || running.fatal.borrow().clone()).await;
        assert!(told.contains("this manager has seen"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_put_into_place_anew_leave_nothing_when_they_are_refused() {
    let cluster = Stores::start(1).await;
    let access = cluster.server.access();
    let held = Held::read(&access, "cluster").await.unwrap();
    let mut state = held.state.clone();
    state.apply(held.state.revision() + 1000, &make("anew")).unwrap();
    let mut client = cluster.server.client().await;
    assert!(!held.replace(state.clone(), 7).await.unwrap(), "a manager runs");
    assert_eq!(count(&mut client, "parts/snapshot/").await, 1, "those in use");
    cluster.store(0).shutdown().await;
    soon("they are taken", async { while !held.replace(state.clone(), 7).await.unwrap() {} }).await;
    assert_eq!(count(&mut client, "parts/snapshot/").await, 1, "those in use");
    assert!(has(&Held::read(&access, "cluster").await.unwrap().state, "anew"));
}

/// Others use the same etcd all the time, and its history is compacted up to what they wrote: beyond where the managers' watches are.
#[tokio::test(flavor = "multi_thread")]
async fn managers_that_were_away_while_etcd_was_compacted_read_the_tables_anew() {
    let mut cluster = Stores::start_tuned(2, |config| config.snapshot_entries = 20).await;
    cluster.write(&[0, 1], &make("before")).await;
    cluster.all_have(&[0, 1], "before").await;
    let mut client = cluster.server.client().await;
    for _ in 0..3 {
        client.put("elsewhere", "", None).await.unwrap();
    }
    let now = client.get("elsewhere", None).await.unwrap().header().unwrap().revision();
    client.compact(now, None).await.unwrap();
    // A watch that is there goes on. One that is made again asks for a revision that is gone.
    cluster.server.stop();
    let mut others = Scope::new();
    for _ in 0..8 {
        let mut client = client.clone();
        others.spawn(async move {
            loop {
                if client.put("elsewhere", "", None).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
    }
    cluster.server.again().await;
    for number in 0..60 {
        cluster.write_whatever_comes(&make(&format!("{number:02}"))).await;
    }
    cluster.all_have(&[0, 1], "59").await;
    assert!(encode_snapshot(&cluster.store(0).state()) == encode_snapshot(&cluster.store(1).state()));
    for running in &cluster.running {
        assert_eq!(*running.fatal.borrow(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_and_another_prefix_are_refused() {
    let cluster = Stores::start(1).await;
    let mut other = config(1);
    other.cluster_id = "another".to_owned();
    let refused = begin(other, &cluster.server.access()).await.unwrap_err();
    assert!(matches!(refused, Fatal::NoCluster { .. }), "{refused}");
    let elsewhere =
        Access { address: format!("etcd://{}/elsewhere", cluster.server.endpoint()).parse().unwrap(), ..cluster.server.access() };
    let refused = begin(config(1), &elsewhere).await.unwrap_err();
    assert!(refused.to_string().contains("/elsewhere has no cluster cluster"), "{refused}");
    let refused = begin(config(7), &cluster.server.access()).await.unwrap_err();
    assert!(matches!(refused, Fatal::Removed), "{refused}");
    assert!(!found(&cluster.server.access(), "cluster", first(1)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_later_version_has_written_is_refused_and_left_as_it_is() {
    let server = Server::start().await;
    let access = server.access();
    assert!(found(&access, "cluster", first(1)).await.unwrap());
    let mut client = server.client().await;
    client.put("/test/cluster/live/format", r#"{"format":2,"more":[]}"#, None).await.unwrap();
    let before = server.held().await;
    let why = "/test/cluster/live/format says format 2, this version reads 1: upgrade this manager";
    let refused = begin(config(1), &access).await.unwrap_err();
    assert_eq!(std::error::Error::source(&refused).unwrap().to_string(), why);
    let reading = soon("an answer", async {
        loop {
            match Held::read(&access, "cluster").await {
                // A slow machine: it says nothing of the format.
                Err(error) if error.is_passing() => {}
                answer => return answer.unwrap_err(),
            }
        }
    });
    assert_eq!(reading.await.to_string(), why);
    assert!(server.held().await == before, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_reached_over_tls_by_who_shows_a_certificate_and_a_password() {
    let server = Server::start_secured().await;
    let access = server.access();
    assert!(found(&access, "cluster", first(1)).await.unwrap());
    let running = begin(config(1), &access).await.unwrap();
    promises::leader(std::slice::from_ref(&running.store)).await.propose(make("a")).await.unwrap();
    // Without what etcd asks for nobody comes in.
    let nameless = begin(config(1), &Access { user: None, ..access.clone() }).await.unwrap_err();
    let told = std::error::Error::source(&nameless).unwrap().to_string();
    assert!(told.contains("permission denied"), "{told}");
    // A connection that is refused in its handshake is one to an etcd that is away: a manager that starts tries on.
    for access in [Access { certificate: None, ..access.clone() }, Access { ca: None, certificate: None, ..access.clone() }] {
        let refused = soon("an answer", async {
            loop {
                match found(&access, "cluster", first(1)).await {
                    // A slow machine: it says nothing of the handshake.
                    Err(CallError::Timeout { .. }) => {}
                    answer => return answer.unwrap_err(),
                }
            }
        });
        let refused = refused.await;
        assert!(refused.is_passing(), "{refused}");
    }
    let wrong = server.write("wrong", "no");
    let refused = begin(config(1), &Access { user: Some(("root".to_owned(), wrong)), ..access }).await.unwrap_err();
    let told = std::error::Error::source(&refused).unwrap().to_string();
    assert!(told.contains("authentication failed"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_waits_for_an_etcd_that_is_not_there_yet() {
    let mut server = Server::start().await;
    assert!(found(&server.access(), "cluster", first(1)).await.unwrap());
    server.stop();
    let access = server.access();
    let starting = tokio::spawn(async move { begin(config(1), &access).await });
    server.again().await;
    let running = soon("it starts", starting).await.unwrap().unwrap();
    promises::leader(std::slice::from_ref(&running.store)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_votes_to_change_and_a_removed_manager_ends() {
    let cluster = Stores::start(2).await;
    let leader = cluster.leader().await;
    let refused = cluster.store(leader).change_members(vec![MemberChange::Learner(2)]).await.unwrap_err();
    assert!(matches!(refused, ProposeError::NoVoters));
    let gone = 1 - leader;
    let id = format!("m{}", gone + 1);
    let version = cluster.store(leader).state().find_manager(&id).unwrap().stamp.version;
    let delete = Change::Delete { expected: version, kind: rcluster_api::object::Kind::Manager, id };
    cluster.write(&[leader], &Transaction { at_ms: 1, changes: vec![delete] }).await;
    until("it ends", || cluster.running[gone].fatal.borrow().clone()).await;
    let nothing = within(Duration::from_millis(1), cluster.store(gone).read_barrier()).await;
    assert!(nothing.is_none_or(|answer| answer.is_err()));
}
