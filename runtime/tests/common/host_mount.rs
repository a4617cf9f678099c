//! A mount of the host's, made for a test and unmounted with it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A mount of the host's in a test's directory.
pub struct HostMount(pub PathBuf);

impl HostMount {
    /// A directory bound over itself, with a propagation of its own and one more mount below.
    pub fn new(path: PathBuf, propagation: &str) -> Self {
        fs::create_dir(&path).unwrap();
        let mount = Self(path);
        mount.call(&["--bind", mount.text(), mount.text()]);
        mount.call(&[&format!("--make-{propagation}"), mount.text()]);
        fs::create_dir(mount.0.join("below")).unwrap();
        mount.tmpfs("below");
        fs::write(mount.0.join("below/file"), "below\n").unwrap();
        mount
    }

    pub fn tmpfs(&self, name: &str) {
        self.call(&["-t", "tmpfs", "tmpfs", self.0.join(name).to_str().unwrap()]);
    }

    pub fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }

    pub fn call(&self, args: &[&str]) {
        assert!(Command::new("mount").args(args).status().unwrap().success(), "mount {args:?}");
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-R", "-l", self.text()]).status();
    }
}
