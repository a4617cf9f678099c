//! `rcluster-agent`: the agent's process and its command line.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use clap::Parser;
use rcluster_agent::config::{Cli, ImageVerb, Verb};
use rcluster_agent::core::reference::Reference;
use rcluster_agent::image::Store;
use rcluster_agent::image::gc::Collected;
use rcluster_agent::image::pull::{Progress, Puller};
use rcluster_agent::image::registry::Client;
use rcluster_agent::relay::RELAYS_MAX;
use rcluster_agent::run::run;
use rcluster_api::resource::Bytes;
use rcluster_base::telemetry;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The agent waits more than it works: two threads do, and blocking work has as many as tasks are prepared at once, twice, and one for
/// each relay: a user who copies files slowly holds up nobody but himself.
const WORKERS: usize = 2;
const BLOCKING: usize = 16 + RELAYS_MAX;

fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Run(args) => {
            telemetry::start(args.log_format);
            let config = args.check()?;
            runtime()?.block_on(run(config))
        }
        Verb::Image(ImageVerb::Load { file, state_dir }) => {
            let loaded = Store::open(&state_dir)?.load(&file).with_context(|| format!("load {}", file.display()))?;
            write_out(loaded.iter().map(|image| format!("{}\t{}", image.name, image.digest)))
        }
        Verb::Image(ImageVerb::Pull { name, state_dir, registries }) => {
            let store = Store::open(&state_dir)?;
            let puller = Puller::new(store.clone(), Client::new(registries.check()?)?);
            let reference = Reference::parse(&name).map_err(anyhow::Error::msg)?;
            let told = watch::Sender::new(Progress::default());
            runtime()?.block_on(puller.pull(&reference, &told)).with_context(|| format!("pull {reference}"))?;
            let image = store.find(&name)?;
            write_out(std::iter::once(format!("{}\t{}", image.name, image.digest)))
        }
        Verb::Image(ImageVerb::Ls { state_dir }) => {
            let images = Store::open(&state_dir)?.list()?;
            write_out(images.iter().map(|image| format!("{}\t{}\t{}", image.name, image.digest, image.bytes)))
        }
        Verb::Image(ImageVerb::Tag { from, to, state_dir }) => Ok(Store::open(&state_dir)?.tag(&from, &to)?),
        Verb::Image(ImageVerb::Rm { names, force, state_dir }) => {
            let store = Store::open(&state_dir)?;
            names.iter().try_for_each(|name| tell(&store.rm(name, force).with_context(|| format!("remove image {name}"))?))
        }
        Verb::Image(ImageVerb::Prune { all, dry_run, state_dir }) => {
            let store = Store::open(&state_dir)?;
            if dry_run { tell_planned(&store.prunable(all)?) } else { tell(&store.prune(all)?) }
        }
        Verb::Image(ImageVerb::Save { names, output, state_dir }) => save(&Store::open(&state_dir)?, &names, &output),
        Verb::Image(ImageVerb::Inspect { name, state_dir }) => json(&Store::open(&state_dir)?.inspect(&name)?),
        Verb::Image(ImageVerb::History { name, state_dir }) => json(&Store::open(&state_dir)?.history(&name)?),
    }
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKERS).max_blocking_threads(BLOCKING).thread_stack_size(512 << 10).enable_all();
    builder.build().context("start the async runtime")
}

fn tell(collected: &Collected) -> Result<()> {
    let Collected { names, layers, blobs, bytes } = collected;
    let removed = names.iter().map(|name| format!("removed {name}"));
    write_out(removed.chain([format!("{layers} layers and {blobs} blobs are gone: {}", Bytes(*bytes).human())]))
}

fn tell_planned(collected: &Collected) -> Result<()> {
    let Collected { names, layers, blobs, bytes } = collected;
    let removed = names.iter().map(|name| format!("would remove {name}"));
    write_out(removed.chain([format!("{layers} layers and {blobs} blobs would go: {}", Bytes(*bytes).human())]))
}

/// Written beside and then renamed: what stands there is whole.
fn save(store: &Store, names: &[String], output: &Path) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let partial = output.with_added_extension("partial");
    let file = File::create(&partial).with_context(|| format!("write {}", partial.display()))?;
    let saved = store.save(&names, BufWriter::new(file)).map_err(anyhow::Error::from);
    let placed = saved.and_then(|()| fs::rename(&partial, output).with_context(|| format!("write {}", output.display())));
    if placed.is_err() {
        // The error tells; what is left of the attempt says nothing more.
        drop(fs::remove_file(&partial));
    }
    placed
}

fn json(value: &impl serde::Serialize) -> Result<()> {
    write_out([serde_json::to_string_pretty(value).context("encode as JSON")?].into_iter())
}

fn write_out(lines: impl Iterator<Item = String>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}").context("write to stdout")?;
    }
    Ok(())
}
