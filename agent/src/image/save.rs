//! Writes images as a tar archive of an OCI image layout, as `docker save` does since version 25: with the `manifest.json` that older
//! tools read. Blobs go as they are, so digests stay the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};

use oci_spec::image::Digest;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::load::{NAME, REF_NAME};
use super::{ImageError, Store, io_error, normalise, sha256};
use crate::core::reference::Reference;

impl Store {
    /// Writes the images to `out`, each blob once.
    pub fn save(&self, names: &[&str], out: impl Write) -> Result<(), ImageError> {
        let failed = |source| ImageError::Write { what: "archive of images", source };
        let mut archive = Builder::new(out);
        let (mut manifests, mut docker, mut blobs, mut leases) = (Vec::new(), Vec::new(), BTreeSet::new(), Vec::new());
        for name in names {
            let full = Reference::parse(name).map_err(ImageError::Name)?.full();
            let (image, lease) = self.hold(name)?;
            // Held until all is written.
            leases.push(lease);
            let manifest = self.manifest(&image.digest)?;
            let config = sha256(manifest.config().digest().clone())?;
            let layers: Vec<&Digest> = image.layers.iter().map(|layer| &layer.blob).collect();
            let kind = manifest.media_type().as_ref().map_or_else(|| MANIFEST.to_owned(), ToString::to_string);
            let bytes = std::fs::metadata(self.blob(&image.digest)).map_err(io_error("look at", &self.blob(&image.digest)))?.len();
            manifests.push(json!({
                "mediaType": kind, "digest": image.digest.to_string(), "size": bytes,
                "annotations": BTreeMap::from([(NAME, full.as_str()), (REF_NAME, full.as_str())]),
            }));
            docker.push(docker_entry(&normalise(name)?, &config, &layers));
            blobs.extend([&image.digest, &config].into_iter().chain(layers).map(|digest| digest.digest().to_owned()));
        }
        append_dir(&mut archive, "blobs/").map_err(failed)?;
        append_dir(&mut archive, "blobs/sha256/").map_err(failed)?;
        for hex in &blobs {
            let path = self.dir.join("blobs/sha256").join(hex);
            let file = File::open(&path).map_err(io_error("open blob", &path))?;
            let bytes = file.metadata().map_err(io_error("look at", &path))?.len();
            append(&mut archive, &format!("blobs/sha256/{hex}"), bytes, file).map_err(failed)?;
        }
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
        for (name, document) in
            [("index.json", index), ("manifest.json", Value::Array(docker)), ("oci-layout", json!({"imageLayoutVersion": "1.0.0"}))]
        {
            let text = document.to_string();
            append(&mut archive, name, text.len() as u64, text.as_bytes()).map_err(failed)?;
        }
        archive.into_inner().and_then(|mut out| out.flush()).map_err(failed)
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What Docker before version 25 reads (moby, `image/tarexport`). It knows tags only.
fn docker_entry(name: &str, config: &Digest, layers: &[&Digest]) -> Value {
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.digest());
    let tags: Vec<&str> = if name.contains('@') { Vec::new() } else { vec![name] };
    json!({"Config": path(config), "RepoTags": tags, "Layers": layers.iter().map(|layer| path(layer)).collect::<Vec<_>>()})
}

fn append_dir(archive: &mut Builder<impl Write>, name: &str) -> io::Result<()> {
    let mut header = header(0o755, 0);
    header.set_entry_type(EntryType::Directory);
    archive.append_data(&mut header, name, io::empty())
}

fn append(archive: &mut Builder<impl Write>, name: &str, bytes: u64, content: impl Read) -> io::Result<()> {
    archive.append_data(&mut header(0o644, bytes), name, content)
}

/// The same for the same images: no owner, no time.
fn header(mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
