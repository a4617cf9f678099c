//! One seed, split by name: a draw more in one stream does not shift the others.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A stream of chance.
pub type Chance = ChaCha8Rng;

/// Mixes a number into a hash (FNV-1a, a word at a time).
pub fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
}

/// The stream `name` of `seed`.
pub fn stream(seed: u64, name: &str) -> Chance {
    ChaCha8Rng::seed_from_u64(name.bytes().fold(seed, |hash, byte| mix(hash, u64::from(byte))))
}
