//! `linux.netDevices` (config-linux.md "Network Devices", 1.3).

use std::collections::{BTreeMap, BTreeSet};

use super::{Namespace, NamespaceKind, Refusals};
use crate::core::spec;

/// An interface of the host's to be moved into the container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevice {
    pub host_name: String,
    /// In the container.
    pub name: String,
}

/// IFNAMSIZ without its NUL.
const NAME_BYTES_MAX: usize = 15;

impl Refusals {
    pub(super) fn net_devices(&mut self, given: &BTreeMap<String, spec::NetDevice>, namespaces: &[Namespace]) -> Vec<NetDevice> {
        if !given.is_empty() && !namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::Network) {
            self.refuse("linux.netDevices", "the container has the host's network: give it a namespace of type network");
        }
        let mut names = BTreeSet::new();
        let device = |(host_name, device): (&String, &spec::NetDevice)| NetDevice {
            host_name: host_name.clone(),
            name: device.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| host_name.clone()),
        };
        let devices: Vec<NetDevice> = given.iter().map(device).collect();
        for NetDevice { host_name, name } in &devices {
            let field = format!("linux.netDevices[{host_name}]");
            for text in [host_name, name] {
                if !is_name(text) {
                    self.refuse(
                        &field,
                        format!("{text:?} is no name of an interface: 1 to {NAME_BYTES_MAX} bytes, no '/', ':', '%' or white space"),
                    );
                }
            }
            if !names.insert(name) {
                self.refuse(&field, format!("two interfaces would be called {name} in the container"));
            }
        }
        devices
    }
}

/// As the kernel has it (`dev_valid_name`), without `%`, which it would take for a pattern.
fn is_name(text: &str) -> bool {
    let refused = |letter: char| matches!(letter, '/' | ':' | '%' | '\0') || letter.is_whitespace();
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !matches!(text, "." | "..") && !text.contains(refused)
}
