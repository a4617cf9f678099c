//! `ps`: the processes of a container (no verb of the specification; runc's).

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{existing, members};

/// The ids on the host of a container's processes, rising.
pub fn processes(root: &Path, id: &str) -> Result<Vec<i32>> {
    let (_, record) = existing(root, id)?;
    members::processes(&record)
}

/// What ps(1) says of them, with options of its own or `-ef`.
pub fn ps(root: &Path, id: &str, options: &[String]) -> Result<String> {
    let processes = processes(root, id)?;
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output = Command::new("ps").args(options).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("run ps: install procps, or use `ps --format json`")?;
    if !output.status.success() {
        bail!("ps {}: {}", options.join(" "), output.status);
    }
    only(&String::from_utf8_lossy(&output.stdout), &processes)
        .with_context(|| format!("ps {}: the output has no column PID: ask for one", options.join(" ")))
}

/// The head and the lines of these processes.
fn only(table: &str, processes: &[i32]) -> Option<String> {
    let head = table.lines().next()?;
    let column = head.split_whitespace().position(|name| name == "PID")?;
    let is_ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: i32| processes.contains(&pid))
    };
    Some([head].into_iter().chain(table.lines().skip(1).filter(is_ours)).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_by_the_column_of_the_id() {
        let table = "UID PID CMD\nroot 1 init\nroot 7 sh -c 1\nroot 71 sleep 7\n";
        assert_eq!(only(table, &[7]).unwrap(), "UID PID CMD\nroot 7 sh -c 1");
        assert_eq!(only(table, &[]).unwrap(), "UID PID CMD");
        assert_eq!(only("UID CMD\nroot sh\n", &[7]), None);
    }
}
