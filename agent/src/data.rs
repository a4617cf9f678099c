//! The secrets and configs of this node's tasks: held in memory as the managers sent them, and given to a task as files of a tmpfs of its
//! own. They are never in a file of another file system: an agent that is started anew asks for them again, by its session.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::Arc;

use rcluster_api::container::FileMode;
use rcluster_api::data::{DataKind, Payload};
use rcluster_api::spec::TaskTemplate;
use rcluster_api::wire::convert::data_kind;
use rcluster_api::wire::v1;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use tokio::sync::watch;
use tracing::warn;

use crate::core::bundle::data_files;
use crate::image::mount::{remove, unmount_all};

/// A secret or config by kind and name.
pub type Key = (DataKind, String);
/// What a task's files hold.
pub type Bytes = BTreeMap<Key, Arc<Payload>>;

#[derive(Debug)]
struct Held {
    version: u64,
    payload: Arc<Payload>,
}

/// What the managers have sent and tasks still use.
#[derive(Debug)]
pub struct Data(watch::Sender<BTreeMap<Key, Held>>);

impl Data {
    pub fn new() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }

    /// Takes what a manager sent, unless what is held is newer.
    pub fn take(&self, message: v1::AssignedData) {
        let v1::AssignedData { kind, name, version, payload } = message;
        let (Ok(kind), Some(payload)) = (data_kind(kind), payload) else {
            return warn!(name, "unreadable secret or config");
        };
        let key = (kind, name);
        self.0.send_if_modified(|held| {
            let newer = held.get(&key).is_none_or(|held| held.version < version);
            if newer {
                held.insert(key, Held { version, payload: Arc::new(payload.into()) });
            }
            newer
        });
    }

    /// Forgets what none of `templates` uses.
    pub fn keep<'a>(&self, templates: impl Iterator<Item = &'a v1::TaskTemplate>) {
        let containers: Vec<&v1::ContainerSpec> = templates.flat_map(|template| &template.containers).collect();
        let used = |(kind, name): &Key| {
            containers.iter().any(|container| {
                let refs = match kind {
                    DataKind::Secret => &container.secrets,
                    DataKind::Config => &container.configs,
                };
                refs.iter().any(|data| data.source == *name)
            })
        };
        self.0.send_if_modified(|held| {
            let before = held.len();
            held.retain(|key, _| used(key));
            held.len() < before
        });
    }

    /// What a template's containers use, or the first that is not there yet.
    pub fn of(&self, template: &TaskTemplate) -> Result<Bytes, Key> {
        gather(&self.0.borrow(), template)
    }

    /// The same, once all of it has come.
    pub async fn wait_for(&self, template: &TaskTemplate) -> Bytes {
        let mut held = self.0.subscribe();
        loop {
            if let Ok(bytes) = gather(&held.borrow_and_update(), template) {
                return bytes;
            }
            held.changed().await.expect("self holds the sender");
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self::new()
    }
}

fn gather(held: &BTreeMap<Key, Held>, template: &TaskTemplate) -> Result<Bytes, Key> {
    let each = template.data().map(|(kind, name)| {
        let key = (kind, name.to_owned());
        match held.get(&key) {
            Some(held) => Ok((key, held.payload.clone())),
            None => Err(key),
        }
    });
    each.collect()
}

/// Mounts a tmpfs at `dir` and writes the task's files there: `CONTAINER/KIND-INDEX`. What was there is gone. Nothing is mounted for a task
/// that uses nothing.
pub fn write(dir: &Path, template: &TaskTemplate, names: &[String], bytes: &Bytes) -> io::Result<()> {
    drop_files(dir)?;
    if bytes.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    mount_memory(dir, template, bytes)?;
    for (container, name) in template.containers.iter().zip(names) {
        let dir = dir.join(name);
        fs::create_dir(&dir)?;
        for (file, kind, data) in data_files(container) {
            let path = dir.join(file);
            let payload = bytes.get(&(kind, data.source.clone())).ok_or(io::ErrorKind::NotFound)?;
            let FileMode(mode) = data.mode;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(&payload.0)?;
            fchown(&file, Some(data.uid), Some(data.gid))?;
            file.set_permissions(Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// As large as the files, and not swapped to disk where the kernel can promise that (`noswap`, Linux 6.4).
fn mount_memory(dir: &Path, template: &TaskTemplate, bytes: &Bytes) -> io::Result<()> {
    const PAGE: usize = 64 << 10;
    let file =
        |(kind, name): (DataKind, &str)| bytes.get(&(kind, name.to_owned())).map_or(0, |payload| payload.0.len().next_multiple_of(PAGE));
    let size = template.data().map(file).sum::<usize>() + PAGE * (1 + template.containers.len());
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let attempt = |more: &str| {
        let options = CString::new(format!("mode=0700,size={size}{more}")).expect("digits and words hold no NUL");
        mount("tmpfs", dir, "tmpfs", flags, options.as_c_str())
    };
    match attempt(",noswap") {
        Err(Errno::INVAL) => Ok(attempt("")?),
        done => Ok(done?),
    }
}

/// Removes a task's files. They are removed before the mount: another mount namespace may hold on to a copy of that.
pub fn drop_files(dir: &Path) -> io::Result<()> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => {
            for entry in entries? {
                remove(&entry?.path())?;
            }
        }
    }
    unmount_all(dir)?;
    remove(dir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn template(secret: &str) -> TaskTemplate {
        let container = serde_json::from_value(serde_json::json!({"image": "i", "secrets": [secret]})).unwrap();
        TaskTemplate { containers: vec![container], ..TaskTemplate::default() }
    }

    fn message(version: u64, bytes: &[u8]) -> v1::AssignedData {
        let payload = Some(v1::Payload { bytes: bytes.to_vec() });
        v1::AssignedData { kind: v1::DataKind::Secret.into(), name: "db".into(), version, payload }
    }

    #[test]
    fn the_newest_is_held_for_as_long_as_it_is_used() {
        let data = Data::new();
        let key = (DataKind::Secret, "db".to_owned());
        assert_eq!(data.of(&template("db")), Err(key.clone()));
        for (version, bytes) in [(2, "old"), (3, "new"), (1, "late")] {
            data.take(message(version, bytes.as_bytes()));
        }
        assert_eq!(data.of(&template("db")).unwrap()[&key].0, b"new");
        data.keep([&v1::TaskTemplate::from(template("db"))].into_iter());
        data.of(&template("db")).unwrap();
        data.keep([&v1::TaskTemplate::from(template("other"))].into_iter());
        data.of(&template("db")).unwrap_err();
    }

    /// A task's directory; what is mounted there goes with it.
    struct Place(tempfile::TempDir);

    impl Drop for Place {
        fn drop(&mut self) {
            drop(unmount_all(&self.0.path().join("data")));
        }
    }

    /// Needs root.
    #[test]
    fn files_lie_in_a_tmpfs_of_their_own_and_go_with_it() {
        let place = Place(tempfile::tempdir().unwrap());
        let dir = place.0.path().join("data");
        let mounted = || {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            mounts.lines().filter(|line| line.contains(dir.to_str().unwrap())).map(str::to_owned).collect::<Vec<_>>()
        };
        let secret = serde_json::json!({"source": "db", "target": "/key", "uid": 1000, "gid": 1001, "mode": "0400"});
        let container = serde_json::from_value(serde_json::json!({"image": "i", "secrets": [secret, "db"]})).unwrap();
        let template = TaskTemplate { containers: vec![container], ..TaskTemplate::default() };
        // Writing again begins anew.
        for text in ["hunter2", "hunter3"] {
            let bytes = Bytes::from([((DataKind::Secret, "db".to_owned()), Arc::new(Payload(text.into())))]);
            write(&dir, &template, &["web".to_owned()], &bytes).unwrap();
            let [mount] = &mounted()[..] else { panic!("{:?}", mounted()) };
            assert!(mount.starts_with("tmpfs ") && mount.contains("nosuid,nodev,noexec") && mount.contains("mode=700"), "{mount}");
            for (name, expected) in [("secret-0", (0o400, 1000, 1001)), ("secret-1", (0o444, 0, 0))] {
                let path = dir.join("web").join(name);
                let data = fs::metadata(&path).unwrap();
                assert_eq!((data.mode() & 0o7777, data.uid(), data.gid()), expected, "{name}");
                assert_eq!(fs::read_to_string(path).unwrap(), text);
            }
        }
        let held = File::open(dir.join("web/secret-0")).unwrap();
        drop_files(&dir).unwrap();
        assert!(mounted().is_empty() && !dir.exists());
        assert_eq!(held.metadata().unwrap().nlink(), 0, "it is not only out of sight");
    }

    #[test]
    fn what_is_held_is_not_printed() {
        let data = Data::new();
        data.take(message(1, b"hunter2"));
        let text = format!("{data:?} {:?}", message(1, b"hunter2"));
        assert!(text.contains("Payload(7 bytes)") && !text.contains("hunter2") && !text.contains("104, 117"), "{text}");
    }
}
