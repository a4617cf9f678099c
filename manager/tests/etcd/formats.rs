//! A later version raises the format of what stands in etcd while managers of this one run.

use rcluster_manager::store::ProposeError;
use rcluster_manager::store::etcd::{Held, found};

use crate::promises::{self, has, make, soon, until};
use crate::server::Server;
use crate::stores::{Stores, begin_timed, config, first, steady};

const WHY: &str = "the store in etcd was raised to format 2 by a later version; this one reads 1: upgrade this manager";

async fn raise(server: &Server) {
    server.client().await.put("/test/cluster/live/format", r#"{"format":2,"more":[]}"#, None).await.unwrap();
}

/// Its keys but for those that end with who made them.
async fn lasting(server: &Server) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (_, mut keys) = server.held().await;
    keys.retain(|(key, _)| {
        let key = String::from_utf8_lossy(key);
        !key.ends_with("/live/leader") && !key.contains("/live/alive/")
    });
    keys
}

/// Their leases do not end and nobody writes: the watch tells them.
#[tokio::test(flavor = "multi_thread")]
async fn all_managers_hear_of_it_and_end() {
    let cluster = Stores::start_timed(2, steady()).await;
    cluster.write(&[0, 1], &make("before")).await;
    cluster.all_have(&[0, 1], "before").await;
    raise(&cluster.server).await;
    let raised = lasting(&cluster.server).await;
    for (running, name) in cluster.running.iter().zip(["the first", "the second"]) {
        let told = until(name, || running.fatal.borrow().clone()).await;
        assert!(told.starts_with(WHY), "{told}");
        let refused = soon("an answer", running.store.propose(make("after"))).await;
        assert!(matches!(refused, Err(ProposeError::ShuttingDown | ProposeError::Unavailable)), "{refused:?}");
    }
    assert!(lasting(&cluster.server).await == raised, "nothing was written");
}

/// Its runtime has one thread, which only this test lets run, and a proposal wakes the store before the network can.
#[test]
fn a_leader_that_has_not_heard_of_it_writes_nothing() {
    let here = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let still = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = here.block_on(async {
        let server = Server::start().await;
        assert!(found(&server.access(), "cluster", first(1)).await.unwrap());
        server
    });
    let leading = still.block_on(async {
        let leading = begin_timed(config(1), &server.access(), steady()).await.unwrap();
        promises::leader(std::slice::from_ref(&leading.store)).await.propose(make("before")).await.unwrap();
        leading
    });
    let raised = here.block_on(async {
        raise(&server).await;
        lasting(&server).await
    });
    assert_eq!(*leading.fatal.borrow(), None, "it has heard nothing");
    let answer = still.block_on(soon("an answer", leading.store.propose(make("after"))));
    assert!(matches!(answer, Err(ProposeError::Unavailable | ProposeError::NotLeader { .. })), "{answer:?}");
    let told = still.block_on(until("it ends", || leading.fatal.borrow().clone()));
    assert!(told.starts_with(WHY), "{told}");
    assert!(!has(&leading.store.state(), "after"));
    assert!(here.block_on(lasting(&server)) == raised, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_not_put_into_its_place() {
    let server = Server::start().await;
    let access = server.access();
    assert!(found(&access, "cluster", first(1)).await.unwrap());
    let held = Held::read(&access, "cluster").await.unwrap();
    let mut state = held.state.clone();
    state.apply(held.state.revision() + 1000, &make("anew")).unwrap();
    raise(&server).await;
    let raised = server.held().await;
    let refused = held.replace(state, 7).await.unwrap_err();
    assert_eq!(refused.to_string(), "/test/cluster/live/format says format 2, this version reads 1: upgrade this manager");
    assert!(server.held().await == raised, "nothing was written");
}
