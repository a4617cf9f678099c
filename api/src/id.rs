//! Identities: a newtype for each kind of object, so that a task's id cannot stand where a node's is meant.
//!
//! The text stands in the id itself: tables are copied leaf by leaf when they change, and each leaf has dozens of ids.

use std::fmt;

use compact_str::CompactString;
use rand::Rng;
use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const LENGTH: usize = 16;

/// Sixteen characters of Crockford's base 32, 80 random bits: never reused, safe in names, paths and URLs.
pub fn random_id(rng: &mut impl Rng) -> String {
    (0..LENGTH).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// Whether `text` could have come from [`random_id`].
pub fn is_id(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(CompactString);

        impl $name {
            /// A new random id.
            pub fn random(rng: &mut impl Rng) -> Self {
                Self(random_id(rng).into())
            }

            /// The text of the id.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether there is none (a task that has no node yet).
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )+};
}

ids! {
    /// A service.
    ServiceId,
    /// A task: one instance of a service's template.
    TaskId,
    /// A node: a host that runs an agent.
    NodeId,
    /// A network.
    NetworkId,
    /// A secret or config.
    DataId,
    /// An event.
    EventId,
    /// A manager.
    ManagerId,
    /// Someone who uses the cluster.
    UserId,
}
