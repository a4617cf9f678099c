//! Which columns each kind of object has, and what stands in them.

use rcluster_api::network::{Port, PublishMode};
use rcluster_api::resource::{Bytes, Cpus, Millis};
use rcluster_api::rest::{ClusterJson, DataJson, EventJson, NetworkJson, NodeJson, ServiceJson, TaskJson, UserJson};

use super::table::Table;
use crate::views::{ManagerNode, View, age_ms};

/// The table of views of one kind.
pub fn table(views: &[View], wide: bool, now_ms: u64) -> Table {
    let mut table = Table::new(&views.first().map(|view| head(view, wide)).unwrap_or_default());
    for view in views {
        table.row(row(view, wide, now_ms));
    }
    table
}

fn head(view: &View, wide: bool) -> Vec<&'static str> {
    let (narrow, more): (&[&str], &[&str]) = match view {
        View::Service(_) => {
            (&["NAME", "MODE", "REPLICAS", "UPDATE", "IMAGES", "NETWORKS", "PORTS", "AGE"], &["ID", "STACK", "VERSION", "MESSAGE"])
        }
        View::Task(_) => (
            &["ID", "NAME", "NODE", "STATE", "DESIRED", "ADDRESS", "SINCE", "MESSAGE"],
            &["ID", "NAME", "NODE", "STATE", "DESIRED", "ADDRESS", "SINCE", "RESTARTS", "IMAGES", "STACK", "MESSAGE"],
        ),
        View::Node(_) | View::Manager(_) => (
            &["NAME", "ROLE", "STATUS", "AVAILABILITY", "ADDRESS", "TASKS", "CPUS", "MEMORY", "LABELS", "MESSAGE"],
            &[
                "NAME",
                "ROLE",
                "STATUS",
                "AVAILABILITY",
                "ADDRESS",
                "TASKS",
                "CPUS",
                "MEMORY",
                "ID",
                "KERNEL",
                "ARCH",
                "CGROUP",
                "VERSION",
                "LABELS",
                "MESSAGE",
            ],
        ),
        View::Network(_) => (&["NAME", "SUBNET", "VNI", "ENDPOINTS", "AGE"], &["ID", "STACK", "INTERNAL"]),
        View::Data(_) => (&["NAME", "SIZE", "DIGEST", "AGE"], &["ID", "STACK", "VERSION"]),
        View::User(_) => (&["NAME", "ROLE", "BY", "EXPIRES", "AGE"], &["ID"]),
        View::Event(_) => (&["TIME", "KIND", "OBJECT", "REASON", "MESSAGE"], &[]),
    };
    match view {
        View::Task(_) | View::Node(_) | View::Manager(_) if wide => more.to_vec(),
        View::Service(_) | View::Network(_) | View::Data(_) | View::User(_) if wide => [narrow, more].concat(),
        _ => narrow.to_vec(),
    }
}

fn row(view: &View, wide: bool, now_ms: u64) -> Vec<String> {
    match view {
        View::Service(service) => service_row(service, wide, now_ms),
        View::Task(task) => task_row(task, wide, now_ms),
        View::Node(node) => node_row(node, wide),
        View::Manager(manager) => manager_row(manager, wide),
        View::Network(network) => network_row(network, wide, now_ms),
        View::Event(event) => event_row(event),
        View::Data(data) => data_row(data, wide, now_ms),
        View::User(user) => user_row(user, wide, now_ms),
    }
}

fn user_row(user: &UserJson, wide: bool, now_ms: u64) -> Vec<String> {
    let expires = if user.expires.is_empty() { "never" } else { &user.expires };
    let mut row =
        vec![user.name.clone(), user.role.as_str().to_owned(), user.credentials.clone(), expires.to_owned(), age(&user.created, now_ms)];
    row.extend(wide.then(|| user.id.clone()));
    row
}

fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

fn service_row(service: &ServiceJson, wide: bool, now_ms: u64) -> Vec<String> {
    let images: Vec<&str> = service.spec.containers.iter().map(|container| container.image.as_str()).collect();
    let networks: Vec<&str> = service.spec.networks.iter().map(|attachment| attachment.network.as_str()).collect();
    let mut row = vec![
        service.name.clone(),
        service.mode.as_str().to_owned(),
        format!("{}/{}", service.replicas.running, service.replicas.desired),
        service.update.state.clone(),
        images.join(","),
        or_dash(networks.join(",")),
        or_dash(service.spec.ports.iter().filter_map(port).collect::<Vec<_>>().join(",")),
        age(&service.created, now_ms),
    ];
    if wide {
        row.extend([service.id.clone(), or_dash(&service.spec.stack), service.version.to_string(), service.update.message.clone()]);
    }
    row
}

/// A published port, as docker has it: `*:8080->80/tcp` at every node, `node:8080->80/tcp` at those of the tasks; `None` for another.
fn port(port: &Port) -> Option<String> {
    let published = port.published.as_ref()?;
    let place = match published.mode {
        PublishMode::Ingress(_) => "*",
        PublishMode::Host => "node",
    };
    Some(format!("{place}:{}->{}/{}", published.ports, port.target, port.protocol.as_str()))
}

fn task_row(task: &TaskJson, wide: bool, now_ms: u64) -> Vec<String> {
    let addresses: Vec<&str> = task.networks.iter().map(|network| network.ip.as_str()).collect();
    let mut row = vec![
        task.id.clone(),
        task.name.clone(),
        or_dash(&task.node),
        state(task),
        task.desired_state.to_string(),
        or_dash(addresses.join(",")),
        age(&task.since, now_ms),
    ];
    if wide {
        row.extend([task.restarts.to_string(), task.images.join(","), or_dash(&task.stack)]);
    }
    row.push(task.message.clone());
    row
}

/// The state, with the health of what is checked: `running (healthy)`, as docker has it.
fn state(task: &TaskJson) -> String {
    match task.health.as_str() {
        "" => task.state.to_string(),
        health => format!("{} ({health})", task.state),
    }
}

fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    or_dash(labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

/// What is reserved of what there is.
fn share(reserved: &str, capacity: &str) -> String {
    format!("{reserved}/{capacity}")
}

fn cpus(amount: Cpus) -> String {
    amount.to_string()
}

fn memory(amount: Bytes) -> String {
    amount.human().replace(' ', "")
}

fn node_row(node: &NodeJson, wide: bool) -> Vec<String> {
    let resources = &node.resources;
    let mut row = vec![
        node.name.clone(),
        node.role.clone(),
        node.status.as_str().to_owned(),
        node.availability.as_str().to_owned(),
        node.addr.clone(),
        node.tasks.to_string(),
        share(&cpus(resources.reserved.cpus), &cpus(resources.capacity.cpus)),
        share(&memory(resources.reserved.memory), &memory(resources.capacity.memory)),
    ];
    if wide {
        row.extend([node.id.clone(), node.kernel.clone(), node.arch.clone(), node.cgroup.clone(), node.agent_version.clone()]);
    }
    row.extend([labels(&node.labels), node.message.clone()]);
    row
}

fn manager_row(manager: &ManagerNode, wide: bool) -> Vec<String> {
    let mut row =
        vec![manager.name.clone(), manager.role.clone(), manager.status.clone(), manager.availability.clone(), manager.addr.clone()];
    row.extend(std::iter::repeat_n("-".to_owned(), if wide { 8 } else { 3 }));
    row.extend([labels(&manager.labels), if manager.leader { "leader".to_owned() } else { String::new() }]);
    row
}

fn data_row(data: &DataJson, wide: bool, now_ms: u64) -> Vec<String> {
    // As much of the digest as an image's short id has, after its prefix.
    let digest: String = data.digest.chars().take("sha256:".len() + 12).collect();
    let mut row = vec![data.name.clone(), Bytes(data.size).to_string(), digest, age(&data.updated, now_ms)];
    if wide {
        row.extend([data.id.clone(), or_dash(&data.spec.stack), data.version.to_string()]);
    }
    row
}

fn network_row(network: &NetworkJson, wide: bool, now_ms: u64) -> Vec<String> {
    let mut row = vec![
        network.name.clone(),
        or_dash(&network.subnet),
        network.vni.map_or_else(|| "-".to_owned(), |vni| vni.to_string()),
        network.endpoints.to_string(),
        age(&network.created, now_ms),
    ];
    if wide {
        row.extend([network.id.clone(), or_dash(&network.spec.stack), network.spec.internal.to_string()]);
    }
    row
}

fn event_row(event: &EventJson) -> Vec<String> {
    vec![event.time.clone(), event.kind.clone(), event.object.clone(), event.reason.clone(), event.message.clone()]
}

/// A span in its one or two largest units: `12s`, `3m5s`, `2h10m`, `5d3h`.
pub fn short_span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => trimmed(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => trimmed(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => trimmed(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

fn trimmed(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
}

/// How long ago a view's time is.
pub fn age(time: &str, now_ms: u64) -> String {
    age_ms(time, now_ms).map_or_else(|| "-".to_owned(), short_span)
}

/// A duration with tenths of a second, for how long something took.
pub fn seconds(ms: u64) -> String {
    if ms < 60_000 { format!("{}.{} s", ms / 1000, ms % 1000 / 100) } else { Millis(ms / 1000 * 1000).to_string() }
}

/// The managers, then a line about the nodes.
pub fn cluster(cluster: &ClusterJson, nodes: &[View]) -> String {
    let leader = if cluster.leader.is_empty() { "none" } else { &cluster.leader };
    let mut text = format!(
        "Cluster    {}\nLeader     {leader} (term {})\nCommitted  {} (applied {}, revision {})\nAsked      {}\nStore      {}\n",
        cluster.cluster_id, cluster.term, cluster.committed, cluster.applied, cluster.revision, cluster.answered_by, cluster.store
    );
    let count = |status: &str| nodes.iter().filter(|view| matches!(view, View::Node(node) if node.status.as_str() == status)).count();
    text.push_str(&format!("Nodes      {} ready, {} suspect, {} down\n\n", count("ready"), count("suspect"), count("down")));
    let mut table = Table::new(&["MANAGER", "ROLE", "VOTES", "REACHABLE", "LAG", "WRITE", "ADDRESS"]);
    for manager in &cluster.managers {
        let reachable = if manager.reachable { "yes" } else { "no" };
        table.row(vec![
            manager.name.clone(),
            manager.role.clone(),
            if manager.voter { "yes" } else { "no" }.to_owned(),
            reachable.to_owned(),
            if manager.matched == 0 { "-".to_owned() } else { manager.lag.to_string() },
            if manager.write_us == 0 { "-".to_owned() } else { format!("{:.1}ms", manager.write_us as f64 / 1000.0) },
            manager.addr.clone(),
        ]);
    }
    text + &table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(json: serde_json::Value) -> View {
        View::Task(Box::new(serde_json::from_value(json).unwrap()))
    }

    fn some_task() -> View {
        task(serde_json::json!({
            "id": "0123456789abcdef", "name": "web.1", "service": "web", "slot": 1, "node": "n1", "state": "running", "desired_state": "running",
            "message": "", "since": "2026-11-21T10:00:00.000Z", "restarts": 2, "networks": [{"network": "lab", "ip": "10.128.0.5"}],
            "images": ["probe:demo"], "containers": [], "created": "2026-11-21T09:59:58.000Z", "version": 5,
        }))
    }

    const NOW: u64 = 1_795_255_265_000;

    #[test]
    fn tasks() {
        let pending = task(serde_json::json!({
            "id": "fedcba9876543210", "name": "web.2", "service": "web", "slot": 2, "node": "", "state": "pending", "desired_state": "running",
            "message": "0/3 nodes fit web.2: 3 lack memory", "since": "2026-11-21T10:00:00.000Z", "restarts": 0, "networks": [],
            "images": ["probe:demo"], "containers": [], "created": "2026-11-21T09:59:58.000Z", "version": 5,
        }));
        assert_eq!(
            table(&[some_task(), pending], false, NOW).to_string(),
            "ID                 NAME    NODE   STATE     DESIRED   ADDRESS      SINCE   MESSAGE\n\
             0123456789abcdef   web.1   n1     running   running   10.128.0.5   1m5s\n\
             fedcba9876543210   web.2   -      pending   running   -            1m5s    0/3 nodes fit web.2: 3 lack memory\n"
        );
        assert_eq!(
            table(&[some_task()], true, NOW).to_string(),
            "ID                 NAME    NODE   STATE     DESIRED   ADDRESS      SINCE   RESTARTS   IMAGES       STACK   MESSAGE\n\
             0123456789abcdef   web.1   n1     running   running   10.128.0.5   1m5s    2          probe:demo   -\n"
        );
    }

    #[test]
    fn services_with_their_ports() {
        let service = |name: &str, ports: serde_json::Value| {
            let spec = serde_json::json!({"containers": [{"image": "probe:demo"}], "networks": ["lab"], "ports": ports});
            let service = serde_json::json!({
                "kind": "Service", "id": "0123456789abcdef", "name": name, "version": 5, "mode": "replicated",
                "replicas": {"desired": 2, "running": 1}, "update": {"state": "converging", "message": "1 of 2 tasks run"},
                "created": "2026-11-21T10:00:00.000Z", "updated": "2026-11-21T10:00:00.000Z", "spec": spec,
            });
            View::Service(Box::new(serde_json::from_value(service).unwrap()))
        };
        let own = serde_json::json!(["8000-8001:80-81", {"target": 53, "published": 53, "protocol": "udp", "mode": "host"}]);
        let services = [service("db", serde_json::json!([{"name": "sql", "target": 5432}])), service("web", own)];
        assert_eq!(
            table(&services, false, NOW).to_string(),
            "NAME   MODE         REPLICAS   UPDATE       IMAGES       NETWORKS   PORTS                                    AGE\n\
             db     replicated   1/2        converging   probe:demo   lab        -                                        1m5s\n\
             web    replicated   1/2        converging   probe:demo   lab        *:8000-8001->80-81/tcp,node:53->53/udp   1m5s\n"
        );
        assert!(services.iter().all(|view| row(view, true, NOW).len() == head(view, true).len()));
    }

    #[test]
    fn managers_and_nodes_share_columns() {
        let node: NodeJson = serde_json::from_value(serde_json::json!({
            "id": "0123456789abcdef", "name": "n1", "status": "ready", "availability": "drain", "role": "agent", "addr": "10.90.0.101",
            "labels": {"zone": "a"}, "resources": {"capacity": {"cpus": 2, "memory": "8GiB"}, "reserved": {"cpus": 0.5, "memory": "64MiB"}},
            "tasks": 3, "message": "", "since": "", "kernel": "6.18", "arch": "x86_64", "cgroup": "v1", "agent_version": "0.1.0", "version": 9,
        }))
        .unwrap();
        let cluster = ClusterJson {
            cluster_id: "c1".to_owned(),
            leader: "m1".to_owned(),
            term: 2,
            committed: 9,
            applied: 9,
            revision: 7,
            answered_by: "m2".to_owned(),
            store: "raft".to_owned(),
            managers: vec![rcluster_api::rest::ManagerJson {
                name: "m1".to_owned(),
                addr: "10.90.0.11:7443".to_owned(),
                role: "leader".to_owned(),
                reachable: true,
                matched: 9,
                voter: true,
                lag: 0,
                write_us: 1500,
            }],
        };
        let mut views = crate::views::manager_nodes(&cluster);
        views.push(View::Node(Box::new(node)));
        for wide in [false, true] {
            let table = table(&views, wide, NOW);
            assert!(views.iter().all(|view| row(view, wide, NOW).len() == head(view, wide).len()), "{table}");
        }
        assert_eq!(
            table(&views, false, NOW).to_string(),
            "NAME   ROLE      STATUS   AVAILABILITY   ADDRESS           TASKS   CPUS    MEMORY       LABELS   MESSAGE\n\
             m1     manager   ready    active         10.90.0.11:7443   -       -       -            -        leader\n\
             n1     agent     ready    drain          10.90.0.101       3       0.5/2   64MiB/8GiB   zone=a\n"
        );
        assert_eq!(
            super::cluster(&cluster, &views),
            "Cluster    c1\nLeader     m1 (term 2)\nCommitted  9 (applied 9, revision 7)\nAsked      m2\nStore      raft\nNodes      1 ready, 0 suspect, 0 down\n\n\
             MANAGER   ROLE     VOTES   REACHABLE   LAG   WRITE   ADDRESS\n\
             m1        leader   yes     yes         0     1.5ms   10.90.0.11:7443\n"
        );
    }

    #[test]
    fn spans() {
        for (ms, expected) in [(0, "0s"), (59_999, "59s"), (60_000, "1m"), (3_725_000, "1h2m"), (90_000_000, "1d1h")] {
            assert_eq!(short_span(ms), expected);
        }
        assert_eq!((seconds(1_849), seconds(61_500)), ("1.8 s".to_owned(), "1m1s".to_owned()));
        assert_eq!(age("", 5), "-");
    }
}
