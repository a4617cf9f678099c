//! What a monitor is told of where a container's output goes.

use rcluster_api::container::{LogDriver, Logging};
use rcluster_api::object::Task;
use serde_json::json;

/// Of each of the two files that are kept, unless the spec says otherwise.
const FILE_BYTES_MAX: u64 = 10 << 20;

/// What is told.
#[derive(Debug, PartialEq, Eq)]
pub struct LogPlan {
    pub file_bytes_max: u64,
    /// The runtime's `--log-sink`; `None` when the file is all.
    pub sink: Option<String>,
}

/// The plan for one container. The journal gets the names under which Docker's users know them, and rcluster's own.
pub fn plan(task: &Task, container: &str, logging: Option<&Logging>) -> LogPlan {
    let Some(Logging { driver, address, facility, tag, max_size }) = logging else {
        return LogPlan { file_bytes_max: FILE_BYTES_MAX, sink: None };
    };
    let sink = match driver {
        LogDriver::File => None,
        LogDriver::None => Some(json!({ "driver": "none" })),
        LogDriver::Journald | LogDriver::Syslog => {
            let tag = if tag.is_empty() { short(&task.name) } else { tag };
            let fields = json!({
                "CONTAINER_NAME": container,
                "CONTAINER_ID": format!("{}-{container}", task.id),
                "RCLUSTER_SERVICE": task.service.to_string(),
                "RCLUSTER_TASK": task.name,
            });
            let sink = json!({ "driver": driver.name(), "address": address, "facility": facility, "tag": tag, "fields": fields });
            Some(sink)
        }
    };
    LogPlan { file_bytes_max: max_size.map_or(FILE_BYTES_MAX, |size| size.0), sink: sink.map(|sink| sink.to_string()) }
}

/// RFC 5424 has room for 48 characters; names of tasks are of ASCII.
fn short(name: &str) -> &str {
    name.get(..48).unwrap_or(name)
}
