//! What the kernel's answers can look like when something is wrong with them, for tests of whoever reads them.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use proptest::test_runner::Config;

/// What is done to a message at some place.
#[derive(Debug, Clone)]
pub enum Damage {
    Bit(Index, u8),
    Byte(Index, u8),
    Cut(Index),
    /// An attribute's length, or a message's, where there is one.
    Length(Index, u16),
}

impl Damage {
    fn done_to(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.len() < 4 {
            return bytes;
        }
        match self {
            Self::Bit(place, bit) => {
                let place = place.index(bytes.len());
                bytes[place] ^= 1 << (bit % 8);
            }
            Self::Byte(place, value) => {
                let place = place.index(bytes.len());
                bytes[place] = *value;
            }
            Self::Cut(place) => bytes.truncate(place.index(bytes.len())),
            Self::Length(place, length) => {
                let word = place.index(bytes.len() / 4) * 4;
                bytes[word..word + 2].copy_from_slice(&length.to_ne_bytes());
            }
        }
        bytes
    }
}

/// A few damages, one upon the other.
pub fn any_damages() -> impl Strategy<Value = Vec<Damage>> {
    let damage = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(place, bit)| Damage::Bit(place, bit)),
        (any::<Index>(), any::<u8>()).prop_map(|(place, value)| Damage::Byte(place, value)),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), select(std::vec![0_u16, 1, 3, 4, 5, 8, 16, 0x7fff, 0xffff]))
            .prop_map(|(place, length)| Damage::Length(place, length)),
    ];
    vec(damage, 1..8)
}

/// What is left of a message.
pub fn damaged(message: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    damages.iter().fold(message, |bytes, damage| damage.done_to(bytes))
}

/// As many cases as usual, or as RCLUSTER_CASES says. A failure prints the damages; PROPTEST_RNG_SEED has the same drawn again.
pub fn config(usual: u32) -> Config {
    let cases = std::env::var("RCLUSTER_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    Config { cases, failure_persistence: None, ..Config::default() }
}
