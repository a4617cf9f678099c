//! The arithmetic of an outage: what a row of requests says about how long a service was away.
//!
//! In: each request's beginning, end and outcome, in order. Out: a summary. Never: a clock.
//!
//! An outage reaches from the end of the last success before a failure to the end of the next success. Before the first success it
//! reaches back to the beginning of the first request, and one that is still going on at the end reaches to the end.

use std::collections::BTreeMap;

use crate::json;

/// When a request began and ended, in ms of a clock that never jumps, and when it ended in ms since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub began_ms: u64,
    pub ended_ms: u64,
    pub unix_ms: u64,
}

/// What is known after the requests so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub requests: u64,
    pub failures: u64,
    pub longest_outage_ms: u64,
    pub first_failure_ms: Option<u64>,
    pub last_failure_ms: Option<u64>,
    /// Good answers by the task that gave them.
    pub tasks: BTreeMap<String, u64>,
    /// The end of the last success, or the beginning of the first request.
    good_until_ms: Option<u64>,
    failing: bool,
}

impl Tally {
    /// Counts a good answer; `task` is who gave it, where it says so.
    pub fn success(&mut self, times: Times, task: Option<String>) {
        self.requests += 1;
        self.end_outage(times.ended_ms);
        self.good_until_ms = Some(times.ended_ms);
        if let Some(task) = task {
            *self.tasks.entry(task).or_default() += 1;
        }
    }

    /// Counts a request without a good answer.
    pub fn failure(&mut self, times: Times) {
        self.requests += 1;
        self.failures += 1;
        self.failing = true;
        self.good_until_ms.get_or_insert(times.began_ms);
        self.first_failure_ms.get_or_insert(times.unix_ms);
        self.last_failure_ms = Some(times.unix_ms);
    }

    /// Ends the row of requests.
    pub fn finish(&mut self, now_ms: u64) {
        self.end_outage(now_ms);
    }

    /// The summary as one line of JSON.
    pub fn to_json(&self) -> String {
        let tasks: Vec<String> = self.tasks.iter().map(|(task, count)| format!("{}:{count}", json::string(task))).collect();
        format!(
            "{{\"requests\":{},\"failures\":{},\"longest_outage_ms\":{},\"first_failure_ms\":{},\"last_failure_ms\":{},\"tasks\":{{{}}}}}",
            self.requests,
            self.failures,
            self.longest_outage_ms,
            json::number_or_null(self.first_failure_ms),
            json::number_or_null(self.last_failure_ms),
            tasks.join(",")
        )
    }

    fn end_outage(&mut self, now_ms: u64) {
        if std::mem::take(&mut self.failing)
            && let Some(good_until_ms) = self.good_until_ms
        {
            self.longest_outage_ms = self.longest_outage_ms.max(now_ms.saturating_sub(good_until_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Tally, Times};

    /// A row of requests, one letter each: `+` takes 10 ms, `-` takes 50 ms, `.` is 100 ms of nothing.
    fn tally(row: &str) -> Tally {
        let (mut tally, mut now) = (Tally::default(), 0);
        for letter in row.chars() {
            let took = match letter {
                '+' => 10,
                '-' => 50,
                _ => 100,
            };
            let times = Times { began_ms: now, ended_ms: now + took, unix_ms: 1000 + now + took };
            now += took;
            match letter {
                '+' => tally.success(times, Some("web.1".to_owned())),
                '-' => tally.failure(times),
                _ => {}
            }
        }
        tally.finish(now);
        tally
    }

    #[test]
    fn an_outage_reaches_from_success_to_success() {
        for (row, longest) in [
            ("", 0),
            ("+++", 0),
            ("+...+", 0),
            ("+-+", 60),
            ("+--+-+", 110),
            ("+-+--+", 110),
            ("+.-.+", 260),
            ("-+", 60),
            ("+-", 50),
            ("+-.", 150),
            ("--", 100),
        ] {
            assert_eq!(tally(row).longest_outage_ms, longest, "{row}");
        }
    }

    #[test]
    fn the_summary_is_one_line_of_json() {
        assert_eq!(
            tally("+--+").to_json(),
            r#"{"requests":4,"failures":2,"longest_outage_ms":110,"first_failure_ms":1060,"last_failure_ms":1110,"tasks":{"web.1":2}}"#
        );
        assert_eq!(
            tally("").to_json(),
            r#"{"requests":0,"failures":0,"longest_outage_ms":0,"first_failure_ms":null,"last_failure_ms":null,"tasks":{}}"#
        );
    }
}
