//! The image store against archives as they come, and as an attacker would write them. Needs root: it makes device nodes, owners and
//! `trusted.*` attributes.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rcluster_agent::image::unpack::Limits;
use rcluster_agent::image::{ImageError, Store};
use serde_json::json;
use support::image::{Entry, Layout, dir, entry, file, hard_link, hex, layer, symlink};
use tar::EntryType;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("state")).expect("a store");
    Bench { dir, store }
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Loads an image of these layers and gives the unpacked directories.
    fn load(&self, layers: &[Vec<Entry>]) -> Result<Vec<PathBuf>, String> {
        let layers: Vec<Vec<u8>> = layers.iter().map(|entries| layer(entries)).collect();
        Layout::new(&self.path("layout")).image("web:1", &json!({"Cmd": ["/x"]}), &layers);
        self.store.load(&self.path("layout")).map_err(text)?;
        let image = self.store.find("web:1").map_err(text)?;
        self.store.layers(&image).map_err(text)
    }

    /// What an attacker may not have touched: everything outside the layers' directories.
    fn outside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("list");
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).filter(|name| name.contains("evil")).collect()
    }
}

fn text(error: ImageError) -> String {
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("read")
}

#[test]
fn a_layer_keeps_modes_owners_times_links_and_devices() {
    let bench = bench();
    let entries = vec![
        Entry { mode: 0o700, owner: 7, ..dir("srv") },
        Entry { mode: 0o4755, owner: 33, ..file("srv/tool", "tool") },
        hard_link("srv/again", "srv/tool"),
        symlink("srv/link", "/srv/tool"),
        entry(EntryType::Fifo, "srv/pipe", "", b""),
        file("./deep/er/file", "deep"),
    ];
    let layers = bench.load(&[entries]).expect("it loads");
    let meta = |path: &str| fs::symlink_metadata(layers[0].join(path)).expect("stat");
    assert_eq!((meta("srv").mode() & 0o7777, meta("srv").uid(), meta("srv").mtime()), (0o700, 7, 1_000_000_000));
    assert_eq!((meta("srv/tool").mode() & 0o7777, meta("srv/tool").uid(), meta("srv/tool").mtime()), (0o4755, 33, 1_000_000_000));
    assert_eq!(meta("srv/again").ino(), meta("srv/tool").ino());
    assert_eq!(fs::read_link(layers[0].join("srv/link")).expect("a link"), Path::new("/srv/tool"));
    assert!(meta("srv/pipe").file_type().is_fifo());
    assert_eq!(read(&layers[0].join("deep/er/file")), "deep");
}

#[test]
fn paths_that_lead_upwards_are_refused() {
    let bench = bench();
    let error = bench.load(&[vec![file("../../evil", "x")]]).expect_err("refused");
    assert!(error.contains("entry \"../../evil\": its path leads upwards"), "{error}");
    assert!(bench.outside().is_empty());
    assert!(bench.store.list().expect("list").is_empty(), "nothing of a refused image is named");
}

#[test]
fn absolute_paths_land_in_the_layer() {
    let bench = bench();
    let absolute = bench.path("evil").to_string_lossy().into_owned();
    let layers = bench.load(&[vec![file(&absolute, "x")]]).expect("it loads");
    assert!(bench.outside().is_empty());
    assert_eq!(read(&layers[0].join(absolute.trim_start_matches('/'))), "x");
}

#[test]
fn symlinks_do_not_lead_out_of_the_layer() {
    let bench = bench();
    let outside = bench.dir.path().to_string_lossy().into_owned();
    for (name, target) in [("absolute", outside.as_str()), ("relative", "../../../../../../../../../../../../..")] {
        let result = bench.load(&[vec![symlink("door", target), file("door/evil", "x")]]);
        assert!(bench.outside().is_empty(), "{name}");
        assert!(!Path::new("/evil").exists(), "{name}");
        // A link to a place that is not in the layer is refused; one to the root writes there.
        if let Ok(layers) = result {
            assert_eq!(read(&layers[0].join("evil")), "x", "{name}");
        }
    }
}

#[test]
fn a_file_replaces_a_symlink_and_does_not_write_through_it() {
    let bench = bench();
    fs::write(bench.path("victim"), "untouched").expect("write");
    let victim = bench.path("victim").to_string_lossy().into_owned();
    let layers = bench.load(&[vec![symlink("a", &victim), file("a", "x"), symlink("d", &victim), dir("d")]]).expect("it loads");
    assert_eq!((read(&bench.path("victim")), read(&layers[0].join("a"))), ("untouched".into(), "x".into()));
    assert!(layers[0].join("d").is_dir());
}

#[test]
fn hard_links_do_not_reach_out_of_the_layer() {
    let bench = bench();
    fs::write(bench.path("victim"), "secret").expect("write");
    let victim = bench.path("victim").to_string_lossy().into_owned();
    let cases = [
        vec![hard_link("stolen", &victim)],
        vec![hard_link("stolen", "../../../../victim")],
        vec![symlink("door", "../../../.."), hard_link("stolen", "door/victim")],
        vec![hard_link("stolen", "/")],
    ];
    for entries in cases {
        let error = bench.load(&[entries]).expect_err("refused");
        assert!(error.contains("entry \"stolen\""), "{error}");
        assert_eq!(fs::metadata(bench.path("victim")).expect("stat").nlink(), 1);
    }
}

#[test]
fn whiteouts_become_what_overlayfs_knows() {
    let bench = bench();
    let lower = vec![dir("a"), file("a/gone", "1"), file("a/stays", "1"), dir("b"), file("b/hidden", "1"), dir("c"), file("c/old", "1")];
    let upper = vec![
        dir("a"),
        file("a/.wh.gone", ""),
        dir("b"),
        file("b/.wh..wh..opq", ""),
        file("b/new", "2"),
        file(".wh.c", ""),
        dir("c"),
        file("c/new", "2"),
    ];
    let layers = bench.load(&[lower, upper]).expect("it loads");
    let gone = fs::symlink_metadata(layers[1].join("a/gone")).expect("stat");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let overlay =
        rcluster_agent::image::mount::Overlay { layers, upper: bench.path("upper"), work: bench.path("work"), target: bench.path("root") };
    overlay.mount().expect("mount");
    let seen: Vec<bool> =
        ["a/gone", "a/stays", "b/hidden", "b/new", "c/old", "c/new"].iter().map(|p| bench.path("root").join(p).exists()).collect();
    rcluster_agent::image::mount::unmount_all(&bench.path("root")).expect("unmount");
    assert_eq!(seen, [false, true, false, true, false, true]);
}

#[test]
fn fifty_layers_make_one_root() {
    let bench = bench();
    let layers: Vec<Vec<Entry>> =
        (0..50).map(|number| vec![file(&format!("file-{number}"), "x"), file("same", &number.to_string())]).collect();
    let layers = bench.load(&layers).expect("it loads");
    let overlay =
        rcluster_agent::image::mount::Overlay { layers, upper: bench.path("upper"), work: bench.path("work"), target: bench.path("root") };
    overlay.mount().expect("mount");
    let (count, same) = (fs::read_dir(bench.path("root")).expect("list").count(), read(&bench.path("root/same")));
    rcluster_agent::image::mount::unmount_all(&bench.path("root")).expect("unmount");
    assert_eq!((count, same.as_str()), (51, "49"));
}

#[test]
fn devices_named_like_a_whiteout_and_huge_layers_are_refused() {
    let bench = bench();
    let error = bench.load(&[vec![entry(EntryType::Char, "hide", "", b"")]]).expect_err("refused");
    assert!(error.contains("0:0"), "{error}");
    let limits = Limits { entries_max: 3, bytes_max: 64 << 10, path_bytes_max: 64 };
    let store = Store::with_limits(&bench.path("small"), limits).expect("a store");
    for (entries, expected) in [
        ((0..4).map(|number| file(&number.to_string(), "")).collect::<Vec<_>>(), "more than 3 entries"),
        (vec![file("big", &"x".repeat(100_000))], "larger than it may be"),
        (vec![file(&"deep/".repeat(15), "")], "its path has more than 64 bytes"),
    ] {
        Layout::new(&bench.path("limits")).image("web:1", &json!({}), &[layer(&entries)]);
        let error = text(store.load(&bench.path("limits")).expect_err("refused"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_does_not_have_its_digest_is_refused() {
    let bench = bench();
    let content = layer(&[file("a", "1")]);
    Layout::new(&bench.path("layout")).image("web:1", &json!({}), std::slice::from_ref(&content));
    let blob = bench.path("layout/blobs/sha256").join(hex(&content));
    fs::write(&blob, layer(&[file("a", "2")])).expect("tamper");
    let error = text(bench.store.load(&bench.path("layout")).expect_err("refused"));
    assert!(error.contains(&format!("blob sha256:{}: its content has digest", hex(&content))), "{error}");
    fs::remove_file(blob).expect("remove");
    let error = text(bench.store.load(&bench.path("layout")).expect_err("refused"));
    assert!(error.contains("is neither in the archive nor on this node"), "{error}");
}

#[test]
fn a_layer_whose_content_is_not_what_the_configuration_names_is_refused() {
    let bench = bench();
    let (named, packed) = (layer(&[file("a", "1")]), layer(&[file("a", "2")]));
    let kind = "application/vnd.oci.image.layer.v1.tar";
    Layout::new(&bench.path("layout")).image_packed("web:1", &json!({}), &[named], &[(packed, kind)]);
    let error = text(bench.store.load(&bench.path("layout")).expect_err("refused"));
    assert!(error.contains("its content has digest"), "{error}");
}

#[test]
fn archives_may_be_zipped_and_layers_too() {
    let bench = bench();
    let content = layer(&[file("a", "1")]);
    let zip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("zip");
        encoder.finish().expect("zip")
    };
    let mut layout = Layout::new(&bench.path("layout"));
    let packed = (zip(&content), "application/vnd.oci.image.layer.v1.tar+gzip");
    layout.image_packed("docker.io/library/web:1", &json!({}), std::slice::from_ref(&content), &[packed]);
    fs::write(bench.path("image.tar.gz"), zip(&layout.archive())).expect("write");
    let loaded = bench.store.load(&bench.path("image.tar.gz")).expect("it loads");
    assert_eq!(loaded[0].name, "web:1");
    assert_eq!(bench.store.list().expect("list")[0].name, "web:1");
}

#[test]
fn what_is_no_image_layout_and_what_has_no_name_is_said() {
    let bench = bench();
    fs::write(bench.path("old.tar"), layer(&[file("manifest.json", "[]")])).expect("write");
    fs::write(bench.path("junk"), "junk".repeat(1000)).expect("write");
    fs::create_dir(bench.path("empty")).expect("make");
    Layout::new(&bench.path("nameless")).image("", &json!({}), &[layer(&[file("a", "1")])]);
    for (name, expected) in [
        ("old.tar", "Docker before version 25"),
        ("junk", "not a readable tar archive"),
        ("empty", "it is not an OCI image layout"),
        ("nameless", "has no name"),
    ] {
        let error = text(bench.store.load(&bench.path(name)).expect_err("refused"));
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn many_loads_and_looks_at_once_unpack_each_layer_once() {
    let bench = bench();
    let shared: Vec<Entry> = (0..200).map(|number| file(&format!("f{number}"), "x")).collect();
    let shared = layer(&shared);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (bench, shared) = (&bench, &shared);
            scope.spawn(move || {
                let path = bench.path(&format!("layout-{number}"));
                let own = layer(&[file("own", &number.to_string())]);
                Layout::new(&path).image(&format!("web:{number}"), &json!({}), &[shared.clone(), own]);
                bench.store.load(&path).expect("it loads");
                let image = bench.store.find(&format!("web:{number}")).expect("it is there");
                assert_eq!(bench.store.layers(&image).expect("layers").len(), 2);
            });
        }
    });
    let images =
        fs::read_dir(bench.path("state/images/layers")).expect("list").filter(|entry| entry.as_ref().expect("entry").path().is_dir());
    assert_eq!((bench.store.list().expect("list").len(), images.count()), (6, 7));
}

#[test]
fn a_name_that_would_fill_the_memory_is_refused() {
    let bench = bench();
    let long_name = entry(EntryType::GNULongName, "././@LongLink", "", &vec![b'x'; 8 << 20]);
    let error = bench.load(&[vec![long_name, file("a", "1")]]).expect_err("refused");
    assert!(error.contains("longer than they may be"), "{error}");
}
