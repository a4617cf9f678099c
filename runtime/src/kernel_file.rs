//! Files that the kernel writes as they are read (procfs, sysfs, cgroupfs): their size is not known before, and each call has its price.

use std::fs::File;
use std::io;
use std::path::Path;

/// Most are read by one call and its empty successor.
const BYTES: usize = 8 << 10;

/// The whole text.
///
/// # Errors
/// What open(2) and read(2) say; `InvalidData` for what is no UTF-8.
pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let file = File::open(path)?;
    let mut text = Vec::with_capacity(BYTES);
    loop {
        if text.len() == text.capacity() {
            text.reserve(text.len());
        }
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no UTF-8"))
}
