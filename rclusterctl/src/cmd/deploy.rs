//! `deploy` and `plan`: read, compare, show, apply, follow.

use rcluster_api::client::idempotency_key;
use rcluster_api::object::Kind;
use rcluster_api::wire::convert;
use rcluster_api::wire::v1;
use rcluster_deploy::native::{self, Desired, Source};
use rcluster_deploy::plan::{Current, Plan, plan as compare};
use serde::Serialize;

use super::change;
use super::follow::{self, Ending};
use crate::args::{Deploy, PlanArgs};
use crate::config;
use crate::error::CliError;
use crate::output::{self, Out, rows};
use crate::session::Session;

/// What `deploy -o json` prints.
#[derive(Debug, Serialize)]
struct Report {
    revision: u64,
    plan: Plan,
    applied: Vec<AppliedObject>,
    /// Not given with --detach.
    #[serde(skip_serializing_if = "Option::is_none")]
    converged_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct AppliedObject {
    kind: &'static str,
    name: String,
    id: String,
    version: u64,
    outcome: &'static str,
}

fn read(files: &[std::path::PathBuf], stack: Option<&str>) -> Result<Vec<Desired>, CliError> {
    let manifests = config::manifests(files)?;
    let sources: Vec<Source<'_>> = manifests.iter().map(|(name, text)| Source { name, text }).collect();
    let desired = native::parse(&sources, stack, &config::beside).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        CliError::refused(lines.join("\n"), "nothing was deployed")
    })?;
    if desired.is_empty() {
        return Err(CliError::refused("the files describe nothing", "see examples/web.yaml"));
    }
    Ok(desired)
}

async fn current(session: &mut Session) -> Result<Current, CliError> {
    let mut objects = session.list(Kind::Service, "", "").await?;
    for kind in [Kind::Network, Kind::Secret, Kind::Config] {
        objects.extend(session.list(kind, "", "").await?);
    }
    objects.extend(session.list(Kind::Task, "", "").await?);
    Ok(Current::from_objects(objects))
}

fn check(plan: &Plan) -> Result<(), CliError> {
    match plan.problems.len() {
        0 => Ok(()),
        1 => Err(CliError::refused(plan.problems[0].clone(), "nothing was deployed")),
        _ => Err(CliError::refused(plan.problems.join("\n"), "nothing was deployed")),
    }
}

/// `plan FILE…`.
pub async fn plan(mut session: Session, out: Out, args: PlanArgs) -> Result<(), CliError> {
    let desired = read(&args.files, args.stack.as_deref())?;
    let current = current(&mut session).await?;
    let plan = compare(&desired, &current, args.stack.as_deref().filter(|_| args.prune))?;
    show(out, &plan)?;
    check(&plan)
}

fn show(out: Out, plan: &Plan) -> Result<(), CliError> {
    if out.is_table() { output::data(&format!("{plan}\n")) } else { out.value(plan) }
}

/// `deploy FILE…`.
pub async fn deploy(mut session: Session, out: Out, args: Deploy) -> Result<(), CliError> {
    let desired = read(&args.files, args.stack.as_deref())?;
    let current = current(&mut session).await?;
    let plan = compare(&desired, &current, args.stack.as_deref().filter(|_| args.prune))?;
    if args.dry_run {
        show(out, &plan)?;
        return check(&plan);
    }
    if out.is_table() {
        output::data(&format!("{plan}\n"))?
    } else {
        output::talk(&plan.to_string())?
    }
    check(&plan)?;
    let removals = plan.removals();
    if !removals.is_empty() && !args.yes {
        confirm(removals.len())?;
    }
    let response = apply(&mut session, &desired).await?;
    if !removals.is_empty() {
        change::remove(&mut session, &removals).await?;
    }
    let converged_ms = if args.wait.detach {
        None
    } else {
        let ending = Ending { verb: "deploy", timeout: args.wait.timeout };
        Some(follow::rollout(session, &plan.services(), response.revision, ending).await?)
    };
    report(out, plan, response, converged_ms)
}

async fn apply(session: &mut Session, desired: &[Desired]) -> Result<v1::ApplyResponse, CliError> {
    let key = &idempotency_key();
    let call = |mut client| async move { rcluster_deploy::apply::apply(&mut client, key, desired).await };
    session.repeat(call).await
}

fn confirm(count: usize) -> Result<(), CliError> {
    if !output::can_ask() {
        return Err(CliError::usage(format!("{count} objects would be removed"), "say so with --yes"));
    }
    output::talk_raw(&format!("remove {count} objects? [y/N] "))?;
    match config::answer()?.to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(CliError::refused("nothing was deployed and nothing removed", "leave out --prune to keep what is there")),
    }
}

fn report(out: Out, plan: Plan, response: v1::ApplyResponse, converged_ms: Option<u64>) -> Result<(), CliError> {
    if out.is_table() {
        return match converged_ms {
            Some(ms) => output::data(&format!("converged in {}\n", rows::seconds(ms))),
            None => output::data("accepted; rclusterctl ps shows how it goes\n"),
        };
    }
    let applied = response.applied.into_iter().map(applied).collect::<Result<_, _>>()?;
    out.value(&Report { revision: response.revision, plan, applied, converged_ms })
}

fn applied(applied: v1::Applied) -> Result<AppliedObject, CliError> {
    let outcome = match applied.outcome() {
        v1::Outcome::Created => "created",
        v1::Outcome::Updated => "updated",
        v1::Outcome::Unchanged => "unchanged",
        v1::Outcome::Unspecified => "unknown",
    };
    let v1::Applied { kind, name, id, version, outcome: _ } = applied;
    Ok(AppliedObject { kind: convert::kind(kind)?.as_str(), name, id, version, outcome })
}
