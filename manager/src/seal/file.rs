//! `D/seal.json`: the disk's keys, wrapped. It is replaced as a whole, so that after a power cut it is the one before or the new one, and
//! either holds every key that anything on the disk is sealed with: a new key seals nothing before the file that holds it is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcluster_api::cluster::Cluster;
use rcluster_api::data::Payload;
use rcluster_api::seal::{self, Key, NotOpened, UnlockKey};
use rcluster_base::ledger::{self, LedgerError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Keys;

pub const FILE: &str = "seal.json";
/// The newest format that this version reads, which it writes.
const FORMAT: u32 = 1;

/// Whose disk it is; its keys are bound to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub cluster_id: String,
    /// Raft's.
    pub manager: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    owner: Owner,
    wrapped_with: With,
    /// Of the tables' unlock key that they were last wrapped by, see `Cluster::unlock_generation`.
    generation: u64,
    /// By number.
    keys: BTreeMap<u32, Payload>,
}

/// What opens the keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum With {
    /// This key, which has no secret to keep.
    Key(Payload),
    /// The unlock key with this fingerprint.
    UnlockKey(String),
}

/// What is wrong with the keys of a disk.
#[derive(Debug, Error)]
pub enum SealError {
    #[error("keep the keys of the disk")]
    Ledger(#[from] LedgerError),
    #[error(
        "{path} is missing: nothing on this disk can be read without it. Bring it back, or remove the manager from the cluster and join again \
             with an empty state directory"
    )]
    Missing { path: PathBuf },
    #[error("{path} is of a newer version (format {found}; this one reads {FORMAT}); nothing was changed: upgrade this manager")]
    Format { path: PathBuf, found: u32 },
    #[error("{path} does not open the keys in it: it was changed, or is another manager's. Bring back the one that belongs to this disk")]
    Damaged { path: PathBuf },
    #[error("the cluster's unlock key is of another version: upgrade this manager")]
    OtherUnlockKey,
    #[error(
        "the key in {path} cannot be opened: the file was changed, or is of another disk. Bring back the one that belongs to this disk"
    )]
    Credentials { path: PathBuf },
}

/// What the tables ask that the keys of a disk are wrapped with.
#[derive(Debug, Clone, Default)]
pub struct Lock {
    /// `None`: with a key that stands beside them.
    pub key: Option<UnlockKey>,
    /// See `Cluster::unlock_generation`.
    pub generation: u64,
}

impl Lock {
    /// What these tables ask.
    pub fn of(cluster: &Cluster) -> Result<Self, SealError> {
        let bytes = &cluster.unlock_key.0;
        let key = if bytes.is_empty() { None } else { Some(UnlockKey(Key::from_bytes(bytes).ok_or(SealError::OtherUnlockKey)?)) };
        Ok(Self { key, generation: cluster.unlock_generation })
    }
}

/// The keys of a disk, opened; clones share them.
#[derive(Clone)]
pub struct Seal {
    pub keys: Keys,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    path: PathBuf,
    owner: Owner,
    /// `None`: what opens them stands beside them.
    unlock: Option<UnlockKey>,
    generation: u64,
}

impl fmt::Debug for Seal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Seal").field("keys", &self.keys.newest()).finish_non_exhaustive()
    }
}

/// A disk whose keys only the unlock key opens.
#[derive(Debug)]
pub struct Locked {
    path: PathBuf,
    file: File,
    needed: String,
}

/// The keys of a disk, or what they wait for.
#[derive(Debug)]
pub enum Opened {
    Open(Seal),
    Locked(Locked),
}

/// Whether a disk has keys.
pub fn is_there(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

fn context(owner: &Owner, number: u32) -> Vec<u8> {
    format!("rcluster disk key {number} of manager {} of cluster {}", owner.manager, owner.cluster_id).into_bytes()
}

fn opened(file: &File, with: &Key) -> Result<Keys, NotOpened> {
    let open = |(number, wrapped): (&u32, &Payload)| Ok((*number, seal::unwrap(with, &context(&file.owner, *number), wrapped)?));
    Keys::new(file.keys.iter().map(open).collect::<Result<_, NotOpened>>()?).ok_or(NotOpened)
}

impl Seal {
    /// Makes the first keys of a disk that nothing is sealed on yet. One that is to be locked is locked from the first: its keys never
    /// stand there in clear.
    pub fn create(dir: &Path, owner: Owner, lock: Lock) -> Result<Self, SealError> {
        let (path, keys) = (dir.join(FILE), Keys::random());
        let inner = Inner { path, owner, unlock: lock.key, generation: lock.generation };
        inner.write(&keys)?;
        Ok(Self { keys, inner: Arc::new(Mutex::new(inner)) })
    }

    /// Opens the keys of a disk; of one that an earlier version has left in clear, makes them. `used`: numbers of the keys that something
    /// on the disk is sealed with.
    pub fn open(dir: &Path, owner: Owner, used: &BTreeSet<u32>) -> Result<Opened, SealError> {
        let path = dir.join(FILE);
        let Some(head): Option<Head> = ledger::read(&path)? else {
            return if used.is_empty() {
                Ok(Opened::Open(Self::create(dir, owner, Lock::default())?))
            } else {
                Err(SealError::Missing { path })
            };
        };
        if head.format != FORMAT {
            return Err(SealError::Format { path, found: head.format });
        }
        let file: File = ledger::read(&path)?.ok_or_else(|| SealError::Missing { path: path.clone() })?;
        if file.owner != owner {
            return Err(SealError::Damaged { path });
        }
        match &file.wrapped_with {
            With::UnlockKey(needed) => Ok(Opened::Locked(Locked { path, needed: needed.clone(), file })),
            With::Key(key) => {
                let keys = Key::from_bytes(&key.0).ok_or(NotOpened).and_then(|key| opened(&file, &key));
                let keys = keys.map_err(|NotOpened| SealError::Damaged { path: path.clone() })?;
                Ok(Opened::Open(Self {
                    keys,
                    inner: Arc::new(Mutex::new(Inner { path, owner, unlock: None, generation: file.generation })),
                }))
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the unlock key that the keys are wrapped with, or of the time when there was none.
    pub fn generation(&self) -> u64 {
        self.inner().generation
    }

    /// Whether the next start needs the unlock key.
    pub fn is_locked(&self) -> bool {
        self.inner().unlock.is_some()
    }

    /// Wraps the keys with an unlock key, or with one that stands beside them. For an unlock key there is a new key of the disk: who opened
    /// the file before does not open what is written from now on.
    pub fn wrap(&self, lock: Lock) -> Result<(), SealError> {
        let Lock { key: unlock, generation } = lock;
        let mut inner = self.inner();
        let mut keys = self.keys.all();
        if unlock.is_some() {
            keys.insert(self.keys.newest() + 1, Key::random());
        }
        let next = Inner { unlock, generation, path: inner.path.clone(), owner: inner.owner.clone() };
        let keys = Keys::new(keys).expect("none was taken away");
        next.write(&keys)?;
        self.keys.replace(&keys);
        *inner = next;
        Ok(())
    }

    /// Forgets the keys that nothing is sealed with any more; the newest stays.
    pub fn forget_all_but(&self, used: &BTreeSet<u32>) -> Result<(), SealError> {
        let (mut keys, newest) = (self.keys.all(), self.keys.newest());
        keys.retain(|number, _| used.contains(number) || *number == newest);
        let keys = Keys::new(keys).expect("the newest is among them");
        if keys.all().len() < self.keys.all().len() {
            self.inner().write(&keys)?;
            self.keys.replace(&keys);
        }
        Ok(())
    }
}

impl Inner {
    fn write(&self, keys: &Keys) -> Result<(), SealError> {
        let (with, named) = match &self.unlock {
            Some(unlock) => (unlock.0.clone(), With::UnlockKey(unlock.0.fingerprint())),
            None => {
                let key = Key::random();
                (key.clone(), With::Key(Payload(key.bytes().to_vec())))
            }
        };
        let wrap = |(number, key): (&u32, &Key)| (*number, seal::wrap(&with, &context(&self.owner, *number), key));
        let keys = keys.all().iter().map(wrap).collect();
        Ok(ledger::write_secret(
            &self.path,
            &File { format: FORMAT, owner: self.owner.clone(), wrapped_with: named, generation: self.generation, keys },
        )?)
    }
}

/// What is read first of the file, of whatever format.
#[derive(Debug, Deserialize)]
struct Head {
    format: u32,
}

impl Locked {
    /// Fingerprint of the unlock key that opens it.
    pub fn needed(&self) -> &str {
        &self.needed
    }

    /// The keys, by the unlock key.
    pub fn unlock(&self, key: &UnlockKey) -> Result<Seal, NotOpened> {
        let keys = opened(&self.file, &key.0)?;
        let inner =
            Inner { path: self.path.clone(), owner: self.file.owner.clone(), unlock: Some(key.clone()), generation: self.file.generation };
        Ok(Seal { keys, inner: Arc::new(Mutex::new(inner)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner { cluster_id: "c".to_owned(), manager: 1 }
    }

    fn key(fill: u8) -> UnlockKey {
        UnlockKey(Key::from_bytes(&[fill; 32]).unwrap())
    }

    fn by(fill: u8, generation: u64) -> Lock {
        Lock { key: Some(key(fill)), generation }
    }

    fn open(dir: &Path) -> Opened {
        Seal::open(dir, owner(), &BTreeSet::from([1])).unwrap()
    }

    fn locked(dir: &Path) -> Locked {
        match open(dir) {
            Opened::Locked(locked) => locked,
            Opened::Open(_) => panic!("it is not locked"),
        }
    }

    #[test]
    fn keys_are_locked_rewrapped_and_freed() {
        let dir = tempfile::tempdir().unwrap();
        let seal = Seal::create(dir.path(), owner(), Lock::default()).unwrap();
        let first = seal.keys.all();
        assert!(matches!(open(dir.path()), Opened::Open(seal) if seal.keys.all() == first));
        seal.wrap(by(1, 1)).unwrap();
        assert_eq!(seal.keys.newest(), 2, "what was in clear opens nothing that is written from now on");
        assert_eq!(locked(dir.path()).needed(), key(1).0.fingerprint());
        assert!(locked(dir.path()).unlock(&key(2)).is_err());
        let seal = locked(dir.path()).unlock(&key(1)).unwrap();
        assert!(seal.generation() == 1 && seal.keys.all()[&1] == first[&1]);
        seal.wrap(by(2, 2)).unwrap();
        assert!(locked(dir.path()).unlock(&key(1)).is_err());
        let seal = locked(dir.path()).unlock(&key(2)).unwrap();
        seal.forget_all_but(&BTreeSet::from([1])).unwrap();
        assert_eq!(locked(dir.path()).unlock(&key(2)).unwrap().keys.all().into_keys().collect::<Vec<_>>(), [1, 3]);
        seal.wrap(Lock { key: None, generation: 3 }).unwrap();
        assert!(matches!(open(dir.path()), Opened::Open(seal) if seal.keys.all().len() == 2 && seal.generation() == 3));
    }

    #[test]
    fn a_disk_that_is_to_be_locked_is_locked_from_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let seal = Seal::create(dir.path(), owner(), by(1, 4)).unwrap();
        assert_eq!((seal.keys.newest(), seal.generation()), (1, 4));
        assert_eq!(locked(dir.path()).unlock(&key(1)).unwrap().keys.all(), seal.keys.all());
    }

    #[test]
    fn keys_of_another_disk_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Seal::create(dir.path(), owner(), Lock::default()).unwrap();
        let other = Owner { manager: 2, ..owner() };
        assert!(matches!(Seal::open(dir.path(), other, &BTreeSet::new()), Err(SealError::Damaged { .. })));
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"format\": 1", "\"format\": 2, \"more\": 1")).unwrap();
        let refused = Seal::open(dir.path(), owner(), &BTreeSet::new()).unwrap_err().to_string();
        assert!(refused.contains("upgrade this manager"), "{refused}");
        std::fs::remove_file(&path).unwrap();
        let refused = Seal::open(dir.path(), owner(), &BTreeSet::from([1])).unwrap_err().to_string();
        assert!(refused.contains("nothing on this disk can be read without it"), "{refused}");
        assert!(matches!(Seal::open(dir.path(), owner(), &BTreeSet::new()), Ok(Opened::Open(_))), "a disk in clear gets keys");
    }
}
