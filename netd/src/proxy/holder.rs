//! Who has a port of this host: the kernel tells its sockets by number (`/proc/net/tcp` and others), and processes show which they hold.

use std::fs;
use std::io;
use std::path::Path;

use crate::core::flows::Transport;
use crate::core::published::Opening;

/// The state of a socket that listens (`TCP_LISTEN`).
const LISTENS: &str = "0A";

/// Who keeps netd from having a port.
#[derive(Debug)]
pub struct Holder {
    sockets: Vec<u64>,
    /// For people, such as `nginx (pid 812)`.
    pub words: String,
}

impl Holder {
    /// By the error that was met, in the calling thread's network namespace. Processes are asked only if it is not the one that was `known`.
    pub fn find(opening: Opening, error: &io::Error, known: Option<Self>) -> Self {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Self { sockets: Vec::new(), words: format!("the host itself ({error})") };
        }
        // A socket of both families is among those of IPv6.
        let tables = match opening.transport {
            Transport::Tcp => ["tcp", "tcp6"],
            Transport::Udp => ["udp", "udp6"],
        };
        let tables = tables.map(|table| fs::read_to_string(Path::new("/proc/thread-self/net").join(table)).unwrap_or_default());
        let sockets: Vec<u64> = tables.iter().flat_map(|table| sockets_at(table, opening)).collect();
        match known {
            Some(known) if known.sockets == sockets => known,
            Some(_) | None => {
                let words = process_of(&sockets).unwrap_or_else(|| "another program".to_owned());
                Self { sockets, words }
            }
        }
    }
}

/// The sockets at the port, by their numbers, in the text of such a table; those that listen first.
fn sockets_at(table: &str, opening: Opening) -> Vec<u64> {
    let port = format!(":{:04X}", opening.port);
    let socket = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, number, ..] = columns[..] else { return None };
        let number: u64 = number.parse().ok()?;
        (local.ends_with(&port) && number > 0).then_some((state != LISTENS, number))
    };
    let mut sockets: Vec<(bool, u64)> = table.lines().filter_map(socket).collect();
    sockets.sort_unstable();
    sockets.into_iter().map(|(_, number)| number).collect()
}

/// The first process that holds the first of the sockets that is held by any.
fn process_of(sockets: &[u64]) -> Option<String> {
    let names: Vec<String> = sockets.iter().map(|number| format!("socket:[{number}]")).collect();
    let mut found: Option<(usize, u32)> = None;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that has ended meanwhile holds nothing.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let held = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        let place = held.filter_map(|file| names.iter().position(|name| file.as_os_str() == name.as_str())).min();
        if let Some(place) = place
            && found.is_none_or(|known| (place, pid) < known)
        {
            found = Some((place, pid));
        }
    }
    let (_, pid) = found?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (pid {pid})", name.trim()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn sockets_are_found_by_their_port_and_those_that_listen_first() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0000000000000000 20 4 30 10 -1
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0000000000000000 100 0 0 10 0
   2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0000000000000000 100 0 0 10 0
   3: 0100007F:1F90 0100007F:C002 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0000000000000000
";
        let at = |port| sockets_at(table, Opening { transport: Transport::Tcp, port });
        assert_eq!((at(8080), at(8081), at(80)), (vec![222, 111], vec![333], vec![]));
        for len in 0..table.len() {
            assert!(sockets_at(&table[..len], Opening { transport: Transport::Tcp, port: 8080 }).len() <= 2);
        }
    }

    #[test]
    fn a_process_that_listens_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let opening = Opening { transport: Transport::Tcp, port: listener.local_addr().unwrap().port() };
        let error = TcpListener::bind(("0.0.0.0", opening.port)).unwrap_err();
        let holder = Holder::find(opening, &error, None);
        assert!(holder.words.ends_with(&format!("(pid {})", std::process::id())), "{}", holder.words);
        let other = Holder { words: "as before".into(), ..holder };
        assert_eq!(Holder::find(opening, &error, Some(other)).words, "as before", "the same sockets are the same process's");
    }
}
