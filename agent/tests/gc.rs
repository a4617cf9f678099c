//! Operations on the node's images: what they remove, and above all what they do not. Needs root.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rcluster_agent::core::image_gc::Limits;
use rcluster_agent::image::housekeeper::sweep;
use rcluster_agent::image::mount::{Overlay, unmount_all};
use rcluster_agent::image::pull::{Progress, Puller};
use rcluster_agent::image::registry::{Access, Client};
use rcluster_agent::image::{ImageError, Store};
use rcluster_api::container::PullPolicy;
use rcluster_api::resource::Millis;
use serde_json::json;
use support::image::{Layout, file, hex, layer};
use support::registry::{Fake, Shelf};
use tokio::sync::watch;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("state")).expect("a store");
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Loads an image of layers that each hold one file.
    fn load(&self, name: &str, layers: &[&str]) {
        let layout = self.path(&format!("layout-{}", name.replace([':', '/'], "-")));
        let layers: Vec<Vec<u8>> = layers.iter().map(|text| one(text)).collect();
        Layout::new(&layout).image(name, &json!({"Cmd": ["/x"]}), &layers);
        self.store.load(&layout).expect("it loads");
    }

    fn names(&self) -> Vec<String> {
        self.store.list().expect("list").into_iter().map(|image| image.name).collect()
    }

    /// Names of what is in a directory of the store.
    fn there(&self, dir: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path("state/images").join(dir)).expect("list").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| !name.ends_with(".lock")).collect()
    }

    /// Prunes until nothing is left: for a while, a process that another test begins in a mount namespace of its own has a copy of what
    /// was mounted here.
    fn emptied(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.store.prune(true).expect("pruned");
            if self.names().is_empty() && self.there("layers").is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left: {:?} {:?}", self.names(), self.there("layers"));
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn overlay(&self, image: &str, name: &str) -> Overlay {
        let layers = self.store.layers(&self.store.find(image).expect("there")).expect("layers");
        let path = |part: &str| self.path(&format!("{name}-{part}"));
        Overlay { layers, upper: path("upper"), work: path("work"), target: path("root") }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with("-root") {
                drop(unmount_all(&entry.path()));
            }
        }
    }
}

fn one(text: &str) -> Vec<u8> {
    layer(&[file("file", text)])
}

fn digests(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| hex(&one(text))).collect()
}

fn text(error: &ImageError) -> String {
    error.to_string()
}

#[test]
fn removing_a_name_removes_what_only_it_needed() {
    let bench = Bench::new();
    bench.load("a:1", &["shared", "a"]);
    bench.load("b:1", &["shared", "b"]);
    let removed = bench.store.rm("docker.io/library/a:1", false).expect("removed");
    assert_eq!((removed.names, removed.layers, removed.blobs), (vec!["a:1".to_owned()], 1, 3));
    assert!(removed.bytes > 0);
    assert_eq!(bench.names(), ["b:1"]);
    assert_eq!(bench.there("layers"), digests(&["shared", "b"]));
    assert_eq!(bench.there("blobs/sha256").len(), 4, "two layers, manifest, configuration");
    assert!(bench.there("trash").is_empty());
    let error = bench.store.rm("a:1", false).expect_err("it is gone");
    assert!(text(&error).contains("images there: b:1"), "{error}");
    bench.store.rm("b:1", false).expect("removed");
    assert!(bench.there("layers").is_empty() && bench.there("blobs/sha256").is_empty());
}

#[test]
fn an_image_with_another_name_stays_and_a_name_can_move() {
    let bench = Bench::new();
    bench.load("a:1", &["a"]);
    bench.load("b:1", &["b"]);
    bench.store.tag("a:1", "other/name").expect("named");
    bench.store.rm("a:1", false).expect("removed");
    assert_eq!((bench.names(), bench.there("layers")), (vec!["b:1".to_owned(), "other/name:latest".to_owned()], digests(&["a", "b"])));
    bench.store.tag("b:1", "other/name:latest").expect("moved");
    let collected = bench.store.prune(false).expect("pruned");
    assert_eq!((collected.layers, bench.there("layers")), (1, digests(&["b"])));
    for (from, to, expected) in
        [("none", "x", "not on this node"), ("b:1", "X", "lower case"), ("b:1", &format!("x@sha256:{}", "0".repeat(64)), "digest's image")]
    {
        let error = bench.store.tag(from, to).expect_err(expected);
        assert!(text(&error).contains(expected), "{error}");
    }
}

#[test]
fn what_runs_is_never_removed() {
    let bench = Bench::new();
    bench.load("runs:1", &["below", "above"]);
    bench.load("idle:1", &["below"]);
    let overlay = bench.overlay("runs:1", "c");
    overlay.mount().expect("mount");
    let error = bench.store.rm("runs:1", false).expect_err("it runs");
    assert!(text(&error).contains("a container on this node runs on it"), "{error}");
    let pruned = bench.store.prune(true).expect("pruned");
    assert_eq!((pruned.names, bench.names()), (vec!["idle:1".to_owned()], vec!["runs:1".to_owned()]));

    bench.store.tag("runs:1", "runs:2").expect("named");
    bench.store.rm("runs:2", false).expect("another name is left");
    bench.store.rm("runs:1", true).expect("forced");
    bench.store.prune(true).expect("pruned");
    assert!(bench.names().is_empty());
    assert_eq!(bench.there("layers"), digests(&["below", "above"]));
    assert_eq!(fs::read_to_string(bench.path("c-root/file")).expect("read"), "above");

    unmount_all(&overlay.target).expect("unmount");
    bench.emptied();
}

/// A process with a mount of its own that nobody else sees; ends with the value.
struct Elsewhere(Child);

impl Elsewhere {
    fn mount(overlay: &Overlay) -> Self {
        for dir in [&overlay.upper, &overlay.work, &overlay.target] {
            fs::create_dir_all(dir).expect("make");
        }
        let shown = |path: &Path| path.display().to_string();
        let layers: Vec<String> = overlay.layers.iter().rev().map(|layer| shown(layer)).collect();
        let options = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), shown(&overlay.upper), shown(&overlay.work));
        let script = "mount -t overlay overlay -o \"$1\" \"$2\" && echo mounted && exec sleep 60";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", &options]).arg(&overlay.target);
        let mut process = command.stdout(Stdio::piped()).spawn().expect("unshare");
        let mut said = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut said).expect("read");
        let elsewhere = Self(process);
        assert_eq!(said, "mounted\n");
        elsewhere
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

#[test]
fn what_runs_where_the_mount_cannot_be_seen_is_not_removed_either() {
    let bench = Bench::new();
    bench.load("runs:1", &["below", "above"]);
    let elsewhere = Elsewhere::mount(&bench.overlay("runs:1", "c"));
    let own = fs::read_to_string("/proc/self/mountinfo").expect("read");
    assert!(!own.contains(&*bench.path("c-root").to_string_lossy()), "this process sees the mount");
    bench.store.prune(true).expect("pruned");
    assert!(bench.store.rm("runs:1", false).is_err());
    assert_eq!((bench.names(), bench.there("layers")), (vec!["runs:1".to_owned()], digests(&["below", "above"])));
    drop(elsewhere);
    bench.emptied();
}

#[test]
fn what_is_about_to_run_is_kept_and_what_a_killed_process_wanted_is_not() {
    let bench = Bench::new();
    bench.load("a:1", &["a"]);
    let (_, lease) = bench.store.hold("a:1").expect("there");
    bench.store.prune(true).expect("pruned");
    assert_eq!(bench.names(), ["a:1"]);
    bench.store.rm("a:1", false).expect("only the name goes");
    assert_eq!(bench.there("layers"), digests(&["a"]));
    drop(lease);
    // As a process that was killed leaves it: nobody holds its lock.
    fs::write(bench.path("state/images/leases/00"), hex(&one("a"))).expect("write");
    bench.store.collect().expect("collected");
    assert!(bench.there("layers").is_empty() && bench.there("leases").is_empty());
}

#[test]
fn what_broken_pulls_and_loads_left_is_removed() {
    let bench = Bench::new();
    bench.load("a:1", &["a"]);
    let images = bench.path("state/images");
    let other = "0".repeat(64);
    fs::write(images.join("partial").join(&other), "half").expect("write");
    fs::write(images.join("blobs/sha256").join(format!(".{other}.7")), "half").expect("write");
    for dir in [format!("layers/{other}.partial/deep/er"), "incoming".to_owned(), "trash/old/deep".to_owned()] {
        fs::create_dir_all(images.join(&dir)).expect("make");
        fs::write(images.join(dir).join("file"), "x").expect("write");
    }
    bench.store.collect().expect("collected");
    assert_eq!((bench.there("layers"), bench.there("blobs/sha256").len()), (digests(&["a"]), 3));
    for dir in ["partial", "trash"] {
        assert!(bench.there(dir).is_empty(), "{dir}");
    }
    assert!(!images.join("incoming").exists());
    assert_eq!(
        fs::read_to_string(bench.store.layers(&bench.store.find("a:1").expect("there")).expect("layers")[0].join("file")).expect("read"),
        "a"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collecting_all_the_time_takes_nothing_from_pulls_under_way() {
    const IMAGES: usize = 12;
    let bench = Bench::new();
    let layout = bench.path("layout");
    let mut made = Layout::new(&layout);
    for number in 0..IMAGES {
        // Each shares a layer with the next, which may be collected just when the next wants it.
        let own: Vec<Vec<u8>> = [number, number + 1].iter().map(|number| one(&number.to_string().repeat(50_000))).collect();
        made.image(&number.to_string(), &json!({"Cmd": ["/x"]}), &own);
    }
    let shelf = Shelf::of(&layout);
    let fake = Fake::start(move |asked| shelf.reply(asked));
    let access = Access { plain_http: ["127.0.0.1".to_owned()].into(), ..Access::default() };
    let puller = Puller::new(bench.store.clone(), Client::new(access).expect("a client"));
    let (done, store) = (AtomicBool::new(false), bench.store.clone());
    let collected = std::thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            let mut times = 0;
            while !done.load(Ordering::SeqCst) {
                store.collect().expect("collected");
                times += 1;
            }
            times
        });
        let pulling = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                for number in 0..IMAGES {
                    let name = fake.name(&format!("web:{number}"));
                    let told = watch::Sender::new(Progress::default());
                    puller.ensure(&name, PullPolicy::Missing, &told).await.expect("it comes");
                    let (image, _lease) = bench.store.hold(&name).expect("there");
                    assert!(bench.store.layers(&image).expect("layers").iter().all(|layer| layer.join("file").exists()));
                    if number % 2 == 0 {
                        bench.store.rm(&name, false).expect("removed");
                    }
                }
            });
        });
        let pulled = pulling.join();
        done.store(true, Ordering::SeqCst);
        pulled.expect("pulled");
        collecting.join().expect("collected")
    });
    assert!(collected > 3, "{collected} times");
    assert_eq!(bench.names().len(), IMAGES / 2);
}

/// Names, digests and sizes.
fn listed(store: &Store) -> Vec<(String, String, u64)> {
    store.list().expect("list").into_iter().map(|image| (image.name, image.digest, image.bytes)).collect()
}

#[test]
fn what_is_saved_is_loaded_with_the_same_digests_and_read_by_skopeo() {
    let (bench, other) = (Bench::new(), Bench::new());
    bench.load("a:1", &["shared", "a"]);
    bench.load("host.example:5000/team/b:2", &["shared", "b"]);
    let mut archive = Vec::new();
    bench.store.save(&["a:1", "host.example:5000/team/b:2"], &mut archive).expect("saved");
    let mut again = Vec::new();
    bench.store.save(&["a:1", "host.example:5000/team/b:2"], &mut again).expect("saved");
    assert!(archive == again, "the same images give other bytes");
    fs::write(other.path("images.tar"), &archive).expect("write");
    other.store.load(&other.path("images.tar")).expect("it loads");
    assert_eq!(listed(&other.store), listed(&bench.store));
    for (reference, expected) in [
        ("docker-archive:{}:docker.io/library/a:1", digests(&["shared", "a"])),
        ("oci-archive:{}:host.example:5000/team/b:2", digests(&["shared", "b"])),
    ] {
        let reference = reference.replace("{}", &other.path("images.tar").to_string_lossy());
        let output = Command::new("skopeo").args(["--insecure-policy", "inspect", &reference]).output().expect("skopeo");
        assert!(output.status.success(), "{reference}: {}", String::from_utf8_lossy(&output.stderr));
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
        let layers = seen["Layers"].as_array().expect("a list").iter().map(|layer| layer.as_str().expect("text").replace("sha256:", ""));
        assert_eq!(layers.collect::<BTreeSet<_>>(), expected, "{reference}");
    }
    assert!(matches!(bench.store.save(&["none"], std::io::sink()), Err(ImageError::Absent { .. })));
}

#[test]
fn an_image_tells_what_it_is_and_how_it_was_made() {
    let bench = Bench::new();
    let layers = [one("a"), one("b"), one("c")];
    let config = json!({
        "Entrypoint": ["/probe"], "Cmd": ["serve"], "Env": ["A=b"], "WorkingDir": "/srv", "User": "web", "StopSignal": "SIGQUIT",
        "Volumes": {"/data": {}, "/cache": {}}, "ExposedPorts": {"80/tcp": {}}, "Labels": {"k": "v"},
    });
    let more = json!({
        "created": "2026-01-02T03:04:05Z", "author": "somebody",
        "history": [
            {"created": "2026-01-01T00:00:00Z", "created_by": "ADD a"},
            {"created_by": "ENV A=b", "empty_layer": true},
            {"created_by": "RUN b", "comment": "why"},
        ],
    });
    Layout::new(&bench.path("layout")).image_more("web:1", &config, &more, &layers);
    bench.store.load(&bench.path("layout")).expect("it loads");
    bench.store.tag("web:1", "web:2").expect("named");
    let seen = bench.store.inspect("web:2").expect("there");
    assert_eq!(seen.names, ["web:1", "web:2"]);
    assert_eq!((seen.created.as_str(), seen.author.as_str(), seen.os.as_str()), ("2026-01-02T03:04:05Z", "somebody", "linux"));
    assert_eq!(
        seen.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>(),
        layers.iter().map(|l| format!("sha256:{}", hex(l))).collect::<Vec<_>>()
    );
    assert_eq!(
        (seen.config.volumes, seen.config.labels),
        (vec!["/cache".to_owned(), "/data".to_owned()], [("k".to_owned(), "v".to_owned())].into())
    );
    assert_eq!((seen.config.user.as_str(), seen.config.workdir.as_str(), seen.config.stop_signal.as_str()), ("web", "/srv", "SIGQUIT"));
    let steps = bench.store.history("web:1").expect("there");
    let shown: Vec<(String, bool)> = steps.iter().map(|step| (step.created_by.clone(), step.diff_id.is_some())).collect();
    let expected = [("ADD a", true), ("ENV A=b", false), ("RUN b", true), ("", true)].map(|(by, made)| (by.to_owned(), made));
    assert_eq!(shown, expected);
    assert_eq!((steps[0].bytes, steps[1].bytes, steps[2].comment.as_str()), (layers[0].len() as u64, 0, "why"));
}

#[test]
fn the_command_line_has_what_a_person_needs_on_the_node() {
    let bench = Bench::new();
    bench.load("web:1", &["a", "b"]);
    let image = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcluster-agent"));
        let output =
            command.arg("image").args(arguments).arg("--state-dir").arg(bench.path("state")).output().expect("run the agent's binary");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(said) }
    };
    image(&["tag", "web:1", "web:2"]).expect("tag");
    assert_eq!(bench.names(), ["web:1", "web:2"]);
    let inspected: serde_json::Value = serde_json::from_str(&image(&["inspect", "web:2"]).expect("inspect")).expect("JSON");
    assert_eq!((inspected["names"].clone(), inspected["layers"].as_array().map(Vec::len)), (json!(["web:1", "web:2"]), Some(2)));
    assert!(image(&["history", "web:1"]).expect("history").contains("diff_id"));
    let archive = bench.path("web.tar");
    image(&["save", "web:1", "--output", &archive.to_string_lossy()]).expect("save");
    let refused = image(&["save", "none:1", "--output", &bench.path("none.tar").to_string_lossy()]).expect_err("there is none");
    assert!(refused.contains("none:1") && !bench.path("none.tar.partial").exists() && !bench.path("none.tar").exists(), "{refused}");
    assert_eq!(image(&["rm", "web:1"]).expect("rm"), "removed web:1\n0 layers and 0 blobs are gone: 0 B\n");
    let said = image(&["prune", "--all"]).expect("prune");
    assert!(said.starts_with("removed web:2\n2 layers and "), "{said}");
    assert!(bench.there("layers").is_empty() && bench.there("blobs/sha256").is_empty());
    bench.store.load(&archive).expect("what was saved is whole");
    assert_eq!(bench.names(), ["web:1"]);
}

/// A disk of its own for a store; goes with the test.
struct Disk(PathBuf);

impl Disk {
    fn new(path: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&path).expect("a directory");
        let data = std::ffi::CString::new(format!("size={size}")).expect("no NUL");
        rustix::mount::mount("disk", &path, "tmpfs", rustix::mount::MountFlags::empty(), Some(data.as_c_str())).expect("a tmpfs");
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(unmount_all(&self.0));
    }
}

/// What neither compression nor sharing makes smaller.
fn noise(seed: u64, length: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + u8::try_from(state % 90).expect("small"))
    };
    (0..length).map(step).collect()
}

#[test]
fn a_disk_that_fills_up_loses_the_longest_unused_images_and_never_what_runs() {
    let bench = Bench::new();
    let disk = Disk::new(bench.path("disk"), "60m");
    let store = Store::open(&disk.0).expect("a store");
    let limits = Limits { high_percent: 85, low_percent: 50, age_max: None, age_min: Millis(0) };
    // Packed and unpacked, each takes about 14 MB: four of them are more than 85 percent.
    for (index, name) in ["runs:1", "old:1", "middle:1", "young:1"].into_iter().enumerate() {
        let layout = bench.path(&format!("layout-{index}"));
        Layout::new(&layout).image(name, &json!({"Cmd": ["/x"]}), &[one(&noise(index as u64 + 1, 7_000_000))]);
        store.load(&layout).expect("it loads");
        if name == "runs:1" {
            assert_eq!(sweep(&store, &limits).expect("swept").collected.names, Vec::<String>::new(), "there is room");
        }
    }
    let (image, lease) = store.hold("runs:1").expect("there");
    let path = |part: &str| bench.path(&format!("runs-{part}"));
    let overlay = Overlay { layers: store.layers(&image).expect("layers"), upper: path("upper"), work: path("work"), target: path("root") };
    overlay.mount().expect("mounted");
    drop(lease);
    // It was used last, and then the others in their order.
    for name in ["old:1", "middle:1", "young:1"] {
        drop(store.hold(name).expect("there"));
        // The time of a file is as fine as the kernel's tick.
        thread::sleep(Duration::from_millis(20));
    }
    let keeps = Limits { age_min: Millis(3_600_000), ..limits };
    let swept = sweep(&store, &keeps).expect("swept");
    assert!(swept.collected.names.is_empty() && swept.starved, "a task may be about to start on any of them: {swept:?}");

    let swept = sweep(&store, &limits).expect("swept");
    assert_eq!((swept.collected.names, swept.starved), (vec!["old:1".to_owned(), "middle:1".to_owned()], false));
    assert!(swept.collected.bytes > 25_000_000, "{}", swept.collected.bytes);
    assert_eq!(store.list().expect("list").into_iter().map(|image| image.name).collect::<Vec<_>>(), ["runs:1", "young:1"]);
    assert_eq!(fs::read(overlay.target.join("file")).expect("what runs has its files").len(), 7_000_000);

    let swept = sweep(&store, &Limits { high_percent: 10, low_percent: 10, ..limits }).expect("swept");
    assert_eq!((swept.collected.names, swept.starved), (vec!["young:1".to_owned()], true), "and what runs stays");
    unmount_all(&overlay.target).expect("unmounted");
    // A process that another test begins in a mount namespace of its own has a copy of the mount for a while.
    let aged = Limits { high_percent: 100, age_max: Some(Millis(1)), ..limits };
    let deadline = Instant::now() + Duration::from_secs(20);
    let swept = loop {
        let swept = sweep(&store, &aged).expect("swept");
        if !swept.collected.names.is_empty() || Instant::now() > deadline {
            break swept;
        }
        thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(swept.collected.names, ["runs:1"], "not used for too long, with room enough");
}

#[test]
fn what_would_be_pruned_is_what_is() {
    let bench = Bench::new();
    bench.load("a:1", &["shared", "a"]);
    bench.load("b:1", &["shared", "b"]);
    bench.store.tag("a:1", "b:1").expect("moved");
    let planned = bench.store.prunable(false).expect("looked");
    assert_eq!((planned.names.len(), planned.layers, planned.blobs), (0, 1, 3));
    let everything = bench.store.prunable(true).expect("looked");
    assert_eq!((everything.names, everything.layers), (vec!["a:1".to_owned(), "b:1".to_owned()], 3));
    assert_eq!(bench.there("layers"), digests(&["shared", "a", "b"]), "nothing is removed");
    assert_eq!(bench.store.prune(false).expect("pruned"), planned);
}
