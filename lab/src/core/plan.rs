//! Names, addresses, directories, cgroups and command lines of a lab.
//!
//! In: what the user asked for. Out: a plan that says everything that follows from it, or a refusal with what would fit. Never: a look at
//! the machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// The managers' port.
pub const PORT: u16 = 7443;
/// The wire's own address, at which `rclusterctl` stands.
pub const WIRE_ADDR: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
/// All hosts' addresses are in this subnet.
pub const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 0);
pub const SUBNET_PREFIX_LENGTH: u8 = 24;
/// Every host's gateway: the wire's end of its link.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const MANAGERS_MAX: usize = 7;
const AGENTS_MAX: usize = 50;
const NAME_LENGTH_MAX: usize = 20;

/// What a host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Manager,
    Node,
}

/// Something of a lab that has a name: a host, or a daemon of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub daemon: Option<&'static str>,
}

impl Role {
    /// The daemons of such a host, in the order of their start.
    pub fn daemons(self) -> &'static [&'static str] {
        match self {
            Self::Manager => &["manager"],
            Self::Node => &["netd", "agent"],
        }
    }
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPlan {
    /// m1… or n1…
    pub name: String,
    pub role: Role,
    pub addr: Ipv4Addr,
    /// KEY=VALUE, nodes only.
    pub labels: Vec<String>,
}

/// A lab as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabPlan {
    pub name: String,
    pub hosts: Vec<HostPlan>,
    pub images: Vec<PathBuf>,
    pub bin_dir: PathBuf,
    /// What `init` is told of certificates; none: nothing.
    pub certificate_ttl: Option<String>,
}

impl LabPlan {
    /// Lays out a lab; refuses names and numbers that do not fit.
    pub fn new(
        name: &str,
        managers: usize,
        agents: usize,
        labels: &[(String, String, String)],
        images: Vec<PathBuf>,
        bin_dir: PathBuf,
    ) -> Result<Self, LabError> {
        check_name(name)?;
        if managers == 0 || managers > MANAGERS_MAX {
            return Err(LabError::Refused(format!(
                "{managers} managers cannot be made: a lab has 1 to {MANAGERS_MAX}; 3 survive one failure"
            )));
        }
        if agents > AGENTS_MAX {
            return Err(LabError::Refused(format!("{agents} agents cannot be made: a lab has 0 to {AGENTS_MAX}")));
        }
        let addr = |base: usize, index: usize| {
            let last = u8::try_from(base + index).map_err(|_| LabError::Refused(format!("host number {index} has no address")))?;
            Ok::<_, LabError>(Ipv4Addr::new(10, 90, 0, last))
        };
        let mut hosts = Vec::new();
        for index in 1..=managers {
            hosts.push(HostPlan { name: format!("m{index}"), role: Role::Manager, addr: addr(10, index)?, labels: Vec::new() });
        }
        for index in 1..=agents {
            let name = format!("n{index}");
            let own = labels.iter().filter(|(node, ..)| *node == name).map(|(_, key, value)| format!("{key}={value}"));
            hosts.push(HostPlan { labels: own.collect(), name, role: Role::Node, addr: addr(100, index)? });
        }
        if let Some((node, ..)) = labels.iter().find(|(node, ..)| !hosts.iter().any(|host| host.name == *node && host.role == Role::Node)) {
            let nodes = if agents == 0 { "it has no node".to_owned() } else { format!("its nodes are n1 to n{agents}") };
            return Err(LabError::Refused(format!("a label is for {node}, which the lab does not have: {nodes}")));
        }
        Ok(Self { name: name.to_owned(), hosts, images, bin_dir, certificate_ttl: None })
    }

    /// A host by name.
    pub fn host(&self, name: &str) -> Result<&HostPlan, LabError> {
        self.hosts.iter().find(|host| host.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            LabError::Refused(format!("lab {} has no host {name}; it has {}", self.name, names.join(", ")))
        })
    }

    /// Reads HOST or HOST/DAEMON.
    pub fn target(&self, text: &str) -> Result<Target, LabError> {
        let (name, daemon) = text.split_once('/').map_or((text, None), |(name, daemon)| (name, Some(daemon)));
        let host = self.host(name)?;
        let known = host.role.daemons();
        let daemon = match daemon {
            None => None,
            Some(wanted) => Some(
                *known
                    .iter()
                    .find(|daemon| **daemon == wanted)
                    .ok_or_else(|| LabError::Refused(format!("host {name} runs no {wanted}; it runs {}", known.join(" and "))))?,
            ),
        };
        Ok(Target { host: name.to_owned(), daemon })
    }

    /// The managers' addresses.
    pub fn managers(&self) -> Vec<String> {
        let managers = self.hosts.iter().filter(|host| host.role == Role::Manager);
        managers.map(|host| format!("{}:{PORT}", host.addr)).collect()
    }

    /// The command line of a daemon of a host; the first word is the program.
    pub fn command(&self, host: &HostPlan, daemon: &str) -> Vec<String> {
        let state = self.state_dir(host).join(daemon).to_string_lossy().into_owned();
        let run = self.host_run_dir(host).to_string_lossy().into_owned();
        let own = format!("{}:{PORT}", host.addr);
        let program = self.bin_dir.join(format!("rcluster-{daemon}")).to_string_lossy().into_owned();
        let mut words = match daemon {
            "manager" => {
                let mut words = ["run", "--state-dir", &state, "--listen", &own].map(str::to_owned).to_vec();
                if !self.founds(host) {
                    let token = self.token_file(host).to_string_lossy().into_owned();
                    words.extend(["--name", &host.name, "--join", &self.managers().join(","), "--token-file", &token].map(str::to_owned));
                }
                words
            }
            "netd" => ["--state-dir", &state, "--run-dir", &run, "--addr", &host.addr.to_string()].map(str::to_owned).to_vec(),
            _ => {
                let addr = host.addr.to_string();
                let cgroup = format!("/{}/pods", self.cgroup(host));
                let managers = self.managers().join(",");
                let token = self.token_file(host).to_string_lossy().into_owned();
                let flags = [
                    "run",
                    "--name",
                    &host.name,
                    "--state-dir",
                    &state,
                    "--run-dir",
                    &run,
                    "--addr",
                    &addr,
                    "--managers",
                    &managers,
                    "--cgroup-parent",
                    &cgroup,
                    // The wire leads to no registry.
                    "--pull",
                    "never",
                    // The disk is this machine's, however full it is.
                    "--image-gc-high",
                    "100",
                    "--token-file",
                    &token,
                ];
                let labels = host.labels.iter().flat_map(|label| ["--label".to_owned(), label.clone()]);
                flags.into_iter().map(str::to_owned).chain(labels).collect()
            }
        };
        words.insert(0, program);
        words
    }

    /// Whether the host's manager is the first of the cluster, which the others join.
    pub fn founds(&self, host: &HostPlan) -> bool {
        self.hosts.iter().find(|host| host.role == Role::Manager) == Some(host)
    }

    /// The command line that makes the cluster in the first manager's state directory.
    pub fn init_command(&self) -> Result<Vec<String>, LabError> {
        let none = || LabError::Refused("a lab has one manager at least".to_owned());
        let host = self.hosts.iter().find(|host| host.role == Role::Manager).ok_or_else(none)?;
        let program = self.bin_dir.join("rcluster-manager").to_string_lossy().into_owned();
        let state = self.state_dir(host).join("manager").to_string_lossy().into_owned();
        let own = format!("{}:{PORT}", host.addr);
        let words = [&program, "init", "--name", &host.name, "--state-dir", &state, "--advertise", &own, "--json"];
        let ttl = self.certificate_ttl.iter().flat_map(|ttl| ["--certificate-ttl", ttl]);
        Ok(words.into_iter().chain(ttl).map(str::to_owned).collect())
    }

    /// What lets the host's daemon join.
    pub fn token_file(&self, host: &HostPlan) -> PathBuf {
        self.state_dir(host).join("join.token")
    }

    /// The command line that loads an image into a node's store.
    pub fn load_command(&self, host: &HostPlan, image: &Path) -> Vec<String> {
        let program = self.bin_dir.join("rcluster-agent").to_string_lossy().into_owned();
        let state = self.state_dir(host).join("agent").to_string_lossy().into_owned();
        vec![program, "image".to_owned(), "load".to_owned(), image.to_string_lossy().into_owned(), "--state-dir".to_owned(), state]
    }

    /// The host's directory on disk.
    pub fn state_dir(&self, host: &HostPlan) -> PathBuf {
        state_root(&self.name).join(&host.name)
    }

    /// The host's run directory: a tmpfs that only the host sees.
    pub fn host_run_dir(&self, host: &HostPlan) -> PathBuf {
        run_root(&self.name).join("hosts").join(&host.name).join("run")
    }

    /// The host's cgroup below the root of each hierarchy; daemons are in its child `system`, containers in `pods`.
    pub fn cgroup(&self, host: &HostPlan) -> String {
        format!("{}/{}", cgroup_root(&self.name), host.name)
    }
}

/// A name must do for directories, cgroups and contexts.
pub fn check_name(name: &str) -> Result<(), LabError> {
    let fits = !name.is_empty()
        && name.len() <= NAME_LENGTH_MAX
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-');
    if fits {
        return Ok(());
    }
    Err(LabError::Refused(format!(
        "{name:?} cannot be a lab's name: use 1 to {NAME_LENGTH_MAX} lower-case letters, digits and -, such as lab-1"
    )))
}

/// The lab's directory in memory: socket, plan, logs.
pub fn run_root(lab: &str) -> PathBuf {
    Path::new("/run/rcluster/labs").join(lab)
}

/// The lab's directory on disk: the hosts' disks.
pub fn state_root(lab: &str) -> PathBuf {
    Path::new("/var/lib/rcluster/labs").join(lab)
}

/// The lab's cgroup below the root of each hierarchy.
pub fn cgroup_root(lab: &str) -> String {
    format!("rcluster-lab-{lab}")
}

/// Where the supervisor listens.
pub fn control_socket(lab: &str) -> PathBuf {
    run_root(lab).join("control.sock")
}

/// Where the plan is kept for the commands.
pub fn plan_file(lab: &str) -> PathBuf {
    run_root(lab).join("lab.json")
}

/// Where the logs are.
pub fn log_dir(lab: &str) -> PathBuf {
    run_root(lab).join("logs")
}

/// Where a daemon's log is.
pub fn log_file(lab: &str, host: &str, daemon: &str) -> PathBuf {
    log_dir(lab).join(format!("{host}-{daemon}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> LabPlan {
        let labels = [("n2".to_owned(), "zone".to_owned(), "b".to_owned())];
        LabPlan::new("lab", 3, 2, &labels, Vec::new(), PathBuf::from("/bin")).unwrap()
    }

    #[test]
    fn hosts_have_names_addresses_and_commands() {
        let plan = plan();
        let lines: Vec<String> = plan
            .hosts
            .iter()
            .flat_map(|host| host.role.daemons().iter().map(|daemon| plan.command(host, daemon).join(" ")).collect::<Vec<_>>())
            .collect();
        assert_eq!(lines[0], "/bin/rcluster-manager run --state-dir /var/lib/rcluster/labs/lab/m1/manager --listen 10.90.0.11:7443");
        assert_eq!(
            lines[2],
            "/bin/rcluster-manager run --state-dir /var/lib/rcluster/labs/lab/m3/manager --listen 10.90.0.13:7443 --name m3 \
             --join 10.90.0.11:7443,10.90.0.12:7443,10.90.0.13:7443 --token-file /var/lib/rcluster/labs/lab/m3/join.token"
        );
        assert_eq!(
            lines[5],
            "/bin/rcluster-netd --state-dir /var/lib/rcluster/labs/lab/n2/netd --run-dir /run/rcluster/labs/lab/hosts/n2/run --addr 10.90.0.102"
        );
        assert_eq!(
            lines[6],
            "/bin/rcluster-agent run --name n2 --state-dir /var/lib/rcluster/labs/lab/n2/agent \
             --run-dir /run/rcluster/labs/lab/hosts/n2/run --addr 10.90.0.102 --managers 10.90.0.11:7443,10.90.0.12:7443,10.90.0.13:7443 \
             --cgroup-parent /rcluster-lab-lab/n2/pods --pull never --image-gc-high 100 --token-file /var/lib/rcluster/labs/lab/n2/join.token \
             --label zone=b"
        );
    }

    #[test]
    fn the_cluster_is_made_as_asked_for() {
        let line = |plan: LabPlan| plan.init_command().unwrap().join(" ");
        let plain =
            "/bin/rcluster-manager init --name m1 --state-dir /var/lib/rcluster/labs/lab/m1/manager --advertise 10.90.0.11:7443 --json";
        assert_eq!(line(plan()), plain);
        assert_eq!(line(LabPlan { certificate_ttl: Some("1m".to_owned()), ..plan() }), format!("{plain} --certificate-ttl 1m"));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let refused = |name: &str, managers, agents, label: &str| {
            let labels = [(label.to_owned(), "a".to_owned(), "b".to_owned())];
            LabPlan::new(name, managers, agents, &labels, Vec::new(), PathBuf::new()).unwrap_err().to_string()
        };
        assert!(refused("Lab", 3, 1, "n1").contains("cannot be a lab's name"));
        assert!(refused("lab", 0, 1, "n1").contains("a lab has 1 to 7"));
        assert!(refused("lab", 1, 51, "n1").contains("a lab has 0 to 50"));
        assert!(refused("lab", 1, 2, "n3").contains("its nodes are n1 to n2"));
        assert!(refused("lab", 1, 0, "n1").contains("it has no node"));
        assert_eq!(plan().host("n9").unwrap_err().to_string(), "lab lab has no host n9; it has m1, m2, m3, n1, n2");
    }
}
