//! What is known of an image on this node, as values that commands and interfaces show.

use oci_spec::image::{Descriptor, ImageConfiguration};
use serde::Serialize;

use super::{Image, ImageError, Store};
use crate::core::bundle::ImageConfig;

/// All of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspected {
    /// Every name it has here.
    pub names: Vec<String>,
    /// Of its manifest.
    pub digest: String,
    /// Of its configuration; what Docker calls the image's id.
    pub config_digest: String,
    /// RFC 3339, empty when the image does not say.
    pub created: String,
    pub author: String,
    pub os: String,
    pub architecture: String,
    pub config: ImageConfig,
    pub layers: Vec<InspectedLayer>,
    /// Of all its blobs.
    pub bytes: u64,
}

/// One layer, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedLayer {
    pub blob: String,
    pub diff_id: String,
    /// Packed.
    pub bytes: u64,
}

/// One step of how an image was made, the first first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// RFC 3339, empty when the image does not say.
    pub created: String,
    pub created_by: String,
    pub comment: String,
    /// Of the layer that it made, packed; zero when it made none.
    pub bytes: u64,
    /// Of the layer that it made.
    pub diff_id: Option<String>,
}

impl Store {
    /// All that is known of the image.
    pub fn inspect(&self, name: &str) -> Result<Inspected, ImageError> {
        let image = self.find(name)?;
        let manifest = self.manifest(&image.digest)?;
        let configuration: ImageConfiguration = self.document(manifest.config())?;
        let digest = image.digest.to_string();
        let names = self.index()?.images.into_iter().filter(|(_, other)| *other == digest).map(|(name, _)| name);
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let layers = layers(&image, manifest.layers());
        Ok(Inspected {
            names: names.collect(),
            config_digest: manifest.config().digest().to_string(),
            created: text(configuration.created()),
            author: text(configuration.author()),
            os: configuration.os().to_string(),
            architecture: configuration.architecture().to_string(),
            bytes: manifest.config().size() + layers.iter().map(|layer| layer.bytes).sum::<u64>(),
            layers,
            config: image.config,
            digest,
        })
    }

    /// How the image was made, as it says itself.
    pub fn history(&self, name: &str) -> Result<Vec<Step>, ImageError> {
        let image = self.find(name)?;
        let manifest = self.manifest(&image.digest)?;
        let configuration: ImageConfiguration = self.document(manifest.config())?;
        let mut layers = layers(&image, manifest.layers()).into_iter();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let steps = configuration.history().iter().flatten().map(|step| {
            let layer = if step.empty_layer().unwrap_or(false) { None } else { layers.next() };
            Step {
                created: text(step.created()),
                created_by: text(step.created_by()),
                comment: text(step.comment()),
                bytes: layer.as_ref().map_or(0, |layer| layer.bytes),
                diff_id: layer.map(|layer| layer.diff_id),
            }
        });
        let mut steps: Vec<Step> = steps.collect();
        // Layers of which the history says nothing are there all the same.
        steps.extend(layers.map(|layer| Step {
            created: String::new(),
            created_by: String::new(),
            comment: String::new(),
            bytes: layer.bytes,
            diff_id: Some(layer.diff_id),
        }));
        Ok(steps)
    }
}

fn layers(image: &Image, described: &[Descriptor]) -> Vec<InspectedLayer> {
    let layers = image.layers.iter().zip(described).map(|(layer, described)| InspectedLayer {
        blob: layer.blob.to_string(),
        diff_id: layer.diff_id.to_string(),
        bytes: described.size(),
    });
    layers.collect()
}
