//! Removes images by itself, as `core::image_gc` decides, and says so in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use rcluster_api::resource::Bytes;
use rcluster_base::clock::unix_ms;
use rustix::fs::statvfs;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::gc::Collected;
use super::{ImageError, Listed, Store, io_error};
use crate::core::image_gc::{Candidate, Disk, Limits, Reason, needs_room, next};

/// Looks after the disk from time to time.
#[derive(Debug)]
pub struct Housekeeper {
    pub store: Store,
    pub limits: Limits,
    pub every: Duration,
}

/// What one look has brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swept {
    pub collected: Collected,
    /// Room is wanted, and no image is left that may go.
    pub starved: bool,
}

impl Housekeeper {
    /// Never ends by itself.
    pub async fn run(self) -> Infallible {
        let Self { store, limits, every } = self;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_starved = false;
        loop {
            ticks.tick().await;
            let store = store.clone();
            let swept = spawn_blocking(move || sweep(&store, &limits)).await;
            match swept {
                Ok(Ok(Swept { starved, .. })) => {
                    // Once, not every time: it stays so until somebody acts.
                    if starved && !was_starved {
                        warn!(
                            above_percent = limits.low_percent,
                            "the disk of the state directory is full and no unused image is left to remove: stop tasks or free other files"
                        );
                    }
                    was_starved = starved;
                }
                Ok(Err(error)) => error!(%error, "cannot remove unused images"),
                Err(error) => error!(%error, "removing unused images broke off"),
            }
        }
    }
}

/// Removes images until the limits are kept, one after the other.
pub fn sweep(store: &Store, limits: &Limits) -> Result<Swept, ImageError> {
    let mut swept = Swept::default();
    let mut refused = BTreeSet::new();
    let mut disk = look(&store.dir)?;
    let mut room = needs_room(disk, false, limits);
    if room {
        // What has no name goes before anything that has one.
        swept.take(store.collect()?);
        disk = look(&store.dir)?;
        room = needs_room(disk, true, limits);
    }
    loop {
        let images: Vec<Candidate> = candidates(store.list()?).into_iter().filter(|image| !refused.contains(&image.names)).collect();
        let Some((image, reason)) = next(&images, room, limits, unix_ms()) else { break };
        let forgotten = store.forget_unused(|name| image.names.iter().any(|own| own == name))?;
        if forgotten.is_empty() {
            // It came into use since it was looked at.
            refused.insert(image.names.clone());
            continue;
        }
        let collected = Collected { names: forgotten, ..store.collect()? };
        let before = disk;
        disk = look(&store.dir)?;
        info!(
            images = collected.names.join(", "),
            why = match reason {
                Reason::Age => "not used for too long",
                Reason::Room => "the disk is filling up",
            },
            freed = Bytes(collected.bytes).human(),
            disk_percent_before = before.used_percent(),
            disk_percent = disk.used_percent(),
            "removed an unused image"
        );
        swept.take(collected);
        room = needs_room(disk, room, limits);
    }
    swept.starved = room;
    Ok(swept)
}

impl Swept {
    fn take(&mut self, Collected { names, layers, blobs, bytes }: Collected) {
        self.collected.names.extend(names);
        self.collected.layers += layers;
        self.collected.blobs += blobs;
        self.collected.bytes += bytes;
    }
}

/// One image may have several names: it goes under all of them or stays.
fn candidates(listed: Vec<Listed>) -> Vec<Candidate> {
    let mut images = BTreeMap::<String, Candidate>::new();
    for Listed { name, digest, in_use, used_at_ms, bytes: _, created: _ } in listed {
        let image = images.entry(digest).or_insert(Candidate { names: Vec::new(), in_use, used_at_ms });
        image.names.push(name);
    }
    images.into_values().collect()
}

fn look(dir: &Path) -> Result<Disk, ImageError> {
    let stat = statvfs(dir).map_err(|error| io_error("look at the disk of", dir)(error.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    // As df(1) counts: what only root may use is neither free nor in use.
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    Ok(Disk { bytes_used: bytes(used), bytes_available: bytes(stat.f_bavail) })
}
