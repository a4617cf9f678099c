//! The configuration to begin with: what `runc spec` of 1.1.5 prints, but for the version.
//!
//! In: whether the host has cgroups of version 2 alone, and the user if it is not for root. Out: the configuration; for a user one with a
//! user namespace in which that user is root, without what only the host's root may ask for: a network of its own with a sysfs of its own,
//! other ids, limits. Never asks who calls.

use serde_json::{Value, json};

/// For root, on a host with any cgroups of version 1.
pub const TEXT: &str = include_str!("template.json");

/// The configuration; `user` is a user and a group of the host.
pub fn configuration(only_version_2: bool, user: Option<(u32, u32)>) -> Value {
    let mut spec: Value = serde_json::from_str(TEXT).expect("the text is JSON: a test reads it");
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut().filter(|_| only_version_2) {
        namespaces.push(json!({"type": "cgroup"}));
    }
    match user {
        None => spec,
        Some((uid, gid)) => rootless(spec, uid, gid),
    }
}

fn rootless(mut spec: Value, uid: u32, gid: u32) -> Value {
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": options});
        } else if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
            options.retain(|option| !option.as_str().is_some_and(|option| option.starts_with("uid=") || option.starts_with("gid=")));
        }
    }
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("resources");
        linux.insert("uidMappings".to_owned(), json!([{"containerID": 0, "hostID": uid, "size": 1}]));
        linux.insert("gidMappings".to_owned(), json!([{"containerID": 0, "hostID": gid, "size": 1}]));
    }
    spec
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::core::{check, spec};

    #[test]
    fn it_passes_every_check() {
        for (only_version_2, user) in [(false, None), (true, None), (false, Some((7, 8))), (true, Some((7, 8)))] {
            let text = configuration(only_version_2, user).to_string();
            let spec = spec::parse(text.as_bytes()).unwrap();
            let container = check::check(Path::new("/b"), &spec).unwrap();
            assert_eq!(container.process.args, ["sh"]);
            assert_eq!(spec.oci_version, check::OCI_VERSION);
        }
    }

    #[test]
    fn namespaces_are_those_the_host_has() {
        let kinds = |only_version_2, user| {
            let spec = configuration(only_version_2, user);
            let all = spec["linux"]["namespaces"].as_array().unwrap().clone();
            all.iter().map(|entry| entry["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kinds(false, None), "pid network ipc uts mount");
        assert_eq!(kinds(true, None), "pid network ipc uts mount cgroup");
        assert_eq!(kinds(true, Some((1, 1))), "pid ipc uts mount cgroup user");
    }
}
