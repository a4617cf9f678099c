//! What layers may hold beyond plain files, made by the tools that make it in the field: GNU tar, zstd. Needs root.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::image::Digest;
use rcluster_agent::image::unpack::{Limits, unpack};
use support::image::{Entry, dir, entry, file, hex, layer};
use tar::EntryType;

/// A directory to unpack into, gone at the end.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Unpacks what is packed, whose content unpacked is `content`.
    fn unpack(&self, packed: &[u8], content: &[u8], limits: &Limits) -> Result<PathBuf, String> {
        let target = self.path("layer");
        drop(fs::remove_dir_all(&target));
        fs::create_dir(&target).expect("make");
        let diff_id: Digest = format!("sha256:{}", hex(content)).parse().expect("a digest");
        unpack(packed, &diff_id, &target, limits).map_err(|error| error.to_string())?;
        Ok(target)
    }

    fn plain(&self, content: &[u8]) -> Result<PathBuf, String> {
        self.unpack(content, content, &Limits::default())
    }
}

fn run(program: &str, arguments: &[&str], stdin: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(program);
    let mut to = child.stdin.take().expect("piped");
    let given = stdin.to_vec();
    let writer = std::thread::spawn(move || to.write_all(&given).expect("write"));
    let output = child.wait_with_output().expect("wait");
    writer.join().expect("written");
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}

fn noise(bytes: usize) -> String {
    let mut state = 7_u64;
    let letters = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + u8::try_from(state >> 60).expect("four bits"))
    });
    letters.take(bytes).collect()
}

#[test]
fn zstd_in_one_frame_in_many_and_with_frames_that_are_no_data() {
    let bench = Bench::new();
    let content = layer(&[file("a", &noise(300_000)), file("b", "2")]);
    let frame = |bytes: &[u8], level: &str| run("zstd", &["-q", "-c", level], bytes);
    let (first, second) = content.split_at(100_000);
    let skippable = [&0x184d_2a51_u32.to_le_bytes()[..], &3_u32.to_le_bytes()[..], b"xyz"].concat();
    let cases = [
        frame(&content, "-1"),
        frame(&content, "-19"),
        [frame(first, "-3"), frame(second, "-3")].concat(),
        [skippable.clone(), frame(first, "-3"), skippable, frame(second, "-3")].concat(),
    ];
    for (number, packed) in cases.iter().enumerate() {
        let unpacked = bench.unpack(packed, &content, &Limits::default()).unwrap_or_else(|why| panic!("case {number}: {why}"));
        assert_eq!(fs::read_to_string(unpacked.join("b")).expect("read"), "2", "case {number}");
    }
    let cut = &cases[0][..cases[0].len() / 2];
    assert!(bench.unpack(cut, &content, &Limits::default()).expect_err("cut short").contains("zstd"));
}

#[test]
fn bombs_meet_the_limit_in_every_packing() {
    let bench = Bench::new();
    let limits = Limits { bytes_max: 1 << 20, ..Limits::default() };
    let content = layer(&[Entry { data: vec![0; 64 << 20], ..file("zeros", "") }]);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&content).expect("zip");
    let gzip = gzip.finish().expect("zip");
    let zstd = run("zstd", &["-q", "-c"], &content);
    for packed in [&gzip, &zstd, &content] {
        let error = bench.unpack(packed, &content, &limits).expect_err("refused");
        assert!(error.contains("larger than"), "{error}");
        let written = fs::metadata(bench.path("layer/zeros")).map_or(0, |meta| meta.len());
        assert!(written <= limits.bytes_max, "{written}");
    }
    let files: Vec<Entry> = (0..3).map(|number| file(&number.to_string(), &"x".repeat(400_000))).collect();
    assert!(bench.unpack(&layer(&files), &layer(&files), &limits).expect_err("refused").contains("larger than"));
}

/// An archive by GNU tar of a file of `size` bytes with content at its start, its middle and, if it does not end in a hole, its end.
fn with_holes(bench: &Bench, size: u64, options: &[&str]) -> Vec<u8> {
    let source = bench.path("source");
    drop(fs::remove_dir_all(&source));
    fs::create_dir(&source).expect("make");
    let file = File::create(source.join("holes")).expect("make");
    file.set_len(size).expect("grow");
    for (at, text) in [(0, "start"), (size / 2, "middle")] {
        std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), at).expect("write");
    }
    let source = source.to_string_lossy().into_owned();
    run("tar", &[options, &["--sparse", "-C", &source, "-c", "holes"]].concat(), b"")
}

#[test]
fn files_with_holes_keep_content_and_holes_in_every_form_of_gnu_tar() {
    const SIZE: u64 = 64 << 20;
    let bench = Bench::new();
    for form in [&["--format=gnu"][..], &["--format=pax", "--sparse-version=1.0"], &["--format=pax", "--sparse-version=0.1"]] {
        let content = with_holes(&bench, SIZE, form);
        assert!(content.len() < 1 << 20, "{form:?}: the archive has no holes");
        let unpacked = bench.plain(&content).unwrap_or_else(|why| panic!("{form:?}: {why}"));
        let names: Vec<_> = fs::read_dir(&unpacked).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        assert_eq!(names, ["holes"], "{form:?}");
        let (source, target) = (bench.path("source/holes"), unpacked.join("holes"));
        assert!(fs::read(&source).expect("read") == fs::read(&target).expect("read"), "{form:?}: the content differs");
        let held = fs::metadata(&target).expect("stat").blocks() * 512;
        assert!(held < 1 << 20, "{form:?}: {held} bytes on disk");
    }
    let unknown = with_holes(&bench, SIZE, &["--format=pax", "--sparse-version=0.0"]);
    let error = bench.plain(&unknown).expect_err("refused");
    assert!(error.contains("version 0.0"), "{error}");
}

#[test]
fn holes_count_as_what_the_file_would_hold() {
    let bench = Bench::new();
    let limits = Limits { bytes_max: 1 << 20, ..Limits::default() };
    for form in [&["--format=gnu"][..], &["--format=pax", "--sparse-version=1.0"]] {
        let content = with_holes(&bench, 1 << 40, form);
        let error = bench.unpack(&content, &content, &limits).expect_err("refused");
        assert!(error.contains("larger than"), "{form:?}: {error}");
    }
}

#[test]
fn attributes_of_users_and_capabilities_are_kept_and_those_of_overlayfs_are_not_an_images() {
    let bench = Bench::new();
    let attribute = |name: &str, value: &[u8]| (format!("SCHILY.xattr.{name}"), value.to_vec());
    // CAP_NET_BIND_SERVICE, permitted and effective (linux/capability.h, VFS_CAP_REVISION_2).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let entries = [
        Entry {
            owner: 33,
            mode: 0o4755,
            pax: vec![
                attribute("security.capability", &capability),
                attribute("trusted.overlay.opaque", b"y"),
                attribute("trusted.overlay.redirect", b"/etc"),
            ],
            ..file("tool", "x")
        },
        Entry { pax: vec![attribute("trusted.overlay.opaque", b"y")], ..dir("d") },
    ];
    let unpacked = bench.plain(&layer(&entries)).expect("it unpacks");
    let get = |path: &Path, name: &str| {
        let mut value = [0; 64];
        rustix::fs::lgetxattr(path, name, &mut value[..]).map(|length| value[..length].to_vec()).ok()
    };
    let tool = unpacked.join("tool");
    assert_eq!(get(&tool, "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(fs::metadata(&tool).expect("stat").mode() & 0o7777, 0o4755);
    for (path, name) in
        [(&tool, "trusted.overlay.opaque"), (&tool, "trusted.overlay.redirect"), (&unpacked.join("d"), "trusted.overlay.opaque")]
    {
        assert_eq!(get(path, name), None, "{}: {name}", path.display());
    }
}

#[test]
fn device_nodes_have_their_numbers_and_pipes_theirs() {
    let bench = Bench::new();
    let entries = [
        dir("dev"),
        Entry { device: (1, 3), mode: 0o666, ..entry(EntryType::Char, "dev/null", "", b"") },
        Entry { device: (7, 4), mode: 0o660, owner: 6, ..entry(EntryType::Block, "dev/loop4", "", b"") },
    ];
    let unpacked = bench.plain(&layer(&entries)).expect("it unpacks");
    let meta = |name: &str| fs::symlink_metadata(unpacked.join("dev").join(name)).expect("stat");
    let (null, block) = (meta("null"), meta("loop4"));
    assert!(null.file_type().is_char_device() && block.file_type().is_block_device());
    assert_eq!((null.rdev(), block.rdev()), (rustix::fs::makedev(1, 3), rustix::fs::makedev(7, 4)));
    assert_eq!((null.mode() & 0o7777, block.mode() & 0o7777, block.gid()), (0o666, 0o660, 6));
}

#[test]
fn long_names_and_long_link_targets_in_both_forms() {
    let bench = Bench::new();
    let source = bench.path("tree");
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    fs::create_dir_all(source.join("d".repeat(200))).expect("make");
    fs::write(source.join(&long), "long").expect("write");
    std::os::unix::fs::symlink(&long, source.join("link")).expect("link");
    fs::hard_link(source.join(&long), source.join("z-again")).expect("link");
    for form in ["--format=gnu", "--format=pax"] {
        let content = run("tar", &[form, "--sort=name", "-C", &source.to_string_lossy(), "-c", "."], b"");
        let unpacked = bench.plain(&content).unwrap_or_else(|why| panic!("{form}: {why}"));
        assert_eq!(fs::read_to_string(unpacked.join("link")).expect("read"), "long", "{form}");
        assert_eq!(fs::metadata(unpacked.join("z-again")).expect("stat").nlink(), 2, "{form}");
    }
}

#[test]
fn a_name_in_an_extended_header_does_not_lead_out_either() {
    let bench = Bench::new();
    for (key, value) in [("path", "../evil"), ("path", "a/../../evil"), ("GNU.sparse.name", "../evil")] {
        let mut pax = vec![(key.to_owned(), value.as_bytes().to_vec())];
        if key != "path" {
            pax.extend([("GNU.sparse.map", "0,1"), ("GNU.sparse.size", "1")].map(|(key, value)| (key.to_owned(), value.into())));
        }
        let error = bench.plain(&layer(&[Entry { pax, ..file("good", "x") }])).expect_err("refused");
        assert!(error.contains("its path leads upwards"), "{key} {value}: {error}");
        assert!(!bench.path("evil").exists());
    }
}
