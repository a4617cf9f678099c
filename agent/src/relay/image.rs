//! What users ask of this node's images. The store does it; here it is asked, and its answers are said.

use std::collections::BTreeSet;
use std::time::Duration;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1::{self, image_answer, image_request, relay_output};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::info;

use super::pieces::{Ended, Frames, Pieces, deaf, pass_in};
use super::{Gone, Line, chain, internal, invalid};
use crate::core::reference::Reference;
use crate::exec::Tools;
use crate::image::gc::Collected;
use crate::image::inspect::Step;
use crate::image::pull::Progress;
use crate::image::take::LayerProgress;
use crate::image::{ImageError, Listed, Store};

/// Images in one frame, which must stay far below the largest message (4 MiB).
const IMAGES_MAX: usize = 1000;
/// A user who sends nothing for so long has stalled: loading keeps others from loading and the store from collecting.
const STALL: Duration = Duration::from_secs(60);

/// Does what is asked; who leaves ends it where it can be ended.
pub async fn serve(tools: &Tools, asked: v1::ImageRequest, line: &mut Line) -> Result<(), ApiError> {
    let opened = v1::RelayOpened { node: tools.node.clone(), ..v1::RelayOpened::default() };
    if line.say(relay_output::Kind::Opened(opened)).await.is_err() {
        return Ok(());
    }
    let store = tools.images.store.clone();
    let answers = match asked.kind {
        Some(image_request::Kind::Ls(v1::ImageLs { name })) => images(tools, move || list(&store, &name)).await?,
        Some(image_request::Kind::Pull(v1::ImagePull { name })) => match pull(tools, &name, line).await? {
            Some(answers) => answers,
            None => return Ok(()),
        },
        Some(image_request::Kind::Load(v1::ImageLoad {})) => match load(tools, line).await? {
            Some(answers) => answers,
            None => return Ok(()),
        },
        Some(image_request::Kind::Save(v1::ImageSave { names })) => {
            if !save(tools, names, line).await? {
                return Ok(());
            }
            Vec::new()
        }
        Some(image_request::Kind::Rm(v1::ImageRm { name, force })) => {
            info!(image = name, force, "removes an image for a user");
            vec![collected(blocking(tools, move || store.rm(&name, force)).await?)]
        }
        Some(image_request::Kind::Tag(v1::ImageTag { source, target })) => {
            images(tools, move || {
                store.tag(&source, &target)?;
                list(&store, &target)
            })
            .await?
        }
        Some(image_request::Kind::Prune(v1::ImagePrune { all, dry_run })) => {
            info!(all, dry_run, "prunes images for a user");
            vec![collected(blocking(tools, move || if dry_run { store.prunable(all) } else { store.prune(all) }).await?)]
        }
        Some(image_request::Kind::History(v1::ImageHistory { name })) => {
            let steps = blocking(tools, move || store.history(&name)).await?.into_iter().map(step).collect();
            vec![image_answer::Kind::Steps(v1::ImageSteps { steps })]
        }
        Some(image_request::Kind::Inspect(v1::ImageInspect { name })) => {
            let inspected = blocking(tools, move || store.inspect(&name)).await?;
            let document = serde_json::to_string(&inspected).map_err(|error| internal("write the image's document", &error))?;
            vec![image_answer::Kind::Document(document)]
        }
        None => return Err(invalid("this agent does not know what is asked of its images: is it older than rclusterctl?")),
    };
    for kind in answers {
        if line.say(answer(kind)).await.is_err() {
            return Ok(());
        }
    }
    // A user who has gone misses nothing.
    let _ = line.say(relay_output::Kind::Exit(v1::RelayExit { code: 0 })).await;
    Ok(())
}

fn answer(kind: image_answer::Kind) -> relay_output::Kind {
    relay_output::Kind::Image(v1::ImageAnswer { kind: Some(kind) })
}

/// Runs what waits for the disk, and says on which node it failed.
async fn blocking<T: Send + 'static>(tools: &Tools, work: impl FnOnce() -> Result<T, ImageError> + Send + 'static) -> Result<T, ApiError> {
    let done = spawn_blocking(work).await.map_err(|error| internal("work on an image", &error))?;
    done.map_err(|error| failed(tools, &error))
}

fn failed(tools: &Tools, error: &ImageError) -> ApiError {
    let why = chain(error);
    let node = &tools.node;
    match cause(error) {
        ImageError::Absent { .. } => {
            ApiError::new(ErrorCode::NotFound, why).hint(format!("see rclusterctl image ls; image pull or image load bring it to {node}"))
        }
        ImageError::Name(_) => ApiError::new(ErrorCode::Invalid, why).hint("write it as [REGISTRY/]NAME[:TAG] or [REGISTRY/]NAME@DIGEST"),
        ImageError::Refused { .. } => ApiError::new(ErrorCode::Conflict, why),
        ImageError::Registry(_) => ApiError::new(ErrorCode::Conflict, why)
            .hint(format!("the registry is asked from {node}, as its agent's --registry-… flags say")),
        ImageError::Io { .. }
        | ImageError::Write { .. }
        | ImageError::Shared(_)
        | ImageError::Interrupted { .. }
        | ImageError::Index(_) => ApiError::new(ErrorCode::Internal, why).hint(format!("look at the disk and the agent's log on {node}")),
    }
}

fn cause(error: &ImageError) -> &ImageError {
    match error {
        ImageError::Shared(shared) => cause(shared),
        other => other,
    }
}

/// The images there; only the one called `name` if that is given.
fn list(store: &Store, name: &str) -> Result<Vec<Listed>, ImageError> {
    let wanted = if name.is_empty() { None } else { Some(Reference::parse(name).map_err(ImageError::Name)?.to_string()) };
    Ok(store.list()?.into_iter().filter(|image| wanted.as_ref().is_none_or(|wanted| image.name == *wanted)).collect())
}

async fn images(
    tools: &Tools,
    list: impl FnOnce() -> Result<Vec<Listed>, ImageError> + Send + 'static,
) -> Result<Vec<image_answer::Kind>, ApiError> {
    let listed = blocking(tools, list).await?;
    let parts = listed.chunks(IMAGES_MAX).map(|part| {
        let images = part.iter().map(|Listed { name, digest, bytes, created, in_use, used_at_ms: _ }| v1::ImageSummary {
            name: name.clone(),
            digest: digest.clone(),
            bytes: *bytes,
            created: created.clone(),
            in_use: *in_use,
        });
        image_answer::Kind::Images(v1::ImageSummaries { images: images.collect() })
    });
    Ok(parts.collect())
}

/// Tells how far it is while it pulls. `None`: the user has gone, and the pull goes with them unless others want the image too.
async fn pull(tools: &Tools, name: &str, line: &mut Line) -> Result<Option<Vec<image_answer::Kind>>, ApiError> {
    let reference = Reference::parse(name).map_err(|why| failed(tools, &ImageError::Name(why)))?;
    info!(image = %reference, "pulls an image for a user");
    let told = watch::Sender::new(Progress::default());
    let mut progress = told.subscribe();
    let (speaker, line) = line.split();
    let say = async {
        while progress.changed().await.is_ok() {
            let now = progress.borrow_and_update().clone();
            let layers = now.layers.iter().map(|LayerProgress { bytes, bytes_total, done }| v1::ImageLayerProgress {
                bytes: *bytes,
                bytes_total: *bytes_total,
                done: *done,
            });
            if speaker.say(answer(image_answer::Kind::Progress(v1::ImageProgress { layers: layers.collect() }))).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        pulled = tools.images.puller.pull(&reference, &told) => pulled.map_err(|error| failed(tools, &error))?,
        Gone = deaf(line) => return Ok(None),
        // It ends only with the user.
        () = say => return Ok(None),
    }
    let (store, name) = (tools.images.store.clone(), name.to_owned());
    images(tools, move || list(&store, &name)).await.map(Some)
}

/// `None`: the user has gone, and nothing has a name that had none before.
async fn load(tools: &Tools, line: &mut Line) -> Result<Option<Vec<image_answer::Kind>>, ApiError> {
    info!("loads images for a user");
    let (sender, pieces) = Pieces::new();
    let store = tools.images.store.clone();
    let loading = spawn_blocking(move || store.load_archive(pieces, "the archive"));
    let loaded = tokio::select! {
        loaded = loading => loaded.map_err(|error| internal("load images", &error))?,
        // The thread meets the end of what came.
        ended = pass_in(line, sender, Some(STALL)) => {
            return match ended {
                Ended::Gone => Ok(None),
                Ended::Stalled => {
                    let message = format!("nothing came of the archive for {} s", STALL.as_secs());
                    Err(ApiError::new(ErrorCode::Conflict, message).hint("save it to a file first, and load that"))
                }
            };
        }
    };
    let loaded = loaded.map_err(|error| failed(tools, &error))?;
    let names: BTreeSet<String> = loaded.into_iter().map(|image| image.name).collect();
    let store = tools.images.store.clone();
    images(tools, move || Ok(store.list()?.into_iter().filter(|image| names.contains(&image.name)).collect())).await.map(Some)
}

/// Sends an archive of the images; false: the user has gone.
async fn save(tools: &Tools, names: Vec<String>, line: &mut Line) -> Result<bool, ApiError> {
    let (speaker, line) = line.split();
    let store = tools.images.store.clone();
    let saving = spawn_blocking(move || {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        store.save(&names, Frames::new(speaker))
    });
    let saved = tokio::select! {
        saved = saving => saved.map_err(|error| internal("save images", &error))?,
        // The thread meets the closed line by itself.
        Gone = deaf(line) => return Ok(false),
    };
    saved.map(|()| true).map_err(|error| failed(tools, &error))
}

fn collected(collected: Collected) -> image_answer::Kind {
    let Collected { names, layers, blobs, bytes } = collected;
    image_answer::Kind::Collected(v1::ImageCollected { names, layers: layers as u64, blobs: blobs as u64, bytes })
}

fn step(step: Step) -> v1::ImageStep {
    let Step { created, created_by, comment, bytes, diff_id } = step;
    v1::ImageStep { created, created_by, comment, bytes, diff_id: diff_id.unwrap_or_default() }
}
