//! How a rollout looks while it goes on: one bar for each task, redrawn on a terminal; elsewhere a line for each change.

use std::collections::BTreeMap;

use rcluster_api::task::TaskState;
use rcluster_deploy::watch::{Tally, TaskLine};

use super::rows::seconds;
use super::table::one_line;

/// Most bars at once; those that do not run yet come first.
const BARS_MAX: usize = 16;
const BAR_CELLS: usize = 8;
/// Most services at once whose tasks are counted; those that lack some come first.
const TALLIES_MAX: usize = 8;

/// Draws pictures of a rollout one after the other.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    drawn_lines: usize,
    said: BTreeMap<String, String>,
}

impl Progress {
    /// For a terminal or for a file.
    pub fn new(terminal: bool) -> Self {
        Self { terminal, drawn_lines: 0, said: BTreeMap::new() }
    }

    /// What to write to stderr for this picture.
    pub fn draw(&mut self, lines: &[TaskLine], tallies: &[Tally], elapsed_ms: u64) -> String {
        if self.terminal { self.redraw(lines, tallies, elapsed_ms) } else { self.changes(lines, elapsed_ms) }
    }

    /// Lines wider than the terminal are cut by it (DECAWM off), so that moving up by lines drawn is right.
    fn redraw(&mut self, lines: &[TaskLine], tallies: &[Tally], elapsed_ms: u64) -> String {
        let mut shown: Vec<&TaskLine> = lines.iter().filter(|line| is_awaited(line)).collect();
        shown.extend(lines.iter().filter(|line| !is_awaited(line)));
        let mut block: Vec<String> = shown.iter().take(BARS_MAX).map(|line| bar_line(line)).collect();
        if shown.len() > BARS_MAX {
            block.push(format!("… and {} more", shown.len() - BARS_MAX));
        }
        let (behind, done): (Vec<&Tally>, Vec<&Tally>) = tallies.iter().partition(|tally| tally.is_behind());
        let mut counted: Vec<String> = behind.into_iter().chain(done).take(TALLIES_MAX).map(tally).collect();
        if tallies.len() > TALLIES_MAX {
            counted.push(format!("… and {} services more", tallies.len() - TALLIES_MAX));
        }
        block.push(format!("{}  {}", counted.join(", "), seconds(elapsed_ms)));
        let up = if self.drawn_lines > 0 { format!("\x1b[{}A", self.drawn_lines) } else { String::new() };
        self.drawn_lines = block.len();
        format!("\x1b[?7l{up}\r\x1b[J{}\n\x1b[?7h", block.join("\n"))
    }

    fn changes(&mut self, lines: &[TaskLine], elapsed_ms: u64) -> String {
        let mut text = String::new();
        for line in lines {
            let now = plain_line(line);
            let key = format!("{} {}", line.name, line.old);
            if self.said.get(&key) != Some(&now) {
                text.push_str(&format!("{:>7}  {now}\n", seconds(elapsed_ms)));
                self.said.insert(key, now);
            }
        }
        text
    }
}

fn is_awaited(line: &TaskLine) -> bool {
    line.old || !line.serves
}

fn plain_line(line: &TaskLine) -> String {
    let mut text = format!("{} {}", line.name, if line.old { "is to be replaced".to_owned() } else { line.state.to_string() });
    if !line.node.is_empty() {
        text.push_str(&format!(" on {}", line.node));
    }
    if !line.message.is_empty() && !line.serves {
        text.push_str(&format!(": {}", one_line(&line.message)));
    }
    text
}

fn bar_line(line: &TaskLine) -> String {
    let full = TaskState::ALL.iter().position(|state| *state == line.state).map_or(0, |step| (step + 1).min(BAR_CELLS));
    let bar = format!("{}{}", "=".repeat(full), " ".repeat(BAR_CELLS - full));
    let state = if line.old { "to be replaced".to_owned() } else { line.state.to_string() };
    let message = if line.serves { String::new() } else { one_line(&line.message) };
    format!("{:<20} [{bar}] {state:<14} {:<6} {message}", line.name, line.node).trim_end().to_owned()
}

fn tally(tally: &Tally) -> String {
    let leaving = if tally.leaving > 0 { format!(" ({} leaving)", tally.leaving) } else { String::new() };
    format!("{} {}/{}{leaving}", tally.service, tally.running, tally.wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(slot: u32, state: TaskState, message: &str) -> TaskLine {
        TaskLine {
            service: "web".to_owned(),
            slot,
            name: format!("web.{slot}"),
            node: if state > TaskState::Pending { "n1".to_owned() } else { String::new() },
            state,
            message: message.to_owned(),
            serves: state == TaskState::Running,
            old: false,
        }
    }

    #[test]
    fn a_file_gets_a_line_for_each_change() {
        let mut progress = Progress::new(false);
        let first = [line(1, TaskState::Running, ""), line(2, TaskState::Pending, "0/3 nodes fit web.2")];
        assert_eq!(progress.draw(&first, &[], 100), "  0.1 s  web.1 running on n1\n  0.1 s  web.2 pending: 0/3 nodes fit web.2\n");
        assert_eq!(progress.draw(&first, &[], 200), "");
        assert_eq!(
            progress.draw(&[line(1, TaskState::Running, ""), line(2, TaskState::Starting, "")], &[], 1_300),
            "  1.3 s  web.2 starting on n1\n"
        );
    }

    #[test]
    fn a_terminal_gets_bars_that_are_redrawn() {
        let mut progress = Progress::new(true);
        let tallies = [Tally { service: "web".to_owned(), running: 1, wanted: 2, leaving: 0, complete: false }];
        let lines = [line(1, TaskState::Running, ""), line(2, TaskState::Assigned, "")];
        assert_eq!(
            progress.draw(&lines, &tallies, 1_000),
            "\x1b[?7l\r\x1b[Jweb.2                [===     ] assigned       n1\nweb.1                [========] running        n1\nweb 1/2  1.0 s\n\x1b[?7h"
        );
        assert!(progress.draw(&lines, &tallies, 1_100).starts_with("\x1b[?7l\x1b[3A\r\x1b[J"));
        let many: Vec<TaskLine> = (1..=20).map(|slot| line(slot, TaskState::Running, "")).collect();
        assert!(progress.draw(&many, &tallies, 1_200).contains("\n… and 4 more\nweb 1/2  1.2 s\n"));
        let of =
            |nth: usize| Tally { service: format!("s{nth}"), running: usize::from(nth != 9), wanted: 1, leaving: 0, complete: nth != 9 };
        let services: Vec<Tally> = (0..10).map(of).collect();
        assert!(
            progress
                .draw(&lines, &services, 1_300)
                .contains("\ns9 0/1, s0 1/1, s1 1/1, s2 1/1, s3 1/1, s4 1/1, s5 1/1, s6 1/1, … and 2 services more  1.3 s\n")
        );
    }
}
