//! Files and environment: the contexts, the manifests, standard input. Nothing else of this crate reads them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use rcluster_api::backup::BACKUP_BYTES_MAX;
use rcluster_api::data::DATA_BYTES_MAX;
use rcluster_api::tls::Credentials;
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// Which clusters there are and which one is meant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// How a cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub managers: Vec<String>,
    /// Who the user is there; none in a cluster without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// The lab on whose wire the managers stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lab: Option<String>,
    /// The context that was current before the lab came up, to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
}

/// The cluster that a command talks to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    pub context: Option<String>,
    pub managers: Vec<String>,
    pub lab: Option<String>,
    pub credentials: Option<Credentials>,
}

impl Target {
    /// How messages call it.
    pub fn describe(&self) -> String {
        match &self.context {
            Some(context) => format!("context {context}"),
            None => "--managers".to_owned(),
        }
    }
}

/// Where the contexts are kept: `RCLUSTER_CONFIG`, else in the user's configuration directory.
pub fn path() -> Result<PathBuf, CliError> {
    if let Some(path) = env::var_os("RCLUSTER_CONFIG").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    if let Some(dir) = env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(Path::new(&dir).join("rcluster/config.yaml"));
    }
    match env::var_os("HOME").filter(|dir| !dir.is_empty()) {
        Some(home) => Ok(Path::new(&home).join(".config/rcluster/config.yaml")),
        None => Err(CliError::refused("neither RCLUSTER_CONFIG nor HOME says where the contexts are kept", "set RCLUSTER_CONFIG")),
    }
}

/// Reads the contexts; none when there is no file yet.
pub fn load() -> Result<Config, CliError> {
    let path = path()?;
    match fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => Ok(Config::default()),
        Ok(text) => serde_yaml::from_str(&text)
            .map_err(|error| CliError::refused(format!("read contexts in {}: {error}", path.display()), "mend the file, or move it away")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
        Err(error) => Err(CliError::refused(format!("read contexts in {}: {error}", path.display()), "")),
    }
}

/// Writes the contexts: the old file or the new one stands there, never a part.
pub fn save(config: &Config) -> Result<(), CliError> {
    let path = path()?;
    let failed = |error: &dyn std::fmt::Display| CliError::refused(format!("write contexts to {}: {error}", path.display()), "");
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(|error| failed(&error))?;
    }
    let text = serde_yaml::to_string(config).map_err(|error| failed(&error))?;
    rcluster_base::ledger::write_secret_bytes(&path, text.as_bytes()).map_err(|error| failed(&error))
}

/// The cluster that the flags, the environment and the current context mean, in this order.
pub fn target(context: Option<&str>, managers: &[String]) -> Result<Target, CliError> {
    let from_environment: Vec<String> = env::var("RCLUSTER_MANAGERS")
        .unwrap_or_default()
        .split(',')
        .map(|addr| addr.trim().to_owned())
        .filter(|addr| !addr.is_empty())
        .collect();
    let given = if managers.is_empty() { from_environment } else { managers.to_vec() };
    let mut target = match context {
        // Who one is to a cluster does not depend on how it is reached.
        None if !given.is_empty() => Target { credentials: known_to(&load()?, &given), ..Target::default() },
        _ => in_contexts(&load()?, context)?,
    };
    if !given.is_empty() {
        target.managers = given;
    }
    Ok(target)
}

/// The credentials of the current context if it knows one of these managers, else of another that does.
fn known_to(config: &Config, managers: &[String]) -> Option<Credentials> {
    let knows = |context: &&Context| context.managers.iter().any(|known| managers.contains(known));
    let current = config.current.as_ref().and_then(|name| config.contexts.get(name));
    current.into_iter().chain(config.contexts.values()).find(knows).and_then(|context| context.credentials.clone())
}

/// What `rcluster-manager init` writes for the first administrator.
pub fn access(path: &Path) -> Result<Context, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::refused(format!("read {}: {error}", path.display()), "");
    let bytes = fs::read(path).map_err(|error| failed(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(&error))
}

/// Writes the same for another user.
pub fn write_access(path: &Path, context: &Context) -> Result<(), CliError> {
    rcluster_base::ledger::write_secret(path, context).map_err(|error| CliError::refused(format!("write {}: {error}", path.display()), ""))
}

/// Keeps renewed credentials.
pub fn keep(context: &str, credentials: &Credentials) -> Result<(), CliError> {
    let mut config = load()?;
    if let Some(context) = config.contexts.get_mut(context) {
        context.credentials = Some(credentials.clone());
        save(&config)?;
    }
    Ok(())
}

fn in_contexts(config: &Config, name: Option<&str>) -> Result<Target, CliError> {
    let Some(name) = name.or(config.current.as_deref()) else {
        return Err(CliError::usage(
            "no cluster is chosen: there is no current context",
            "make a lab with rclusterctl lab up, choose one with rclusterctl context use NAME, or give --managers HOST:PORT",
        ));
    };
    let context = named(config, name)?;
    let Context { managers, credentials, lab, previous: _ } = context.clone();
    Ok(Target { context: Some(name.to_owned()), managers, lab, credentials })
}

/// The context with this name.
pub fn named<'a>(config: &'a Config, name: &str) -> Result<&'a Context, CliError> {
    config.contexts.get(name).ok_or_else(|| {
        let known: Vec<&str> = config.contexts.keys().map(String::as_str).collect();
        let hint = if known.is_empty() {
            "there are none: rclusterctl context create NAME --managers HOST:PORT".to_owned()
        } else {
            format!("there are {}", known.join(", "))
        };
        CliError::refused(format!("there is no context {name}"), hint)
    })
}

/// The manifests as (name, text); `-` is standard input.
pub fn manifests(files: &[PathBuf]) -> Result<Vec<(String, String)>, CliError> {
    let read = |file: &PathBuf| {
        if file.as_os_str() == "-" {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text);
            return read.map(|_| ("(standard input)".to_owned(), text)).map_err(|error| ("standard input".to_owned(), error));
        }
        let name = file.display().to_string();
        fs::read_to_string(file).map(|text| (name.clone(), text)).map_err(|error| (name, error))
    };
    files.iter().map(|file| read(file).map_err(|(name, error)| CliError::refused(format!("read {name}: {error}"), ""))).collect()
}

/// The bytes of a file, or of the standard input for `-`, and one more than a secret or config may have, so that it shows when it is too large.
pub fn data(file: &Path) -> Result<Vec<u8>, CliError> {
    let (name, bytes) = if file.as_os_str() == "-" {
        ("standard input".to_owned(), bounded(io::stdin().lock()))
    } else {
        (file.display().to_string(), fs::File::open(file).and_then(bounded))
    };
    bytes.map_err(|error| CliError::refused(format!("read {name}: {error}"), ""))
}

/// The bytes of a backup, and one more than one may have, so that it shows when it is too large.
pub fn backup(file: &Path) -> Result<Vec<u8>, CliError> {
    let read = |from: &mut dyn Read| {
        let mut bytes = Vec::new();
        from.take(BACKUP_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let (name, bytes): (String, io::Result<Vec<u8>>) = if file.as_os_str() == "-" {
        ("standard input".to_owned(), read(&mut io::stdin().lock()))
    } else {
        (file.display().to_string(), fs::File::open(file).and_then(|mut file| read(&mut file)))
    };
    bytes.map_err(|error| CliError::refused(format!("read {name}: {error}"), ""))
}

/// Writes a backup: it is there as a whole or not at all, and for its owner alone.
pub fn write_backup(file: &Path, bytes: &[u8]) -> Result<(), CliError> {
    rcluster_base::ledger::write_secret_bytes(file, bytes).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        CliError::refused(format!("{error}{cause}"), "the backup was not kept: choose another place, or look after the disk")
    })
}

/// The file that a manifest names, relative to the manifest's directory; relative to the current one for a manifest of the standard input.
pub fn beside(manifest: &str, path: &str) -> Result<Vec<u8>, String> {
    let dir = Path::new(manifest).parent().unwrap_or(Path::new(""));
    fs::File::open(dir.join(path)).and_then(bounded).map_err(|error| error.to_string())
}

fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(DATA_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One line of standard input, for a question.
pub fn answer() -> Result<String, CliError> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(|error| CliError::refused(format!("read the answer: {error}"), "give --yes"))?;
    Ok(line.trim().to_owned())
}

/// Where a lab's programs are, when not beside this one: `RCLUSTER_BIN_DIR`.
pub fn bin_dir() -> Option<PathBuf> {
    std::env::var_os("RCLUSTER_BIN_DIR").map(PathBuf::from)
}
