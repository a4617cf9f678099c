//! The brain without a network: by example and by chance.

mod driver;
mod encryption;
mod examples;
mod ipam;
mod leave;
mod policy;
mod ports;
mod properties;
mod secrets;
mod six;
mod views;
mod world;
