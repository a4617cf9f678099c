//! The same bundle under two runtimes, and what is the same about it.
//!
//! A case is data: a name, edits of `config.json` as JSON pointers, a script in the container, and what must be the same. All cases of a
//! table run, and all that disagree are told at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::common::{Bundle, eventually, tool};

/// Puts version 2 of a hybrid host out of sight: crun 1.8.1 takes none but plain hosts.
const WITHOUT_UNIFIED: &str = "for at in $(grep ' - cgroup2 ' /proc/self/mountinfo | cut -d' ' -f5); do umount -l $at; done; exec \"$@\"";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Ours,
    Runc,
    Crun,
}

/// One runtime, with a state directory of its own, and a bundle; removes its container at the end, however the test ends.
pub struct Engine<'a> {
    kind: Kind,
    program: PathBuf,
    pub bundle: &'a Bundle,
}

impl<'a> Engine<'a> {
    /// Ours, or another one that is installed; that it is not is told.
    pub fn new(kind: Kind, bundle: &'a Bundle) -> Option<Self> {
        let program = match kind {
            Kind::Ours => Some(env!("CARGO_BIN_EXE_rcluster-runtime").into()),
            Kind::Runc => installed("runc"),
            Kind::Crun => installed("crun"),
        };
        Some(Self { kind, program: program?, bundle })
    }

    /// Where it keeps its state.
    pub fn root(&self) -> PathBuf {
        self.bundle.path(if self.kind == Kind::Ours { "state" } else { "other" })
    }

    pub fn command(&self, args: &[&str]) -> Command {
        if self.kind == Kind::Ours {
            return self.bundle.command(args);
        }
        let mut command = Command::new("unshare");
        if self.kind == Kind::Crun {
            command.args(["--mount", "sh", "-ec", WITHOUT_UNIFIED, "sh"]).arg(&self.program);
        } else {
            command = Command::new(&self.program);
        }
        command.arg("--root").arg(self.bundle.path("other")).args(args);
        command
    }

    /// Any call, without the configuration being written; its outputs must not be held by a container.
    pub fn call(&self, args: &[&str]) -> Said {
        Said::from(self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    /// `run`, and what it may leave is removed.
    pub fn run(&self, options: &[&str]) -> Said {
        let said = self.call(&self.with_bundle("run", options).iter().map(String::as_str).collect::<Vec<_>>());
        self.call(&["delete", "--force", &self.bundle.id]);
        said
    }

    /// `create` with its outputs in files: a pipe would be held by the container.
    pub fn create(&self, options: &[&str]) -> Said {
        let args = self.with_bundle("create", options);
        let mut command = self.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let [out, err] = ["create.out", "create.err"].map(|name| self.bundle.path(name));
        let status = command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap()).status();
        Said {
            stdout: fs::read_to_string(out).unwrap().trim_end().to_owned(),
            stderr: fs::read_to_string(err).unwrap().trim_end().to_owned(),
            code: status.unwrap().code().unwrap_or(-1),
        }
    }

    /// Creates and starts, and waits until the program itself runs: runc returns before it does.
    pub fn started(&self) {
        let created = self.create(&[]);
        assert_eq!(created.code, 0, "{:?}: {}", self.kind, created.stderr);
        let started = self.call(&["start", &self.bundle.id]);
        assert_eq!(started.code, 0, "{:?}: {}", self.kind, started.stderr);
        eventually("the program is executed", || {
            let program = fs::read_link(format!("/proc/{}/exe", self.state()["pid"])).ok()?;
            program.ends_with("busybox").then_some(())
        });
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.call(&["state", &self.bundle.id]).stdout).unwrap_or(Value::Null)
    }

    pub fn delete(&self) {
        self.call(&["delete", "--force", &self.bundle.id]);
    }

    fn with_bundle(&self, verb: &str, options: &[&str]) -> Vec<String> {
        let mut args = vec![verb.to_owned()];
        args.extend(options.iter().map(|option| (*option).to_owned()));
        args.extend(["--bundle".to_owned(), self.bundle.path("").to_str().unwrap().to_owned(), self.bundle.id.clone()]);
        args
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        self.delete();
    }
}

fn installed(name: &str) -> Option<PathBuf> {
    let program = tool(name);
    if program.is_none() {
        let text = format!("SKIPPED: {name} is not installed: apt-get install {name}\n");
        std::io::Write::write_all(&mut std::io::stderr().lock(), text.as_bytes()).unwrap();
    }
    program
}

/// What a call printed, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
        // -1: ended by a signal.
        Self { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code().unwrap_or(-1) }
    }
}

/// What must be the same of a case.
pub enum Same {
    /// What the container prints and its exit code; something is printed.
    Run,
    /// Both refuse to run it, and ours says why with these words.
    Refusal(&'static str),
}

/// The name, the edits, the script.
pub struct Case(pub &'static str, pub Value, pub &'static str, pub Same);

pub fn same(name: &'static str, edits: Value, script: &'static str) -> Case {
    Case(name, edits, script, Same::Run)
}

pub fn refused(name: &'static str, edits: Value, why: &'static str) -> Case {
    Case(name, edits, "echo it ran", Same::Refusal(why))
}

/// Runs the cases under ours and runc, each with a bundle that `prepare` makes ready; what it returns is kept meanwhile.
pub fn check_prepared<T>(prepare: impl Fn(&mut Bundle) -> T, cases: impl IntoIterator<Item = Case>) {
    check_with(Kind::Runc, prepare, cases);
}

pub fn check(cases: impl IntoIterator<Item = Case>) {
    check_prepared(|_| (), cases);
}

pub fn check_with<T>(other: Kind, prepare: impl Fn(&mut Bundle) -> T, cases: impl IntoIterator<Item = Case>) {
    let mut told = Vec::new();
    for case in cases {
        let mut bundle = Bundle::new(case.2);
        let _kept = prepare(&mut bundle);
        edit(&mut bundle, &case.1);
        if let Err(difference) = compare(other, &bundle, &case.3) {
            told.push(format!("{}: {difference}", case.0));
        }
    }
    assert!(told.is_empty(), "{}", told.join("\n\n"));
}

fn compare(other: Kind, bundle: &Bundle, same: &Same) -> Result<(), String> {
    // Others reach the root as the mapped user of a user namespace.
    fs::set_permissions(bundle.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.write();
    let [image, before] = ["rootfs", "before"].map(|name| bundle.path(name));
    assert!(Command::new("cp").arg("-a").args([&image, &before]).status().unwrap().success());
    let ours = Engine::new(Kind::Ours, bundle).expect("ours is built").run(&[]);
    // What the one made in the image must not help the other.
    fs::rename(&image, bundle.path("after")).unwrap();
    fs::rename(&before, &image).unwrap();
    let theirs = Engine::new(other, bundle).map(|engine| engine.run(&[]));
    let refused = |said: &Said| said.code != 0 && said.stdout.is_empty();
    match same {
        Same::Run if ours.stdout.is_empty() => {
            Err(format!("nothing to compare\nours: {}\n{other:?}: {}", shown(&ours), theirs.as_ref().map_or(String::new(), shown)))
        }
        Same::Run => match theirs {
            Some(theirs) if (&ours.stdout, ours.code) != (&theirs.stdout, theirs.code) => {
                Err(format!("differ\nours: {}\n{other:?}: {}", shown(&ours), shown(&theirs)))
            }
            _ => Ok(()),
        },
        Same::Refusal(why) => {
            if !refused(&ours) || !ours.stderr.contains(why) {
                return Err(format!(
                    "ours does not refuse it with {why:?}\nours: {}\n{other:?}: {}",
                    shown(&ours),
                    theirs.as_ref().map_or(String::new(), shown)
                ));
            }
            bundle.assert_nothing_is_left();
            match theirs {
                Some(theirs) if !refused(&theirs) => {
                    Err(format!("{other:?} does not refuse it\nours: {}\n{other:?}: {}", shown(&ours), shown(&theirs)))
                }
                _ => Ok(()),
            }
        }
    }
}

fn shown(said: &Said) -> String {
    format!("ends with {}\n{}\n{}", said.code, said.stdout, said.stderr)
}

/// Edits a configuration: what stands at a pointer is set, `null` removes it, a pointer that ends in `/+` adds to a list, and a list
/// with `/-NAME` loses the entries with such a `type`, `destination` or value, before all else.
pub fn edit(bundle: &mut Bundle, edits: &Value) {
    let edits = edits.as_object().expect("edits are an object").iter();
    let (taken_out, others): (Vec<_>, Vec<_>) = edits.partition(|(pointer, _)| pointer.contains("/-"));
    for (pointer, value) in taken_out.into_iter().chain(others) {
        if let Some(list) = pointer.strip_suffix("/+") {
            if bundle.config.pointer(list).is_none() {
                bundle.set(list, json!([]));
            }
            bundle.config.pointer_mut(list).unwrap().as_array_mut().unwrap().extend(value.as_array().unwrap().iter().cloned());
        } else if let Some((list, name)) = pointer.split_once("/-") {
            let list = bundle.config.pointer_mut(list).unwrap().as_array_mut().unwrap();
            list.retain(|entry| entry != name && entry["type"] != name && entry["destination"] != name);
        } else if value.is_null() {
            let (parent, last) = pointer.rsplit_once('/').unwrap();
            bundle.config.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(last);
        } else {
            bundle.set(pointer, value.clone());
        }
    }
}
