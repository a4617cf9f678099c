//! `cluster backup`: the managers' state as a file, and what is in such a file.

use std::path::Path;
use std::time::Duration;

use rcluster_api::backup::{self, BACKUP_BYTES_MAX};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::rest::timestamp;
use rcluster_api::wire::v1;
use serde::Serialize;
use tokio::time::timeout;

use crate::args::Backup;
use crate::config;
use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::{Client, Session};

/// How long the managers may take for the next piece.
const PIECE: Duration = Duration::from_secs(30);

/// What `cluster backup -o json` prints.
#[derive(Debug, Serialize)]
struct BackupJson {
    cluster: String,
    revision: u64,
    made_at: String,
    manager: String,
    version: String,
    bytes: usize,
    objects: Vec<Count>,
}

#[derive(Debug, Serialize)]
struct Count {
    kind: &'static str,
    count: usize,
}

/// `cluster backup FILE`.
pub async fn write(mut session: Session, out: Out, args: &Backup) -> Result<(), CliError> {
    let bytes = receive(&mut session).await?;
    // What cannot be read now could not be restored then.
    let view = look(&bytes).map_err(|error| CliError::refused(format!("the backup has not come whole: {error}"), "try again"))?;
    let secret = "it holds every secret, and the authority's key, in the clear: keep it where nobody else can read it";
    if is_standard(&args.file) {
        output::bytes(&bytes)?;
        return output::talk(&format!("backup: {}\n{secret}", view.0));
    }
    config::write_backup(&args.file, &bytes)?;
    output::talk(&format!("{} is written; {secret}", args.file.display()))?;
    print(out, &view)
}

/// `cluster backup --verify FILE`.
pub fn verify(out: Out, args: &Backup) -> Result<(), CliError> {
    let bytes = config::backup(&args.file)?;
    let name = if is_standard(&args.file) { "standard input".to_owned() } else { args.file.display().to_string() };
    let view = look(&bytes).map_err(|error| {
        CliError::refused(format!("{name} cannot be restored: {error}"), "rclusterctl cluster backup FILE makes one of a cluster that runs")
    })?;
    print(out, &view)
}

fn is_standard(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn print(out: Out, (text, json): &(String, BackupJson)) -> Result<(), CliError> {
    if out.is_table() { output::data(&format!("{text}\n")) } else { out.value(json) }
}

fn look(bytes: &[u8]) -> Result<(String, BackupJson), String> {
    let told = |error: &dyn std::error::Error| error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    let found = backup::decode(bytes).map_err(|error| told(&error))?;
    let counts = found.count().map_err(|error| told(&error))?;
    let backup::Header { cluster_id, revision, term: _, made_at_ms, manager, version, data_bytes: _, seal: _ } = found.header;
    let made_at = timestamp(made_at_ms);
    let text = format!(
        "cluster {cluster_id} at revision {revision}, made by manager {manager} at {made_at}, {} bytes: {}",
        bytes.len(),
        backup::inventory(&counts)
    );
    let objects = counts.into_iter().map(|(kind, count)| Count { kind: kind.as_str(), count }).collect();
    Ok((text, BackupJson { cluster: cluster_id, revision, made_at, manager, version, bytes: bytes.len(), objects }))
}

async fn receive(session: &mut Session) -> Result<Vec<u8>, CliError> {
    let call = |mut client: Client| async move { client.backup(v1::BackupRequest {}).await };
    let mut pieces = session.call(call).await?;
    let silent = || ApiError::new(ErrorCode::Unavailable, format!("the managers sent nothing for {} s", PIECE.as_secs()));
    let mut bytes = Vec::new();
    while let Some(piece) = timeout(PIECE, pieces.message()).await.map_err(|_| silent())?.map_err(ApiError::from)? {
        bytes.extend_from_slice(&piece.data);
        if bytes.len() as u64 > BACKUP_BYTES_MAX {
            return Err(CliError::refused(format!("the managers sent more than {BACKUP_BYTES_MAX} bytes"), ""));
        }
    }
    Ok(bytes)
}
