//! The words of `lab`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rcluster_api::resource::Millis;

#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Makes a lab, waits until it is ready, and makes its context current.
    Up(LabUp),
    /// Shows a lab's hosts.
    Status(LabName),
    /// A power cut: every process of a host gets SIGKILL at once, containers included. HOST/PROCESS kills that one alone.
    Kill(LabHosts),
    /// Boots killed hosts on their old disks; HOST/PROCESS starts that one.
    Start(LabHosts),
    /// Freezes every process of the hosts.
    Pause(LabHosts),
    /// Lets them run on.
    Resume(LabHosts),
    /// Cuts a host off from all others, or two from each other.
    Cut {
        #[command(flatten)]
        lab: LabName,
        host: String,
        other: Option<String>,
    },
    /// Mends every cut.
    Heal(LabName),
    /// Runs a command on a host, or inside a container of a task that runs there.
    Exec(LabExec),
    /// Prints what a host's processes have logged.
    Logs {
        #[command(flatten)]
        lab: LabName,
        host: String,
        /// manager, agent or netd; all when not given.
        process: Option<String>,
    },
    /// Takes the lab down and leaves nothing behind.
    Down(LabName),
}

/// Which lab is meant.
#[derive(Debug, Clone, Args)]
pub struct LabName {
    /// The lab's name; the current context's lab when not given, else "lab".
    #[arg(long = "lab", alias = "name", value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct LabHosts {
    #[command(flatten)]
    pub lab: LabName,
    #[arg(required = true, value_name = "HOST|HOST/PROCESS")]
    pub hosts: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LabExec {
    #[command(flatten)]
    pub lab: LabName,
    /// In the task with this name or id: in its namespaces and its root.
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// Which container of the task; its first when not given.
    #[arg(long, value_name = "NAME", requires = "task")]
    pub container: Option<String>,
    pub host: String,
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LabUp {
    #[command(flatten)]
    pub lab: LabName,
    /// How many nodes: n1… (how many managers, m1…: --managers N, 3 when not given)
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub agents: usize,
    /// An image to load on every node: an OCI layout, as a tar file or a directory.
    #[arg(long = "image", value_name = "FILE")]
    pub images: Vec<PathBuf>,
    /// A label of a node, as n1:zone=a.
    #[arg(long = "label", value_name = "NODE:KEY=VALUE", value_parser = parse_node_label)]
    pub labels: Vec<(String, String, String)>,
    /// How long certificates are valid: a minute at least, 90 days when not given.
    #[arg(long, value_name = "SPAN")]
    pub certificate_ttl: Option<Millis>,
    /// Takes the lab down when this process ends.
    #[arg(long, value_name = "PID")]
    pub owner_pid: Option<i32>,
    /// Gives up waiting for the cluster after this, and takes the lab down.
    #[arg(long, value_name = "SPAN", default_value = "30s")]
    pub timeout: Millis,
}

fn parse_node_label(text: &str) -> Result<(String, String, String), String> {
    let wrong = || format!("{text:?} is not NODE:KEY=VALUE, such as n1:zone=a");
    let (node, label) = text.split_once(':').ok_or_else(wrong)?;
    let (key, value) = label.split_once('=').ok_or_else(wrong)?;
    if node.is_empty() || key.is_empty() {
        return Err(wrong());
    }
    Ok((node.to_owned(), key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_for_a_node() {
        assert_eq!(parse_node_label("n1:zone=a"), Ok(("n1".to_owned(), "zone".to_owned(), "a".to_owned())));
        for text in ["n1", "n1:zone", ":zone=a", "n1:=a"] {
            parse_node_label(text).unwrap_err();
        }
    }
}
