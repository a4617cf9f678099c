//! All about one object, for people: its fields as YAML, then its tasks, then what happened to it.

use super::rows;
use super::yaml;
use crate::error::CliError;
use crate::views::View;

/// Events shown at most: the last ones.
const EVENTS_MAX: usize = 20;

/// The text about `view`, with the tasks that belong to it and the events that name it.
pub fn describe(view: &View, tasks: &[View], events: &[View], now_ms: u64) -> Result<String, CliError> {
    let mut text = yaml(view)?;
    if !matches!(view, View::Task(_)) {
        text.push_str("\nTasks\n");
        text.push_str(&indented(tasks, now_ms, "  none\n"));
    }
    let last = &events[events.len().saturating_sub(EVENTS_MAX)..];
    text.push_str(&if last.len() < events.len() {
        format!("\nEvents (the last {EVENTS_MAX} of {})\n", events.len())
    } else {
        "\nEvents\n".to_owned()
    });
    text.push_str(&indented(last, now_ms, "  none\n"));
    Ok(text)
}

fn indented(views: &[View], now_ms: u64, empty: &str) -> String {
    if views.is_empty() {
        return empty.to_owned();
    }
    rows::table(views, false, now_ms).to_string().lines().map(|line| format!("  {line}\n")).collect()
}
