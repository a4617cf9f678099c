//! Networks with IPv6, from the manifest to the pod.

use std::time::Duration;

use crate::{Turn, balanced};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn tasks_and_services_of_a_network_with_ipv6_have_addresses_of_it() {
    let turn = Turn::new("six", 1, 2);
    let lab = turn.lab();
    lab.deploy(&balanced("lab", "web", 2).replace("name: lab\n", "name: lab\nspec: {ipv6: true}\n")).unwrap();
    let tasks = lab.wait_running("web", 2, SOON).unwrap();
    for task in &tasks {
        let ip6 = task.networks[0].ip6.expect("its network has IPv6");
        let pin = format!("--net=/run/rcluster/labs/{}/hosts/{}/run/netns/{}", lab.name(), task.node, task.id);
        let held = lab.host("exec", &[&task.node, "--", "nsenter", &pin, "ip", "-6", "-o", "address", "show", "dev", "eth0"]).unwrap();
        assert!(held.contains(&format!("{ip6}/128")), "{held}");
    }
    let vip = lab.service("web").unwrap().vips[0].ip6.expect("its network has IPv6");
    let trace = lab.ctl(&["trace", &tasks[0].name, &format!("[{vip}]:8080")]).unwrap();
    assert!(trace.contains("the address of service web") && trace.contains("delivered to task web."), "{trace}");
    let audited: serde_json::Value = lab.json(&["audit"]).unwrap();
    assert_eq!(audited["differences"], serde_json::json!([]));
    turn.finish();
}
