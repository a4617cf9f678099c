//! What an agent's process tells of its host's network. Needs root.

mod support;

use std::time::Duration;

use rcluster_api::wire::v1::{HeldPort, NetView, NodeNetwork, Protocol, TaskState};
use support::agent::{Agent, on_network, shell_task};
use support::manager::Manager;
use support::netd::FakeNetd;
use tokio::time::timeout;

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

#[tokio::test]
async fn netd_is_asked_to_attach_a_few_pods_at_a_time_and_all_come() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let netd = FakeNetd::listen(agent.run());
    netd.answers.send_replace(false);
    let ids: Vec<String> = (0..40).map(|number| format!("aaaaaaaaaaaaaa{number:02}")).collect();
    manager.assign(ids.iter().map(|id| on_network(shell_task(id, "while :; do sleep 1; done"))).collect());
    let mut attaching = netd.attaching.subscribe();
    let many = attaching.wait_for(|attaching| *attaching >= 16);
    timeout(Duration::from_secs(60), many).await.expect("netd is asked").expect("the sender is here");
    let beats = manager.seen.borrow().heartbeats;
    manager.until("some beats pass", |seen| (seen.heartbeats > beats + 10).then_some(())).await;
    assert_eq!(*netd.attaching.borrow(), 16, "the others wait for their turn");
    netd.answers.send_replace(true);
    for id in &ids {
        manager.reported(id, TaskState::Running).await;
    }
}
