//! Eyes: a probe in a container of each node that asks its node's resolver and tells when answers change.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::lab::Lab;

/// How often a name that is watched is asked for.
const INTERVAL_MS: &str = "5";
/// Lines of one eye that wait to be read; one that is not read is silent after that.
const LINES_MAX: usize = 1024;
/// An answer takes no longer; a change does not either.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a name server said, and when.
#[derive(Debug, Clone, Deserialize)]
pub struct Seen {
    pub name: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// In order; none when the answer was no.
    pub addresses: Vec<String>,
}

impl Seen {
    pub fn has(&self, address: &str) -> bool {
        self.addresses.iter().any(|known| known == address)
    }
}

/// The watcher of one node.
pub struct Eye {
    pub node: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// Since the last wish.
    seen: Vec<Seen>,
}

impl Eye {
    /// In a container: `command` runs the probe there with the words that follow.
    pub fn open(node: &str, mut command: Command) -> Result<Self> {
        command.args(["names", "--interval-ms", INTERVAL_MS]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start an eye on {node}"))?;
        let (input, output) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
        let (sender, lines) = mpsc::sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { node: node.to_owned(), child, input, lines, seen: Vec::new() })
    }

    /// One on each node of a lab where a task of this service runs.
    pub fn open_all(lab: &Lab, service: &str) -> Result<Vec<Self>> {
        let tasks = lab.running(service)?;
        tasks.iter().map(|task| Self::open(&task.node, lab.in_task(task, &["/probe"]))).collect()
    }

    fn wish(&mut self, wish: &str) -> Result<()> {
        self.seen.clear();
        // What was said before the wish is not of its time.
        while self.lines.try_recv().is_ok() {}
        writeln!(self.input, "{wish}").and_then(|()| self.input.flush()).with_context(|| format!("tell the eye on {} to {wish}", self.node))
    }

    fn look(&mut self, name: &str, deadline: Instant) -> Result<&Seen> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).with_context(|| format!("the eye on {} sees nothing new of {name}", self.node))?;
            let seen: Seen = serde_json::from_str(&line).with_context(|| format!("read what the eye on {} said: {line}", self.node))?;
            if seen.name == name {
                self.seen.push(seen);
                return self.seen.last().context("just pushed");
            }
        }
    }

    /// What the name stands for now.
    pub fn ask(&mut self, name: &str) -> Result<Vec<String>> {
        self.wish(&format!("ask {name}"))?;
        Ok(self.look(name, Instant::now() + PATIENCE)?.addresses.clone())
    }

    /// Looks at a name from now on; returns what it stands for at first.
    pub fn watch(&mut self, name: &str) -> Result<Vec<String>> {
        self.wish(&format!("watch {name}"))?;
        Ok(self.look(name, Instant::now() + PATIENCE)?.addresses.clone())
    }

    /// The first answer since [`Self::watch`] with an address in it for which it is so: no answer at all shows no change.
    pub fn first(&mut self, name: &str, is_so: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let is_so = |seen: &Seen| !seen.addresses.is_empty() && is_so(seen);
        if let Some(seen) = self.seen.iter().find(|seen| is_so(seen)) {
            return Ok(seen.clone());
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.look(name, deadline)?;
            if is_so(seen) {
                return Ok(seen.clone());
            }
        }
    }

    /// Looks at nothing.
    pub fn rest(&mut self) -> Result<()> {
        self.wish("rest")
    }
}

impl Drop for Eye {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Milliseconds since 1970, by this machine's clock, which all hosts of a lab have.
pub fn now_ms() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is set to before 1970")?;
    Ok(u64::try_from(since.as_millis())?)
}

/// Processes of this machine whose cgroup has all of these words in it, each with its name.
pub fn processes_in(cgroup: &[&str]) -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        let entry = entry.context("list /proc")?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process may end while it is being looked at.
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
        let (Some(cgroups), Some(name)) = (read("cgroup"), read("comm")) else { continue };
        if cgroups.lines().any(|line| cgroup.iter().all(|word| line.contains(word))) {
            found.push((pid, name.trim().to_owned()));
        }
    }
    Ok(found)
}

/// The first process of a container, by a word of its cgroup's path: its task's id, or its own.
pub fn first_process(cgroup: &str) -> Result<nix::unistd::Pid> {
    for (pid, _) in processes_in(&[cgroup])? {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let innermost = status.lines().find_map(|line| line.strip_prefix("NSpid:")).and_then(|pids| pids.split_whitespace().last());
        if innermost == Some("1") {
            return Ok(nix::unistd::Pid::from_raw(i32::try_from(pid)?));
        }
    }
    bail!("no container runs in a cgroup with {cgroup} in its path")
}
