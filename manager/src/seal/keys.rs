//! The keys of a disk, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcluster_api::seal::{Cipher, Key};

/// Bytes that make the keys of two files differ.
pub const SEED_BYTES: usize = 24;

/// Keys by number; the newest seals, all open. Clones share them, so that whoever writes takes the newest as soon as there is another.
#[derive(Debug, Clone)]
pub struct Keys(Arc<ArcSwap<BTreeMap<u32, Key>>>);

impl Keys {
    /// These keys; `None` when there are none.
    pub fn new(keys: BTreeMap<u32, Key>) -> Option<Self> {
        (!keys.is_empty()).then(|| Self(Arc::new(ArcSwap::from_pointee(keys))))
    }

    /// A first key.
    pub fn random() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(BTreeMap::from([(1, Key::random())]))))
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<u32, Key> {
        (**self.0.load()).clone()
    }

    /// Takes the place of these keys for everyone who shares them.
    pub fn replace(&self, by: &Self) {
        self.0.store(by.0.load_full());
    }

    /// Number of the key that seals.
    pub fn newest(&self) -> u32 {
        *newest(&self.0.load()).0
    }

    /// What seals a new file for the purpose that `label` names, with what opens it again.
    pub fn draw(&self, label: &str) -> (u32, [u8; SEED_BYTES], Cipher) {
        let (keys, seed) = (self.0.load(), rand::random());
        let (number, key) = newest(&keys);
        (*number, seed, cipher(key, &seed, label))
    }

    /// What opens a file; `None` when the key is not there.
    pub fn cipher(&self, number: u32, seed: &[u8; SEED_BYTES], label: &str) -> Option<Cipher> {
        self.0.load().get(&number).map(|key| cipher(key, seed, label))
    }
}

fn newest(keys: &BTreeMap<u32, Key>) -> (&u32, &Key) {
    keys.last_key_value().expect("there is one always")
}

fn cipher(key: &Key, seed: &[u8], label: &str) -> Cipher {
    Cipher::new(&key.derive(seed, label))
}
