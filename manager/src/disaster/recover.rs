//! A cluster from the state directory of one manager, when the quorum is gone for good.
//!
//! ```text
//! D/recovered/                    the new log, snapshot, identity and credentials, made first
//! D/recovery.json                 from here on the old ones are moved aside, then the new ones into their place; while it is there, nothing
//!                                 else starts, and another `recover` ends the work
//! D/before-recovery-<time>/       the old ones, to be looked at or removed by hand
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rcluster_api::cluster::Manager;
use rcluster_api::id::ManagerId;
use rcluster_api::resource::Millis;
use rcluster_api::seal::{NotOpened, UnlockKey};
use rcluster_base::clock::unix_ms;
use rcluster_base::ledger;
use serde::{Deserialize, Serialize};

use super::{NOTHING_DONE, Recover, dropped, external, inventory, make, next_steps, say, time};
use crate::core::plan::Ctx;
use crate::core::refound::{Heir, Reached, Refounded, latest_ms, refound};
use crate::found::{self, ADMIN};
use crate::seal::{self, Keys, Opened};
use crate::store::etcd::Access;
use crate::store::{self, Identity, LogError, Salvaged, StoreError};

const NEW: &str = "recovered";
const MARK: &str = "recovery.json";

/// How far the exchange of the directories has come.
#[derive(Debug, Serialize, Deserialize)]
struct Exchange {
    /// Where the old files go.
    kept: String,
    /// They are all there.
    emptied: bool,
}

/// Refuses a directory in which a recovery was begun and not ended.
pub fn check_whole(dir: &Path) -> Result<()> {
    if dir.join(MARK).exists() {
        let dir = dir.display();
        bail!("a recovery was begun in {dir} and has not ended: rclusterctl cluster recover --state-dir {dir} --yes ends it");
    }
    Ok(())
}

/// Makes the manager whose directory this is the only one of its cluster; without `yes` it only says what it would do.
pub fn recover(asked: &Recover, out: &mut impl Write) -> Result<()> {
    let Recover { state_dir: dir, advertise: _, await_nodes_ms: _, unlock_key, store, yes } = asked;
    if dir.join(MARK).exists() && *yes {
        let _lock = store::lock(dir)?;
        exchange(dir)?;
        let done = format!(
            "The recovery that was begun in {} has ended, as it was asked for then; --advertise, --await-nodes and --unlock-key-file of \
             this call had no effect.\nStart the manager.",
            dir.display()
        );
        return say(out, &done);
    }
    check_whole(dir)?;
    let identity = store::identity(dir)?;
    match (identity.as_ref().filter(|identity| identity.etcd), store) {
        (Some(identity), Some(access)) => return external::recover(asked, identity, access, out),
        (Some(_), None) => bail!(
            "the state of {} is in an etcd, whose loss etcd's own backups mend: once it is back, give --store as `run` has it; nothing was changed",
            dir.display()
        ),
        (None, Some(_)) => bail!("the state of {} is in no etcd: leave --store out; nothing was changed", dir.display()),
        (None, None) => {}
    }
    let keys = identity.map(|identity| keys(dir, &identity, unlock_key.as_ref())).transpose()?.flatten();
    let salvaged = store::salvage(dir, keys).map_err(|error| {
        let dir = dir.display();
        let told = match &error {
            StoreError::Log(LogError::InUse { .. }) => format!("{dir} is in use; nothing was changed"),
            _ => format!("{dir} cannot be recovered from: take another manager's directory, or restore a backup; nothing was changed"),
        };
        anyhow::Error::from(error).context(told)
    })?;
    let Some(salvaged) = salvaged else {
        bail!(
            "{} holds no manager: give the state directory of one that is left, or restore a backup: rclusterctl cluster restore",
            dir.display()
        );
    };
    let before = &salvaged.state;
    if before.cluster().is_none() {
        bail!("{} has no copy of the state: {} had only begun to join; take another manager's", dir.display(), salvaged.identity);
    }
    let now_ms = unix_ms();
    let mut ctx = Ctx::new(now_ms, rand::random());
    let own = before.managers().values().find(|manager| manager.raft_id == salvaged.identity.id);
    let heir = heir(asked, &salvaged.identity, own.map(AsRef::as_ref), &mut ctx)?;
    let reached = Reached { index: salvaged.last, term: salvaged.term, at_ms: latest_ms(before) };
    let refounded = refound(before, reached, heir, &mut ctx)?;
    let kept = format!("before-recovery-{now_ms}");
    say(out, &told(asked, &salvaged, &refounded, &kept))?;
    if !yes {
        return say(out, NOTHING_DONE);
    }
    prepare(dir, &refounded, false, now_ms)?;
    end(dir, &refounded, &kept, None, now_ms, out)
}

/// Who goes on; `own`: as the state knows it.
pub(super) fn heir(asked: &Recover, identity: &Identity, own: Option<&Manager>, ctx: &mut Ctx) -> Result<Heir> {
    let Some(addr) = asked.advertise.clone().or(own.map(|own| own.addr.clone())) else {
        bail!("{identity} is not among the managers in its own state: give --advertise HOST:PORT if it is to go on all the same");
    };
    let id = own.map_or_else(|| ManagerId::random(&mut ctx.rng), |own| own.id.clone());
    Ok(Heir { id, name: identity.name.clone(), addr, await_nodes_ms: asked.await_nodes_ms, reason: "Recovered" })
}

/// Makes the new files beside the old ones.
pub(super) fn prepare(dir: &Path, refounded: &Refounded, external: bool, now_ms: u64) -> Result<()> {
    let new = dir.join(NEW);
    remove(&new)?;
    make(&new, refounded, external, now_ms)
}

/// Puts what was prepared into the place of the old files, which go to `kept`.
pub(super) fn end(
    dir: &Path,
    refounded: &Refounded,
    kept: &str,
    external: Option<&Access>,
    now_ms: u64,
    out: &mut impl Write,
) -> Result<()> {
    ledger::write(&dir.join(MARK), &Exchange { kept: kept.to_owned(), emptied: false })?;
    exchange(dir)?;
    let done = format!("\nRecovered. What was there before is in {}.", dir.join(kept).display());
    say(out, &(done + &next_steps(refounded, external, dir, now_ms)))
}

/// What opens the disk; `None` when nothing on it is sealed.
fn keys(dir: &Path, identity: &Identity, unlock_key: Option<&UnlockKey>) -> Result<Option<Keys>> {
    if !seal::is_there(dir) {
        return Ok(None);
    }
    match (found::open_seal(dir, identity)?, unlock_key) {
        (Opened::Open(disk), _) => Ok(Some(disk.keys)),
        (Opened::Locked(locked), Some(key)) => match locked.unlock(key) {
            Ok(disk) => Ok(Some(disk.keys)),
            Err(NotOpened) => bail!("{} is locked with another unlock key, fingerprint {}", dir.display(), locked.needed()),
        },
        (Opened::Locked(locked), None) => bail!(
            "{} is locked: give --unlock-key-file FILE with the unlock key, fingerprint {}; nothing was changed",
            dir.display(),
            locked.needed()
        ),
    }
}

fn told(asked: &Recover, salvaged: &Salvaged, refounded: &Refounded, kept: &str) -> String {
    let Recover { state_dir, await_nodes_ms, .. } = asked;
    let Salvaged { identity, state, committed, last, .. } = salvaged;
    let (addr, id, goes_on) = (&refounded.manager.addr, refounded.manager.raft_id, refounded.state.revision());
    let uncertain = last.saturating_sub(*committed);
    let uncertain = if uncertain == 0 {
        String::new()
    } else {
        format!(" Of the last {uncertain} it does not know whether they were confirmed; they are kept all the same.")
    };
    format!(
        "{}: {identity}, at revision {}, last written at {}\n\n\
         It has: {}; the certificate authority, tokens and keys.\n\
         It becomes the only manager, at {addr}, with a new id ({id}). All entries of its log are kept, through {last}.{uncertain}\n\
         Revisions go on from {goes_on}: above all that agents and watchers can have seen since.\n\
         Nodes are given {} to come; their containers are not touched before, and those of tasks that it knows go on.\n\
         The old log, snapshot and credentials are moved to {kept} in the same directory.\n\n\
         Lost:\n\
         \x20 - what the other managers confirmed without this one, if there was any; from here it cannot be told\n\
         {}",
        state_dir.display(),
        state.revision(),
        time(latest_ms(state)),
        inventory(state),
        Millis(*await_nodes_ms),
        dropped(&refounded.dropped),
    )
}

/// Whether a file is the manager's own and gives place to a new one.
fn gives_place(name: &str) -> bool {
    ["raft", "identity.json", seal::CREDENTIALS, seal::FILE, seal::DOOR, ADMIN].contains(&name) || name.starts_with("snapshot-")
}

/// Puts the new files into the place of the old ones. Each step may be the last before a power cut: the next call goes on from there.
fn exchange(dir: &Path) -> Result<()> {
    let (new, mark) = (dir.join(NEW), dir.join(MARK));
    let Some(Exchange { kept, emptied }) = ledger::read::<Exchange>(&mark)? else { return Ok(()) };
    let aside = dir.join(&kept);
    if !emptied {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&aside);
        made.with_context(|| format!("make {}", aside.display()))?;
        for name in names(dir)?.iter().filter(|name| gives_place(name)) {
            rename(&dir.join(name), &aside.join(name))?;
        }
        sync(&aside)?;
        sync(dir)?;
        ledger::write(&mark, &Exchange { kept, emptied: true })?;
    }
    if new.exists() {
        for name in names(&new)?.iter().filter(|name| gives_place(name)) {
            rename(&new.join(name), &dir.join(name))?;
        }
        sync(dir)?;
        remove(&new)?;
    }
    fs::remove_file(&mark).with_context(|| format!("remove {}", mark.display()))?;
    sync(dir)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let listed = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = listed.with_context(|| format!("list {}", dir.display()))?;
    Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("move {} to {}", from.display(), to.display()))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", dir.display())),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("sync {}", dir.display()))
}
