//! A cluster whose state is in an etcd that went back, as when it was restored from a backup of its own: the tables are written anew, with
//! numbers above all that agents can have seen. What is lost in etcd is lost.

use std::io::Write;

use anyhow::{Context, Result, bail};
use rcluster_api::resource::Millis;
use rcluster_base::clock::unix_ms;

use super::recover::{end, heir, prepare};
use super::{NOTHING_DONE, Recover, inventory, say, time};
use crate::core::plan::Ctx;
use crate::core::refound::{Reached, Refounded, latest_ms, refound};
use crate::store::Identity;
use crate::store::etcd::{Access, EtcdTiming, Held};

/// Makes `identity` the only manager of the cluster whose tables are at `access`; without `yes` it only says what it would do.
pub fn recover(asked: &Recover, identity: &Identity, access: &Access, out: &mut impl Write) -> Result<()> {
    let Recover { state_dir: dir, yes, .. } = asked;
    let place = &access.address;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
    let held = runtime.block_on(Held::read(access, &identity.cluster_id));
    let held = held.with_context(|| format!("read the cluster's state at {place}; nothing was changed"))?;
    let (before, managers) = (&held.state, || held.state.managers().values());
    if !held.alive.is_empty() {
        let running = managers().filter(|manager| held.alive.contains_key(&manager.raft_id)).map(|manager| manager.name.as_str());
        let (running, lease) = (running.collect::<Vec<_>>().join(", "), EtcdTiming::default().lease.as_secs());
        bail!("managers run ({running}): stop all of them; one that was killed counts for {lease} s more; nothing was changed");
    }
    // By its name if a recovery was cut off once the tables were written: they have its new id already.
    let own = managers().find(|one| one.raft_id == identity.id).or_else(|| managers().find(|one| one.name == identity.name));
    let now_ms = unix_ms();
    let mut ctx = Ctx::new(now_ms, rand::random());
    let heir = heir(asked, identity, own.map(AsRef::as_ref), &mut ctx)?;
    let reached = Reached { index: before.revision(), term: held.term, at_ms: latest_ms(before) };
    let refounded = refound(before, reached, heir, &mut ctx)?;
    let kept = format!("before-recovery-{now_ms}");
    say(out, &told(asked, identity, access, &held, &refounded, &kept))?;
    if !yes {
        return say(out, NOTHING_DONE);
    }
    prepare(dir, &refounded, true, now_ms)?;
    let replaced = runtime.block_on(held.replace(refounded.state.clone(), refounded.term));
    let replaced = replaced.map_err(|error| {
        let unknown = if error.is_passing() { "; it may have been done: run the same command again" } else { "" };
        anyhow::Error::new(error).context(format!("write the cluster's state to {place}{unknown}"))
    });
    if !replaced? {
        bail!("a manager was started, or has written to {place}, meanwhile: stop all managers and do this again; nothing was changed");
    }
    end(dir, &refounded, &kept, Some(access), now_ms, out)
}

fn told(asked: &Recover, identity: &Identity, access: &Access, held: &Held, refounded: &Refounded, kept: &str) -> String {
    let (state, addr, id, goes_on) = (&held.state, &refounded.manager.addr, refounded.manager.raft_id, refounded.state.revision());
    let dropped: Vec<&str> = refounded.dropped.iter().map(|manager| manager.name.as_str()).collect();
    let dropped = match dropped.as_slice() {
        [] => String::new(),
        names => format!(
            "  - these managers: {}. Their certificates are taken no more; their hosts may join again with empty directories.\n",
            names.join(", ")
        ),
    };
    format!(
        "{}: {identity}; its state is in {}, at revision {}, last written at {}\n\n\
         There is: {}; the certificate authority, tokens and keys.\n\
         It becomes the only manager, at {addr}, with a new id ({id}).\n\
         Revisions go on from {goes_on}: above all that agents and watchers can have seen before etcd went back.\n\
         Nodes are given {} to come; their containers are not touched before, and those of tasks that it knows go on.\n\
         The identity and credentials of before are moved to {kept} in the same directory; the state in etcd is replaced.\n\n\
         Lost:\n\
         \x20 - what was changed after what etcd has; from here it cannot be told\n\
         {dropped}",
        asked.state_dir.display(),
        access.address,
        state.revision(),
        time(latest_ms(state)),
        inventory(state),
        Millis(asked.await_nodes_ms),
    )
}
