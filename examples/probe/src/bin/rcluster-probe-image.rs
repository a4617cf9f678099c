//! `rcluster-probe-image`: packs the probe as an OCI image, so that a lab needs no registry and no image builder.
//!
//! In: the static probe binary and the image's name. Out: a tar of an OCI image layout (image-spec, "image-layout.md") with one layer.
//! The same binary and name give the same bytes: no times, no owners but root, entries in a fixed order.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool whose output is its purpose")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

const PASSWD: &str = "root:x:0:0:root:/:/probe\napp:x:1000:1000:app:/:/probe\n";
const GROUP: &str = "root:x:0:\napp:x:1000:\n";

/// Packs the probe's binary as an OCI image layout in a tar.
#[derive(Debug, Parser)]
struct Config {
    /// The statically linked probe.
    #[arg(long)]
    binary: PathBuf,
    /// One more program for the image, and its path there; may be given several times.
    #[arg(long = "program", value_name = "FILE:PATH", value_parser = parse_program)]
    programs: Vec<(PathBuf, String)>,
    /// The image's name.
    #[arg(long = "ref", default_value = "rcluster/probe:demo")]
    reference: String,
    /// The tar to write.
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<()> {
    let config = Config::parse();
    let binary = std::fs::read(&config.binary).with_context(|| format!("read the probe {}", config.binary.display()))?;
    let read = |(file, path): &(PathBuf, String)| {
        let content = std::fs::read(file).with_context(|| format!("read the program {}", file.display()))?;
        Ok((path.clone(), content))
    };
    let programs = config.programs.iter().map(read).collect::<Result<_>>()?;
    let image = image(&binary, &programs, &config.reference, architecture()?)?;
    replace(&config.out, &image)?;
    println!("{}\t{}\t{} bytes", config.reference, config.out.display(), image.len());
    Ok(())
}

fn parse_program(text: &str) -> Result<(PathBuf, String), String> {
    match text.split_once(':') {
        Some((file, path)) if !file.is_empty() && !path.is_empty() && !path.starts_with('/') => Ok((file.into(), path.to_owned())),
        _ => Err(format!("{text:?} is not FILE:PATH, such as /bin/busybox:bin/busybox")),
    }
}

/// This build's processor in the words of the image-spec (Go's GOARCH).
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        "riscv64" => Ok("riscv64"),
        other => bail!("no name is known for the processor {other} in an OCI image"),
    }
}

/// Writes beside `out` and renames, so that a reader never sees half an image.
fn replace(out: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = out.file_name().with_context(|| format!("{} names no file", out.display()))?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let partial = out.with_file_name(name);
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, out));
    if let Err(error) = written {
        // The first failure is the one to tell; the partial file may not even exist.
        drop(std::fs::remove_file(&partial));
        return Err(error).with_context(|| format!("write the image {}", out.display()));
    }
    Ok(())
}

/// The whole image layout as a tar.
fn image(binary: &[u8], programs: &BTreeMap<String, Vec<u8>>, reference: &str, architecture: &str) -> Result<Vec<u8>> {
    let layer = layer(binary, programs).context("pack the layer")?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let packed = gzip.write_all(&layer).and_then(|()| gzip.finish()).context("compress the layer")?;
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/probe"], "Env": ["PATH=/"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
    })
    .to_string()
    .into_bytes();
    let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    named["platform"] = json!({"architecture": architecture, "os": "linux"});
    named["annotations"] = json!({"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named],
    });
    layout(&index, &[config, manifest, packed]).context("pack the image layout")
}

fn layout(index: &Value, blobs: &[Vec<u8>]) -> std::io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "oci-layout", 0o644, json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
    file(&mut tar, "index.json", 0o644, index.to_string().as_bytes())?;
    directory(&mut tar, "blobs/", 0o755)?;
    directory(&mut tar, "blobs/sha256/", 0o755)?;
    for blob in blobs {
        file(&mut tar, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob)?;
    }
    tar.into_inner()
}

fn layer(binary: &[u8], programs: &BTreeMap<String, Vec<u8>>) -> std::io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    directory(&mut tar, "dev/", 0o755)?;
    directory(&mut tar, "etc/", 0o755)?;
    file(&mut tar, "etc/group", 0o644, GROUP.as_bytes())?;
    file(&mut tar, "etc/passwd", 0o644, PASSWD.as_bytes())?;
    file(&mut tar, "probe", 0o755, binary)?;
    directory(&mut tar, "proc/", 0o755)?;
    directory(&mut tar, "sys/", 0o755)?;
    directory(&mut tar, "tmp/", 0o1777)?;
    for (path, content) in programs {
        file(&mut tar, path, 0o755, content)?;
    }
    tar.into_inner()
}

fn file(tar: &mut Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> std::io::Result<()> {
    entry(tar, path, EntryType::Regular, mode, content)
}

fn directory(tar: &mut Builder<Vec<u8>>, path: &str, mode: u32) -> std::io::Result<()> {
    entry(tar, path, EntryType::Directory, mode, &[])
}

fn entry(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, mode: u32, content: &[u8]) -> std::io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let hex: Vec<String> = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", hex.concat())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use flate2::read::GzDecoder;
    use serde_json::Value;
    use tar::Archive;

    use super::{digest, image};

    /// The files and directories of a tar with their modes.
    fn entries(tar: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for entry in Archive::new(tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(entry.path().unwrap().display().to_string(), (entry.header().mode().unwrap(), content));
        }
        found
    }

    #[test]
    fn the_same_binary_gives_the_same_image() {
        assert_eq!(image(b"elf", &BTreeMap::new(), "a:b", "amd64").unwrap(), image(b"elf", &BTreeMap::new(), "a:b", "amd64").unwrap());
    }

    #[test]
    fn the_image_leads_from_its_name_to_the_binary() {
        let files =
            entries(&image(b"elf", &BTreeMap::from([("bin/tool".to_owned(), b"tool".to_vec())]), "rcluster/probe:demo", "amd64").unwrap());
        let read = |path: &str| -> Value { serde_json::from_slice(&files[path].1).unwrap() };
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap();
            let content = files[&format!("blobs/{}", name.replace(':', "/"))].1.clone();
            assert_eq!((digest(&content).as_str(), content.len() as u64), (name, descriptor["size"].as_u64().unwrap()));
            content
        };
        assert_eq!(read("oci-layout")["imageLayoutVersion"], "1.0.0");
        let named = &read("index.json")["manifests"][0];
        assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "rcluster/probe:demo");
        assert_eq!(named["annotations"]["io.containerd.image.name"], "rcluster/probe:demo");
        let manifest: Value = serde_json::from_slice(&blob(named)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/probe");
        let mut layer = Vec::new();
        GzDecoder::new(&blob(&manifest["layers"][0])[..]).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let root = entries(&layer);
        assert_eq!(root["probe"], (0o755, b"elf".to_vec()));
        assert_eq!(root["bin/tool"], (0o755, b"tool".to_vec()));
        assert_eq!(root["tmp/"].0, 0o1777);
        for directory in ["dev/", "etc/", "proc/", "sys/"] {
            assert_eq!(root[directory].0, 0o755, "{directory}");
        }
    }
}
