//! The daemons' logs: files in the lab's directory, read whole, from the end, or as they grow; and kept from growing without end.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::core::plan::{LabPlan, log_dir, log_file};
use crate::error::LabError;

/// A log is kept up to this length, and as much again aside.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Which lines of a host's logs.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// manager, netd or agent; all of the host's when not given.
    pub daemon: Option<String>,
    /// Only so many last lines of each log.
    pub tail: Option<usize>,
    /// Goes on with each new line until the lab goes.
    pub follow: bool,
}

/// One log and how far it was read.
struct Followed {
    path: PathBuf,
    prefix: String,
    read: u64,
}

/// The log files of a host.
pub fn files(plan: &LabPlan, host: &str, daemon: Option<&str>) -> Result<Vec<(String, PathBuf)>, LabError> {
    let known = plan.host(host)?.role.daemons();
    if let Some(wanted) = daemon {
        plan.target(&format!("{host}/{wanted}"))?;
    }
    let wanted = known.iter().filter(|name| daemon.is_none_or(|wanted| wanted == **name));
    Ok(wanted.map(|name| ((*name).to_owned(), log_file(&plan.name, host, name))).collect())
}

/// Writes a host's logs; a line of one of several daemons begins with the daemon's name.
pub fn write(plan: &LabPlan, host: &str, options: &LogOptions, to: &mut dyn Write) -> Result<(), LabError> {
    let files = files(plan, host, options.daemon.as_deref())?;
    let several = files.len() > 1;
    let mut logs = Vec::new();
    for (name, path) in files {
        let mut log = Followed { path, prefix: if several { format!("{name}: ") } else { String::new() }, read: 0 };
        let mut text = log.news()?;
        if let Some(lines) = options.tail {
            text = last_lines(&text, lines).to_owned();
        }
        log.show(&text, to)?;
        logs.push(log);
    }
    while options.follow && log_dir(&plan.name).exists() {
        thread::sleep(LOOK);
        for log in &mut logs {
            let text = log.news()?;
            log.show(&text, to)?;
        }
    }
    Ok(())
}

impl Followed {
    /// The whole lines that were written since the last time; a log that does not exist yet has none.
    fn news(&mut self) -> Result<String, LabError> {
        let failed = || format!("read {}", self.path.display());
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
            other => other.map_err(LabError::io(failed()))?,
        };
        // It was cut short meanwhile: what is there now is new.
        if file.metadata().map_err(LabError::io(failed()))?.size() < self.read {
            self.read = 0;
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(&mut bytes)).map_err(LabError::io(failed()))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        bytes.truncate(whole);
        self.read += bytes.len() as u64;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn show(&self, text: &str, to: &mut dyn Write) -> Result<(), LabError> {
        let lines: String = text.lines().map(|line| format!("{}{line}\n", self.prefix)).collect();
        to.write_all(lines.as_bytes()).and_then(|()| to.flush()).map_err(LabError::io("write a log"))
    }
}

fn last_lines(text: &str, count: usize) -> &str {
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    match ends.len().checked_sub(count + 1).and_then(|index| ends.get(index)) {
        Some(start) => text.get(*start..).unwrap_or_default(),
        None => text,
    }
}

/// Puts logs that have become too long aside: daemons append, so that a log can be emptied under them.
pub fn shorten(lab: &str) -> Result<(), LabError> {
    let dir = log_dir(lab);
    for entry in fs::read_dir(&dir).map_err(LabError::io(format!("list {}", dir.display())))? {
        let path = entry.map_err(LabError::io(format!("list {}", dir.display())))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            shorten_one(&path).map_err(LabError::io(format!("shorten {}", path.display())))?;
        }
    }
    Ok(())
}

fn shorten_one(path: &Path) -> std::io::Result<()> {
    if fs::metadata(path)?.len() > LOG_BYTES_MAX {
        fs::copy(path, path.with_extension("log.1"))?;
        OpenOptions::new().write(true).open(path)?.set_len(0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_text() {
        for (count, expected) in [(0, ""), (1, "c\n"), (2, "b\nc\n"), (3, "a\nb\nc\n"), (9, "a\nb\nc\n")] {
            assert_eq!(last_lines("a\nb\nc\n", count), expected);
        }
    }
}
