//! `watch`: one request after the other, a line at each change of outcome, a summary at the end.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::http::{self, Fetched, Url};
use crate::json;
use crate::outage::{Tally, Times};
use crate::output::say;
use crate::stop::Stop;

/// Asks until stop is said or `limit` is over. A change of address alone is no change: names resolve to their replicas in turn.
pub fn watch(url: &Url, interval: Duration, timeout: Duration, limit: Option<Duration>, stop: &Stop) -> io::Result<()> {
    let start = Instant::now();
    let end = limit.map(|limit| start + limit);
    let mut tally = Tally::default();
    let mut before: Option<Option<String>> = None;
    loop {
        let began = Instant::now();
        let Fetched { address, body } = http::fetch(url, began + timeout);
        let times = Times { began_ms: ms(began - start), ended_ms: ms(start.elapsed()), unix_ms: unix_ms() };
        let error = match body {
            Ok(body) => {
                tally.success(times, json::string_field(&body, "task"));
                None
            }
            Err(why) => {
                tally.failure(times);
                Some(why)
            }
        };
        if before.as_ref() != Some(&error) {
            let address = address.map(|address| address.to_string()).unwrap_or_default();
            say(&format!(
                "{{\"at_ms\":{},\"ok\":{},\"addr\":{},\"error\":{}}}",
                times.unix_ms,
                error.is_none(),
                json::string(&address),
                json::string(error.as_deref().unwrap_or_default())
            ))?;
            before = Some(error);
        }
        let next = Instant::now() + interval;
        let stopped = stop.wait_until(end.map_or(next, |end| next.min(end)));
        if stopped || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
    }
    tally.finish(ms(start.elapsed()));
    say(&tally.to_json())
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    // A clock before 1970 is shown as 1970.
    ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}
