//! `rcluster-bench pull`: how long it takes until an image of a registry is there and unpacked, beside what others take for the same.
//!
//! One registry on loopback, one image of five layers. Everyone starts from empty directories, one after the other in each round, with the
//! disk's queue emptied before; the trees that come out are compared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use crate::lab::{bin_dir, wait_for};

const LAYERS: usize = 5;
const LAYER_BYTES: usize = 60 << 20;
/// Sizes of files, over and over: many small ones and a few large ones, as in a distribution's packages.
const FILE_BYTES: [usize; 8] = [900, 3_000, 9_000, 700, 20_000, 64_000, 4_000, 400_000];
const PATIENCE: Duration = Duration::from_secs(30);
const NAME: &str = "bench/five:1";

/// Who is measured: the name in the table, and the programs that it takes.
const OTHERS: [(&str, &[&str]); 2] =
    [("skopeo copy + umoci unpack", &["skopeo", "umoci"]), ("containerd, ctr image pull", &["containerd", "ctr"])];
const OURS: &str = "rcluster-agent image pull";

/// Measures, and prints a table.
#[allow(clippy::print_stdout, reason = "the table is the product")]
pub fn run(rounds: usize) -> Result<()> {
    ensure!(rounds > 0, "--rounds: at least one");
    for program in ["docker-registry", "skopeo"] {
        ensure!(is_installed(program), "{program} is not installed: without it there is nothing to pull from (make tools)");
    }
    let dir = tempfile::tempdir().context("make a directory")?;
    let registry = Registry::start(dir.path())?;
    let image = format!("{}/{NAME}", registry.addr);
    let bytes = push(dir.path(), &image)?;
    let missing: Vec<(&str, &str)> =
        OTHERS.iter().flat_map(|(who, programs)| programs.iter().filter(|p| !is_installed(p)).map(|p| (*who, *p))).collect();
    for (who, program) in &missing {
        println!("{program} is not installed: {who} is left out");
    }
    let others = OTHERS.iter().map(|(who, _)| *who).filter(|who| missing.iter().all(|(other, _)| other != who));
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let order: Vec<&str> = std::iter::once(OURS).chain(others).collect();
    for round in 0..rounds {
        let mut trees = BTreeMap::new();
        for index in 0..order.len() {
            // Nobody is always the first.
            let who = order[(index + round) % order.len()];
            let place = dir.path().join(format!("round-{round}-{index}"));
            fs::create_dir(&place).context("make a directory")?;
            rustix::fs::sync();
            let (took, roots) = measure(who, &registry.addr, &image, &place).with_context(|| who.to_owned())?;
            trees.insert(who, listing(&roots)?);
            times.entry(who).or_default().push(took.as_secs_f64());
            fs::remove_dir_all(&place).context("remove what came")?;
        }
        let first = &trees[OURS];
        for (who, tree) in &trees {
            ensure!(tree == first, "{who} has another tree than {OURS}: {tree:?}, {first:?}");
        }
    }
    let files = LAYERS * plan().len();
    println!(
        "{LAYERS} layers, {files} files, {} MB unpacked, {} MB packed (gzip), {rounds} rounds, equal trees\n",
        total_mb(),
        bytes / 1_000_000
    );
    println!("| pull and unpack | median | min | max | of ours |\n|---|---|---|---|---|");
    let median = |times: &[f64]| times[times.len() / 2];
    for times in times.values_mut() {
        times.sort_by(f64::total_cmp);
    }
    for who in &order {
        let own = &times[who];
        let ratio = median(own) / median(&times[OURS]);
        println!("| {who} | {:.2} s | {:.2} | {:.2} | {ratio:.2} x |", median(own), own[0], own[own.len() - 1]);
    }
    Ok(())
}

/// How long it took, and the directories over which the tree is spread.
fn measure(who: &str, addr: &str, image: &str, place: &Path) -> Result<(Duration, Vec<PathBuf>)> {
    let path = |name: &str| place.join(name).to_string_lossy().into_owned();
    if who == OURS {
        let agent = bin_dir()?.join("rcluster-agent");
        let began = Instant::now();
        did(Command::new(agent).args(["image", "pull", image, "--state-dir", &path("state"), "--registry-plain-http", addr]))?;
        return Ok((began.elapsed(), dirs(&place.join("state/images/layers"), "")?));
    }
    if who == OTHERS[0].0 {
        let layout = format!("{}:five", path("layout"));
        let began = Instant::now();
        let copy = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"];
        did(Command::new("skopeo").args(copy).args([&format!("docker://{image}"), &format!("oci:{layout}")]))?;
        did(Command::new("umoci").args(["unpack", "--image", &layout, &path("bundle")]))?;
        return Ok((began.elapsed(), vec![place.join("bundle/rootfs")]));
    }
    let daemon = Containerd::start(place)?;
    let began = Instant::now();
    did(Command::new("ctr").args(["--address", &path("sock"), "image", "pull", "--plain-http", image]))?;
    let took = began.elapsed();
    drop(daemon);
    Ok((took, dirs(&place.join("root/io.containerd.snapshotter.v1.overlayfs/snapshots"), "fs")?))
}

/// Runs a program to its end.
fn did(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|paths| std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()))
}

/// The directories in `dir`, each with `below` at its end.
fn dirs(dir: &Path, below: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).map(|path| path.join(below)).collect();
    paths.sort();
    Ok(paths)
}

/// How many files there are, and a digest of their names, modes, owners, sizes, times and contents.
fn listing(roots: &[PathBuf]) -> Result<(usize, u64)> {
    let mut lines = Vec::new();
    for root in roots {
        list(root, root, &mut lines).with_context(|| format!("read {}", root.display()))?;
    }
    lines.sort();
    let mut hasher = DefaultHasher::new();
    lines.iter().for_each(|line| hasher.write(line.as_bytes()));
    Ok((lines.len(), hasher.finish()))
}

fn list(root: &Path, dir: &Path, lines: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            list(root, &entry.path(), lines)?;
            continue;
        }
        let mut hasher = DefaultHasher::new();
        let mut file = File::open(entry.path())?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => hasher.write(&buffer[..count]),
            }
        }
        let path = entry.path();
        let shown = path.strip_prefix(root).unwrap_or(&path).display();
        let (mode, time) = (meta.permissions().mode(), meta.mtime());
        lines.push(format!("{shown} {mode:o} {} {} {} {time} {:x}\n", meta.uid(), meta.gid(), meta.size(), hasher.finish()));
    }
    Ok(())
}

/// The sizes of a layer's files.
fn plan() -> Vec<usize> {
    let mut left = LAYER_BYTES;
    let mut sizes = Vec::new();
    for size in FILE_BYTES.iter().cycle() {
        if *size > left {
            break;
        }
        left -= size;
        sizes.push(*size);
    }
    sizes
}

fn total_mb() -> usize {
    LAYERS * plan().iter().sum::<usize>() / 1_000_000
}

/// Makes the image and pushes it; the bytes of its packed layers.
fn push(dir: &Path, image: &str) -> Result<u64> {
    let layout = dir.join("source");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("make the image")?;
    let put = |bytes: &[u8]| -> Result<String> {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&hex), bytes).context("make the image")?;
        Ok(format!("sha256:{hex}"))
    };
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for number in 0..LAYERS {
        let tar = layer(number).context("make a layer")?;
        let digest = put(&tar)?;
        layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": tar.len()}));
        diff_ids.push(digest);
    }
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"architecture": arch, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
    let config_digest = put(config.as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
        "layers": layers,
    });
    let manifest = manifest.to_string();
    let digest = put(manifest.as_bytes())?;
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "five"},
    }]});
    fs::write(layout.join("index.json"), index.to_string()).context("make the image")?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("make the image")?;
    let copy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--dest-compress-format=gzip"];
    let (from, to) = (format!("oci:{}:five", layout.display()), format!("docker://{image}"));
    did(Command::new("skopeo").args(copy).args([&from, &to]))?;
    fs::remove_dir_all(&layout).context("remove the image's source")?;
    let output = Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &to]).output().context("run skopeo")?;
    let manifest: serde_json::Value = serde_json::from_slice(&output.stdout).context("read the pushed manifest")?;
    let sizes = manifest["layers"].as_array().into_iter().flatten().filter_map(|layer| layer["size"].as_u64());
    Ok(sizes.sum())
}

/// Each layer has directories of its own, so that a tree is the same however its layers are kept. Half of each file can be compressed.
fn layer(number: usize) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::with_capacity(LAYER_BYTES + (8 << 20)));
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
    for (index, size) in plan().into_iter().enumerate() {
        let mut content = Vec::with_capacity(size + 64);
        while content.len() < size {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            content.write_all(&noise.to_le_bytes())?;
            content.write_all(b"the same")?;
        }
        content.truncate(size);
        let mut header = Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(if index % 7 == 0 { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000 + index as u64);
        archive.append_data(&mut header, format!("usr/layer{number}/dir{}/file{index}", index % 40), content.as_slice())?;
    }
    archive.into_inner()
}

/// Debian's docker-registry with a directory of its own; ends with the value.
struct Registry {
    addr: String,
    process: Child,
}

impl Registry {
    fn start(dir: &Path) -> Result<Self> {
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n",
            dir.join("registry").display()
        );
        fs::write(&config, text).context("write the registry's configuration")?;
        let mut command = Command::new("docker-registry");
        let mut process =
            command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("run docker-registry")?;
        let log = process.stderr.take();
        let mut registry = Self { addr: String::new(), process };
        let (sender, said) = mpsc::channel();
        // Reads for as long as the registry writes, so that it never waits for a reader.
        thread::spawn(move || {
            for line in log.into_iter().flat_map(|log| BufReader::new(log).lines()).map_while(io::Result::ok) {
                if let Some(addr) = line.split("listening on ").nth(1) {
                    drop(sender.send(addr.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect::<String>()));
                }
            }
        });
        registry.addr = said.recv_timeout(PATIENCE).context("docker-registry does not say where it listens")?;
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop((self.process.kill(), self.process.wait()));
    }
}

/// containerd on directories and a socket of its own, without what Kubernetes needs; ends with the value.
struct Containerd(Child);

impl Containerd {
    fn start(place: &Path) -> Result<Self> {
        let path = |name: &str| place.join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("sock")
        );
        fs::write(path("containerd.toml"), config).context("write containerd's configuration")?;
        let log = File::create(path("log")).context("write containerd's log")?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(path("containerd.toml")).stdout(Stdio::null()).stderr(log);
        let mut daemon = Self(command.spawn().context("run containerd")?);
        let sock = path("sock").to_string_lossy().into_owned();
        wait_for("containerd answers", PATIENCE, || {
            if daemon.0.try_wait()?.is_some() {
                bail!("containerd has ended: {}", fs::read_to_string(path("log")).unwrap_or_default());
            }
            let asked = Command::new("ctr").args(["--address", &sock, "version"]).output()?;
            Ok(asked.status.success().then_some(()))
        })?;
        Ok(daemon)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}
