//! netd's command line.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::Parser;
use rcluster_base::telemetry::LogFormat;

/// The node's network: overlay, DNS, isolation. Needs root and a kernel with VXLAN, veth and nf_tables; nothing else.
#[derive(Debug, Clone, Parser)]
#[command(name = "rcluster-netd", version)]
pub struct Config {
    /// Where the picture in force is kept; on disk, so that it outlives a power cut
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Where the socket and the namespaces' pins are; on tmpfs, so that they go with a reboot
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,

    /// This host's address on the underlay, by which the other nodes reach it
    #[arg(long, value_name = "IP")]
    pub addr: Ipv4Addr,

    /// Which resolvers are asked for names that are not the cluster's; followed when it changes
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE")]
    pub resolv_conf: PathBuf,

    /// Leave it to the administrator whether this host forwards packets (the sysctls net.ipv4.ip_forward and net.ipv6.conf.all.forwarding);
    /// otherwise netd turns it on, of IPv6 when pods have a use for it, and has the host forward nothing but what pods send and get if it was
    /// off before
    #[arg(long)]
    pub no_forwarding: bool,

    /// text or json
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}
