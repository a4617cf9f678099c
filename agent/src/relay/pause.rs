//! Freezes a task's containers, and lets them go on.
//!
//! A file in the bundle says that a container is frozen: what is to stop must thaw first, since a frozen process of a v1 freezer does
//! not even die (kernel documentation, admin-guide/cgroup-v1/freezer-subsystem).

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1::{self, relay_output};
use tracing::{info, warn};

use super::{Line, Target, internal, opened};
use crate::core::task::{ContainerRecord, Phase};
use crate::exec::Tools;
use crate::exec::runtime_cli::{Runtime, RuntimeError};
use crate::place::PauseMark;

/// Freezes or thaws all containers of the task. Freezing is all or none.
pub async fn pause(tools: &Tools, target: &Target, asked: v1::RelayPause, line: &mut Line) -> Result<(), ApiError> {
    if line.say(opened(tools, target)).await.is_err() {
        return Ok(());
    }
    let places = tools.places.of_task(&target.task.id);
    let running: Vec<&ContainerRecord> = target.record.containers.iter().filter(|one| one.phase == Phase::Started).collect();
    let runtime = tools.runtime(&target.task);
    let mut done = Vec::new();
    let mut failure = None;
    for container in running {
        let mark = places.of_container(&container.name).pause();
        match if asked.resume { thaw(runtime, container, &mark).await } else { freeze(runtime, container, &mark).await } {
            Ok(()) => done.push((container, mark)),
            Err(error) => failure = failure.or(Some(error)),
        }
        if failure.is_some() && !asked.resume {
            break;
        }
    }
    if let Some(error) = failure {
        if !asked.resume {
            for (container, mark) in done {
                thaw(runtime, container, &mark).await?;
            }
        }
        return Err(error);
    }
    info!(task = %target.task.id, resume = asked.resume, "paused or resumed a task for a user");
    // A user who has gone knows what was asked for.
    let _ = line.say(relay_output::Kind::Exit(v1::RelayExit { code: 0 })).await;
    Ok(())
}

async fn freeze(runtime: &Runtime, container: &ContainerRecord, mark: &PauseMark) -> Result<(), ApiError> {
    let is_paused = || async { runtime.is_paused(&container.id).await.map_err(|error| refused(container, &error)) };
    if mark.is_set() && is_paused().await? {
        return Ok(());
    }
    // Before: an agent that is killed in between leaves the mark on a container that is not frozen, and thawing takes that as done.
    mark.set().map_err(|error| internal("write that the container is paused", &error))?;
    let Err(error) = runtime.pause(&container.id).await else { return Ok(()) };
    // Half frozen is neither: the mark goes only with the frost.
    if let Err(error) = thaw(runtime, container, mark).await {
        warn!(container = container.id, %error, "cannot let a container go on that could not be paused");
    }
    Err(refused(container, &error))
}

async fn thaw(runtime: &Runtime, container: &ContainerRecord, mark: &PauseMark) -> Result<(), ApiError> {
    if !mark.is_set() {
        return Ok(());
    }
    if let Err(error) = runtime.resume(&container.id).await
        && runtime.is_paused(&container.id).await.unwrap_or(true)
    {
        return Err(refused(container, &error));
    }
    mark.clear().map_err(|error| internal("write that the container goes on", &error))
}

fn refused(container: &ContainerRecord, error: &RuntimeError) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("container {}: {error}", container.name))
        .hint("rclusterctl ps -a shows whether it still runs")
}
