//! What users ask for: services, with the template of their tasks, and networks.

use super::network::{affinity, endpoint_mode};
use super::{WireError, missing, optional, read_enum, text};
use crate::network::{NetworkPolicy, Port};
use crate::resource::Millis;
use crate::spec::{
    Constraint, Mode, NetworkAttachment, NetworkSpec, Placement, RestartPolicy, ServiceSpec, Spec, TaskTemplate, UpdatePolicy,
};
use crate::wire::v1;

impl From<Placement> for v1::Placement {
    fn from(placement: Placement) -> Self {
        let Placement { constraints, max_per_node } = placement;
        Self {
            constraints: constraints
                .into_iter()
                .map(|Constraint { key, equal, value }| v1::Constraint { key: key.to_string(), equal, value })
                .collect(),
            max_per_node: max_per_node.unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Placement> for Placement {
    type Error = WireError;

    fn try_from(wire: v1::Placement) -> Result<Self, WireError> {
        let v1::Placement { constraints, max_per_node } = wire;
        let constraints = constraints
            .into_iter()
            .map(|v1::Constraint { key, equal, value }| {
                Ok(Constraint { key: key.parse().map_err(|_| missing("placement.constraints.key"))?, equal, value })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { constraints, max_per_node: (max_per_node != 0).then_some(max_per_node) })
    }
}

impl From<TaskTemplate> for v1::TaskTemplate {
    fn from(template: TaskTemplate) -> Self {
        let TaskTemplate { containers, networks, placement, stop_grace, runtime, dns, dns_search, extra_hosts } = template;
        Self {
            containers: containers.into_iter().map(Into::into).collect(),
            networks: networks
                .into_iter()
                .map(|NetworkAttachment { network, aliases, ip }| v1::NetworkAttachment { network, aliases, ip: text(ip) })
                .collect(),
            placement: Some(placement.into()),
            stop_grace_ms: stop_grace.0,
            runtime,
            dns: dns.iter().map(ToString::to_string).collect(),
            dns_search,
            extra_hosts: extra_hosts.into_iter().map(|(name, address)| v1::HostEntry { name, ip: address.to_string() }).collect(),
        }
    }
}

impl TryFrom<v1::TaskTemplate> for TaskTemplate {
    type Error = WireError;

    fn try_from(wire: v1::TaskTemplate) -> Result<Self, WireError> {
        let v1::TaskTemplate { containers, networks, placement, stop_grace_ms, runtime, dns, dns_search, extra_hosts } = wire;
        Ok(Self {
            containers: containers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            networks: networks
                .into_iter()
                .map(|v1::NetworkAttachment { network, aliases, ip }| {
                    Ok(NetworkAttachment { network, aliases, ip: optional(&ip, "networks.ip")? })
                })
                .collect::<Result<_, WireError>>()?,
            placement: placement.unwrap_or_default().try_into()?,
            stop_grace: Millis(stop_grace_ms),
            runtime,
            dns: dns.iter().map(|ip| ip.parse().map_err(|_| missing("dns"))).collect::<Result<_, _>>()?,
            dns_search,
            extra_hosts: extra_hosts
                .into_iter()
                .map(|v1::HostEntry { name, ip }| Ok((name, ip.parse().map_err(|_| missing("extra_hosts.ip"))?)))
                .collect::<Result<_, WireError>>()?,
        })
    }
}

impl From<ServiceSpec> for v1::ServiceSpec {
    fn from(spec: ServiceSpec) -> Self {
        let ServiceSpec {
            name,
            stack,
            labels,
            mode,
            replicas,
            containers,
            networks,
            placement,
            stop_grace,
            restart: RestartPolicy { condition, delay, delay_max, max_attempts, window },
            reschedule,
            update: UpdatePolicy { parallelism, order },
            runtime,
            endpoint_mode,
            affinity,
            ports,
            leave,
            dns,
            dns_search,
            extra_hosts,
        } = spec;
        let template = TaskTemplate { containers, networks, placement, stop_grace, runtime, dns, dns_search, extra_hosts };
        Self {
            name,
            stack,
            labels,
            mode: v1::ServiceMode::from(mode).into(),
            replicas: match mode {
                Mode::Replicated => replicas.unwrap_or(1),
                Mode::Global => 0,
            },
            template: Some(template.into()),
            restart: Some(v1::RestartPolicy {
                condition: v1::RestartCondition::from(condition).into(),
                delay_ms: delay.0,
                delay_ms_max: delay_max.0,
                attempts_max: max_attempts.unwrap_or_default(),
                window_ms: window.0,
            }),
            reschedule: v1::ReschedulePolicy::from(reschedule).into(),
            update: Some(v1::UpdatePolicy { parallelism, order: v1::UpdateOrder::from(order).into() }),
            endpoint_mode: v1::EndpointMode::from(endpoint_mode).into(),
            affinity: v1::Affinity::from(affinity).into(),
            ports: ports.into_iter().map(Into::into).collect(),
            leave_ms: leave.0,
        }
    }
}

impl TryFrom<v1::ServiceSpec> for ServiceSpec {
    type Error = WireError;

    fn try_from(wire: v1::ServiceSpec) -> Result<Self, WireError> {
        let v1::ServiceSpec {
            name,
            stack,
            labels,
            mode,
            replicas,
            template,
            restart,
            reschedule,
            update,
            endpoint_mode: endpoint_number,
            affinity: affinity_number,
            ports,
            leave_ms,
        } = wire;
        let mode = read_enum::<v1::ServiceMode, Mode>(mode, "mode")?;
        let TaskTemplate { containers, networks, placement, stop_grace, runtime, dns, dns_search, extra_hosts } =
            template.ok_or(missing("template"))?.try_into()?;
        let v1::RestartPolicy { condition, delay_ms, delay_ms_max, attempts_max, window_ms } = restart.ok_or(missing("restart"))?;
        let v1::UpdatePolicy { parallelism, order } = update.ok_or(missing("update"))?;
        Ok(Self {
            name,
            stack,
            labels,
            mode,
            replicas: match mode {
                Mode::Replicated => Some(replicas),
                Mode::Global => None,
            },
            containers,
            networks,
            placement,
            stop_grace,
            restart: RestartPolicy {
                condition: read_enum::<v1::RestartCondition, _>(condition, "restart.condition")?,
                delay: Millis(delay_ms),
                delay_max: Millis(delay_ms_max),
                max_attempts: (attempts_max != 0).then_some(attempts_max),
                window: Millis(window_ms),
            },
            reschedule: read_enum::<v1::ReschedulePolicy, _>(reschedule, "reschedule")?,
            update: UpdatePolicy { parallelism, order: read_enum::<v1::UpdateOrder, _>(order, "update.order")? },
            runtime,
            endpoint_mode: endpoint_mode(endpoint_number)?,
            affinity: affinity(affinity_number)?,
            ports: ports.into_iter().map(Port::try_from).collect::<Result<_, _>>()?,
            leave: Millis(leave_ms),
            dns,
            dns_search,
            extra_hosts,
        })
    }
}

impl From<NetworkSpec> for v1::NetworkSpec {
    fn from(spec: NetworkSpec) -> Self {
        let NetworkSpec { name, stack, labels, subnet, internal, encrypted, ipv6, subnet6, policy } = spec;
        let (subnet, subnet6) = (text(subnet), text(subnet6));
        Self { name, stack, labels, subnet, internal, encrypted, ipv6, subnet6, policy: policy.map(Into::into) }
    }
}

impl TryFrom<v1::NetworkSpec> for NetworkSpec {
    type Error = WireError;

    fn try_from(wire: v1::NetworkSpec) -> Result<Self, WireError> {
        let v1::NetworkSpec { name, stack, labels, subnet, internal, encrypted, ipv6, subnet6, policy } = wire;
        let policy = policy.map(NetworkPolicy::try_from).transpose()?;
        let (subnet, subnet6) = (optional(&subnet, "subnet")?, optional(&subnet6, "subnet6")?);
        Ok(Self { name, stack, labels, subnet, internal, encrypted, ipv6, subnet6, policy })
    }
}

impl From<Spec> for v1::spec::Kind {
    fn from(spec: Spec) -> Self {
        match spec {
            Spec::Service(spec) => Self::Service(spec.into()),
            Spec::Network(spec) => Self::Network(spec.into()),
            Spec::Data(spec) => Self::Data(spec.into()),
        }
    }
}

impl TryFrom<v1::spec::Kind> for Spec {
    type Error = WireError;

    fn try_from(wire: v1::spec::Kind) -> Result<Self, WireError> {
        match wire {
            v1::spec::Kind::Service(spec) => spec.try_into().map(Self::Service),
            v1::spec::Kind::Network(spec) => spec.try_into().map(Self::Network),
            v1::spec::Kind::Data(spec) => spec.try_into().map(Self::Data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_comes_back_from_the_wire_as_it_went() {
        let spec: ServiceSpec = serde_json::from_value(serde_json::json!({
            "replicas": 3, "labels": {"a": "b"}, "networks": [{"network": "lab", "aliases": ["www"]}], "stop_grace": "3s",
            "placement": {"constraints": ["node.labels.zone!=b", "node.name==n1"], "max_per_node": 2},
            "restart": {"condition": "on-failure", "max_attempts": 3}, "reschedule": "never", "update": {"order": "start-first"},
            "containers": [{"image": "web:1", "name": "web", "command": ["/web"], "env": {"A": "b"},
                "resources": {"limits": {"memory": "64MiB", "cpus": 0.5, "pids": 10}, "reservations": {"memory": "16MiB"}},
                "healthcheck": {"http": {"port": 80}, "interval": "5s"}, "init": true, "ulimits": {"nofile": {"soft": 1, "hard": -1}},
                "mounts": [{"type": "bind", "source": "/a", "target": "/b", "read_only": true}, {"type": "tmpfs", "target": "/t"},
                    {"type": "volume", "source": "data", "target": "/d"}, {"type": "tmpfs", "target": "/u", "size": "1MiB", "mode": "0700"}],
                "sysctls": {"net.core.somaxconn": "1"}, "cap_add": ["NET_ADMIN"], "cap_drop": ["ALL"], "no_new_privileges": true,
                "privileged": true, "devices": ["/dev/fuse:/dev/fuse:rw"], "shm_size": "1MiB", "pull": "always", "stdin": true, "tty": true,
                "secrets": ["a", {"source": "b", "target": "/b", "uid": 1, "gid": 2, "mode": "0400"}], "configs": ["c"],
                "logging": {"driver": "syslog", "address": "udp://10.0.0.1:514", "facility": "local0", "tag": "t", "max_size": "1MiB"}}, {"image": "b", "name": "b", "pull": "never",
                "healthcheck": {"tcp": {"port": 5}}}, {"image": "c", "name": "c", "healthcheck": {"command": "true", "retries": 1}},
                {"image": "d", "name": "d", "healthcheck": {"disable": true}}],
            "runtime": "crun", "endpoint_mode": "vip", "affinity": "client", "leave": "1m", "ports": ["8080:80", {"name": "dns", "target": 53},
                {"target": "90-92", "published": "190-192", "protocol": "udp", "mode": "host", "allow_from": ["10.0.0.0/8", "fd00::/8"]},
                {"target": 81, "published": 81, "policy": "local"}],
            "dns": ["9.9.9.9", "2001:db8::1"], "dns_search": ["corp.example"], "extra_hosts": {"db": "10.0.0.7", "host": "host-gateway"},
        }))
        .unwrap();
        let wire = v1::ServiceSpec::from(spec.clone());
        assert_eq!(ServiceSpec::try_from(wire.clone()).unwrap(), spec);
        let port = v1::Port { policy: v1::IngressPolicy::Local.into(), ..wire.ports[2].clone() };
        let broken = v1::ServiceSpec { ports: vec![port], ..wire.clone() };
        assert_eq!(ServiceSpec::try_from(broken).unwrap_err().to_string(), "field ports.policy is missing or out of range");
        let broken = v1::ServiceSpec { mode: 77, ..wire };
        assert_eq!(ServiceSpec::try_from(broken).unwrap_err().to_string(), "field mode is missing or out of range");
    }

    #[test]
    fn a_service_of_an_earlier_version_neither_waits_nor_has_an_address_and_goes_back_as_it_came() {
        let spec: ServiceSpec = serde_json::from_value(
            serde_json::json!({"containers": [{"image": "web:1"}], "replicas": 1, "leave": "0s", "endpoint_mode": "dnsrr"}),
        )
        .unwrap();
        let wire = v1::ServiceSpec::from(spec.clone());
        assert_eq!((wire.endpoint_mode, wire.affinity, wire.leave_ms, wire.ports.len()), (0, 0, 0, 0));
        assert_eq!(ServiceSpec::try_from(wire).unwrap(), spec);
    }

    #[test]
    fn a_network_comes_back_from_the_wire_as_it_went() {
        let spec: NetworkSpec = serde_json::from_value(serde_json::json!({
            "stack": "shop", "labels": {"a": "b"}, "subnet": "10.1.0.0/24", "encrypted": true, "ipv6": true, "subnet6": "fd00:1::/64",
        }))
        .unwrap();
        let wire = v1::NetworkSpec::from(spec.clone());
        assert_eq!(NetworkSpec::try_from(wire.clone()).unwrap(), spec);
        let broken = v1::NetworkSpec { subnet6: "10.1.0.0/24".to_owned(), ..wire };
        assert_eq!(NetworkSpec::try_from(broken).unwrap_err(), missing("subnet6"));
    }

    #[test]
    fn a_network_comes_back_from_the_wire_with_its_policy() {
        for policy in [
            serde_json::json!(null),
            serde_json::json!({"allow": []}),
            serde_json::json!({"allow": [
                {"from": ["web", "*", "10.0.0.0/8"], "to": ["db", "*"], "ports": [80, "1-65535", "53/udp"]},
            ]}),
        ] {
            let spec: NetworkSpec = serde_json::from_value(serde_json::json!({"internal": true, "policy": policy})).unwrap();
            assert_eq!(NetworkSpec::try_from(v1::NetworkSpec::from(spec.clone())).unwrap(), spec);
        }
        let port = v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first: 80, last: 79 };
        let allow = vec![v1::Allow { ports: vec![port], ..v1::Allow::default() }];
        let wire = v1::NetworkSpec { policy: Some(v1::NetworkPolicy { allow }), ..v1::NetworkSpec::default() };
        assert_eq!(NetworkSpec::try_from(wire).unwrap_err(), missing("policy.allow.ports"));
    }
}
