//! `linux.intelRdt` (config-linux.md "IntelRdt", 1.3).

use super::Refusals;
use crate::core::spec;

/// What a container asks of resctrl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntelRdt {
    /// `None`: a group of the container's own; `/`: the one that is always there.
    pub clos_id: Option<String>,
    /// The lines of a schemata file, in the order they are written.
    pub lines: Vec<String>,
    /// A group of the container's own that monitors.
    pub monitoring: bool,
    /// Of the fields before 1.3: what the group itself must tell.
    pub wants_occupancy: bool,
    pub wants_bandwidth: bool,
}

/// Names of the kernel's own beside the groups (resctrl.rst).
const TAKEN: [&str; 3] = ["info", "mon_groups", "mon_data"];

impl Refusals {
    pub(super) fn intel_rdt(&mut self, given: Option<&spec::IntelRdt>) -> Option<IntelRdt> {
        let given = given?;
        let clos_id = given.clos_id.clone().filter(|name| !name.is_empty());
        if let Some(name) = clos_id.as_deref().filter(|name| !is_group(name)) {
            self.refuse(
                "linux.intelRdt.closID",
                format!("{name:?} is no name of a group: one name without '/', or \"/\" for the first group"),
            );
        }
        Some(IntelRdt {
            clos_id,
            lines: self.schemata(given),
            monitoring: given.enable_monitoring.unwrap_or(false),
            wants_occupancy: given.enable_cmt.unwrap_or(false),
            wants_bandwidth: given.enable_mbm.unwrap_or(false),
        })
    }

    /// The two older fields together, without what one of them says of the other's resource, and last `schemata`, as the specification
    /// orders them.
    fn schemata(&mut self, given: &spec::IntelRdt) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let cache = given.l3_cache_schema.as_deref().unwrap_or_default().lines().map(str::trim);
        lines.extend(cache.filter(|line| !line.is_empty() && !line.starts_with("MB:")).map(str::to_owned));
        if let Some(line) = given.mem_bw_schema.as_deref().filter(|line| !line.is_empty()) {
            if !line.starts_with("MB:") || line.contains('\n') {
                self.refuse("linux.intelRdt.memBwSchema", format!("{line:?} is no single line that begins with \"MB:\""));
            }
            lines.push(line.to_owned());
        }
        for (index, line) in given.schemata.iter().enumerate() {
            if line.contains('\n') || line.trim().is_empty() {
                self.refuse(format!("linux.intelRdt.schemata[{index}]"), format!("{line:?} is no single line"));
            }
            lines.push(line.clone());
        }
        lines
    }
}

fn is_group(name: &str) -> bool {
    let plain = !name.contains(['/', '\n', '\0']) && name != "." && name != ".." && !TAKEN.contains(&name);
    plain || name == "/"
}
