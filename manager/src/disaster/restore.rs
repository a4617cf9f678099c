//! A cluster from a backup.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rcluster_api::backup::{self, BACKUP_BYTES_MAX, Header};
use rcluster_api::id::ManagerId;
use rcluster_api::resource::Millis;
use rcluster_base::clock::unix_ms;

use super::{NOTHING_DONE, Restore, dropped, inventory, make, next_steps, say, time};
use crate::core::plan::Ctx;
use crate::core::refound::{Heir, Reached, Refounded, refound};
use crate::core::state::{State, decode_snapshot};
use crate::store;

/// A backup's header and state, checked.
fn read(path: &Path) -> Result<(Header, State)> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(BACKUP_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
    let backup = backup::decode(&bytes).with_context(|| format!("{} cannot be restored", path.display()))?;
    let state = decode_snapshot(backup.data).with_context(|| format!("read the state in {}", path.display()))?;
    if state.cluster_id() != backup.header.cluster_id || state.revision() != backup.header.revision {
        bail!("{} holds another state than its header says: use another copy or another backup", path.display());
    }
    Ok((backup.header, state))
}

/// Makes the first manager of a cluster that goes on from a backup; without `yes` it only says what it would do.
pub fn restore(asked: &Restore, out: &mut impl Write) -> Result<()> {
    let Restore { from, name, state_dir, advertise, await_nodes_ms, yes } = asked;
    super::check_whole(state_dir)?;
    if let Some(found) = store::identity(state_dir)? {
        bail!("{} is of {found}: give an empty directory; nothing was changed", state_dir.display());
    }
    let (header, before) = read(from)?;
    let now_ms = unix_ms();
    let mut ctx = Ctx::new(now_ms, rand::random());
    let heir = Heir {
        id: ManagerId::random(&mut ctx.rng),
        name: name.clone(),
        addr: advertise.clone(),
        await_nodes_ms: *await_nodes_ms,
        reason: "Restored",
    };
    let reached = Reached { index: header.revision, term: header.term, at_ms: header.made_at_ms };
    let refounded = refound(&before, reached, heir, &mut ctx)?;
    say(out, &told(asked, &header, &before, &refounded, now_ms))?;
    if !yes {
        return say(out, NOTHING_DONE);
    }
    make(state_dir, &refounded, false, now_ms)?;
    let done = format!("\nRestored: {} holds manager {name} of cluster {}.", state_dir.display(), header.cluster_id);
    say(out, &(done + &next_steps(&refounded, None, state_dir, now_ms)))
}

fn told(asked: &Restore, header: &Header, before: &State, refounded: &Refounded, now_ms: u64) -> String {
    let Restore { from, name, state_dir, advertise, await_nodes_ms, yes: _ } = asked;
    let Header { cluster_id, revision, made_at_ms, manager, .. } = header;
    let (made, age) = (time(*made_at_ms), Millis(now_ms.saturating_sub(*made_at_ms) / 1000 * 1000));
    let (id, goes_on) = (refounded.manager.raft_id, refounded.state.revision());
    format!(
        "{}: backup of cluster {cluster_id} at revision {revision}, made by manager {manager} at {made}, {age} ago\n\n\
         It restores: {}; the certificate authority, tokens and keys.\n\
         Manager {name} (id {id}) at {advertise} becomes the only one, in {}.\n\
         Revisions go on from {goes_on}: above all that agents and watchers can have seen since.\n\
         Nodes are given {} to come; their containers are not touched before, and those of tasks in the backup go on.\n\n\
         Lost:\n\
         \x20 - all that was changed after {made}. Containers of tasks that the backup does not know are removed when their node comes.\n\
         {}",
        from.display(),
        inventory(before),
        state_dir.display(),
        Millis(*await_nodes_ms),
        dropped(&refounded.dropped),
    )
}
