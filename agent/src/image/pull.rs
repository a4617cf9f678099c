//! Pulls images: layers in parallel, each unpacked while it arrives, each once however many images and tasks want it.
//!
//! ```text
//! ensure(name, policy) ─► flight per name ─► manifest, configuration ─► lease ─► flight per layer ─► documents ─► name
//!                                                                                 │ registry ──chunks──► thread: hash, write, unpack
//! ```
//!
//! An image gets its name when all it needs is verified and in its place. Who stops waiting takes part no more; the last one's
//! leaving ends the work, and what had come of a layer is used by the next pull.

use std::fmt;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use oci_spec::image::{Arch, ImageConfiguration, Os};
use rcluster_api::container::PullPolicy;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Duration, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::flight::{Flight, Flights};
use super::registry::{Client, Found, Repository};
use super::take::{Intake, LayerProgress, Taken, Wanted};
use super::{ImageError, Store, parse_digest, sha256};
use crate::core::reference::Reference;

/// How far a pull has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Empty until the manifest is known.
    pub layers: Vec<LayerProgress>,
}

/// As a person reads it: `pulling 3/5 layers, 120/300 MB`.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MB: f64 = 1e6;
        if self.layers.is_empty() {
            return f.write_str("pulling");
        }
        let done = self.layers.iter().filter(|layer| layer.done).count();
        #[allow(clippy::cast_precision_loss, reason = "shown with one digit after the point at most")]
        let (bytes, total) = (
            self.layers.iter().map(|layer| layer.bytes).sum::<u64>() as f64 / MB,
            self.layers.iter().map(|layer| layer.bytes_total).sum::<u64>() as f64 / MB,
        );
        let digits = usize::from(total < 10.0);
        write!(f, "pulling {done}/{} layers, {bytes:.digits$}/{total:.digits$} MB", self.layers.len())
    }
}

/// Brings images to this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Puller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    client: Client,
    images: Flights<Progress>,
    layers: Flights<LayerProgress>,
    slots: Semaphore,
}

/// So many layers are transferred and unpacked at once. Each holds a blocking thread, of which the agent must have more.
const LAYERS_MAX_AT_ONCE: usize = 4;
/// Chunks between connection and disk; one has 256 KiB at most, so that a layer holds about 2 MiB.
const CHUNKS_MAX: usize = 8;
/// No image in use comes near it; overlayfs has its own limit below.
const LAYERS_MAX: usize = 500;
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Wrong bytes may be one mirror's, or left over from an earlier try.
const MISMATCHES_MAX: usize = 2;

impl Puller {
    pub fn new(store: Store, client: Client) -> Self {
        let (images, layers) = (Flights::default(), Flights::default());
        Self(Arc::new(Inner { store, client, images, layers, slots: Semaphore::new(LAYERS_MAX_AT_ONCE) }))
    }

    /// Sees to it that the node has the image; tells how far it has come while it is pulled.
    pub async fn ensure(&self, name: &str, policy: PullPolicy, told: &watch::Sender<Progress>) -> Result<(), ImageError> {
        let reference = Reference::parse(name).map_err(ImageError::Name)?;
        match (self.find(&reference).await, policy) {
            (Ok(()), PullPolicy::Always) if reference.digest().is_none() => self.pull(&reference, told).await,
            (done, PullPolicy::Never) | (done @ Ok(()), _) => done,
            // Absent, or damaged: a pull puts right what is.
            (Err(_), PullPolicy::Missing | PullPolicy::Always) => self.pull(&reference, told).await,
        }
    }

    /// Pulls, whether the node has the image or not.
    pub async fn pull(&self, reference: &Reference, told: &watch::Sender<Progress>) -> Result<(), ImageError> {
        let (inner, named) = (Arc::clone(&self.0), reference.clone());
        let begin = |told| async move { inner.pull(&named, &told).await.map_err(Arc::new) };
        let Flight { mut progress, mut work } = self.0.images.join(&reference.to_string(), begin);
        loop {
            tokio::select! {
                landed = &mut work => return landed.map_err(ImageError::Shared),
                Ok(()) = progress.changed() => drop(told.send_replace(progress.borrow_and_update().clone())),
            }
        }
    }

    async fn find(&self, reference: &Reference) -> Result<(), ImageError> {
        let (store, name) = (self.0.store.clone(), reference.to_string());
        blocking(move || store.find(&name).map(drop)).await
    }
}

impl Inner {
    async fn pull(self: Arc<Self>, reference: &Reference, told: &watch::Sender<Progress>) -> Result<(), ImageError> {
        let name = reference.to_string();
        let repository = Arc::new(self.client.repository(reference));
        let found = repository.find().await?;
        let configuration = repository.document(found.manifest.config()).await?;
        let wanted = wanted(&name, &found, &configuration)?;
        let config = sha256(found.manifest.config().digest().clone())?;
        let manifest = parse_digest(&found.digest)?;
        let digests: Vec<String> = [&manifest, &config]
            .into_iter()
            .chain(wanted.iter().flat_map(|layer| [&layer.blob, &layer.diff_id]))
            .map(|digest| digest.digest().to_owned())
            .collect();
        let store = self.store.clone();
        // Until the name is written, nothing else keeps what comes in from being collected.
        let _lease = blocking(move || store.lease(digests.iter().map(String::as_str))).await?;
        self.layers(&repository, &wanted, told).await?;
        info!(image = name, digest = found.digest, layers = wanted.len(), "pulled");
        let store = self.store.clone();
        blocking(move || {
            store.put_document(&config, &configuration)?;
            store.put_document(&manifest, &found.bytes)?;
            store.name(&[(name, manifest.to_string())])
        })
        .await
    }

    async fn layers(
        self: &Arc<Self>,
        repository: &Arc<Repository>,
        wanted: &[Wanted],
        told: &watch::Sender<Progress>,
    ) -> Result<(), ImageError> {
        let flights: Vec<Flight<LayerProgress>> = wanted.iter().map(|layer| self.layer(repository, layer)).collect();
        let receivers: Vec<_> = flights.iter().map(|flight| flight.progress.clone()).collect();
        let look = || {
            let of_layer = |(receiver, wanted): (&watch::Receiver<LayerProgress>, &Wanted)| {
                // A layer that has not had its turn yet does not know how large it is.
                LayerProgress { bytes_total: wanted.bytes, ..*receiver.borrow() }
            };
            let now = Progress { layers: receivers.iter().zip(wanted).map(of_layer).collect() };
            told.send_if_modified(|told| (*told != now).then(|| told.clone_from(&now)).is_some());
        };
        let mut landing: FuturesUnordered<_> = flights.into_iter().map(|flight| flight.work).collect();
        // Often enough for a person, seldom enough for the managers that are told.
        let mut tick = interval(PROGRESS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                landed = landing.next() => match landed {
                    Some(landed) => landed.map_err(ImageError::Shared)?,
                    None => break,
                },
                _ = tick.tick() => look(),
            }
        }
        look();
        Ok(())
    }

    fn layer(self: &Arc<Self>, repository: &Arc<Repository>, wanted: &Wanted) -> Flight<LayerProgress> {
        let (inner, repository, wanted) = (Arc::clone(self), Arc::clone(repository), wanted.clone());
        // The pair, not the blob: which content a blob has to hold is a claim of the image that names it.
        let key = format!("{} {}", wanted.blob, wanted.diff_id);
        self.layers.join(&key, |told| async move { inner.bring(&repository, &wanted, told).await.map_err(Arc::new) })
    }

    async fn bring(&self, repository: &Repository, wanted: &Wanted, told: watch::Sender<LayerProgress>) -> Result<(), ImageError> {
        let _slot = self.slots.acquire().await.expect("it is never closed");
        for mismatches in 0..MISMATCHES_MAX {
            match self.bring_once(repository, wanted, &told, mismatches).await? {
                Taken::Whole => return Ok(()),
                Taken::Mismatch { got } => warn!(blob = %wanted.blob, got, "a layer came with other bytes than its digest says"),
            }
        }
        Err(repository.mismatch(&wanted.blob).into())
    }

    async fn bring_once(
        &self,
        repository: &Repository,
        wanted: &Wanted,
        told: &watch::Sender<LayerProgress>,
        mismatches: usize,
    ) -> Result<Taken, ImageError> {
        let (chunks_in, chunks) = mpsc::channel(CHUNKS_MAX);
        let (from, wanted_from) = oneshot::channel();
        let (store, layer) = (self.store.clone(), wanted.clone());
        let intake = Intake { from, chunks, progress: told.clone() };
        let taking = blocking(move || store.take_layer(&layer, intake));
        let streaming = async move {
            match wanted_from.await {
                // The channel goes with this block, and with it the hope for more bytes.
                Ok(offset) => repository.stream(&wanted.blob, wanted.bytes, offset, &chunks_in, mismatches).await,
                // Nothing is missing, or the taking has failed and says why.
                Err(_) => Ok(()),
            }
        };
        let (streamed, taken) = tokio::join!(streaming, taking);
        // A taking that lacks bytes fails for want of them, which is not the reason.
        streamed?;
        taken
    }
}

/// What has to be brought for an image, once its documents were found in order.
fn wanted(name: &str, found: &Found, configuration: &[u8]) -> Result<Vec<Wanted>, ImageError> {
    let refused = |why: String| ImageError::refused(format!("image {name:?}"), why);
    let configuration: ImageConfiguration =
        serde_json::from_slice(configuration).map_err(|error| refused(format!("its configuration: {error}")))?;
    let arch = Arch::default();
    if *configuration.os() != Os::Linux || *configuration.architecture() != arch {
        let platform = format!("{}/{}", configuration.os(), configuration.architecture());
        return Err(refused(format!("it is for {platform} and this node is linux/{arch}")));
    }
    let layers = found.manifest.layers();
    let diff_ids = configuration.rootfs().diff_ids();
    if diff_ids.len() != layers.len() {
        return Err(refused(format!("its manifest names {} layers and its configuration {}", layers.len(), diff_ids.len())));
    }
    if layers.len() > LAYERS_MAX {
        return Err(refused(format!("it has {} layers, more than {LAYERS_MAX}", layers.len())));
    }
    let wanted = layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| Ok(Wanted { blob: sha256(layer.digest().clone())?, bytes: layer.size(), diff_id: parse_digest(diff_id)? }));
    wanted.collect()
}

/// Runs what waits for the disk on a thread that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ImageError> + Send + 'static) -> Result<T, ImageError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(ImageError::Interrupted { what: format!("work on an image: {error}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_as_a_person_says_it() {
        let layer = |bytes, bytes_total, done| LayerProgress { bytes, bytes_total, done };
        let progress = Progress { layers: vec![layer(100_000_000, 100_000_000, true), layer(20_400_000, 200_000_000, false)] };
        assert_eq!(progress.to_string(), "pulling 1/2 layers, 120/300 MB");
        assert_eq!(Progress { layers: vec![layer(1_250_000, 2_500_000, false)] }.to_string(), "pulling 0/1 layers, 1.2/2.5 MB");
        assert_eq!(Progress::default().to_string(), "pulling");
    }
}
