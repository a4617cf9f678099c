//! `events`: what a container uses, again and again, and when its memory runs out (no verb of the specification; the form is runc's).
//!
//! Out: a line of JSON each, until the container ends.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use rustix::io::Errno;
use serde_json::{Value, json};

use super::{existing, open_process, resctrl};
use crate::core::stats;
use crate::core::status::Status;
use crate::output;
use crate::state::Record;

/// What the container uses now.
pub fn stats(root: &Path, id: &str) -> Result<Value> {
    let (dir, record) = existing(root, id)?;
    match dir.status(&record)? {
        Status::Created | Status::Running | Status::Paused => Ok(line("stats", id, Some(used(&record)?))),
        other => bail!("container {id} is {other}: it uses nothing"),
    }
}

/// Prints events until the container ends or nobody listens any more.
pub fn events(root: &Path, id: &str, interval: Duration) -> Result<()> {
    let (dir, record) = existing(root, id)?;
    let process = record.init.as_ref().map(open_process).transpose()?.flatten();
    let Some(process) = process else { bail!("container {id} is {}: there is nothing to come", dir.status(&record)?) };
    let mut oom = Oom::watch(&record.cgroups)?;
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        fds.extend(oom.iter().map(|oom| PollFd::new(oom.file(), PollFlags::IN)));
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(std::io::Error::from(errno)).context("wait for events"),
        }
        let ended = !fds[0].revents().is_empty();
        let woken = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        let happened = woken && oom.as_mut().is_some_and(Oom::happened);
        if happened && !say(&line("oom", id, None))? || ended {
            return Ok(());
        }
        if Instant::now() >= next {
            next += interval;
            if !say(&line("stats", id, Some(used(&record)?)))? {
                return Ok(());
            }
        }
    }
}

fn used(record: &Record) -> Result<Value> {
    Ok(stats::stats(&read(&record.cgroups)?, record.resctrl.as_ref().map_or_else(|| json!({}), resctrl::stats)))
}

fn line(kind: &str, id: &str, data: Option<Value>) -> Value {
    match data {
        Some(data) => json!({ "type": kind, "id": id, "data": data }),
        None => json!({ "type": kind, "id": id }),
    }
}

/// Whether somebody still listens.
fn say(event: &Value) -> Result<bool> {
    match output::bytes(format!("{event}\n").as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        said => said.map(|()| true).context("write standard output"),
    }
}

fn read(groups: &[PathBuf]) -> Result<stats::Files> {
    let mut files = stats::Files::new();
    // On a hybrid host version 2 has files of the same names and no controller behind them: version 1 goes first.
    let (v1, v2): (Vec<&PathBuf>, Vec<&PathBuf>) = groups.iter().partition(|group| group.join("tasks").exists());
    for group in v1.into_iter().chain(v2) {
        // A group that is gone belongs to a container that has just ended.
        let Ok(entries) = fs::read_dir(group) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if stats::is_read(&name)
                && !files.contains_key(&name)
                && let Ok(text) = fs::read_to_string(entry.path())
            {
                files.insert(name, text);
            }
        }
    }
    Ok(files)
}

/// Wakes when the memory of a cgroup runs out.
enum Oom {
    /// `memory.rst` of version 1, "OOM Control".
    V1 { event: OwnedFd, _control: File },
    /// `cgroup-v2.rst`, "memory.events": the file changes; the count tells whether it was that.
    V2 { notify: OwnedFd, events: PathBuf, count: u64 },
}

impl Oom {
    fn watch(groups: &[PathBuf]) -> Result<Option<Self>> {
        for group in groups {
            let (v1, v2) = (group.join("memory.oom_control"), group.join("memory.events"));
            if v1.exists() {
                let control = File::open(&v1).with_context(|| format!("open {}", v1.display()))?;
                let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("make an eventfd")?;
                let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
                let path = group.join("cgroup.event_control");
                let mut register = OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
                register.write_all(line.as_bytes()).with_context(|| format!("write {line:?} to {}", path.display()))?;
                return Ok(Some(Self::V1 { event, _control: control }));
            }
            if v2.exists() {
                let notify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).context("make an inotify")?;
                inotify::add_watch(&notify, &v2, inotify::WatchFlags::MODIFY).with_context(|| format!("watch {}", v2.display()))?;
                let count = kills(&v2);
                return Ok(Some(Self::V2 { notify, events: v2, count }));
            }
        }
        Ok(None)
    }

    fn file(&self) -> &OwnedFd {
        match self {
            Self::V1 { event, .. } => event,
            Self::V2 { notify, .. } => notify,
        }
    }

    /// Whether it was an OOM that woke; to be asked once for each time.
    fn happened(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self {
            Self::V1 { event, .. } => rustix::io::read(event.as_fd(), &mut bytes[..8]).is_ok(),
            Self::V2 { notify, events, count } => {
                while rustix::io::read(notify.as_fd(), &mut bytes).is_ok_and(|read| read > 0) {}
                let before = std::mem::replace(count, kills(events));
                *count > before
            }
        }
    }
}

fn kills(events: &Path) -> u64 {
    let mut text = String::new();
    // A group that is gone counts nothing more.
    let _ = File::open(events).and_then(|mut file| file.read_to_string(&mut text));
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}
