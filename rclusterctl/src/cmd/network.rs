//! `network create`, `network inspect` and `network pool`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use rcluster_api::client::{idempotency_key, keyed};
use rcluster_api::network::{AddressPool, rested_ms, subnet_size};
use rcluster_api::object::{Kind, Network, Object, Service, Task};
use rcluster_api::rest::NetworkJson;
use rcluster_api::spec::{NetworkSpec, Spec};
use rcluster_api::task::TaskState;
use rcluster_api::validate;
use rcluster_api::wire::v1;
use serde::Serialize;

use super::change;
use crate::args::{Format, NetworkCreate, PoolCommand};
use crate::error::CliError;
use crate::output::table::Table;
use crate::output::{self, Out};
use crate::session::Session;

/// `network create NAME`.
pub async fn create(mut session: Session, out: Out, args: NetworkCreate) -> Result<(), CliError> {
    let NetworkCreate { name, subnet, internal, encrypted, ipv6, label } = args;
    let subnet = match subnet {
        Some(text) => {
            Some(text.parse().map_err(|_| CliError::usage(format!("--subnet {text}: not an IPv4 range"), "write it like 10.9.0.0/24"))?)
        }
        None => None,
    };
    let labels = label.into_iter().collect();
    let spec = NetworkSpec { name: name.clone(), labels, subnet, internal, encrypted, ipv6, ..NetworkSpec::default() };
    let spec = Spec::Network(spec);
    validate::check(&spec)?;
    let all = session.list(Kind::Network, "", "").await?;
    if all.iter().any(|object| matches!(object, Object::Network(network) if network.spec.name == name)) {
        return Err(CliError::refused(
            format!("network {name} exists: nothing was changed"),
            format!("rclusterctl network inspect {name} shows it; network rm {name} removes it"),
        ));
    }
    change::put(&mut session, out, Kind::Network, &name, spec.into()).await
}

/// A network as `inspect` prints it.
#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    network: NetworkJson,
    usage: Usage,
    /// From which its subnet was chosen; absent: it was asked for, or the managers do not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    /// In their order.
    addresses: Vec<Address>,
}

/// How many addresses there are.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Usage {
    used: usize,
    resting: usize,
    size: u32,
}

/// One address with who has it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Address {
    ip: Ipv4Addr,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<Ipv6Addr>,
    /// task or service.
    kind: &'static str,
    /// Empty: of a service that has gone.
    name: String,
    id: String,
    /// Of a task.
    #[serde(skip_serializing_if = "String::is_empty")]
    node: String,
    /// Of a task: its state; of either, that the address rests.
    #[serde(skip_serializing_if = "String::is_empty")]
    state: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
}

const RESTING: &str = "resting";

/// `network inspect NET`: as JSON unless another form was asked for.
pub async fn inspect(mut session: Session, out: Out, name: &str) -> Result<(), CliError> {
    let found = session.list(Kind::Network, name, "").await?.into_iter().find_map(|object| match object {
        Object::Network(network) => Some(network),
        _ => None,
    });
    let Some(network) = found else {
        return Err(CliError::refused(format!("there is no network {name}"), "see rclusterctl get networks"));
    };
    let (tasks, now_ms) = session.list_at(Kind::Task, "", "").await?;
    let tasks: Vec<Task> =
        tasks.into_iter().filter_map(|object| if let Object::Task(task) = object { Some(*task) } else { None }).collect();
    let services = session.list(Kind::Service, "", "").await?.into_iter();
    let services: Vec<Service> =
        services.filter_map(|object| if let Object::Service(service) = object { Some(service) } else { None }).collect();
    // A manager of before has none to tell of.
    let pools = pools(&mut session, Vec::new()).await.unwrap_or_default();
    let inspected = inspected(&network, &tasks, &services, &pools, now_ms);
    match out.format {
        Format::Name => output::data(&format!("network/{}\n", network.spec.name)),
        Format::Yaml => out.value(&inspected),
        Format::Table | Format::Wide | Format::Json => Out { format: Format::Json }.value(&inspected),
    }
}

fn inspected(network: &Network, tasks: &[Task], services: &[Service], pools: &[v1::PoolStatus], now_ms: u64) -> Inspected {
    // Of several that have had an address: who has it, else who had it last.
    let mut by_ip: BTreeMap<Ipv4Addr, ((bool, u64), Address)> = BTreeMap::new();
    let mut add = |since_ms: u64, address: Address| {
        let rank = (address.state != RESTING, since_ms);
        if by_ip.get(&address.ip).is_none_or(|(known, _)| *known < rank) {
            by_ip.insert(address.ip, (rank, address));
        }
    };
    let has_rested = |since_ms: u64| rested_ms(since_ms) <= now_ms;
    for task in tasks {
        let ended = task.status.state.is_terminal() && task.status.state != TaskState::Orphaned;
        if ended && (task.node_id.is_none() || has_rested(task.stamp.updated_at_ms)) {
            continue;
        }
        for attached in task.networks.iter().filter(|attached| attached.network_id == network.id) {
            let address = Address {
                ip: attached.ip,
                ip6: attached.ip6,
                kind: Kind::Task.as_str(),
                name: task.name.clone(),
                id: task.id.to_string(),
                node: task.node.clone(),
                state: if ended { RESTING.to_owned() } else { task.status.state.to_string() },
                aliases: attached.aliases.clone(),
            };
            add(task.stamp.updated_at_ms, address);
        }
    }
    let of_service = |(ip, ip6): (Ipv4Addr, Option<Ipv6Addr>), name: String, id: String| Address {
        ip,
        ip6,
        kind: Kind::Service.as_str(),
        name,
        id,
        node: String::new(),
        state: String::new(),
        aliases: Vec::new(),
    };
    for service in services {
        for vip in service.vips.iter().filter(|vip| vip.network_id == network.id) {
            let on = service.spec.networks.iter().filter(|on| on.network == vip.network);
            let aliases = on.flat_map(|on| on.aliases.clone()).collect();
            add(0, Address { aliases, ..of_service((vip.ip, vip.ip6), service.spec.name.clone(), service.id.to_string()) });
        }
    }
    for vip in network.resting_vips.iter().filter(|vip| !has_rested(vip.since_ms)) {
        let service = services.iter().find(|service| service.id == vip.service_id);
        let name = service.map(|service| service.spec.name.clone()).unwrap_or_default();
        add(vip.since_ms, Address { state: RESTING.to_owned(), ..of_service((vip.ip, None), name, vip.service_id.to_string()) });
    }
    let addresses: Vec<Address> = by_ip.into_values().map(|(_, address)| address).collect();
    let resting = addresses.iter().filter(|address| address.state == RESTING).count();
    let size = network.subnet.map_or(0, subnet_size);
    let chosen = network.subnet.filter(|_| network.spec.subnet.is_none());
    let is_from = |pool: &&v1::PoolStatus| {
        let range = pool.cidr.parse::<Ipv4Net>();
        chosen.is_some_and(|subnet| range.is_ok_and(|range| range.contains(&subnet)))
    };
    Inspected {
        network: NetworkJson::new(network, tasks),
        usage: Usage { used: addresses.len() - resting, resting, size },
        pool: pools.iter().find(is_from).map(|pool| pool.cidr.clone()),
        addresses,
    }
}

/// The pools, after these have been added.
pub(super) async fn pools(session: &mut Session, add: Vec<v1::AddressPool>) -> Result<Vec<v1::PoolStatus>, CliError> {
    let key = idempotency_key();
    let response = session
        .call(|mut client| {
            let request = keyed(&key, v1::UpdatePoolsRequest { add: add.clone() });
            async move { client.update_pools(request).await }
        })
        .await?;
    Ok(response.pools)
}

/// A pool as it is printed.
#[derive(Debug, Serialize)]
struct PoolJson {
    cidr: String,
    /// Of the subnets chosen from it.
    prefix: u32,
    subnets: u32,
    free: u32,
}

/// `network pool ls|add`.
pub async fn pool(mut session: Session, out: Out, command: PoolCommand) -> Result<(), CliError> {
    let add = match command {
        PoolCommand::Ls => Vec::new(),
        PoolCommand::Add { cidr, prefix } => {
            let own = cidr.rsplit_once('/').and_then(|(_, bits)| bits.parse().ok()).unwrap_or(0);
            vec![v1::AddressPool { cidr, prefix: prefix.unwrap_or(u32::from(AddressPool::PREFIX).max(own)), cursor: 0 }]
        }
    };
    let pools = pools(&mut session, add).await?.into_iter().map(|pool| {
        let v1::PoolStatus { cidr, prefix, subnets, free } = pool;
        PoolJson { cidr, prefix, subnets, free }
    });
    let pools: Vec<PoolJson> = pools.collect();
    if out.format == Format::Name {
        return output::data(&pools.iter().map(|pool| format!("pool/{}\n", pool.cidr)).collect::<String>());
    }
    if !out.is_table() {
        return out.value(&pools);
    }
    let mut table = Table::new(&["POOL", "PREFIX", "SUBNETS", "FREE"]);
    for PoolJson { cidr, prefix, subnets, free } in pools {
        table.row(vec![cidr, format!("/{prefix}"), subnets.to_string(), free.to_string()]);
    }
    output::data(&table.to_string())
}

#[cfg(test)]
mod tests {
    use rcluster_api::object::{RestingVip, ServiceVip, Stamp, TaskNetwork, TaskStatus};
    use rcluster_api::spec::{ServiceSpec, TaskTemplate};

    use super::*;

    /// On `lab` at an address; written last at second 100.
    fn task(name: &str, ip: [u8; 4], state: TaskState) -> Task {
        let aliases = vec!["www".to_owned()];
        let attached = TaskNetwork { network_id: "lab".into(), network: "lab".to_owned(), ip: ip.into(), ip6: None, aliases };
        Task {
            id: name.into(),
            stamp: Stamp { version: 1, created_at_ms: 0, updated_at_ms: 100_000 },
            service_id: "web".into(),
            service: "web".to_owned(),
            stack: String::new(),
            slot: 1,
            name: name.to_owned(),
            template: TaskTemplate::default(),
            spec_version: 1,
            desired_state: TaskState::Running,
            restarts: 0,
            restarts_in_window: 0,
            window_start_ms: 0,
            start_after_ms: 0,
            node_id: Some("n1".into()),
            node: "n1".to_owned(),
            networks: vec![attached],
            status: TaskStatus { state, message: String::new(), since_ms: 0, containers: Vec::new(), ending: false },
            leave_ms: 0,
        }
    }

    #[test]
    fn addresses_are_told_with_who_has_them_and_rest_for_a_minute() {
        let spec = NetworkSpec { name: "lab".to_owned(), ..NetworkSpec::default() };
        let subnet = Some("10.128.3.0/29".parse().unwrap());
        let network = Network { vni: Some(4096), subnet, ..Network::new("lab".into(), spec) };
        let spec = serde_json::json!({"containers": [{"image": "a"}], "networks": [{"network": "lab", "aliases": ["www"]}]});
        let spec = ServiceSpec { name: "web".to_owned(), ..serde_json::from_value(spec).unwrap() };
        let vip =
            ServiceVip { network_id: "lab".into(), network: "lab".to_owned(), ip: [10, 128, 3, 6].into(), ip6: "fd00:1::6".parse().ok() };
        let service = Service { vips: vec![vip], ..Service::new("web".into(), spec) };
        let tasks = [
            task("web.1", [10, 128, 3, 4], TaskState::Running),
            task("web.2", [10, 128, 3, 2], TaskState::Orphaned),
            task("web.3", [10, 128, 3, 3], TaskState::Failed),
        ];
        let pool = v1::PoolStatus { cidr: "10.128.0.0/9".to_owned(), prefix: 24, subnets: 1, free: 0 };
        let at = |now_ms: u64| inspected(&network, &tasks, std::slice::from_ref(&service), std::slice::from_ref(&pool), now_ms);
        let lines = |inspected: &Inspected| -> Vec<String> {
            let line = |address: &Address| {
                let Address { ip, ip6, kind, name, id: _, node, state, aliases } = address;
                let ip6 = ip6.map(|ip6| format!(" {ip6}")).unwrap_or_default();
                format!("{ip}{ip6} {kind} {name} {node} {state} {}", aliases.join(","))
            };
            inspected.addresses.iter().map(line).collect()
        };
        let resting = at(159_999);
        assert_eq!((&resting.usage, resting.pool.as_deref()), (&Usage { used: 3, resting: 1, size: 5 }, Some("10.128.0.0/9")));
        assert_eq!(
            lines(&resting),
            [
                "10.128.3.2 task web.2 n1 orphaned www",
                "10.128.3.3 task web.3 n1 resting www",
                "10.128.3.4 task web.1 n1 running www",
                "10.128.3.6 fd00:1::6 service web   www",
            ]
        );
        assert_eq!(at(160_000).usage, Usage { used: 3, resting: 0, size: 5 });
    }

    #[test]
    fn an_address_is_told_once_with_who_has_it_else_who_had_it_last() {
        let spec = NetworkSpec { name: "lab".to_owned(), ..NetworkSpec::default() };
        let subnet = Some("10.128.3.0/29".parse().unwrap());
        let resting = |last: u8, since_ms| RestingVip { ip: [10, 128, 3, last].into(), service_id: "gone".into(), since_ms };
        let network = Network {
            vni: Some(4096),
            subnet,
            resting_vips: vec![resting(2, 110_000), resting(3, 99_000), resting(4, 110_000), resting(5, 40_000)],
            ..Network::new("lab".into(), spec)
        };
        let tasks = [
            task("web.1", [10, 128, 3, 2], TaskState::Failed),
            task("web.1", [10, 128, 3, 3], TaskState::Failed),
            task("web.2", [10, 128, 3, 4], TaskState::Failed),
            task("web.3", [10, 128, 3, 4], TaskState::Running),
        ];
        let inspected = inspected(&network, &tasks, &[], &[], 120_000);
        let told: Vec<String> =
            inspected.addresses.iter().map(|address| format!("{} {} {}", address.ip, address.id, address.state)).collect();
        assert_eq!(told, ["10.128.3.2 gone resting", "10.128.3.3 web.1 resting", "10.128.3.4 web.3 running"]);
        assert_eq!(inspected.usage, Usage { used: 1, resting: 2, size: 5 });
    }
}
