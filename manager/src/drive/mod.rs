//! What only a leader runs, and who owns it.
//!
//! [`Leadership`] watches the store's role. While this manager leads there is one [`Term`]; when it ends, everything that the term owns
//! ends with it: the brain's loop, the keeper of Raft's members, the agents' sessions and what they confirm, the log readers, the relays.
//! The only way to change the cluster's state is an [`Event`] to the term's brain. [`Brain`] decides and does nothing; `shell` gives it
//! time, tables and what comes in, and does what it wants.

mod brain;
mod leadership;
mod logs;
mod members;
mod relays;
mod sessions;
mod shell;
mod views;

pub use brain::{Brain, Effect, Event as BrainEvent, Ground, Moment, Outcome};
pub use leadership::{Leadership, Term};
pub use logs::{LogBroker, LogRequest};
pub use members::{Duty, changes, standing, standing_in};
pub use relays::{AgentEnd, RelayBroker, RelayRequest};
pub use sessions::Sessions;
pub use shell::Event;
pub use views::Views;
