//! `context`: which cluster is meant.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::args::{ContextCommand, Format};
use crate::config::{self, Context};
use crate::error::CliError;
use crate::output::table::Table;
use crate::output::{self, Out};

#[derive(Debug, Serialize)]
struct ContextJson<'a> {
    name: &'a str,
    current: bool,
    managers: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    lab: Option<&'a str>,
}

/// `context ls|use|create|rm`.
pub fn run(command: ContextCommand, managers: Vec<String>, out: Out) -> Result<(), CliError> {
    match command {
        ContextCommand::Ls => ls(out),
        ContextCommand::Use { name } => {
            let mut config = config::load()?;
            config::named(&config, &name)?;
            config.current = Some(name.clone());
            config::save(&config)?;
            output::talk(&format!("context {name} is current"))
        }
        ContextCommand::Create { name, from } => create(&name, managers, from.as_deref()),
        ContextCommand::Rm { name } => {
            let mut config = config::load()?;
            let lab = config::named(&config, &name)?.lab.clone();
            config.contexts.remove(&name);
            config.current = config.current.filter(|current| *current != name);
            config::save(&config)?;
            let still = lab.map_or_else(String::new, |lab| format!("; its lab {lab} goes on: rclusterctl lab down --lab {lab}"));
            output::talk(&format!("context {name} is forgotten{still}"))
        }
    }
}

fn create(name: &str, managers: Vec<String>, from: Option<&Path>) -> Result<(), CliError> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(CliError::usage(format!("{name:?} cannot be the name of a context"), "use letters, digits and -"));
    }
    let mut context = from.map(config::access).transpose()?.unwrap_or_default();
    if !managers.is_empty() {
        context.managers = managers;
    }
    if context.managers.is_empty() {
        return Err(CliError::usage("a context needs the managers' addresses", "give --managers HOST:PORT,… or --from FILE"));
    }
    for addr in &context.managers {
        check_addr(addr)?;
    }
    let mut config = config::load()?;
    if config.contexts.contains_key(name) {
        return Err(CliError::refused(format!("there is a context {name} already"), format!("rclusterctl context rm {name}")));
    }
    config.contexts.insert(name.to_owned(), context);
    let first = config.current.is_none();
    if first {
        config.current = Some(name.to_owned());
    }
    config::save(&config)?;
    let next = if first { " and current".to_owned() } else { format!("; rclusterctl context use {name} makes it current") };
    output::talk(&format!("context {name} is written{next}"))
}

/// Refuses what is not `HOST:PORT`.
pub fn check_addr(addr: &str) -> Result<(), CliError> {
    let port = addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_some_and(|port| port != 0) && rcluster_api::client::endpoint(addr).is_ok() {
        return Ok(());
    }
    Err(CliError::usage(format!("{addr:?} is not a manager's address"), "write HOST:PORT, such as 10.90.0.11:7443"))
}

fn ls(out: Out) -> Result<(), CliError> {
    let config = config::load()?;
    let is_current = |name: &str| config.current.as_deref() == Some(name);
    match out.format {
        Format::Table | Format::Wide => {
            if config.contexts.is_empty() {
                return output::talk(
                    "no contexts: rclusterctl lab up makes one, and so does rclusterctl context create NAME --managers HOST:PORT",
                );
            }
            output::data(&table(&config.contexts, is_current).to_string())
        }
        Format::Name => output::data(&config.contexts.keys().map(|name| format!("context/{name}\n")).collect::<String>()),
        Format::Json | Format::Yaml => {
            let view = |(name, context): (&'_ String, &'_ Context)| -> (String, bool, Context) {
                (name.clone(), is_current(name), context.clone())
            };
            let contexts: Vec<(String, bool, Context)> = config.contexts.iter().map(view).collect();
            let views: Vec<ContextJson<'_>> = contexts
                .iter()
                .map(|(name, current, context)| ContextJson {
                    name,
                    current: *current,
                    managers: &context.managers,
                    lab: context.lab.as_deref(),
                })
                .collect();
            out.value(&views)
        }
    }
}

fn table(contexts: &BTreeMap<String, Context>, is_current: impl Fn(&str) -> bool) -> Table {
    let mut table = Table::new(&["CURRENT", "NAME", "MANAGERS", "LAB"]);
    for (name, context) in contexts {
        let mark = if is_current(name) { "*" } else { "" };
        table.row(vec![mark.to_owned(), name.clone(), context.managers.join(","), context.lab.clone().unwrap_or_default()]);
    }
    table
}
