//! The pseudo-terminal of a process (config.md `process.terminal`, runtime-linux.md "Devices": `/dev/console`).
//!
//! In: the container's root and how large the terminal is. Out: its master side; its other side is then the standard input and outputs and
//! the controlling terminal. Nothing is reached by a name that the container could have changed (CVE-2025-52565): the multiplexer is
//! opened below a directory that was seen to be a devpts, the other side is opened from the master itself, and `/dev/console` is
//! covered by descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize};

use super::root::Root;
use super::{Doing, Failure, mounts};
use crate::core::spec::ConsoleSize;

/// `include/uapi/linux/magic.h`.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
/// `Documentation/admin-guide/devices.txt`: 5 char, 2 = /dev/ptmx; 136-143 char are the other sides.
const MULTIPLEXER: (u32, u32) = (5, 2);
const SIDES_MAJOR: std::ops::RangeInclusive<u32> = 136..=143;

/// Opens a new terminal in the container's devpts and makes it this process's.
pub fn open(root: &Root, size: Option<ConsoleSize>, bind: bool, relayed: bool) -> Result<OwnedFd, Failure> {
    let directory = root.find_plain(Path::new("/dev/pts")).doing(|| "a terminal needs a devpts mounted at /dev/pts".to_owned())?;
    if rustix::fs::fstatfs(&directory)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Failure::refused("/dev/pts is no devpts: mount one there"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let master = rustix::fs::openat2(&directory, "ptmx", flags, Mode::empty(), resolve).doing(|| "open /dev/pts/ptmx".to_owned())?;
    if device(master.as_fd())? != Some(MULTIPLEXER) {
        return Err(Failure::refused("/dev/pts/ptmx is not the terminal multiplexer"));
    }
    rustix::pty::unlockpt(&master).doing(|| "unlock the terminal".to_owned())?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let side = rustix::pty::ioctl_tiocgptpeer(&master, peer).doing(|| "open the terminal's other side".to_owned())?;
    if !device(side.as_fd())?.is_some_and(|(major, _)| SIDES_MAJOR.contains(&major)) {
        return Err(Failure::refused("the terminal's other side is no terminal"));
    }
    if let Some(ConsoleSize { height, width }) = size {
        rustix::termios::tcsetwinsize(&side, Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 })
            .doing(|| format!("process.consoleSize: set {height} rows of {width}"))?;
    }
    if relayed {
        // Lines end once, in the caller's terminal, or not at all where there is none: as under runc.
        let mut modes = rustix::termios::tcgetattr(&side).doing(|| "look at the terminal's modes".to_owned())?;
        modes.output_modes.remove(OutputModes::ONLCR);
        rustix::termios::tcsetattr(&side, OptionalActions::Now, &modes).doing(|| "set the terminal's modes".to_owned())?;
    }
    if bind {
        mounts::cover_console(root, side.as_fd()).doing(|| "cover /dev/console".to_owned())?;
    }
    rustix::process::ioctl_tiocsctty(&side).doing(|| "make it the controlling terminal".to_owned())?;
    rustix::stdio::dup2_stdin(&side)?;
    rustix::stdio::dup2_stdout(&side)?;
    rustix::stdio::dup2_stderr(&side)?;
    Ok(master)
}

/// The number of a character device.
fn device(file: BorrowedFd<'_>) -> Result<Option<(u32, u32)>, Failure> {
    let stat = rustix::fs::fstat(file)?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok((FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice).then_some(number))
}
