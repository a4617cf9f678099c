//! A copy of the program and a bundle that belong to a user who is not root, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::Bundle;

pub const USER: u32 = 54_321;

/// A user's bundle with what `spec --rootless` writes.
pub struct Own {
    pub bundle: Bundle,
}

impl Own {
    pub fn new(script: &str) -> Self {
        let mut bundle = Bundle::new(script);
        let program = bundle.copy_program();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        // Nothing is made in them that the user does not own.
        for dir in ["proc", "dev", "sys"] {
            fs::create_dir_all(bundle.rootfs(dir)).unwrap();
        }
        bundle.give_rootfs(USER);
        std::os::unix::fs::chown(bundle.path(""), Some(USER), Some(USER)).unwrap();
        fs::remove_file(bundle.path("config.json")).unwrap();
        let mut own = Self { bundle };
        let output = own.call(&["spec", "--rootless", "--bundle", own.bundle.path("").to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        own.bundle.config = serde_json::from_slice(&fs::read(own.bundle.path("config.json")).unwrap()).unwrap();
        own.bundle.widen();
        own.bundle.script(script);
        own
    }

    pub fn command(&self, program: &std::path::Path, root: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.uid(USER).gid(USER).env("XDG_RUNTIME_DIR", self.bundle.path("")).arg("--root").arg(self.bundle.path(root)).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// A call by a user to whom `/etc/subuid` and `/etc/subgid` grant ids, in a mount namespace of its own: the host's files stay as they are.
    pub fn with_granted_ids(&self, granted: &str, args: &[&str]) -> Output {
        let etc = self.bundle.path("etc");
        fs::create_dir_all(&etc).unwrap();
        let files = [
            ("passwd", format!("tester:x:{USER}:{USER}::/:/bin/sh\n")),
            ("group", format!("tester:x:{USER}:\n")),
            ("subuid", format!("tester:{granted}\n")),
            ("subgid", format!("tester:{granted}\n")),
        ];
        for (name, text) in files {
            fs::write(etc.join(name), text).unwrap();
        }
        let script = format!(
            "mount --bind \"$0\" /etc && exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\" >\"$OUTPUT\".out 2>\"$OUTPUT\".err"
        );
        let output = self.bundle.path("granted");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(etc).env("OUTPUT", &output);
        command.arg(self.bundle.path("runtime")).arg("--root").arg(self.bundle.path("own-state")).args(args);
        // Not by pipes: the container would hold them.
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let read = |end: &str| fs::read(output.with_extension(end)).unwrap_or_default();
        Output { status, stdout: read("out"), stderr: read("err") }
    }

    pub fn call(&self, args: &[&str]) -> Output {
        self.command(&self.bundle.path("runtime"), "own-state", args).output().unwrap()
    }

    pub fn create(&self) {
        self.bundle.write();
        let bundle = self.bundle.path("");
        let args = ["create", "--bundle", bundle.to_str().unwrap(), &self.bundle.id];
        let mut create = self.command(&self.bundle.path("runtime"), "own-state", &args);
        let said = self.bundle.path("create.err");
        let status = create.stdout(Stdio::null()).stderr(fs::File::create(&said).unwrap()).status().unwrap();
        assert!(status.success(), "{}", fs::read_to_string(said).unwrap());
    }

    /// A container that runs, without standard input and outputs: they would be the test's.
    pub fn started(script: &str) -> Self {
        let own = Self::new(script);
        own.start();
        own
    }

    pub fn start(&self) {
        self.create();
        let output = self.call(&["start", &self.bundle.id]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn state(&self) -> Value {
        serde_json::from_slice(&self.call(&["state", &self.bundle.id]).stdout).unwrap()
    }

    pub fn pid(&self) -> i32 {
        self.state()["pid"].as_i64().unwrap().try_into().unwrap()
    }

    /// What a program executed in the container printed, what its call said, and its exit code.
    pub fn exec(&self, options: &[&str], command: &[&str]) -> (String, String, i32) {
        let output = self.call(&[&["exec"], options, &[self.bundle.id.as_str()], command].concat());
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
        (text(output.stdout), text(output.stderr), output.status.code().unwrap())
    }

    pub fn executed(&self, options: &[&str], script: &str) -> String {
        let (stdout, stderr, code) = self.exec(options, &["sh", "-c", script]);
        assert_eq!(code, 0, "{stdout}\n{stderr}");
        stdout
    }

    pub fn run(&self) -> (String, String, i32) {
        self.bundle.write();
        let output = self.call(&["run", "--bundle", self.bundle.path("").to_str().unwrap(), &self.bundle.id]);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        (text(output.stdout), text(output.stderr), output.status.code().unwrap())
    }

    pub fn prints(&self) -> String {
        let (stdout, stderr, code) = self.run();
        assert_eq!(code, 0, "{stdout}\n{stderr}");
        stdout
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.call(&["delete", "--force", &self.bundle.id]);
    }
}
