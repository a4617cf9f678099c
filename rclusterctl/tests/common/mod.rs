//! Runs the real binary with a configuration of its own.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A user with an empty home.
pub struct User {
    pub home: TempDir,
    /// Given with every command, if any.
    pub managers: Option<String>,
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl User {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), managers: None }
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rclusterctl"));
        command.args(line.split_whitespace()).env_clear().env("RCLUSTER_CONFIG", self.path("config.yaml")).stdin(Stdio::null());
        if let Some(managers) = &self.managers {
            command.env("RCLUSTER_MANAGERS", managers);
        }
        command
    }

    /// Runs a command line of words without blanks in them.
    pub fn run(&self, line: &str) -> Ended {
        let output = self.command(line).output().unwrap();
        Ended {
            code: output.status.code().expect("not killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
