//! `update`: changes the limits of a container that exists (no verb of the specification; the options and the file's form are runc's).
//!
//! What is refused by the kernel half-way is put back as it was. The configuration kept beside the state has the new values from then on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::{bundle, cgroups, existing, read_bounded, resctrl};
use crate::core::cgroup::{self, CgroupPlan, Hierarchy};
use crate::core::status::Status;
use crate::core::{self, spec, update};
use crate::state::replace;

/// Where the new values are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateSource {
    /// In the form of `linux.resources`.
    Options(Value),
    /// A file of that form; `-` is standard input.
    File(PathBuf),
}

/// What becomes of the lines of the container's group of resctrl.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schemas {
    pub l3_cache: Option<String>,
    pub mem_bw: Option<String>,
}

/// Changes limits.
pub fn update(root: &Path, id: &str, source: &UpdateSource, schemas: &Schemas) -> Result<()> {
    let asked = match source {
        UpdateSource::Options(asked) => asked.clone(),
        UpdateSource::File(path) => read(path)?,
    };
    if asked.get("devices").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty()) {
        bail!("devices: the device rules of a container stay as they are: leave them out");
    }
    let (dir, _) = existing(root, id)?;
    let _lock = dir.lock()?;
    let (dir, record) = existing(root, id)?;
    match dir.status(&record)? {
        Status::Created | Status::Running | Status::Paused => {}
        other => bail!("container {id} is {other}: it has no limits to change"),
    }
    let before = bundle::recorded_json(&dir, &record)?;
    let after = update::merged(before.clone(), &asked);
    let hierarchies = bundle::observed_hierarchies()?;
    let unified = bundle::unified_controllers(&hierarchies);
    let plan = |config: &Value| plan(config, &record.bundle, id, &hierarchies, &unified);
    let (before, planned) = (plan(&before)?, plan(&after)?);
    let changes = update::changes(&before, &planned, &asked, &record.cgroups);
    let lines = core::resctrl::updated(schemas.l3_cache.as_deref(), schemas.mem_bw.as_deref());
    let resctrl = match &record.resctrl {
        _ if lines.is_empty() => None,
        Some(resctrl) => Some((resctrl, resctrl::schemata(resctrl)?)),
        None => bail!("container {id} was created without linux.intelRdt and is in no group of resctrl: give it one when it is created"),
    };
    resctrl.as_ref().map_or(Ok(()), |(resctrl, _)| resctrl::update(resctrl, &lines))?;
    if let Err(error) = cgroups::change(&changes) {
        let undo = update::changes(&planned, &before, &Value::Null, &record.cgroups);
        // Best effort: what the kernel took before it takes again, unless the container has outgrown it.
        let restored = resctrl.as_ref().map_or(Ok(()), |(resctrl, before)| resctrl::restore(resctrl, before));
        let left = cgroups::change(&undo).and(restored).err();
        return Err(match left {
            None => error,
            Some(left) => error.context(format!("and not all could be put back: {left:#}")),
        });
    }
    replace(&dir.file(bundle::CONFIG), after.to_string().as_bytes())
}

fn read(path: &Path) -> Result<Value> {
    let bytes = if path == Path::new("-") {
        read_bounded(std::io::stdin().lock()).context("--resources: read standard input")?
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("--resources: open {}", path.display()))?;
        read_bounded(file).with_context(|| format!("--resources: read {}", path.display()))?
    };
    let value: Value = serde_json::from_slice(&bytes).with_context(|| format!("--resources {}", path.display()))?;
    if value.is_object() { Ok(value) } else { bail!("--resources {}: is no object of the form of linux.resources", path.display()) }
}

fn plan(config: &Value, bundle_path: &Path, id: &str, hierarchies: &[Hierarchy], unified: &[String]) -> Result<CgroupPlan> {
    let mut spec = spec::parse(config.to_string().as_bytes()).map_err(|error| anyhow!("{error}"))?;
    bundle::map_unit(&mut spec);
    let container = bundle::checked(bundle_path, &spec)?;
    cgroup::plan(hierarchies, unified, container.cgroups_path.as_deref(), id, &container.resources)
        .map_err(|refusals| bundle::refused(bundle_path, &refusals))
}
