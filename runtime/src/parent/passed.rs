//! Descriptors that a caller passes on to the container, by number (`--preserve-fds`) or as sockets to listen on (sd_listen_fds(3)).

use anyhow::{Result, bail};

const FIRST: u32 = 3;

/// Refuses to pass on what is not open; to be called before this program opens anything that could be taken for it.
pub fn check(asked: u32) -> Result<()> {
    for fd in FIRST..FIRST.saturating_add(count(asked)) {
        if !std::path::Path::new(&format!("/proc/self/fd/{fd}")).exists() {
            bail!("--preserve-fds {asked}: descriptor {fd} is not open");
        }
    }
    Ok(())
}

/// How many descriptors after the standard ones are passed on: those to listen on first, then as many as asked for.
pub fn count(asked: u32) -> u32 {
    listening().saturating_add(asked)
}

/// What tells the container's process of sockets to listen on: in its pid namespace it is the first, as runc says.
pub fn environment() -> Vec<String> {
    match listening() {
        0 => Vec::new(),
        count => vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()],
    }
}

/// Sockets that are meant for this process and not for one above it.
fn listening() -> u32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(std::process::id())).unwrap_or(0)
}
