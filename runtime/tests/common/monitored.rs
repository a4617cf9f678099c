//! A container under a monitor; both are gone when a test ends.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Bundle, alive, eventually};

pub struct Monitored {
    pub bundle: Bundle,
    pub report: Value,
}

impl Monitored {
    pub fn new(bundle: Bundle) -> Self {
        Self::with(bundle, &[])
    }

    pub fn with(bundle: Bundle, more: &[&str]) -> Self {
        Self::by(bundle, more, |command| command)
    }

    /// With a mount namespace that is the monitor's alone.
    pub fn in_own_mounts(bundle: Bundle, more: &[&str]) -> Self {
        Self::by(bundle, more, |inner| {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private"]).arg(inner.get_program()).args(inner.get_args());
            command
        })
    }

    /// One that was seen to give back what it does not need while it waits, and how many KiB of its program it had before.
    pub fn at_rest(make: impl Fn() -> Self) -> (Self, u64) {
        eventually("it gives back what it does not need while it waits", || {
            let monitored = make();
            let busy = monitored.monitors("RssFile");
            let patience = Instant::now() + Duration::from_secs(5);
            while monitored.monitors("RssFile") >= busy {
                if Instant::now() > patience {
                    // It may have given it back before it was looked at: another one shows it.
                    return None;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Some((monitored, busy))
        })
    }

    fn by(bundle: Bundle, more: &[&str], wrapped: impl FnOnce(Command) -> Command) -> Self {
        bundle.write();
        let paths = ["", "log", "exit"].map(|name| bundle.path(name).to_str().unwrap().to_owned());
        let mut args = vec!["monitor", "--id", &bundle.id, "--bundle", &paths[0], "--log", &paths[1], "--exit-file", &paths[2]];
        args.extend(more);
        let output = wrapped(bundle.command(&args)).stdin(Stdio::null()).stderr(Stdio::null()).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.success(), report.get("error").is_none(), "{report}");
        Self { bundle, report }
    }

    pub fn pid(&self, name: &str) -> i32 {
        self.report[name].as_i64().unwrap_or_else(|| panic!("{}", self.report)).try_into().unwrap()
    }

    /// A number of the monitor's own status.
    pub fn monitors(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid("monitor_pid"))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim_start_matches(':').trim();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    pub fn start(&self) {
        self.bundle.ok(&["start", &self.bundle.id]);
    }

    pub fn exit(&self) -> Value {
        let path = self.bundle.path("exit");
        let exit = eventually("the exit file", || fs::read(&path).ok());
        serde_json::from_slice(&exit).unwrap()
    }

    pub fn log(&self) -> Vec<(String, String)> {
        let lines = fs::read_to_string(self.bundle.path("log")).unwrap();
        let entry = |line: &str| {
            let entry: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            assert!(text("t").ends_with('Z'));
            (text("s"), text("l"))
        };
        // The last one may not be whole yet.
        lines.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(entry).collect()
    }
}

impl Drop for Monitored {
    fn drop(&mut self) {
        self.bundle.call(&["delete", "--force", &self.bundle.id]);
        if let Some(pid) = self.report["monitor_pid"].as_i64() {
            let pid = i32::try_from(pid).unwrap();
            eventually("the monitor's end", || (!alive(pid)).then_some(()));
        }
    }
}
