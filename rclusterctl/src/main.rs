//! `rclusterctl`: the command of rcluster. Reads the command line, finds the cluster that is meant, and runs the verb.

mod args;
mod audit;
mod cmd;
mod config;
mod detach_keys;
mod error;
mod output;
mod session;
mod views;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::args::{Cli, ClusterCommand, Command, Format, ImageCommand};
use crate::error::CliError;
use crate::output::Out;
use crate::session::Session;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    if let Some(code) = rcluster_lab::run_part(&arguments) {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, &arguments),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::failure(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Says what is wrong with the command line; verbs that are not built yet are refused by name. Help and version are no failures.
fn refuse(error: &clap::Error, arguments: &[String]) -> ExitCode {
    let unknown = matches!(error.kind(), ErrorKind::InvalidSubcommand | ErrorKind::InvalidValue);
    if unknown && let Some(verb) = args::not_built_yet(arguments.get(1..).unwrap_or_default()) {
        let error = CliError::usage(format!("rclusterctl {verb} is not built yet"), "README's table says what works");
        output::failure(&error);
        return ExitCode::from(error.exit_code());
    }
    match error.print() {
        Ok(()) if error.use_stderr() => ExitCode::from(2),
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(CliError::ReaderGone.exit_code()),
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    let Cli { global, mut command } = cli;
    let out = match &mut command {
        Command::Image(ImageCommand::Save { file, .. }) => {
            *file = global.output.clone().map(PathBuf::from);
            Out { format: Format::Table }
        }
        _ => Out { format: global.format()? },
    };
    match command {
        Command::Cluster(ClusterCommand::Init(args)) => return cmd::on_host::run("init", &args, &global),
        Command::Cluster(ClusterCommand::Join(args)) => return cmd::on_host::run("join", &args, &global),
        Command::Cluster(ClusterCommand::Restore(args)) => return cmd::on_host::run("restore", &args, &global),
        Command::Cluster(ClusterCommand::Recover(args)) => return cmd::on_host::run("recover", &args, &global),
        Command::Cluster(ClusterCommand::Backup(args)) if args.verify => return cmd::backup::verify(out, &args),
        Command::Context(command) => return cmd::context::run(command, global.managers, out),
        Command::Lab(command) => return cmd::lab::run(command, &global, out),
        Command::Version => return output::data(&format!("rclusterctl {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rclusterctl", &mut script);
            return output::data(&String::from_utf8_lossy(&script));
        }
        _ => {}
    }
    for addr in &global.managers {
        cmd::context::check_addr(addr)?;
    }
    let target = config::target(global.context.as_deref(), &global.managers)?;
    if let Some(lab) = &target.lab {
        cmd::lab::enter(lab)?;
    }
    cmd::block_on(cmd::run(command, Session::new(target), out))
}
