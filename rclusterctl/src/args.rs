//! The command line: what may be said, and in which words. Reads nothing but its arguments.

mod cluster;
mod image;
mod lab;
mod network;

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rcluster_api::object::Kind;
use rcluster_api::resource::Millis;

use crate::detach_keys::{DEFAULT as DEFAULT_DETACH_KEYS, DetachKeys};
use crate::error::{CliError, EXIT_CODES};

pub use cluster::{Backup, ClusterCommand, ContextCommand, JoinPart, OnHost, Switch, UserCommand, UserCreate};
pub use image::{ImageCommand, OnNodes};
pub use lab::{LabCommand, LabExec, LabUp};
pub use network::{Audit, NetworkCommand, NetworkCreate, PoolCommand, TraceArgs, TraceTarget};

/// The command of rcluster: deploys services, shows what runs, operates nodes, makes labs.
#[derive(Debug, Parser)]
#[command(name = "rclusterctl", version, after_help = EXIT_CODES, infer_long_args = false, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The context to use instead of the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The managers to talk to, instead of the context's (also RCLUSTER_MANAGERS); with lab up: how many to make.
    #[arg(long, global = true, value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub managers: Vec<String>,
    /// How data is printed: as a table when not given; with image save: the file to write.
    #[arg(short, long, global = true, value_name = "FORMAT", value_parser = OutputParser)]
    pub output: Option<String>,
}

impl Global {
    /// How data is printed.
    pub fn format(&self) -> Result<Format, CliError> {
        let Some(text) = &self.output else { return Ok(Format::Table) };
        Format::from_str(text, false).map_err(|_| {
            let formats = Format::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            let names: Vec<String> = formats.map(|value| value.get_name().to_owned()).collect();
            CliError::usage(format!("--output {text}: there is no such format"), format!("formats are {}", names.join(", ")))
        })
    }
}

/// Takes any text and tells of the formats: the text is a file's name for one command, as docker has it.
#[derive(Debug, Clone, Copy)]
struct OutputParser;

impl TypedValueParser for OutputParser {
    type Value = String;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Format::value_variants().iter().filter_map(ValueEnum::to_possible_value)))
    }
}

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    Json,
    Yaml,
    /// KIND/NAME, one a line.
    Name,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Applies manifests and follows the tasks until they run.
    Deploy(Deploy),
    /// Shows what a deploy would change.
    Plan(PlanArgs),
    /// Shows objects of a kind.
    Get(Get),
    /// Tells all about one object, with its tasks and events.
    Describe {
        /// service, task, node, network, secret, config or image.
        kind: KindArg,
        name: String,
    },
    /// Shows tasks.
    Ps {
        /// Only this service's.
        service: Option<String>,
        /// Also those that have ended.
        #[arg(short, long)]
        all: bool,
        /// Goes on with each change.
        #[arg(short, long)]
        watch: bool,
    },
    /// Removes objects and waits until they have gone.
    Rm {
        /// service, network, secret, config, node (one that is down), or image.
        kind: KindArg,
        /// Names of that kind; others as KIND/NAME.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Sets how many replicas services have.
    Scale {
        #[arg(required = true, value_name = "SERVICE=N", value_parser = parse_scale)]
        targets: Vec<(String, u32)>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Shows what containers have written.
    Logs(Logs),
    /// Runs a command in a container of a running task.
    Exec(Exec),
    /// Copies files out of a container or into it.
    #[command(name = "cp")]
    Copy(Copy),
    /// Shows what a container writes from now on, and ends as it does.
    Attach(Attach),
    /// Shows what containers use of their hosts.
    Stats(Stats),
    /// Shows the processes of a task's containers.
    Top(Top),
    /// Freezes the containers of tasks.
    Pause(Pause),
    /// Lets the containers of tasks go on.
    Unpause(Pause),
    /// Shows what has happened.
    Events {
        /// Not older than this: a span such as 10m, or a time such as 2026-11-21T10:00:00Z.
        #[arg(long, value_name = "SPAN|TIME")]
        since: Option<String>,
        /// Goes on with each new event.
        #[arg(short, long)]
        watch: bool,
    },
    /// Nodes, and the managers beside them.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Networks.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Compares what the managers want of the nodes' networks with what kernels and DNS hold; exits with 1 when they differ.
    Audit(Audit),
    /// Tells what becomes of a task's packets to a name or an address.
    Trace(TraceArgs),
    /// Tells what is wrong with managers, nodes and their networks; exits with 1 when something is.
    Check,
    /// Images on the nodes.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Secrets: bytes that only the containers that use them see.
    #[command(subcommand)]
    Secret(DataCommand),
    /// Configs: files for containers.
    #[command(subcommand)]
    Config(DataCommand),
    /// The managers.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Who may use the cluster.
    #[command(subcommand)]
    User(UserCommand),
    /// Which cluster is meant.
    #[command(subcommand)]
    Context(ContextCommand),
    /// Clusters of many hosts on this machine.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Prints a completion script for a shell.
    Completion { shell: clap_complete::Shell },
    /// Prints the version.
    Version,
}

/// A kind of object as it is written: singular, plural or short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    #[value(name = "service", aliases = ["services", "svc"])]
    Service,
    #[value(name = "task", aliases = ["tasks"])]
    Task,
    #[value(name = "node", aliases = ["nodes"])]
    Node,
    #[value(name = "network", aliases = ["networks", "net"])]
    Network,
    #[value(name = "event", aliases = ["events"])]
    Event,
    #[value(name = "secret", aliases = ["secrets"])]
    Secret,
    #[value(name = "config", aliases = ["configs"])]
    Config,
    #[value(name = "image", aliases = ["images"])]
    Image,
}

impl KindArg {
    /// The kind of object; `None` for images, which the nodes have and not the managers.
    pub fn object(self) -> Option<Kind> {
        match self {
            Self::Service => Some(Kind::Service),
            Self::Task => Some(Kind::Task),
            Self::Node => Some(Kind::Node),
            Self::Network => Some(Kind::Network),
            Self::Event => Some(Kind::Event),
            Self::Secret => Some(Kind::Secret),
            Self::Config => Some(Kind::Config),
            Self::Image => None,
        }
    }
}

/// How long a command waits for what it asked for.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Returns once the managers have accepted it.
    #[arg(short, long)]
    pub detach: bool,
    /// Gives up waiting after this; the cluster goes on.
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    pub timeout: Millis,
}

#[derive(Debug, Args)]
pub struct Deploy {
    /// Manifests; - reads standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The name that everything in the files goes by.
    #[arg(long, value_name = "NAME")]
    pub stack: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
    /// Shows the plan and changes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Removes what the stack has and the files have not.
    #[arg(long, requires = "stack")]
    pub prune: bool,
    /// Removes without asking.
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Manifests; - reads standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The name that everything in the files goes by.
    #[arg(long, value_name = "NAME")]
    pub stack: Option<String>,
    /// Shows also what would be removed from the stack.
    #[arg(long, requires = "stack")]
    pub prune: bool,
}

#[derive(Debug, Args)]
pub struct Get {
    /// services, tasks, nodes, networks, secrets, configs, events or images.
    pub kind: KindArg,
    /// A name or an id.
    pub name: Option<String>,
    /// Goes on with each change.
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// A service's name, a task's name or a task's id.
    #[arg(value_name = "SERVICE|TASK")]
    pub target: String,
    /// Goes on with each new line.
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many last lines of each container; 0: none of those that are there.
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<u32>,
    /// Not older than this: a span such as 10m, or a time such as 2026-11-21T10:00:00Z.
    #[arg(long, value_name = "SPAN|TIME")]
    pub since: Option<String>,
    /// With the time of each line.
    #[arg(short, long)]
    pub timestamps: bool,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Passes standard input on.
    #[arg(short, long)]
    pub interactive: bool,
    /// Gives the command a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// A variable of the command's environment; may be given several times.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_env)]
    pub env: Vec<String>,
    /// The command's working directory instead of the container's.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// A user of the container, by name or number, with or without a group, instead of the container's.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Which container of the task; its first when not given.
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// A task's name or id; a service's name stands for one of its running tasks.
    #[arg(value_name = "TASK|SERVICE")]
    pub target: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Copy {
    /// A symbolic link as the source stands for what it names.
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Which container of the task; its first when not given.
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// TASK:PATH or a local path; PATH/. is a directory's contents; - is a tar archive on standard input.
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// A local path or TASK:PATH; - writes a tar archive to standard output.
    #[arg(value_name = "DESTINATION")]
    pub destination: String,
}

#[derive(Debug, Args)]
pub struct Attach {
    /// Which container of the task; its first when not given.
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Passes Ctrl-C on to the container instead of leaving it.
    #[arg(long)]
    pub sig_proxy: bool,
    /// Leaves the container's standard input alone; one that is open (`stdin: true`) otherwise gets this program's.
    #[arg(long)]
    pub no_stdin: bool,
    /// Leaves a container with a terminal (`tty: true`), which goes on; an empty text is for no keys.
    #[arg(long, value_name = "KEYS", default_value = DEFAULT_DETACH_KEYS)]
    pub detach_keys: DetachKeys,
    /// A task's name or id; a service's name stands for one of its running tasks.
    #[arg(value_name = "TASK|SERVICE")]
    pub target: String,
}

#[derive(Debug, Args)]
pub struct Stats {
    /// Only of this service or task; all when not given.
    #[arg(value_name = "SERVICE|TASK")]
    pub target: Option<String>,
    /// Shows the use over one second, and ends.
    #[arg(long)]
    pub no_stream: bool,
}

#[derive(Debug, Args)]
pub struct Top {
    /// A task's name or id; a service's name stands for one of its running tasks.
    #[arg(value_name = "TASK|SERVICE")]
    pub target: String,
}

#[derive(Debug, Args)]
pub struct Pause {
    /// Names or ids of tasks; a service's name stands for all of its running tasks.
    #[arg(required = true, value_name = "TASK|SERVICE")]
    pub targets: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Shows managers and nodes.
    Ls,
    /// Prints a node with all its fields.
    Inspect { node: String },
    /// Moves a node's tasks away and gives it no new ones.
    Drain { node: String },
    /// Gives a node work again.
    Activate { node: String },
    /// Leaves a node its tasks and gives it no new ones.
    Pause { node: String },
    /// Sets labels (KEY=VALUE) and removes them (KEY-).
    Label {
        node: String,
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = parse_label_change)]
        changes: Vec<LabelChange>,
    },
    /// Lets a manager vote.
    Promote {
        #[arg(value_name = "MANAGER")]
        manager: String,
    },
    /// Lets a manager keep a copy of the state, and vote no more.
    Demote {
        #[arg(value_name = "MANAGER")]
        manager: String,
    },
    /// Tells the others where a manager is from now on.
    Update {
        #[arg(value_name = "MANAGER")]
        manager: String,
        #[arg(long, value_name = "HOST:PORT")]
        addr: String,
    },
    /// Forgets nodes that are down for good, with what was lost on them; takes a manager out of the cluster.
    Rm {
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
}

/// One change of a node's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelChange {
    Set(String, String),
    Remove(String),
}

/// What can be done with secrets, and with configs.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Makes one from a file.
    Create(DataCreate),
    /// Shows all.
    Ls,
    /// Prints one with all its fields; a secret without its bytes.
    Inspect { name: String },
    /// Removes those that no service uses.
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Args)]
pub struct DataCreate {
    pub name: String,
    /// The file; - is the standard input.
    pub file: PathBuf,
    /// Of the object; may be given again.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub label: Vec<(String, String)>,
    /// Gives one that exists these bytes and labels; the tasks of the services that use it are replaced.
    #[arg(long)]
    pub replace: bool,
}

fn parse_env(text: &str) -> Result<String, String> {
    let key = text.split_once('=').map_or("", |(key, _)| key);
    if key.is_empty() { Err(format!("{text:?} is not KEY=VALUE, such as LANG=C")) } else { Ok(text.to_owned()) }
}

fn parse_scale(text: &str) -> Result<(String, u32), String> {
    let wrong = || format!("{text:?} is not SERVICE=N, such as web=5");
    let (service, count) = text.split_once('=').ok_or_else(wrong)?;
    if service.is_empty() {
        return Err(wrong());
    }
    Ok((service.to_owned(), count.parse().map_err(|_| wrong())?))
}

fn parse_label_change(text: &str) -> Result<LabelChange, String> {
    let change = match text.split_once('=') {
        Some((key, value)) => LabelChange::Set(key.to_owned(), value.to_owned()),
        None => LabelChange::Remove(text.strip_suffix('-').unwrap_or_default().to_owned()),
    };
    match &change {
        LabelChange::Set(key, _) | LabelChange::Remove(key) if key.is_empty() => {
            Err(format!("{text:?} is neither KEY=VALUE nor KEY-, such as zone=a or zone-"))
        }
        LabelChange::Set(..) | LabelChange::Remove(_) => Ok(change),
    }
}

/// `KEY=VALUE` of a label.
fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// Verbs of the design that are not built yet, with the verb that they stand under; a verb may have another way to the same end.
const NOT_BUILT_YET: [(&str, &str); 22] = [
    ("", "explain"),
    ("", "info"),
    ("", "port-forward"),
    ("", "promote"),
    ("", "restart"),
    ("", "rollback"),
    ("", "run"),
    ("", "stack"),
    ("", "system"),
    ("", "update"),
    ("", "volume"),
    ("lab", "loss"),
    ("get", "stack"),
    ("get", "stacks"),
    ("get", "volume"),
    ("get", "volumes"),
    ("image", "build"),
    ("describe", "stack"),
    ("describe", "volume"),
    ("rm", "stack"),
    ("rm", "volume"),
    ("rm", "volumes"),
];

/// The words of `arguments` that name something not built yet, such as `node rm`.
pub fn not_built_yet(arguments: &[String]) -> Option<String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let is = |above: &str, verb: &str| NOT_BUILT_YET.contains(&(above, verb));
    match words.as_slice() {
        [verb, ..] if is("", verb) => Some((*verb).to_owned()),
        [above, verb, ..] if is(above, verb) => Some(format!("{above} {verb}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn words_are_read_and_wrong_ones_refused() {
        assert_eq!(parse_scale("web=5"), Ok(("web".to_owned(), 5)));
        for text in ["web", "=5", "web=x", "web=-1"] {
            parse_scale(text).unwrap_err();
        }
        assert_eq!(parse_label_change("zone-"), Ok(LabelChange::Remove("zone".to_owned())));
        assert_eq!(parse_label_change("zone=a=b"), Ok(LabelChange::Set("zone".to_owned(), "a=b".to_owned())));
        for text in ["zone", "=a", "-"] {
            parse_label_change(text).unwrap_err();
        }
    }

    #[test]
    fn what_is_not_built_yet_is_known_and_what_is_built_is_not_among_it() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(not_built_yet(&words("run web.1 -- sh")).as_deref(), Some("run"));
        assert_eq!(not_built_yet(&words("lab loss n1")).as_deref(), Some("lab loss"));
        assert_eq!(not_built_yet(&words("lab exec n1 -- ls")), None);
        assert_eq!(not_built_yet(&words("logs top")), None);
        let command = Cli::command();
        for (above, verb) in NOT_BUILT_YET {
            let parent = if above.is_empty() { Some(&command) } else { command.find_subcommand(above) };
            assert!(parent.is_some_and(|parent| parent.find_subcommand(verb).is_none()), "{above} {verb} is built");
        }
    }
}
