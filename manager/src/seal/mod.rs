//! What a manager's disk is sealed with, and how it is unlocked (`docs/decisions/0007-sealed-disks.md`).
//!
//! ```text
//!  unlock key ──wraps──► disk keys ──derive──► a key for each segment of the log, for each snapshot, for the credentials
//!  people, tables        seal.json, wrapped     nowhere
//! ```

mod keys;

pub use keys::{Keys, SEED_BYTES};
