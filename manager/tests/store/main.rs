//! The store: several in one process, over a network and on disks that a test can break.

mod by_hand;
mod cluster;
mod disk;
mod failover;
mod members;
mod pitfalls;
mod power;
mod promises;
mod room;
mod start;
mod wal;
mod wire;
mod world;
