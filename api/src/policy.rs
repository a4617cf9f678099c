//! What a node lets containers have of its host, by its agent's flags: the scheduler looks at it before, and the agent again.

use serde::{Deserialize, Serialize};

use crate::container::MountSpec;
use crate::spec::{ContainerSpec, TaskTemplate};

/// A node's policy; by default nothing of the host is given away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodePolicy {
    /// The OCI runtimes known by name, beside rcluster's own.
    pub runtimes: Vec<String>,
    pub privileged: bool,
    /// Directories of the host that may be mounted, with all below.
    pub binds: Vec<String>,
    /// Devices of the host, or directories of them.
    pub devices: Vec<String>,
}

impl NodePolicy {
    /// What of a template the node does not do, after "does not": "allow privileged containers".
    pub fn refusal(&self, template: &TaskTemplate) -> Option<String> {
        if !template.runtime.is_empty() && !self.runtimes.contains(&template.runtime) {
            return Some(format!("know the runtime {}", template.runtime));
        }
        template.containers.iter().find_map(|container| self.refusal_of_container(container))
    }

    fn refusal_of_container(&self, container: &ContainerSpec) -> Option<String> {
        if container.privileged && !self.privileged {
            return Some("allow privileged containers".to_owned());
        }
        let bind = container.mounts.iter().find_map(|mount| match mount {
            MountSpec::Bind { source, .. } if !self.binds.iter().any(|allowed| is_below(source, allowed)) => Some(source),
            MountSpec::Bind { .. } | MountSpec::Volume { .. } | MountSpec::Tmpfs { .. } => None,
        });
        if let Some(source) = bind {
            return Some(format!("allow {source} to be mounted"));
        }
        let device = container.devices.iter().find(|device| !self.devices.iter().any(|allowed| is_below(&device.source, allowed)));
        device.map(|device| format!("allow the device {}", device.source))
    }
}

/// Whether a plain absolute path is `above` or lies in it.
fn is_below(path: &str, above: &str) -> bool {
    let above = above.trim_end_matches('/');
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(policy: &NodePolicy, container: serde_json::Value) -> Option<String> {
        let container: ContainerSpec = serde_json::from_value(container).unwrap();
        policy.refusal(&TaskTemplate { containers: vec![container], ..TaskTemplate::default() })
    }

    #[test]
    fn nothing_of_the_host_is_given_away_unasked() {
        let policy = NodePolicy::default();
        assert_eq!(refusal(&policy, serde_json::json!({"image": "a", "mounts": [{"type": "tmpfs", "target": "/t"}]})), None);
        for (container, expected) in [
            (serde_json::json!({"image": "a", "privileged": true}), "allow privileged containers"),
            (serde_json::json!({"image": "a", "mounts": [{"type": "bind", "source": "/srv", "target": "/t"}]}), "allow /srv to be mounted"),
            (serde_json::json!({"image": "a", "devices": ["/dev/fuse"]}), "allow the device /dev/fuse"),
        ] {
            assert_eq!(refusal(&policy, container).as_deref(), Some(expected));
        }
        let template = TaskTemplate { runtime: "crun".into(), ..TaskTemplate::default() };
        assert_eq!(policy.refusal(&template).as_deref(), Some("know the runtime crun"));
    }

    #[test]
    fn a_directory_is_allowed_with_all_below_and_nothing_beside() {
        let policy = NodePolicy { binds: vec!["/srv/".into()], devices: vec!["/dev".into()], ..NodePolicy::default() };
        let bind = |source: &str| {
            refusal(&policy, serde_json::json!({"image": "a", "mounts": [{"type": "bind", "source": source, "target": "/t"}]}))
        };
        assert_eq!((bind("/srv"), bind("/srv/a/b")), (None, None));
        assert!(bind("/srvx").is_some() && bind("/").is_some());
        let all = NodePolicy { binds: vec!["/".into()], ..NodePolicy::default() };
        assert_eq!(refusal(&all, serde_json::json!({"image": "a", "mounts": [{"type": "bind", "source": "/", "target": "/t"}]})), None);
    }
}
