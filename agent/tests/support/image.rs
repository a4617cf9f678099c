//! OCI image layouts made on the spot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// One entry of a layer.
pub struct Entry {
    pub path: String,
    pub kind: EntryType,
    pub link: String,
    pub mode: u32,
    pub owner: u64,
    pub device: (u32, u32),
    /// Records of an extended header before it.
    pub pax: Vec<(String, Vec<u8>)>,
    pub data: Vec<u8>,
}

pub fn entry(kind: EntryType, path: &str, link: &str, data: &[u8]) -> Entry {
    let mode = if kind == EntryType::Directory { 0o755 } else { 0o644 };
    Entry { path: path.into(), kind, link: link.into(), mode, owner: 0, device: (0, 0), pax: Vec::new(), data: data.to_vec() }
}

pub fn file(path: &str, data: &str) -> Entry {
    entry(EntryType::Regular, path, "", data.as_bytes())
}

pub fn dir(path: &str) -> Entry {
    entry(EntryType::Directory, path, "", b"")
}

pub fn symlink(path: &str, to: &str) -> Entry {
    entry(EntryType::Symlink, path, to, b"")
}

pub fn hard_link(path: &str, to: &str) -> Entry {
    entry(EntryType::Link, path, to, b"")
}

/// A tar archive of the entries, their names as they are, however hostile.
pub fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        if !entry.pax.is_empty() {
            let records = entry.pax.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            builder.append_pax_extensions(records).expect("append");
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner);
        header.set_gid(entry.owner);
        header.set_mtime(1_000_000_000);
        header.set_size(entry.data.len() as u64);
        if matches!(entry.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(entry.device.0).expect("a number");
            header.set_device_minor(entry.device.1).expect("a number");
        }
        let old = header.as_old_mut();
        old.name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        old.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        builder.append(&header, entry.data.as_slice()).expect("append");
    }
    builder.into_inner().expect("finish")
}

/// An image layout in the making.
pub struct Layout {
    dir: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("make the layout");
        fs::write(dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").expect("write");
        Self { dir: dir.to_path_buf(), manifests: Vec::new() }
    }

    /// Adds an image of uncompressed layers.
    pub fn image(&mut self, name: &str, config: &Value, layers: &[Vec<u8>]) -> &mut Self {
        let packed: Vec<(Vec<u8>, &str)> = layers.iter().map(|layer| (layer.clone(), "application/vnd.oci.image.layer.v1.tar")).collect();
        self.image_packed(name, config, layers, &packed)
    }

    /// Adds an image of uncompressed layers, with more in its configuration.
    pub fn image_more(&mut self, name: &str, config: &Value, more: &Value, layers: &[Vec<u8>]) -> &mut Self {
        let packed: Vec<(Vec<u8>, &str)> = layers.iter().map(|layer| (layer.clone(), "application/vnd.oci.image.layer.v1.tar")).collect();
        self.add(name, config, more, layers, &packed)
    }

    /// Adds an image whose blobs are given beside the unpacked layers.
    pub fn image_packed(&mut self, name: &str, config: &Value, layers: &[Vec<u8>], packed: &[(Vec<u8>, &str)]) -> &mut Self {
        self.add(name, config, &json!({}), layers, packed)
    }

    fn add(&mut self, name: &str, config: &Value, more: &Value, layers: &[Vec<u8>], packed: &[(Vec<u8>, &str)]) -> &mut Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
        let mut configuration = json!({
            "architecture": arch(), "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        for (key, value) in more.as_object().expect("an object") {
            configuration[key] = value.clone();
        }
        let configuration = self.blob(configuration.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let layers: Vec<Value> = packed.iter().map(|(bytes, kind)| self.blob(bytes, kind)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": configuration, "layers": layers,
        });
        let mut descriptor = self.blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        if !name.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.dir.join("index.json"), index.to_string()).expect("write");
        self
    }

    /// The layout as a tar archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        builder.append_dir_all(".", &self.dir).expect("archive");
        builder.into_inner().expect("finish")
    }

    fn blob(&self, bytes: &[u8], kind: &str) -> Value {
        let hex = hex(bytes);
        fs::write(self.dir.join("blobs/sha256").join(&hex), bytes).expect("write");
        json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    }
}

/// A layer with the host's own shell and a few programs, and the libraries they need.
pub fn shell_layer() -> Vec<u8> {
    let mut entries = vec![dir("bin"), dir("etc"), dir("tmp"), file("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n")];
    let mut copied = std::collections::BTreeSet::new();
    for program in ["sh", "sleep", "cat", "id"] {
        let path = format!("/bin/{program}");
        entries.push(Entry { mode: 0o755, ..entry(EntryType::Regular, &path, "", &fs::read(&path).expect("read the program")) });
        let libraries = Command::new("ldd").arg(&path).output().expect("ldd").stdout;
        for word in String::from_utf8(libraries).expect("text").split_whitespace().filter(|word| word.starts_with('/')) {
            if copied.insert(word.to_owned()) {
                entries.push(Entry { mode: 0o755, ..entry(EntryType::Regular, word, "", &fs::read(word).expect("read the library")) });
            }
        }
    }
    layer(&entries)
}

pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
