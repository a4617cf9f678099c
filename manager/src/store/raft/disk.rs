//! What a person can do when a disk refuses.

use std::error::Error;
use std::io::{self, ErrorKind};

/// What mends the disk, when the error's cause is that it is full or cannot be written.
pub fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                return Some("the disk is full: make room on it, then start this manager again");
            }
            Some(ErrorKind::ReadOnlyFilesystem) => {
                return Some(
                    "the disk is read-only, as Linux makes one after an error: look for it in the kernel's log (dmesg), mount the disk so \
                     that it can be written, then start this manager again",
                );
            }
            Some(_) | None => cause = error.source(),
        }
    }
    None
}
