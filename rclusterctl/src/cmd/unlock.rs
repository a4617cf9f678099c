//! `cluster autolock`, `unlock-key` and `unlock`: the key of the managers' disks, which is never an argument: all users of a host see those.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use rcluster_api::client::{self, Door};
use rcluster_api::data::Payload;
use rcluster_api::error::ApiError;
use rcluster_api::seal::{Key, UnlockKey};
use rcluster_api::wire::v1;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::Serialize;
use tokio::time::timeout;

use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;

/// How long a manager may take to be unlocked; a second of it is for a wrong key, and others may be trying.
const PATIENCE: Duration = Duration::from_secs(15);
/// No key is as long.
const KEY_BYTES_MAX: u64 = 4096;

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct KeyJson {
    autolock: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unlock_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

/// Changes or shows the unlock key.
pub async fn autolock(mut session: Session, out: Out, action: v1::AutolockAction) -> Result<(), CliError> {
    let request = v1::AutolockRequest { action: action.into() };
    // Repeated, it would make another key, or meet itself.
    let answer = session.once(|mut client| async move { Ok(client.autolock(request).await?) }).await?.into_inner();
    let key = answer.unlock_key.and_then(|key| Key::from_bytes(&key.bytes)).map(UnlockKey);
    if !out.is_table() {
        let (unlock_key, fingerprint) = key.map(|key| (key.to_string(), key.0.fingerprint())).unzip();
        return out.value(&KeyJson { autolock: unlock_key.is_some(), unlock_key, fingerprint });
    }
    let Some(key) = key else {
        return output::talk(if action == v1::AutolockAction::Off {
            "autolock is off: managers start without being unlocked, and their disks can be read"
        } else {
            "autolock is off: there is no unlock key"
        });
    };
    match action {
        v1::AutolockAction::On => output::talk(
            "autolock is on: a manager that starts waits for `rclusterctl cluster unlock` and this key.\nKeep it outside of the cluster: without it, managers that are off are lost.",
        )?,
        v1::AutolockAction::Rotate => output::talk(
            "this is the unlock key from now on. Keep the one before until `rclusterctl cluster status` shows every manager: one that\nwas off still needs it.",
        )?,
        v1::AutolockAction::Show | v1::AutolockAction::Off | v1::AutolockAction::Unspecified => {}
    }
    output::talk(&format!("fingerprint: {}", key.0.fingerprint()))?;
    output::data(&format!("{key}\n"))
}

/// Unlocks all managers that can be reached: those that are known here, and those that they know.
pub async fn unlock(mut session: Session, key_file: Option<&Path>) -> Result<(), CliError> {
    let key = read_key(key_file)?;
    let security = session.security()?;
    if security.is_plain() {
        return Err(CliError::refused("a cluster without TLS has no autolock", ""));
    }
    let mut open: Vec<String> = session.target().managers.clone();
    // Without one that runs and knows a leader there are those of the context, and those that they know.
    if let Ok(Ok(cluster)) = timeout(client::CONNECT_TIMEOUT * 3, session.cluster()).await {
        open.extend(cluster.managers.into_iter().map(|manager| manager.addr));
    }
    let (mut seen, mut unlocked, mut failed) = (BTreeSet::new(), 0, BTreeMap::new());
    while let Some(addr) = open.pop() {
        if !seen.insert(addr.clone()) {
            continue;
        }
        match client::door(&addr, &security).await {
            Door::Open => output::talk(&format!("{addr}: not locked"))?,
            Door::Unreachable(why) => output::talk(&format!("{addr}: cannot be reached: {why}"))?,
            Door::Locked(mut door) => {
                let request = v1::UnlockRequest { key: Some(Payload(key.0.bytes().to_vec()).into()) };
                match timeout(PATIENCE, door.unlock(request)).await {
                    Ok(Ok(answer)) => {
                        let v1::UnlockResponse { manager, managers } = answer.into_inner();
                        output::talk(&format!("{addr}: manager {manager} is unlocked"))?;
                        unlocked += 1;
                        open.extend(managers.into_iter().map(|peer| peer.addr));
                    }
                    Ok(Err(status)) => drop(failed.insert(addr, ApiError::from(status))),
                    Err(_) => output::talk(&format!("{addr}: does not answer; is somebody else unlocking it? try again"))?,
                }
            }
        }
    }
    if let Some((_, last)) = failed.last_key_value().map(|(addr, error)| (addr.clone(), error.clone())) {
        for (addr, error) in &failed {
            output::talk(&format!("{addr}: {}", error.message))?;
        }
        return Err(CliError::refused(format!("{} of {} managers stay locked", failed.len(), seen.len()), last.hint));
    }
    output::talk(&match unlocked {
        0 => "no manager that can be reached is locked".to_owned(),
        1 => "1 manager was unlocked".to_owned(),
        many => format!("{many} managers were unlocked"),
    })
}

fn read_key(file: Option<&Path>) -> Result<UnlockKey, CliError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| CliError::refused(format!("{what}: {error}"), "")
    };
    let mut text = String::new();
    match file {
        Some(path) => {
            let what = format!("read {}", path.display());
            let file = std::fs::File::open(path).map_err(failed(&what))?;
            file.take(KEY_BYTES_MAX).read_to_string(&mut text).map_err(failed(&what))?;
        }
        None if io::stdin().is_terminal() => {
            output::talk("unlock key (it is not shown):")?;
            let quiet = Quiet::begin().map_err(failed("keep the terminal from showing the key"))?;
            let read = io::stdin().read_line(&mut text);
            drop(quiet);
            read.map_err(failed("read the key"))?;
        }
        None => {
            let read = io::stdin().lock().take(KEY_BYTES_MAX).read_to_string(&mut text);
            read.map_err(failed("read the key from standard input"))?;
        }
    }
    text.parse().map_err(|error: rcluster_api::seal::NotAnUnlockKey| {
        CliError::refused(error.to_string(), "a running manager prints it: rclusterctl cluster unlock-key")
    })
}

/// The terminal does not show what is typed while this is there.
struct Quiet(rustix::termios::Termios);

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that has gone shows nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
