//! What a manager's disk is sealed with, and how it is unlocked (`docs/decisions/0007-sealed-disks.md`).
//!
//! ```text
//!  unlock key ──wraps──► disk keys ──derive──► a key for each segment of the log, for each snapshot, for the credentials
//!  people, tables        seal.json, wrapped     nowhere
//! ```

mod credentials;
mod file;
pub mod keeper;
mod keys;

pub use credentials::{CREDENTIALS, DOOR, door, keep_credentials, keep_door, key_used, read_credentials, reseal_credentials};
pub use file::{FILE, Lock, Locked, Opened, Owner, Seal, SealError, is_there};
pub use keys::{Keys, SEED_BYTES};
