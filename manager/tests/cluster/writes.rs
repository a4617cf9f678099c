//! What a write's answer is worth.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcluster_api::client::{idempotency_key, keyed};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::support::{self, Cluster, start, until};

/// How long a manager looks for a leader before it refuses a request.
const LEADER_WAIT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn no_two_contents_have_one_version() {
    let cluster = Cluster::found().await;
    let control = cluster.control(&cluster.admin).await.unwrap();
    let write = |number: u8| {
        let mut control = control.clone();
        let data = v1::DataSpec {
            kind: v1::DataKind::Config.into(),
            name: "c".to_owned(),
            payload: Some(v1::Payload { bytes: vec![number] }),
            ..v1::DataSpec::default()
        };
        let specs = vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }];
        // All at once: the managers commit together what is there.
        tokio::spawn(async move { control.apply(v1::ApplyRequest { specs }).await.unwrap().into_inner().applied[0].version })
    };
    let writes: Vec<_> = (0..64).map(write).collect();
    let mut versions = BTreeSet::new();
    for write in writes {
        let version = write.await.unwrap();
        assert!(versions.insert(version), "two contents have version {version}");
    }
}

/// Writes under keys through one manager until told to end; how often that was refused after the whole wait for a leader, or the first
/// refusal before that.
async fn write_on(mut control: ControlClient<Channel>, name: String, ended: watch::Receiver<bool>) -> Result<u32, ApiError> {
    let mut late = 0;
    for number in 0_u32.. {
        let data = v1::DataSpec {
            kind: v1::DataKind::Config.into(),
            name: name.clone(),
            payload: Some(v1::Payload { bytes: number.to_be_bytes().to_vec() }),
            ..v1::DataSpec::default()
        };
        let specs = vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }];
        let asked = Instant::now();
        match control.apply(keyed(&idempotency_key(), v1::ApplyRequest { specs })).await.map_err(ApiError::from) {
            Ok(_) => {}
            Err(refusal) if refusal.code == ErrorCode::Unavailable && asked.elapsed() >= LEADER_WAIT => late += 1,
            Err(refusal) => return Err(refusal),
        }
        if *ended.borrow() {
            return Ok(late);
        }
    }
    unreachable!("numbers do not end")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_through_another_manager_sees_no_leader_go() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    let mut signals = vec![Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL];
    for round in 0..12 {
        let Some(signal) = signals.last().copied() else { return };
        let leader = cluster.settled(&["m1", "m2", "m3"]).await.leader;
        let (dir, addr) = (cluster.manager(&leader).dir.clone(), cluster.manager(&leader).addr.clone());
        let (end, ended) = watch::channel(false);
        let others = cluster.addrs().into_iter().filter(|other| *other != addr).enumerate();
        let mut writers = Vec::new();
        for (number, other) in others {
            let control = support::control(&[other], &cluster.admin).await.unwrap();
            writers.push(tokio::spawn(write_on(control, format!("c{round}-{number}"), ended.clone())));
        }
        let began = until("a status", || async { cluster.status().await.ok() }).await.revision;
        until("writes are made", || async { cluster.status().await.ok().filter(|status| status.revision > began + 10) }).await;
        let pid = Pid::from_raw(i32::try_from(cluster.manager(&leader).process.id()).unwrap());
        kill(pid, signal).unwrap();
        cluster.manager(&leader).process.wait().unwrap();
        let other = |status: &v1::ClusterResponse| !status.leader.is_empty() && status.leader != leader;
        let at = until("another leads", || async { cluster.status().await.ok().filter(other) }).await.revision;
        until("writes go on", || async { cluster.status().await.ok().filter(|status| status.revision > at + 10) }).await;
        end.send_replace(true);
        let mut late = 0;
        for writer in writers {
            late += writer.await.unwrap().unwrap();
        }
        // A busy machine may keep managers from electing one for so long: not each time.
        if late == 0 {
            signals.pop();
        }
        cluster.managers.retain(|manager| manager.name != leader);
        cluster.managers.push(start(&leader, &dir, &addr, &[]));
    }
    assert!(signals.is_empty(), "who writes is refused whenever a leader goes");
}

#[tokio::test]
async fn what_was_not_sent_to_a_leader_that_died_is_asked_of_the_next() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    for round in 0..3 {
        let leader = cluster.settled(&["m1", "m2", "m3"]).await.leader;
        let (dir, addr) = (cluster.manager(&leader).dir.clone(), cluster.manager(&leader).addr.clone());
        let other = cluster.addrs().into_iter().find(|other| *other != addr).unwrap();
        let mut control = support::control(&[other], &cluster.admin).await.unwrap();
        let write = |number: u8| {
            let payload = Some(v1::Payload { bytes: vec![round, number] });
            let data = v1::DataSpec { kind: v1::DataKind::Config.into(), name: "c".to_owned(), payload, ..v1::DataSpec::default() };
            v1::ApplyRequest { specs: vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }] }
        };
        let (key, first) = (idempotency_key(), control.clone());
        let made = || async { first.clone().apply(keyed(&key, write(0))).await.ok() };
        until("a write is made", made).await;
        // The other manager has a connection to the leader now, of which nobody asks anything when it ends.
        cluster.manager(&leader).kill();
        let refusal = control.apply(write(1)).await.map_err(ApiError::from).err();
        // It may have been written to a connection whose end was not heard of yet. No other refusal is worth a user's while.
        assert!(refusal.as_ref().is_none_or(|refusal| !refusal.message.contains("refused")), "{refusal:?}");
        cluster.managers.retain(|manager| manager.name != leader);
        cluster.managers.push(start(&leader, &dir, &addr, &[]));
    }
}
