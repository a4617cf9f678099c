//! Lines on stdout, each flushed: a pipe's reader sees them as they happen.

use std::io::{self, Write};

/// Prints one line; fails when nobody reads any more.
pub fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
