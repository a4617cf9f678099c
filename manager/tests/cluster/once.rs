//! Requests under a key: one effect and one answer, however often they are sent and whoever leads.

use std::time::Duration;

use rcluster_api::client::{self, idempotency_key, keyed};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::JoinToken;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use serde_json::Value;

use crate::support::{self, Cluster, rest_with, start, token, until};

fn network(name: &str) -> v1::ApplyRequest {
    let network = v1::NetworkSpec { name: name.to_owned(), ..v1::NetworkSpec::default() };
    v1::ApplyRequest { specs: vec![v1::Spec { kind: Some(v1::spec::Kind::Network(network)), expected_version: 0 }] }
}

async fn apply(cluster: &Cluster, addrs: &[String], key: &str, request: v1::ApplyRequest) -> Result<v1::ApplyResponse, ApiError> {
    Ok(client::control(addrs, &cluster.admin).await?.apply(keyed(key, request)).await?.into_inner())
}

#[tokio::test]
async fn a_leader_that_is_killed_before_it_answers_has_made_one_change_or_none() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    for round in 0..6_u64 {
        let leader = cluster.settled(&["m1", "m2", "m3"]).await.leader;
        let (dir, addr) = (cluster.manager(&leader).dir.clone(), cluster.manager(&leader).addr.clone());
        let (key, name) = (idempotency_key(), format!("n{round}"));
        let mut control = support::control(std::slice::from_ref(&addr), &cluster.admin).await.unwrap();
        let (asked, request) = (network(&name), key.clone());
        let asked = tokio::spawn(async move { control.apply(keyed(&request, asked)).await });
        // Before the commit in some rounds, after it in others: whichever it is, the end is the same.
        tokio::time::sleep(Duration::from_micros(1500 * round)).await;
        cluster.manager(&leader).kill();
        let heard = asked.await.unwrap().ok().map(tonic::Response::into_inner);
        let others: Vec<String> = cluster.addrs().into_iter().filter(|other| *other != addr).collect();
        let again = || async { apply(&cluster, &others, &key, network(&name)).await.ok() };
        let answer = until("the change is answered", again).await;
        assert_eq!(answer.applied[0].outcome(), v1::Outcome::Created, "it was made once, and is told as it was made");
        assert!(heard.is_none_or(|heard| heard == answer), "the same answer");
        assert_eq!(answer.applied[0].version, answer.revision);
        assert_eq!(until("it is answered again", again).await, answer);
        let other = idempotency_key();
        let unkeyed = until("an answer", || async { apply(&cluster, &others, &other, network(&name)).await.ok() }).await;
        assert_eq!((unkeyed.applied[0].outcome(), unkeyed.applied[0].version), (v1::Outcome::Unchanged, answer.revision));
        cluster.managers.retain(|manager| manager.name != leader);
        cluster.managers.push(start(&leader, &dir, &addr, &[]));
    }
    assert_eq!(cluster.networks().await, 6);
}

#[tokio::test]
async fn a_key_is_for_one_change_also_by_rest() {
    let cluster = Cluster::found().await;
    let writer = token(&cluster, "will", v1::UserRole::Deploy).await;
    let nobody = Security::joining(&cluster.founded.agent_token.parse::<JoinToken>().unwrap()).unwrap();
    let channel = cluster.connect(&nobody).await.unwrap();
    let bearer = format!("Bearer {writer}");
    let put = async |name: &str, key: &str| {
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", key)];
        let (status, body) = rest_with(&channel, "PUT", &format!("/v1/networks/{name}"), &headers, "{}").await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let first = put("a", "k1").await;
    assert_eq!((first.0, &first.1["applied"][0]["outcome"]), (200, &"created".into()), "{first:?}");
    assert_eq!(put("a", "k1").await, first);
    assert_eq!(put("a", "k2").await.1["applied"][0]["outcome"], "unchanged");
    let (status, refused) = put("b", "k1").await;
    assert_eq!((status, &refused["error"]["message"]), (409, &"the idempotency key was used for another request".into()));
    assert_eq!(put("b", &"k".repeat(129)).await.0, 422);
    // Another caller's key is another one.
    let own = apply(&cluster, &cluster.addrs(), "k1", network("c")).await.unwrap();
    assert_eq!(own.applied[0].outcome(), v1::Outcome::Created);
    let create = v1::CreateUserRequest { name: "x".to_owned(), role: v1::UserRole::Admin.into(), ..v1::CreateUserRequest::default() };
    let refused = cluster.control(&cluster.admin).await.unwrap().create_user(keyed("k9", create)).await.unwrap_err();
    assert_eq!(ApiError::from(refused).code, ErrorCode::Invalid);
}
