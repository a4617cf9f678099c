//! The program to execute, found in the container before it is said to be created, so that a missing one fails `create` and not `start`.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use super::Failure;

/// Used when the environment has no PATH, as by execvp(3) and runc.
const PATH_DEFAULT: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PASSWD_BYTES_MAX: u64 = 1 << 20;

/// Finds the program as execvp(3) does, as the container's user.
pub fn find(name: &str, env: &[CString]) -> Result<CString, Failure> {
    if name.contains('/') {
        executable(Path::new(name))?;
        return c_string(name.as_bytes());
    }
    let path = variable(env, b"PATH").unwrap_or(PATH_DEFAULT);
    let mut denied = false;
    for directory in path.split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(name);
        match executable(&candidate) {
            Ok(()) => return c_string(candidate.as_os_str().as_bytes()),
            Err(Errno::ACCESS | Errno::PERM) => denied = true,
            Err(_) => {}
        }
    }
    let errno = if denied { libc::EACCES } else { libc::ENOENT };
    Err(Failure { errno, detail: format!("no executable file in {}", String::from_utf8_lossy(path)) })
}

/// Sets HOME from the container's `/etc/passwd` when the configuration sets none, as runc and crun do.
pub fn add_home(env: &mut Vec<CString>, uid: u32) {
    if variable(env, b"HOME").is_some() {
        return;
    }
    let home = home_of(&passwd(), uid).unwrap_or_else(|| "/".to_owned());
    env.extend(CString::new(format!("HOME={home}")));
}

fn executable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn variable<'a>(env: &'a [CString], name: &[u8]) -> Option<&'a [u8]> {
    env.iter().rev().find_map(|pair| pair.to_bytes().strip_prefix(name)?.strip_prefix(b"="))
}

/// Without blocking on a FIFO someone put there, and not without end.
fn passwd() -> String {
    let mut text = String::new();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/etc/passwd");
    if let Ok(file) = file.and_then(|file| if file.metadata()?.is_file() { Ok(file) } else { Err(Errno::INVAL.into()) }) {
        // A file that is unreadable or no text names no home.
        let _ = file.take(PASSWD_BYTES_MAX).read_to_string(&mut text);
    }
    text
}

/// passwd(5): the sixth field of the first line whose third is the user.
fn home_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = fields.get(5).filter(|home| home.starts_with('/'))?;
        (fields.get(2)?.parse() == Ok(uid)).then(|| (*home).to_owned())
    })
}

fn c_string(bytes: &[u8]) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| Failure::refused("holds a NUL byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_by_user() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:7:7::/srv:/bin/sh\nodd:x:8:8::relative:/bin/sh\n";
        assert_eq!(home_of(passwd, 7).as_deref(), Some("/srv"));
        assert_eq!(home_of(passwd, 8), None);
        assert_eq!(home_of(passwd, 9), None);
    }

    #[test]
    fn the_last_of_equal_variables_counts() {
        let env = [c"PATH=/a".to_owned(), c"PATHS=/c".to_owned(), c"PATH=/b".to_owned()];
        assert_eq!(variable(&env, b"PATH"), Some(b"/b".as_slice()));
    }
}
