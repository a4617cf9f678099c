//! Snapshots' data: files beside the log.
//!
//! ```text
//! D/snapshot-<index>-<hex>           data of the snapshot in use; written and synced before the log names it, removed after it names
//! D/snapshot-<index>-<hex>.sealed    another. Sealed: number of the key 4, little-endian │ seed 24 │ what api's seal makes of the data
//! ```

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use rcluster_api::seal::OVERHEAD_BYTES;
use rcluster_base::ledger::{self, LedgerError};
use tracing::warn;

use super::log::{LogError, Saved, Saver, checksum};
use crate::seal::{Keys, SEED_BYTES};

/// Whether a file is sealed is told by its name, which the log holds.
const SEALED: &str = ".sealed";
const LABEL: &str = "rcluster snapshot";

/// Writes a snapshot's data into `dir`, sealed if there are `keys`.
pub fn saver(dir: &Path, keys: Option<Keys>) -> Saver {
    let dir = dir.to_path_buf();
    Box::new(move |metadata, data| {
        let mut name = format!("snapshot-{:020}-{:08x}", metadata.index, rand::random::<u32>());
        let sealed = keys.map(|keys| {
            name += SEALED;
            seal(&keys, &name, data)
        });
        let data = sealed.as_deref().unwrap_or(data);
        ledger::write_secret_bytes(&dir.join(&name), data).map_err(|error| {
            let path = dir.join(&name);
            let source = match error {
                LedgerError::Write { source, .. } | LedgerError::Read { source, .. } => source,
                LedgerError::Decode { source, .. } | LedgerError::Encode { source, .. } => source.into(),
            };
            LogError::File { what: "write the snapshot", path, source }
        })?;
        Ok(Saved { metadata, name, bytes: data.len() as u64, checksum: checksum(data) })
    })
}

fn seal(keys: &Keys, name: &str, data: &[u8]) -> Vec<u8> {
    let (number, seed, cipher) = keys.draw(LABEL);
    let mut out = Vec::with_capacity(data.len() + OVERHEAD_BYTES + SEED_BYTES + 4);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&seed);
    let written = cipher.seal_into(name.as_bytes(), &mut out, |out| {
        out.extend_from_slice(data);
        Ok::<(), Infallible>(())
    });
    match written {
        Ok(()) => out,
        Err(never) => match never {},
    }
}

/// The data of the snapshot in use.
pub fn read(dir: &Path, used: &Saved, keys: Option<&Keys>) -> Result<Vec<u8>, LogError> {
    let path = dir.join(&used.name);
    let damaged = |why: String| LogError::Snapshot { path: path.clone(), why };
    let data = fs::read(&path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => damaged("it is missing".to_owned()),
        _ => LogError::File { what: "read the snapshot", path: path.clone(), source },
    })?;
    if data.len() as u64 != used.bytes || checksum(&data) != used.checksum {
        return Err(damaged(format!("its {} bytes are not the {} that were written", data.len(), used.bytes)));
    }
    if !used.name.ends_with(SEALED) {
        return Ok(data);
    }
    let short = || damaged("it is too short".to_owned());
    let (key, rest) = data.split_first_chunk().ok_or_else(short)?;
    let (seed, sealed) = rest.split_first_chunk().ok_or_else(short)?;
    let key = u32::from_le_bytes(*key);
    let cipher = keys.and_then(|keys| keys.cipher(key, seed, LABEL)).ok_or_else(|| LogError::NoKey { path: path.clone(), key })?;
    cipher.open(used.name.as_bytes(), sealed).map_err(|error| damaged(error.to_string()))
}

/// Number of the disk's key that the snapshot in use is sealed with; `None` when it is in clear, or cannot be read.
pub fn key_used(dir: &Path, used: &Saved) -> Option<u32> {
    let mut number = [0; 4];
    let path = used.name.ends_with(SEALED).then(|| dir.join(&used.name))?;
    File::open(path).and_then(|mut file| file.read_exact(&mut number)).ok()?;
    Some(u32::from_le_bytes(number))
}

/// Numbers of the disk's keys that snapshots in `dir` are sealed with. Old ones may be swept meanwhile: what is gone is sealed with nothing.
pub fn keys_used(dir: &Path) -> Result<BTreeSet<u32>, LogError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| LogError::File { what: "read", path, source }
    };
    let mut used = BTreeSet::new();
    for file in fs::read_dir(dir).map_err(failed(dir))? {
        let path = file.map_err(failed(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snapshot-") && name.ends_with(SEALED) {
            let mut number = [0; 4];
            // One that is too short is told of when it is opened, if it is in use.
            match File::open(&path).and_then(|mut file| file.read_exact(&mut number)) {
                Ok(()) => drop(used.insert(u32::from_le_bytes(number))),
                Err(error) if [ErrorKind::UnexpectedEof, ErrorKind::NotFound].contains(&error.kind()) => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        }
    }
    Ok(used)
}

/// Removes the data of snapshots that are older than the one in use: one that is newer may be on its way to be used.
pub fn sweep(dir: &Path, used: &Saved) {
    let index = |name: &str| name.strip_prefix("snapshot-")?.split_once('-')?.0.parse::<u64>().ok();
    remove(dir, |name| name != used.name && index(name).is_some_and(|index| index <= used.metadata.index));
}

/// Removes the data of all other snapshots, whole or not, when none is on its way: what was written when the process ended is used by
/// nobody, and may be sealed with a key that the disk is to be rid of.
pub fn sweep_all(dir: &Path, used: &Saved) {
    remove(dir, |name| name != used.name && name.trim_start_matches('.').starts_with("snapshot-"));
}

fn remove(dir: &Path, goes: impl Fn(&str) -> bool) {
    let Ok(files) = fs::read_dir(dir) else { return };
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if goes(&name)
            && let Err(error) = fs::remove_file(file.path())
        {
            warn!(file = name, %error, "an old snapshot cannot be removed");
        }
    }
}
