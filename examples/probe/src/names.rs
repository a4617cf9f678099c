//! `names`: answers of the first name server, as they are now or as they change, for who measures how soon they do.
//!
//! ```text
//! stdin   ask NAME      ──►  stdout  one line
//!         watch NAME    ──►          one line at once and at each change, until the next line of stdin
//!         rest          ──►          nothing
//! ```
//!
//! A line: `{"name":"tasks.web","at_ms":1763800000000,"addresses":["10.128.0.2"],"error":""}`. `at_ms` is when the answer had come, in
//! milliseconds since 1970; addresses are in order. Ends with stdin.

use std::io::{self, BufRead};
use std::net::Ipv4Addr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::dns;
use crate::json;
use crate::output::say;
use crate::watch::unix_ms;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Ask(String),
    Watch(String),
    Rest,
}

fn wish(line: &str) -> Result<Wish, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["ask", name] => Ok(Wish::Ask((*name).to_owned())),
        ["watch", name] => Ok(Wish::Watch((*name).to_owned())),
        ["rest"] => Ok(Wish::Rest),
        _ => Err(format!("{line:?} is neither ask NAME, watch NAME nor rest")),
    }
}

/// Answers until stdin ends; what is watched is asked for again after `interval`.
pub fn names(interval: Duration) -> io::Result<()> {
    let (sender, lines) = mpsc::channel();
    std::thread::Builder::new().spawn(move || {
        // Dropping the sender tells of the end.
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    })?;
    let mut watched: Option<Watched> = None;
    loop {
        let line = match &mut watched {
            Some(watched) => {
                watched.look()?;
                match lines.recv_timeout(interval) {
                    Ok(line) => line,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
            None => match lines.recv() {
                Ok(line) => line,
                Err(mpsc::RecvError) => return Ok(()),
            },
        };
        watched = match wish(&line).map_err(io::Error::other)? {
            Wish::Ask(name) => {
                tell(&name, &ask(&name))?;
                None
            }
            Wish::Watch(name) => Some(Watched { name, last: None }),
            Wish::Rest => None,
        };
    }
}

type Answer = Result<Vec<Ipv4Addr>, String>;

fn ask(name: &str) -> Answer {
    let mut addresses = dns::lookup(name, Instant::now() + PATIENCE).map_err(|error| error.to_string())?;
    addresses.sort_unstable();
    Ok(addresses)
}

/// A name whose changes are told.
struct Watched {
    name: String,
    last: Option<Answer>,
}

impl Watched {
    fn look(&mut self) -> io::Result<()> {
        let now = ask(&self.name);
        if self.last.as_ref() != Some(&now) {
            tell(&self.name, &now)?;
            self.last = Some(now);
        }
        Ok(())
    }
}

fn tell(name: &str, answer: &Answer) -> io::Result<()> {
    let (addresses, error) = match answer {
        Ok(addresses) => (addresses.iter().map(|address| json::string(&address.to_string())).collect::<Vec<_>>().join(","), ""),
        Err(why) => (String::new(), why.as_str()),
    };
    let (name, at_ms, error) = (json::string(name), unix_ms(), json::string(error));
    say(&format!("{{\"name\":{name},\"at_ms\":{at_ms},\"addresses\":[{addresses}],\"error\":{error}}}"))
}

#[cfg(test)]
mod tests {
    use super::{Wish, wish};

    #[test]
    fn lines_are_understood() {
        assert_eq!(wish("ask tasks.web"), Ok(Wish::Ask("tasks.web".to_owned())));
        assert_eq!(wish(" watch  web "), Ok(Wish::Watch("web".to_owned())));
        assert_eq!(wish("rest"), Ok(Wish::Rest));
        for line in ["", "ask", "watch a b", "rest web", "tell web"] {
            assert!(wish(line).is_err(), "{line:?}");
        }
    }
}
