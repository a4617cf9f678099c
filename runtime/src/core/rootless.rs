//! The configuration to begin with for a user who is not root (what `runc spec --rootless` decides).
//!
//! In: the configuration for root, and the user. Out: one with a user namespace in which that user is root, without what only the host's
//! root may ask for: a network of its own with a sysfs of its own, other ids, limits. Never asks who calls.

use serde_json::{Value, json};

/// The configuration for a user.
pub fn configuration(mut spec: Value, uid: u32, gid: u32) -> Value {
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
