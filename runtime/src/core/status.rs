//! What a container's state is called (runtime-spec, runtime.md "State").
//!
//! In: what was recorded at `create` and what is seen of its process now. Out: [`Status`]. Never trusts a process id alone: an id is
//! used again after its process ended, and start times begin anew after a reboot, so both the start time and the boot must agree.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The container's first process, told apart from any other that has or will have its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// What `/proc/PID/stat` says of the process that has the id now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Field 3: `Z` and `X` are dead.
    pub state: char,
    pub start_time: u64,
}

/// A container's state; `creating` has no process yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    /// Its processes are frozen (not of the specification, but what runc and crun say).
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// Whether the process with the recorded id is still the recorded one, and alive.
pub fn is_alive(recorded: &Identity, boot_id: &str, seen: Option<Seen>) -> bool {
    let same = |seen: Seen| seen.start_time == recorded.start_time && !matches!(seen.state, 'Z' | 'X');
    recorded.boot_id == boot_id && seen.is_some_and(same)
}

/// Names the state. `gated`: the start gate is still in place, so the user's program has not been executed. `frozen`: its cgroup is.
pub fn status(recorded: Option<&Identity>, boot_id: &str, seen: Option<Seen>, gated: bool, frozen: bool) -> Status {
    match recorded {
        None => Status::Creating,
        Some(recorded) if !is_alive(recorded, boot_id, seen) => Status::Stopped,
        Some(_) if frozen => Status::Paused,
        Some(_) if gated => Status::Created,
        Some(_) => Status::Running,
    }
}

/// Reads `/proc/PID/stat` (proc_pid_stat(5)). The program's name may hold spaces and parentheses: fields count from the last `)`.
pub fn parse_stat(text: &str) -> Option<Seen> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(Seen { state: fields.first()?.chars().next()?, start_time: fields.get(19)?.parse().ok()? })
}

/// The parent's id, field 4.
pub fn parse_parent(text: &str) -> Option<i32> {
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4242 100 1 18446744073709551615";

    #[test]
    fn stat_with_parentheses_in_the_name() {
        assert_eq!(parse_stat(STAT), Some(Seen { state: 'S', start_time: 4242 }));
        assert_eq!(parse_stat("7 (short) S 1"), None);
        assert_eq!((parse_parent(STAT), parse_parent("7 (short) S")), (Some(1), None));
    }

    #[test]
    fn each_state() {
        let recorded = Identity { pid: 7, start_time: 4242, boot_id: "b".into() };
        let alive = Some(Seen { state: 'S', start_time: 4242 });
        let cases = [
            (None, "b", None, true, false, Status::Creating),
            (Some(&recorded), "b", alive, true, false, Status::Created),
            (Some(&recorded), "b", alive, false, false, Status::Running),
            (Some(&recorded), "b", alive, false, true, Status::Paused),
            (Some(&recorded), "b", None, false, true, Status::Stopped),
            (Some(&recorded), "b", Some(Seen { state: 'Z', start_time: 4242 }), false, false, Status::Stopped),
            (Some(&recorded), "b", Some(Seen { state: 'S', start_time: 4243 }), false, false, Status::Stopped),
            (Some(&recorded), "another boot", alive, true, false, Status::Stopped),
        ];
        for (recorded, boot_id, seen, gated, frozen, expected) in cases {
            assert_eq!(status(recorded, boot_id, seen, gated, frozen), expected, "{recorded:?} {boot_id} {seen:?} {gated} {frozen}");
        }
    }
}
