//! A manager's way to etcd fails, or is slow.

use rcluster_manager::store::ProposeError;

use crate::promises::{has, make, make_large, soon, until};
use crate::proxy::Proxy;
use crate::stores::{Stores, begin, config, join};

/// Two managers, the first of which leads; the second goes by `Proxy`.
async fn by_proxy() -> (Stores, Proxy) {
    let mut cluster = Stores::start(1).await;
    cluster.leader().await;
    cluster.write(&[0], &join(2)).await;
    let proxy = Proxy::start(&cluster.server).await;
    cluster.running.push(begin(config(2), &proxy.access(&cluster.server)).await.unwrap());
    (cluster, proxy)
}

/// A transaction of more than 1 MiB stands in pieces, which a manager reads once it is told of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_reads_pieces_when_it_loses_etcd_notices_and_goes_on() {
    let (cluster, proxy) = by_proxy().await;
    let follows = |leader: bool| cluster.store(1).role().borrow().leader.is_some() == leader;
    until("the second follows", || follows(true).then_some(())).await;
    let revision = cluster.store(0).state().revision() + 1;
    proxy.close_before(&format!("/parts/log/{revision:020}"));
    cluster.write(&[0], &make_large("large", 2 << 20)).await;
    soon("the second asks for the pieces", proxy.closed()).await;
    until("it is out of touch", || follows(false).then_some(())).await;
    assert!(!has(&cluster.store(1).state(), "large"));
    let refused = soon("an answer", cluster.store(1).propose(make("refused"))).await.unwrap_err();
    assert!(matches!(refused, ProposeError::NotLeader { leader: None }), "{refused}");
    proxy.open();
    cluster.all_have(&[0, 1], "large").await;
    assert_eq!(*cluster.running[1].fatal.borrow(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_reads_pieces_when_it_loses_etcd_can_be_stopped() {
    let (cluster, proxy) = by_proxy().await;
    proxy.close_before(&format!("/parts/log/{:020}", cluster.store(0).state().revision() + 1));
    cluster.write(&[0], &make_large("large", 2 << 20)).await;
    soon("the second asks for the pieces", proxy.closed()).await;
    soon("it stops", cluster.store(1).shutdown()).await;
}

/// The second is sent to etcd once the first is answered.
#[tokio::test(flavor = "multi_thread")]
async fn who_waited_behind_a_transaction_when_etcd_went_away_is_told_that_nothing_was_proposed() {
    let (cluster, proxy) = by_proxy().await;
    cluster.lead(1).await;
    proxy.close();
    let leading = cluster.store(1);
    let (first, second) = (make("first"), make("second"));
    let (first, second) = soon("answers", async { tokio::join!(leading.propose(first), leading.propose(second)) }).await;
    assert!(matches!(first, Err(ProposeError::Unavailable)), "{first:?}");
    assert!(matches!(second, Err(ProposeError::NotLeader { leader: None })), "{second:?}");
}

/// Bytes a second: eight pieces take longer than any call may.
const SLOW: u32 = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_starts_over_a_slow_link() {
    let (mut cluster, proxy) = by_proxy().await;
    cluster.store(1).shutdown().await;
    cluster.write(&[0], &make_large("large", 8_000_000)).await;
    proxy.slow_down(SLOW);
    let access = proxy.access(&cluster.server);
    cluster.running[1] = soon("it starts", begin(config(2), &access)).await.unwrap();
    cluster.all_have(&[1], "large").await;
}

/// For longer than a lease lasts that is not renewed.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_reads_the_tables_anew_over_a_slow_link() {
    let (cluster, proxy) = by_proxy().await;
    proxy.close();
    until("it is out of touch", || cluster.store(1).role().borrow().leader.is_none().then_some(())).await;
    for number in 0..3 {
        cluster.write(&[0], &make_large(&number.to_string(), 7_500_000)).await;
    }
    let mut client = cluster.server.client().await;
    let now = client.get("x", None).await.unwrap().header().unwrap().revision();
    client.compact(now, None).await.unwrap();
    proxy.slow_down(SLOW);
    proxy.open();
    cluster.all_have(&[1], "2").await;
    assert_eq!(*cluster.running[1].fatal.borrow(), None);
}
