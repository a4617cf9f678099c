//! The store in an etcd: Debian's etcd-server on loopback, and several managers' stores on it.

mod formats;
mod links;
#[path = "../store/promises.rs"]
mod promises;
mod proxy;
mod server;
mod store;
mod stores;
mod transactions;
