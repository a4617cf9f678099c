//! Containers: their specs and their statuses.

use super::{WireError, missing, read_enum};
use crate::container::{FileMode, LogDriver, Logging, MountSpec, Ulimit};
use crate::health::{Health, HealthCheck, HttpCheck, TcpCheck};
use crate::object::ContainerStatus;
use crate::resource::{Amounts, Bytes, Cpus, Millis};
use crate::spec::{ContainerResources, ContainerSpec};
use crate::wire::v1;

fn wire_amounts(amounts: Amounts) -> v1::Resources {
    let Amounts { cpus, memory, pids } = amounts;
    v1::Resources { cpu_millis: cpus.unwrap_or_default().0, memory_bytes: memory.unwrap_or_default().0, pids: pids.unwrap_or_default() }
}

/// Zero on the wire is what was not given.
fn given(number: u64) -> Option<u64> {
    (number != 0).then_some(number)
}

fn amounts(wire: Option<v1::Resources>) -> Amounts {
    let v1::Resources { cpu_millis, memory_bytes, pids } = wire.unwrap_or_default();
    Amounts { cpus: given(cpu_millis).map(Cpus), memory: given(memory_bytes).map(Bytes), pids: given(pids) }
}

impl From<ContainerSpec> for v1::ContainerSpec {
    fn from(spec: ContainerSpec) -> Self {
        let ContainerSpec {
            name,
            image,
            command,
            args,
            env,
            workdir,
            user,
            resources: ContainerResources { limits, reservations },
            read_only,
            stop_signal,
            healthcheck,
            init,
            mounts,
            ulimits,
            sysctls,
            cap_add,
            cap_drop,
            no_new_privileges,
            privileged,
            devices,
            shm_size,
            secrets,
            configs,
            logging,
            stdin,
            tty,
            pull,
        } = spec;
        Self {
            name,
            image,
            command,
            args,
            env,
            workdir,
            user,
            limits: Some(wire_amounts(limits)),
            reservations: Some(wire_amounts(reservations)),
            read_only,
            stop_signal,
            healthcheck: healthcheck.map(Into::into),
            init,
            mounts: mounts.into_iter().map(Into::into).collect(),
            ulimits: ulimits.into_iter().map(|(name, Ulimit { soft, hard })| (name, v1::Ulimit { soft, hard })).collect(),
            sysctls,
            cap_add,
            cap_drop,
            no_new_privileges,
            privileged,
            devices: devices.iter().map(ToString::to_string).collect(),
            shm_bytes: shm_size.unwrap_or_default().0,
            secrets: secrets.into_iter().map(Into::into).collect(),
            configs: configs.into_iter().map(Into::into).collect(),
            logging: logging.map(Into::into),
            stdin,
            tty,
            pull: pull.map_or(v1::PullPolicy::Unspecified, v1::PullPolicy::from).into(),
        }
    }
}

impl TryFrom<v1::ContainerSpec> for ContainerSpec {
    type Error = WireError;

    fn try_from(wire: v1::ContainerSpec) -> Result<Self, WireError> {
        let v1::ContainerSpec {
            name,
            image,
            command,
            args,
            env,
            workdir,
            user,
            limits,
            reservations,
            read_only,
            stop_signal,
            healthcheck,
            init,
            mounts,
            ulimits,
            sysctls,
            cap_add,
            cap_drop,
            no_new_privileges,
            privileged,
            devices,
            shm_bytes,
            secrets,
            configs,
            logging,
            stdin,
            tty,
            pull,
        } = wire;
        Ok(Self {
            name,
            image,
            command,
            args,
            env,
            workdir,
            user,
            resources: ContainerResources { limits: amounts(limits), reservations: amounts(reservations) },
            read_only,
            stop_signal,
            healthcheck: healthcheck.map(TryInto::try_into).transpose()?,
            init,
            mounts: mounts.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            ulimits: ulimits.into_iter().map(|(name, v1::Ulimit { soft, hard })| (name, Ulimit { soft, hard })).collect(),
            sysctls,
            cap_add,
            cap_drop,
            no_new_privileges,
            privileged,
            devices: devices.iter().map(|text| text.parse().map_err(|_| missing("devices"))).collect::<Result<_, _>>()?,
            shm_size: given(shm_bytes).map(Bytes),
            secrets: secrets.into_iter().map(Into::into).collect(),
            configs: configs.into_iter().map(Into::into).collect(),
            logging: logging.map(TryInto::try_into).transpose()?,
            stdin,
            tty,
            pull: if pull == 0 { None } else { Some(read_enum::<v1::PullPolicy, _>(pull, "pull")?) },
        })
    }
}

impl From<Logging> for v1::Logging {
    fn from(Logging { driver, address, facility, tag, max_size }: Logging) -> Self {
        Self { driver: driver.name().to_owned(), address, facility, tag, max_bytes: max_size.unwrap_or_default().0 }
    }
}

impl TryFrom<v1::Logging> for Logging {
    type Error = WireError;

    fn try_from(wire: v1::Logging) -> Result<Self, WireError> {
        let v1::Logging { driver, address, facility, tag, max_bytes } = wire;
        let driver = LogDriver::ALL.into_iter().find(|known| known.name() == driver).ok_or_else(|| missing("driver"))?;
        Ok(Self { driver, address, facility, tag, max_size: given(max_bytes).map(Bytes) })
    }
}

impl From<HealthCheck> for v1::HealthCheck {
    fn from(check: HealthCheck) -> Self {
        let HealthCheck { command, http, tcp, interval, timeout, start_period, start_interval, retries, disable } = check;
        let (http_port, http_path) = http.map(|HttpCheck { port, path }| (port, path)).unwrap_or_default();
        Self {
            command,
            http_port: http_port.into(),
            http_path,
            tcp_port: tcp.map_or(0, |TcpCheck { port }| port).into(),
            interval_ms: interval.0,
            timeout_ms: timeout.0,
            start_period_ms: start_period.0,
            start_interval_ms: start_interval.0,
            retries,
            disable,
        }
    }
}

impl TryFrom<v1::HealthCheck> for HealthCheck {
    type Error = WireError;

    fn try_from(wire: v1::HealthCheck) -> Result<Self, WireError> {
        let v1::HealthCheck {
            command,
            http_port,
            http_path,
            tcp_port,
            interval_ms,
            timeout_ms,
            start_period_ms,
            start_interval_ms,
            retries,
            disable,
        } = wire;
        let port = |number: u32| match number {
            0 => Ok(None),
            number => u16::try_from(number).map(Some).map_err(|_| missing("healthcheck.port")),
        };
        Ok(Self {
            command,
            http: port(http_port)?.map(|port| HttpCheck { port, path: http_path }),
            tcp: port(tcp_port)?.map(|port| TcpCheck { port }),
            interval: Millis(interval_ms),
            timeout: Millis(timeout_ms),
            start_period: Millis(start_period_ms),
            start_interval: Millis(start_interval_ms),
            retries,
            disable,
        })
    }
}

impl From<MountSpec> for v1::Mount {
    fn from(mount: MountSpec) -> Self {
        let kind = |kind: v1::MountKind| i32::from(kind);
        match mount {
            MountSpec::Bind { source, target, read_only } => {
                Self { kind: kind(v1::MountKind::Bind), source, target, read_only, tmpfs_bytes: 0, tmpfs_mode: 0 }
            }
            MountSpec::Volume { source, target, read_only } => {
                Self { kind: kind(v1::MountKind::Volume), source, target, read_only, tmpfs_bytes: 0, tmpfs_mode: 0 }
            }
            MountSpec::Tmpfs { target, size, mode } => Self {
                kind: kind(v1::MountKind::Tmpfs),
                source: String::new(),
                target,
                read_only: false,
                tmpfs_bytes: size.unwrap_or_default().0,
                tmpfs_mode: mode.map_or(0, |FileMode(mode)| mode),
            },
        }
    }
}

impl TryFrom<v1::Mount> for MountSpec {
    type Error = WireError;

    fn try_from(wire: v1::Mount) -> Result<Self, WireError> {
        let v1::Mount { kind, source, target, read_only, tmpfs_bytes, tmpfs_mode } = wire;
        match v1::MountKind::try_from(kind).map_err(|_| missing("mounts.kind"))? {
            v1::MountKind::Unspecified => Err(missing("mounts.kind")),
            v1::MountKind::Bind => Ok(Self::Bind { source, target, read_only }),
            v1::MountKind::Volume => Ok(Self::Volume { source, target, read_only }),
            v1::MountKind::Tmpfs => {
                Ok(Self::Tmpfs { target, size: given(tmpfs_bytes).map(Bytes), mode: (tmpfs_mode != 0).then_some(FileMode(tmpfs_mode)) })
            }
        }
    }
}

impl From<Health> for v1::Health {
    fn from(health: Health) -> Self {
        match health {
            Health::None => Self::Unspecified,
            Health::Starting => Self::Starting,
            Health::Healthy => Self::Healthy,
            Health::Unhealthy => Self::Unhealthy,
        }
    }
}

impl TryFrom<v1::Health> for Health {
    type Error = WireError;

    fn try_from(wire: v1::Health) -> Result<Self, WireError> {
        Ok(match wire {
            v1::Health::Unspecified => Self::None,
            v1::Health::Starting => Self::Starting,
            v1::Health::Healthy => Self::Healthy,
            v1::Health::Unhealthy => Self::Unhealthy,
        })
    }
}

impl From<ContainerStatus> for v1::ContainerStatus {
    fn from(status: ContainerStatus) -> Self {
        let ContainerStatus { name, id, pid, exit_code, oom_killed, started_at_ms, health, health_output } = status;
        Self {
            name,
            id,
            pid: pid.unwrap_or_default(),
            exited: exit_code.is_some(),
            exit_code: exit_code.unwrap_or_default(),
            oom_killed,
            started_at_ms,
            health: v1::Health::from(health).into(),
            health_output,
        }
    }
}

impl TryFrom<v1::ContainerStatus> for ContainerStatus {
    type Error = WireError;

    fn try_from(wire: v1::ContainerStatus) -> Result<Self, WireError> {
        let v1::ContainerStatus { name, id, pid, exited, exit_code, oom_killed, started_at_ms, health, health_output } = wire;
        Ok(Self {
            name,
            id,
            pid: (pid != 0).then_some(pid),
            exit_code: exited.then_some(exit_code),
            oom_killed,
            started_at_ms,
            health: read_enum::<v1::Health, _>(health, "containers.health")?,
            health_output,
        })
    }
}
