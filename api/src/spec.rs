//! What a user asks for: the objects of the native YAML and of the API, already parsed into checked types.
//!
//! The serialised form is the documented one: what `get -o yaml` prints can be deployed again. Unknown keys are refused.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::container::{DeviceSpec, Logging, MountSpec, PullPolicy, Ulimits};
use crate::data::{DataKind, DataRef, DataSpec};
use crate::health::HealthCheck;
use crate::network::{Affinity, EndpointMode, HostAddress, NetworkPolicy, Port, ResolverAddress};
use crate::object::Kind;
use crate::resource::{Amounts, Bytes, Millis};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As many as `replicas` says, each in a numbered slot.
    #[default]
    Replicated,
    /// One on every node that fits.
    Global,
}

impl Mode {
    /// The mode's name as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replicated => "replicated",
            Self::Global => "global",
        }
    }
}

/// A service: containers, where they may run, how they are kept running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Set from the manifest's `name`.
    #[serde(skip)]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stack: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub mode: Mode,
    /// Replicated mode only; 1 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// A pod: the containers of each task.
    pub containers: Vec<ContainerSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkAttachment>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: Placement,
    /// From the stop signal to SIGKILL.
    #[serde(default = "default_stop_grace", skip_serializing_if = "is_default_stop_grace")]
    pub stop_grace: Millis,
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    #[serde(default, skip_serializing_if = "is_default")]
    pub reschedule: Reschedule,
    #[serde(default, skip_serializing_if = "is_default")]
    pub update: UpdatePolicy,
    /// An OCI runtime that the nodes know by this name; rcluster's own when not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub endpoint_mode: EndpointMode,
    #[serde(default, skip_serializing_if = "is_default")]
    pub affinity: Affinity,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// The longest that a task which ends waits for the other nodes to send nothing more to it.
    #[serde(default = "default_leave", skip_serializing_if = "is_default_leave")]
    pub leave: Millis,
    /// Who is asked for names that are not the cluster's, in place of the node's resolvers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<ResolverAddress>,
    /// Domains that are searched before those of the networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Names that the containers know without asking.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_hosts: BTreeMap<String, HostAddress>,
}

/// Docker's default grace period.
fn default_stop_grace() -> Millis {
    Millis(10_000)
}

fn is_default_stop_grace(grace: &Millis) -> bool {
    *grace == default_stop_grace()
}

fn default_leave() -> Millis {
    Millis(2_000)
}

fn is_default_leave(leave: &Millis) -> bool {
    *leave == default_leave()
}

impl ServiceSpec {
    /// The wanted number of tasks of a replicated service.
    pub fn replicas(&self) -> u32 {
        self.replicas.unwrap_or(1)
    }

    /// The secrets and configs that its containers use, by kind and name; one may come more than once.
    pub fn data(&self) -> impl Iterator<Item = (DataKind, &str)> {
        self.containers.iter().flat_map(ContainerSpec::data).map(|(kind, data)| (kind, data.source.as_str()))
    }

    /// What each task is made from. Two specs with equal templates need no task to be replaced.
    pub fn template(&self) -> TaskTemplate {
        TaskTemplate {
            containers: self.containers.clone(),
            networks: self.networks.clone(),
            placement: self.placement.clone(),
            stop_grace: self.stop_grace,
            runtime: self.runtime.clone(),
            dns: self.dns.clone(),
            dns_search: self.dns_search.clone(),
            extra_hosts: self.extra_hosts.clone(),
        }
    }
}

/// The part of a service that each task carries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskTemplate {
    pub containers: Vec<ContainerSpec>,
    pub networks: Vec<NetworkAttachment>,
    pub placement: Placement,
    pub stop_grace: Millis,
    pub runtime: String,
    pub dns: Vec<ResolverAddress>,
    pub dns_search: Vec<String>,
    pub extra_hosts: BTreeMap<String, HostAddress>,
}

impl TaskTemplate {
    /// The secrets and configs that its containers use, by kind and name; one may come more than once.
    pub fn data(&self) -> impl Iterator<Item = (DataKind, &str)> {
        self.containers.iter().flat_map(ContainerSpec::data).map(|(kind, data)| (kind, data.source.as_str()))
    }
}

/// One container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Unique in the pod; the service's name when not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub image: String,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workdir: String,
    /// `name`, `uid`, `name:group` or `uid:gid`; names are looked up inside the image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: ContainerResources,
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// The image's own when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthCheck>,
    /// Runs a small init as the first process, which passes signals on and reaps orphans.
    #[serde(default, skip_serializing_if = "is_default")]
    pub init: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountSpec>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: Ulimits,
    /// Of the container's namespaces: `net.…` and `kernel.{shm,msg,sem,…}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Beside Docker's default set; names as in capabilities(7), or ALL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Programs of the image cannot gain privileges by being executed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_new_privileges: bool,
    /// All capabilities, all devices, nothing masked; the node's policy has to allow it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// Devices of the node; its policy has to allow them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceSpec>,
    /// Of `/dev/shm`; 64 MiB when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<Bytes>,
    /// When the node asks a registry for the image; as the node's agent was told when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Files in memory, under `/run/secrets` when no other place is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<DataRef>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configs: Vec<DataRef>,
    /// Keeps the standard input open: what a user who attaches writes goes there. It is empty otherwise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// A terminal takes the place of the standard streams. With `stdin` a user who attaches types into it, otherwise they only look.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tty: bool,
    /// Where the output goes; only kept on the node when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
}

impl ContainerSpec {
    /// The secrets, then the configs.
    pub fn data(&self) -> impl Iterator<Item = (DataKind, &DataRef)> {
        let secrets = self.secrets.iter().map(|secret| (DataKind::Secret, secret));
        secrets.chain(self.configs.iter().map(|config| (DataKind::Config, config)))
    }
}

/// A container's share of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerResources {
    /// What the kernel holds it to.
    #[serde(default, skip_serializing_if = "Amounts::is_empty")]
    pub limits: Amounts,
    /// What the scheduler sets aside for it: cpus and memory.
    #[serde(default, skip_serializing_if = "Amounts::is_empty")]
    pub reservations: Amounts,
}

/// A network that each task joins. In YAML also just the network's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkAttachment {
    pub network: String,
    pub aliases: Vec<String>,
    /// Kept for the service: its one task has it wherever it runs. `None`: one is chosen for each task.
    pub ip: Option<Ipv4Addr>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongAttachment {
    network: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip: Option<Ipv4Addr>,
}

impl Serialize for NetworkAttachment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.aliases.is_empty() && self.ip.is_none() {
            serializer.serialize_str(&self.network)
        } else {
            let Self { network, aliases, ip } = self.clone();
            LongAttachment { network, aliases, ip }.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NetworkAttachment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = NetworkAttachment;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a network's name, or {network: NAME, aliases: [NAME, …], ip: ADDRESS}")
            }

            fn visit_str<E: serde::de::Error>(self, network: &str) -> Result<Self::Value, E> {
                Ok(NetworkAttachment { network: network.to_owned(), aliases: Vec::new(), ip: None })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let LongAttachment { network, aliases, ip } =
                    LongAttachment::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(NetworkAttachment { network, aliases, ip })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Where tasks may run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// All must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Most tasks of the service on one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_node: Option<u32>,
}

/// What a constraint looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConstraintKey {
    Id,
    Name,
    Role,
    Label(String),
}

/// `node.labels.zone==b`, `node.name!=n1`, …: the form of Docker's placement constraints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    pub key: ConstraintKey,
    pub equal: bool,
    pub value: String,
}

impl fmt::Display for ConstraintKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => formatter.write_str("node.id"),
            Self::Name => formatter.write_str("node.name"),
            Self::Role => formatter.write_str("node.role"),
            Self::Label(label) => write!(formatter, "node.labels.{label}"),
        }
    }
}

impl FromStr for ConstraintKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "node.id" => Ok(Self::Id),
            "node.name" | "node.hostname" => Ok(Self::Name),
            "node.role" => Ok(Self::Role),
            other => match other.strip_prefix("node.labels.") {
                Some(label) if !label.is_empty() => Ok(Self::Label(label.to_owned())),
                _ => Err(format!(
                    "unknown constraint key {other:?}: there are node.id, node.name, node.hostname, node.role and node.labels.KEY"
                )),
            },
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}{}", self.key, if self.equal { "==" } else { "!=" }, self.value)
    }
}

impl FromStr for Constraint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, equal, value) = if let Some((key, value)) = text.split_once("==") {
            (key, true, value)
        } else if let Some((key, value)) = text.split_once("!=") {
            (key, false, value)
        } else {
            return Err(format!("{text:?} is not a constraint: write KEY==VALUE or KEY!=VALUE, such as node.labels.zone==b"));
        };
        let value = value.trim();
        if value.is_empty() {
            return Err(format!("constraint {text:?} has no value: write KEY==VALUE, such as node.labels.zone==b"));
        }
        Ok(Self { key: key.trim().parse()?, equal, value: value.to_owned() })
    }
}

impl Serialize for Constraint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Constraint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Which ends of a task call for a new one in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    #[default]
    Any,
    OnFailure,
    None,
}

/// How a slot whose task ended is filled again: at once the first time, then after a doubling, jittered delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    /// Before the second restart in a row; doubles after that.
    pub delay: Millis,
    pub delay_max: Millis,
    /// Most restarts within `window`; none given: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// A task that ran this long ends the row of restarts.
    pub window: Millis,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { condition: RestartCondition::Any, delay: Millis(500), delay_max: Millis(60_000), max_attempts: None, window: Millis(60_000) }
    }
}

/// What becomes of a task whose node is lost or drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reschedule {
    /// It is replaced on another node.
    #[default]
    Always,
    /// The same for a lost node; a drained one keeps its tasks.
    OnNodeFailure,
    /// It stays lost.
    Never,
}

/// Which of the two tasks in a slot goes first when the template has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    #[default]
    StopFirst,
    StartFirst,
}

/// How a changed template reaches the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdatePolicy {
    /// Tasks replaced at once; 0: all.
    pub parallelism: u32,
    pub order: UpdateOrder,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self { parallelism: 1, order: UpdateOrder::StopFirst }
    }
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Set from the manifest's `name`.
    #[serde(skip)]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stack: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Chosen by the managers when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<ipnet::Ipv4Net>,
    /// No way out of the cluster.
    #[serde(default, skip_serializing_if = "is_default")]
    pub internal: bool,
    /// What goes from one node to another is encrypted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encrypted: bool,
    /// IPv6 beside IPv4.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ipv6: bool,
    /// A /64; chosen by the managers when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<ipnet::Ipv6Net>,
    /// None: all may speak with all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<NetworkPolicy>,
}

/// A spec of any kind.
#[expect(clippy::large_enum_variant, reason = "a request has few specs, and most are services")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    Service(ServiceSpec),
    Network(NetworkSpec),
    Data(DataSpec),
}

impl Spec {
    /// The object's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Network(_) => Kind::Network,
            Self::Data(spec) => spec.kind.object_kind(),
        }
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Service(spec) => &spec.name,
            Self::Network(spec) => &spec.name,
            Self::Data(spec) => &spec.name,
        }
    }
}
