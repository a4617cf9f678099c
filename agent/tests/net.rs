//! What users ask of the node's network, as an agent's process passes it on. Needs root.

mod support;

use rcluster_api::wire::v1::{DumpResponse, Protocol, RelayNetDump, RelayNetTrace, TraceResponse, relay_open, relay_output};
use support::agent::Agent;
use support::manager::Manager;
use support::netd::FakeNetd;

const A: &str = "aaaaaaaaaaaaaaaa";

async fn answers(manager: &Manager) -> Vec<relay_output::Kind> {
    let ended = |kind: &relay_output::Kind| matches!(kind, relay_output::Kind::Exit(_) | relay_output::Kind::Problem(_));
    let said = manager.until("the end", |seen| seen.relayed.iter().any(ended).then(|| seen.relayed.clone())).await;
    manager.seen.send_modify(|seen| seen.relayed.clear());
    said
}

#[tokio::test]
async fn a_dump_comes_in_parts_that_are_all_of_it_and_a_trace_is_of_the_task() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let netd = FakeNetd::listen(agent.run());
    manager.until("a session", |seen| (seen.heartbeats > 0).then_some(())).await;
    manager.relay("", relay_open::Kind::NetDump(RelayNetDump { conntrack: true }));
    let said = answers(&manager).await;
    let parts: Vec<&DumpResponse> = said
        .iter()
        .filter_map(|kind| match kind {
            relay_output::Kind::NetDump(part) => Some(part),
            _ => None,
        })
        .collect();
    assert!(parts.len() > 2, "{} parts", parts.len());
    let wanted: Vec<&str> = parts.iter().flat_map(|part| &part.wanted).map(|entry| entry.text.as_str()).collect();
    assert_eq!(wanted, (0..12_000).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(netd.asked(), "dump");

    manager.relay(A, relay_open::Kind::NetTrace(RelayNetTrace { target: "web:80".into(), protocol: Protocol::Udp.into() }));
    let said = answers(&manager).await;
    let trace = TraceResponse { steps: vec!["web:80".into()], verdict: format!("delivered for {A}"), protocol: Protocol::Udp.into() };
    assert!(said.contains(&relay_output::Kind::NetTrace(trace)), "{said:?}");
}

#[tokio::test]
async fn a_node_without_netd_says_so() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    manager.until("a session", |seen| (seen.heartbeats > 0).then_some(())).await;
    manager.relay("", relay_open::Kind::NetDump(RelayNetDump { conntrack: false }));
    let said = answers(&manager).await;
    let Some(relay_output::Kind::Problem(problem)) = said.last() else { panic!("{said:?}") };
    assert!(problem.message.starts_with("node n1: netd does not answer"), "{problem:?}");
}
