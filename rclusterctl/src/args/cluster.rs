//! The words of `cluster`, `user` and `context`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rcluster_api::cluster::UserRole;
use rcluster_api::resource::Millis;

use super::Wait;

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Shows who leads and how far each manager is.
    Status,
    /// Makes a cluster, of which this host is the first manager; --help shows what rcluster-manager init takes.
    #[command(disable_help_flag = true)]
    Init(OnHost),
    /// Makes this host a manager of a cluster that is there; --help shows what rcluster-manager join takes.
    #[command(disable_help_flag = true)]
    Join(OnHost),
    /// Writes the managers' state to a file that cluster restore makes a cluster from. It holds every secret and key.
    Backup(Backup),
    /// Makes a cluster of one manager, this host, from a backup; --help shows what rcluster-manager restore takes.
    #[command(disable_help_flag = true)]
    Restore(OnHost),
    /// Makes a manager that is left the only one, when the quorum is lost for good; --help shows what rcluster-manager recover takes.
    #[command(disable_help_flag = true)]
    Recover(OnHost),
    /// Prints the token that lets hosts join.
    Token {
        /// What is to join.
        part: JoinPart,
        /// Makes another; the one before lets nobody join any more.
        #[arg(long)]
        rotate: bool,
    },
    /// Makes a new certificate authority, by which all certificates are renewed; nothing stops.
    RotateCa {
        /// Makes none, but ends the trust in those before it: who still shows their certificates must join again.
        #[arg(long)]
        drop_old: bool,
    },
    /// Locks managers' disks: a manager that was off starts only once it is unlocked.
    Autolock { switch: Switch },
    /// Prints the key that unlocks managers.
    UnlockKey {
        /// Makes another. A manager that is off meanwhile still needs the one before.
        #[arg(long)]
        rotate: bool,
    },
    /// Unlocks all managers that can be reached; asks for the key, or reads it from standard input.
    Unlock {
        /// A file with the key
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Takes a manager out of the cluster.
    Leave {
        manager: String,
        #[command(flatten)]
        wait: Wait,
    },
}

/// What is passed on to the host's own `rcluster-manager`, which has the flags.
#[derive(Debug, Args)]
pub struct OnHost {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    pub flags: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Backup {
    /// The file to write; - writes to standard output.
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// Reads the file instead, to its last byte, and tells what is in it.
    #[arg(long)]
    pub verify: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// What joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum JoinPart {
    Manager,
    Agent,
}

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Shows who may use the cluster.
    Ls,
    /// Lets someone in, by a bearer token for REST, or with --access by a certificate for rclusterctl.
    Create(UserCreate),
    /// Lets users in no more, at once.
    Rm {
        #[arg(required = true, value_name = "USER")]
        users: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Args)]
pub struct UserCreate {
    pub name: String,
    /// read-only, deploy or admin.
    #[arg(long)]
    pub role: UserRole,
    /// Lets the user in for so long; a token for ever when not given, a certificate as long as it is renewed.
    #[arg(long, value_name = "SPAN")]
    pub expires: Option<Millis>,
    /// Writes a file with a certificate, for rclusterctl context create NAME --from FILE.
    #[arg(long, value_name = "FILE")]
    pub access: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Shows all contexts; * marks the current one.
    Ls,
    /// Makes a context the current one.
    Use { name: String },
    /// Writes a context; its managers come from --managers.
    Create {
        name: String,
        /// A file with managers and credentials, as rcluster-manager init and rclusterctl user create write it.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// Forgets a context.
    Rm { name: String },
}
