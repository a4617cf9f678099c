//! What an agent's process tells of its host's network. Needs root.

mod support;

use rcluster_api::wire::v1::{HeldPort, NetView, NodeNetwork, Protocol};
use support::agent::Agent;
use support::manager::Manager;
use support::netd::FakeNetd;

/// A host where someone has this port.
fn held(port: u32) -> NodeNetwork {
    let held = HeldPort { protocol: Protocol::Tcp.into(), port, by: "nginx (pid 812)".into() };
    NodeNetwork { mtu: 1450, held_ports: vec![held], ..NodeNetwork::default() }
}

#[tokio::test]
async fn the_manager_hears_who_has_a_port_of_the_host_as_soon_as_netd_says_so_and_once() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start(&[manager.address]);
    let netd = FakeNetd::listen(agent.run());
    manager.until("a session", |seen| (seen.heartbeats > 0).then_some(())).await;
    manager.view(NetView { term: 1, revision: 5, ..NetView::default() });
    netd.network.send_replace(Some(held(80)));
    manager.until("it is told", |seen| (seen.networks.last() == Some(&held(80))).then_some(())).await;
    netd.network.send_replace(Some(held(81)));
    manager.until("the change is told", |seen| (seen.networks.last() == Some(&held(81))).then_some(())).await;
    let beats = manager.seen.borrow().heartbeats;
    manager.until("some beats pass", |seen| (seen.heartbeats > beats + 10).then_some(())).await;
    assert_eq!(manager.seen.borrow().networks, [held(80), held(81)]);

    agent.kill();
    agent.spawn();
    let told = |seen: &support::manager::Seen| {
        let description = seen.registrations.get(1)?.description.as_ref()?;
        // Later, if netd has not answered in time.
        description.network.clone().or_else(|| seen.networks.get(2).cloned())
    };
    assert_eq!(manager.until("it is back and tells again", told).await, held(81));
}
