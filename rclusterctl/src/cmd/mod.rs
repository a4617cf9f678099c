//! What each verb does: calls in, views out. Printing is `output`'s, reading files `config`'s.

pub mod attach;
pub mod audit;
pub mod backup;
pub mod change;
pub mod check;
pub mod cluster;
pub mod context;
pub mod copy;
pub mod data;
pub mod deploy;
pub mod exec;
pub mod follow;
pub mod image;
pub mod lab;
pub mod logs;
pub mod network;
pub mod nodes;
pub mod on_host;
pub mod relay;
pub mod show;
pub mod stats;
pub mod unlock;

use rcluster_api::cluster::ManagerRole;
use rcluster_api::data::DataKind;
use rcluster_api::object::Kind;

use crate::args::{Command, DataCommand, ImageCommand, NetworkCommand, NodeCommand, OnNodes};
use crate::error::CliError;
use crate::output::Out;
use crate::session::Session;

/// Carries out a verb that talks to the managers.
pub async fn run(command: Command, session: Session, out: Out) -> Result<(), CliError> {
    match command {
        Command::Deploy(args) => deploy::deploy(session, out, args).await,
        Command::Plan(args) => deploy::plan(session, out, args).await,
        Command::Get(args) => match args.kind.object() {
            Some(kind) => show::get(session, out, kind, args.name.as_deref(), args.watch).await,
            None if args.watch => Err(CliError::usage("images cannot be watched", "nodes are asked for them: leave out --watch")),
            None => image::run(session, out, ImageCommand::Ls { image: args.name, on: OnNodes::default() }).await,
        },
        Command::Describe { kind, name } => match kind.object() {
            Some(kind) => show::describe(session, out, kind, &name).await,
            None => image::run(session, out, ImageCommand::Inspect { image: name, on: OnNodes::default() }).await,
        },
        Command::Ps { service, all, watch } => show::ps(session, out, service.as_deref(), all, watch).await,
        Command::Rm { kind, names, wait } => match kind.object() {
            Some(kind) => change::rm(session, kind, &names, wait).await,
            None => image::run(session, out, ImageCommand::Rm { images: names, force: false, on: OnNodes::default() }).await,
        },
        Command::Scale { targets, wait } => change::scale(session, out, &targets, wait).await,
        Command::Logs(args) => logs::logs(session, out, args).await,
        Command::Exec(args) => exec::exec(session, args).await,
        Command::Copy(args) => copy::copy(session, args).await,
        Command::Attach(args) => attach::attach(session, args).await,
        Command::Stats(args) => stats::stats(session, out, args).await,
        Command::Top(args) => stats::top(session, out, args).await,
        Command::Pause(args) => attach::pause(session, args, false).await,
        Command::Unpause(args) => attach::pause(session, args, true).await,
        Command::Events { since, watch } => show::events(session, out, since.as_deref(), watch).await,
        Command::Node(command) => node(session, out, command).await,
        Command::Network(command) => of_network(session, out, command).await,
        Command::Audit(args) => audit::audit(session, out, args).await,
        Command::Trace(args) => audit::trace(session, out, args).await,
        Command::Check => check::check(session, out).await,
        Command::Image(command) => image::run(session, out, command).await,
        Command::Secret(command) => data(session, out, DataKind::Secret, command).await,
        Command::Config(command) => data(session, out, DataKind::Config, command).await,
        Command::Cluster(command) => cluster::run(session, out, command).await,
        Command::User(command) => cluster::user(session, out, command).await,
        Command::Context(_) | Command::Lab(_) | Command::Completion { .. } | Command::Version => {
            Err(CliError::usage("this command talks to no manager", ""))
        }
    }
}

async fn node(session: Session, out: Out, command: NodeCommand) -> Result<(), CliError> {
    use rcluster_api::object::Availability::{Active, Drain, Pause};
    match command {
        NodeCommand::Ls => show::nodes(session, out).await,
        NodeCommand::Inspect { node } => show::inspect(session, out, Kind::Node, &node).await,
        NodeCommand::Drain { node } => change::availability(session, &node, Drain).await,
        NodeCommand::Activate { node } => change::availability(session, &node, Active).await,
        NodeCommand::Pause { node } => change::availability(session, &node, Pause).await,
        NodeCommand::Rm { nodes, wait } => cluster::remove(session, &nodes, wait).await,
        NodeCommand::Promote { manager } => cluster::set_role(session, &manager, ManagerRole::Voter).await,
        NodeCommand::Demote { manager } => cluster::set_role(session, &manager, ManagerRole::Standby).await,
        NodeCommand::Update { manager, addr } => cluster::set_addr(session, &manager, &addr).await,
        NodeCommand::Label { node, changes } => change::label(session, &node, &changes).await,
    }
}

async fn of_network(session: Session, out: Out, command: NetworkCommand) -> Result<(), CliError> {
    match command {
        NetworkCommand::Create(args) => network::create(session, out, args).await,
        NetworkCommand::Ls => show::get(session, out, Kind::Network, None, false).await,
        NetworkCommand::Inspect { network } => network::inspect(session, out, &network).await,
        NetworkCommand::Rm { networks, wait } => change::rm(session, Kind::Network, &networks, wait).await,
        NetworkCommand::Pool(command) => network::pool(session, out, command).await,
    }
}

async fn data(session: Session, out: Out, kind: DataKind, command: DataCommand) -> Result<(), CliError> {
    let object = kind.object_kind();
    match command {
        DataCommand::Create(args) => data::create(session, out, kind, args).await,
        DataCommand::Ls => show::get(session, out, object, None, false).await,
        DataCommand::Inspect { name } => show::inspect(session, out, object, &name).await,
        DataCommand::Rm { names, wait } => change::rm(session, object, &names, wait).await,
    }
}

/// Runs a verb to its end, in this thread alone: what has entered a lab's wire must stay where it is.
pub fn block_on<T>(verb: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::refused(format!("start the runtime: {error}"), ""))?;
    runtime.block_on(verb)
}
