//! How the containers of a pod resolve names, as an agent's process sees to it. Needs root.

mod support;

use rcluster_api::wire::v1::{HostEntry, TaskState};
use support::agent::{Agent, on_network, shell_task};
use support::manager::Manager;
use support::netd::FakeNetd;

const A: &str = "aaaaaaaaaaaaaaaa";

#[tokio::test]
async fn a_pod_resolves_names_as_its_service_says() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let netd = FakeNetd::listen(agent.run());
    let mut task = on_network(shell_task(A, "trap 'exit 0' TERM; while :; do sleep 0.05; done"));
    if let Some(template) = &mut task.template {
        template.dns = vec!["9.9.9.9".into()];
        template.dns_search = vec!["corp.example".into()];
        template.extra_hosts = vec![HostEntry { name: "router".into(), ip: "host-gateway".into() }];
    }
    manager.assign(vec![task]);
    let pid = manager.reported(A, TaskState::Running).await.containers[0].pid;
    let file = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/root/etc/{name}")).expect("a container's file");
    assert_eq!(file("resolv.conf"), "nameserver 169.254.53.53\nsearch corp.example front.internal\noptions ndots:0 timeout:1 attempts:3\n");
    assert!(file("hosts").ends_with("10.128.0.2\tweb-1\n169.254.53.53\trouter\n"), "{}", file("hosts"));
    assert_eq!(netd.asked(), "attach asking 9.9.9.9");
}
