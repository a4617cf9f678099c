//! What netd remembers: the picture in force, in the state directory, which outlives a power cut; the pods attached here, in the run
//! directory, which goes with them.

use std::path::{Path, PathBuf};

use rcluster_base::ledger::{self, LedgerError};

use crate::core::picture::{Attachments, Picture};

/// The two files.
#[derive(Debug, Clone)]
pub struct Store {
    picture: PathBuf,
    attachments: PathBuf,
}

impl Store {
    /// Files in these directories, which exist.
    pub fn new(state_dir: &Path, run_dir: &Path) -> Self {
        Self { picture: state_dir.join("picture.json"), attachments: run_dir.join("attachments.json") }
    }

    /// The picture in force when netd last ran; an empty one on a fresh disk.
    pub fn load_picture(&self) -> Result<Picture, LedgerError> {
        Ok(ledger::read(&self.picture)?.unwrap_or_default())
    }

    /// The pods that were attached when netd last ran on this boot.
    pub fn load_attachments(&self) -> Result<Attachments, LedgerError> {
        Ok(ledger::read(&self.attachments)?.unwrap_or_default())
    }

    /// Remembers the picture; one line of JSON, for it is long.
    pub fn save_picture(&self, picture: &Picture) -> Result<(), LedgerError> {
        let bytes = serde_json::to_vec(picture).map_err(|source| LedgerError::Encode { path: self.picture.clone(), source })?;
        ledger::write_bytes(&self.picture, &bytes)
    }

    /// Remembers the pods.
    pub fn save_attachments(&self, attachments: &Attachments) -> Result<(), LedgerError> {
        ledger::write(&self.attachments, attachments)
    }
}
