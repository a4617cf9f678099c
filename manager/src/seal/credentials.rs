//! A manager's credentials on its disk, the private key sealed; and the *door*: the credentials that it has while it is locked, in clear.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rcluster_api::data::Payload;
use rcluster_api::tls::Credentials;
use rcluster_base::ledger;
use serde::{Deserialize, Serialize};

use super::{Keys, SEED_BYTES, SealError};

pub const CREDENTIALS: &str = "credentials.json";
pub const DOOR: &str = "door.json";
const LABEL: &str = "rcluster credentials";

/// What stands in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    Sealed(Sealed),
    /// As earlier versions wrote it.
    Clear(Credentials),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    chain: Vec<Payload>,
    authorities: Vec<Payload>,
    /// Number of the disk's key that it is sealed with.
    key_number: u32,
    seed: Payload,
    sealed_key: Payload,
}

/// The credentials in a manager's directory, if there are any.
pub fn read_credentials(dir: &Path, keys: &Keys) -> Result<Option<Credentials>, SealError> {
    let path = dir.join(CREDENTIALS);
    let Sealed { chain, authorities, key_number, seed, sealed_key } = match ledger::read(&path)? {
        Some(Kept::Sealed(sealed)) => sealed,
        Some(Kept::Clear(credentials)) => return Ok(Some(credentials)),
        None => return Ok(None),
    };
    let damaged = || SealError::Credentials { path: path.clone() };
    let seed: [u8; SEED_BYTES] = seed.0.try_into().map_err(|_| damaged())?;
    let cipher = keys.cipher(key_number, &seed, LABEL).ok_or_else(damaged)?;
    let key = cipher.open(context(&chain), &sealed_key.0).map_err(|_| damaged())?;
    Ok(Some(Credentials { chain, key: Payload(key), authorities }))
}

/// One at a time writes the file: who seals it anew must not put what it has read in the place of what another has written since.
static TURN: Mutex<()> = Mutex::new(());

/// Keeps credentials, sealed.
pub fn keep_credentials(dir: &Path, keys: &Keys, credentials: &Credentials) -> Result<(), SealError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    write_credentials(dir, keys, credentials)
}

/// The credentials in a manager's directory, if there are any; those that are in clear, or sealed with a key that is not the newest, are
/// sealed anew.
pub fn reseal_credentials(dir: &Path, keys: &Keys) -> Result<Option<Credentials>, SealError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = read_credentials(dir, keys)?;
    if let Some(credentials) = &found
        && key_used(dir)? != Some(keys.newest())
    {
        write_credentials(dir, keys, credentials)?;
    }
    Ok(found)
}

fn write_credentials(dir: &Path, keys: &Keys, credentials: &Credentials) -> Result<(), SealError> {
    let Credentials { chain, key, authorities } = credentials.clone();
    let (key_number, seed, cipher) = keys.draw(LABEL);
    let mut sealed = Vec::new();
    let written = cipher.seal_into(context(&chain), &mut sealed, |out| {
        out.extend_from_slice(&key.0);
        Ok::<(), Infallible>(())
    });
    match written {
        Ok(()) => {}
        Err(never) => match never {},
    }
    let kept = Sealed { chain, authorities, key_number, seed: Payload(seed.to_vec()), sealed_key: Payload(sealed) };
    Ok(ledger::write_secret(&dir.join(CREDENTIALS), &kept)?)
}

/// The number of the disk's key that the credentials are sealed with.
pub fn key_used(dir: &Path) -> Result<Option<u32>, SealError> {
    Ok(match ledger::read(&dir.join(CREDENTIALS))? {
        Some(Kept::Sealed(sealed)) => Some(sealed.key_number),
        Some(Kept::Clear(_)) | None => None,
    })
}

/// The certificate, which the key is of.
fn context(chain: &[Payload]) -> &[u8] {
    chain.first().map_or(&[], |certificate| &certificate.0)
}

/// The credentials of the time when the manager is locked.
pub fn door(dir: &Path) -> Result<Option<Credentials>, SealError> {
    Ok(ledger::read(&dir.join(DOOR))?)
}

/// Keeps them.
pub fn keep_door(dir: &Path, credentials: &Credentials) -> Result<(), SealError> {
    Ok(ledger::write_secret(&dir.join(DOOR), credentials)?)
}
