//! What was measured, told twice: as a table for people, and as a line of JSON for each of its rows.

use serde_json::json;

/// Characters of a reason, which is a cell of the table.
const REASON_MAX: usize = 200;

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
}

/// Something that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub what: &'static str,
    pub unit: &'static str,
    pub better: Better,
    /// What is to be reached; may be empty.
    pub goal: &'static str,
    /// Whose figure whose is divided by.
    pub of: &'static [(&'static str, &'static str)],
}

/// One round: the best of many, their median and the tail that one has to reckon with; of a rate all three are alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub best: f64,
    pub p50: f64,
    pub p99: f64,
}

impl Sample {
    /// Of a rate.
    pub fn rate(value: f64) -> Self {
        Self { best: value, p50: value, p99: value }
    }

    /// Of times, of which there must be some.
    pub fn times(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| values.get(values.len().checked_sub(1)? * percent / 100).copied();
        Some(Self { best: at(0)?, p50: at(50)?, p99: at(99)? })
    }
}

#[derive(Debug)]
struct Row {
    figure: Figure,
    who: String,
    rounds: Vec<Sample>,
    /// In place of figures that there are not.
    why_not: String,
}

#[derive(Debug)]
struct Count {
    what: String,
    count: u64,
    of: String,
    goal: &'static str,
}

/// Everything that was measured, in the order of first measurement.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    counts: Vec<Count>,
    notes: Vec<String>,
}

impl Table {
    /// One more round of a figure.
    pub fn add(&mut self, figure: Figure, who: &str, sample: Sample) {
        self.row(figure, who).rounds.push(sample);
    }

    /// Says why there is no figure, as short as a cell is to be.
    pub fn absent(&mut self, figure: Figure, who: &str, why_not: &str) {
        self.row(figure, who).why_not = short(why_not);
    }

    /// Something that is counted: what, how often, and of how many.
    pub fn count(&mut self, what: &str, count: u64, of: &str, goal: &'static str) {
        self.counts.push(Count { what: what.to_owned(), count, of: of.to_owned(), goal });
    }

    /// What one must know to read a figure.
    pub fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    fn row(&mut self, figure: Figure, who: &str) -> &mut Row {
        let known = self.rows.iter().position(|row| row.figure.what == figure.what && row.who == who);
        let at = known.unwrap_or_else(|| {
            // Beside the others of its figure.
            let last = self.rows.iter().rposition(|row| row.figure.what == figure.what);
            let at = last.map_or(self.rows.len(), |last| last + 1);
            self.rows.insert(at, Row { figure, who: who.to_owned(), rounds: Vec::new(), why_not: String::new() });
            at
        });
        &mut self.rows[at]
    }

    /// Over its rounds: the best of all, the median of the medians, and of the tails the median, or of a rate's the worst.
    fn whole(&self, what: &str, who: &str) -> Option<Sample> {
        let row = self.rows.iter().find(|row| row.figure.what == what && row.who == who)?;
        let pick = |value: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = row.rounds.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let middle = |values: &[f64]| values.get(values.len() / 2).copied();
        let (best, p50, p99) = (pick(|sample| sample.best), pick(|sample| sample.p50), pick(|sample| sample.p99));
        Some(match row.figure.better {
            Better::More => Sample { best: *best.last()?, p50: middle(&p50)?, p99: *p99.first()? },
            Better::Less => Sample { best: *best.first()?, p50: middle(&p50)?, p99: middle(&p99)? },
        })
    }

    /// Whom it is compared with, and the same as a part of theirs: of the best, and of the medians.
    fn ratios(&self, row: &Row) -> Option<(&'static str, f64, f64)> {
        let (_, base) = row.figure.of.iter().find(|(who, _)| *who == row.who)?;
        let (own, theirs) = (self.whole(row.figure.what, &row.who)?, self.whole(row.figure.what, base)?);
        Some((base, own.best / theirs.best, own.p50 / theirs.p50))
    }

    /// The tables, then the lines.
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        if !self.rows.is_empty() {
            lines.push(
                "| what | who | best | p50 | p99 | of | ratio of best | of p50 | goal |\n|---|---|---|---|---|---|---|---|---|".to_owned(),
            );
            lines.extend(self.rows.iter().map(|row| self.told(row)));
        }
        if !self.counts.is_empty() {
            lines.push("\n| counted | | of | goal |\n|---|---|---|---|".to_owned());
            let told = |Count { what, count, of, goal }: &Count| format!("| {what} | {count} | {of} | {goal} |");
            lines.extend(self.counts.iter().map(told));
        }
        lines.push(String::new());
        lines.extend(self.notes.iter().map(|note| format!("- {note}")));
        lines.push(String::new());
        lines.extend(self.rows.iter().map(|row| self.line(row)));
        lines.extend(self.counts.iter().map(|Count { what, count, of, goal }| {
            json!({"bench": "net", "counted": what, "count": count, "of": of, "goal": goal}).to_string()
        }));
        lines.join("\n")
    }

    fn told(&self, row: &Row) -> String {
        let Figure { what, unit, goal, .. } = row.figure;
        let who = &row.who;
        let Some(Sample { best, p50, p99 }) = self.whole(what, who) else {
            return format!("| {what} | {who} | {} | | | | | | {goal} |", row.why_not);
        };
        let ratios = match self.ratios(row) {
            Some((base, best, p50)) => format!("{base} | {best:.2} | {p50:.2}"),
            None => " |  | ".to_owned(),
        };
        format!("| {what} | {who} | {best:.1} {unit} | {p50:.1} | {p99:.1} | {ratios} | {goal} |")
    }

    fn line(&self, row: &Row) -> String {
        let Figure { what, unit, goal, .. } = row.figure;
        let rounds: Vec<[f64; 3]> = row.rounds.iter().map(|Sample { best, p50, p99 }| [*best, *p50, *p99]).collect();
        let whole = self.whole(what, &row.who).map(|Sample { best, p50, p99 }| [best, p50, p99]);
        let ratios = self.ratios(row).map(|(base, best, p50)| json!({"of": base, "best": best, "p50": p50}));
        let (who, why_not) = (&row.who, &row.why_not);
        json!({
            "bench": "net", "what": what, "who": who, "unit": unit, "best_p50_p99": whole, "ratio": ratios, "rounds": rounds,
            "goal": goal, "why_not": why_not,
        })
        .to_string()
    }
}

/// On one line, and no longer than a reason may be.
fn short(reason: &str) -> String {
    let lines: Vec<&str> = reason.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines.join("; ");
    match line.char_indices().nth(REASON_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Figure = Figure { what: "rate", unit: "/s", better: Better::More, goal: "0.5", of: &[("ours", "bare")] };
    const TIME: Figure = Figure { what: "time", unit: "ms", better: Better::Less, goal: "", of: &[] };

    #[test]
    fn rounds_become_rows_with_ratios() {
        let mut table = Table::default();
        for (bare, ours) in [(100.0, 80.0), (120.0, 60.0), (110.0, 90.0)] {
            table.add(RATE, "bare", Sample::rate(bare));
            table.add(TIME, "ours", Sample { best: ours, p50: ours + 1.0, p99: ours + 9.0 });
            table.add(RATE, "ours", Sample::rate(ours));
        }
        table.absent(RATE, "theirs", "not installed");
        table.count("failed", 0, "700 requests", "0");
        table.note("quiet");
        let text = table.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[2..10],
            [
                "| rate | bare | 120.0 /s | 110.0 | 100.0 |  |  |  | 0.5 |",
                "| rate | ours | 90.0 /s | 80.0 | 60.0 | bare | 0.75 | 0.73 | 0.5 |",
                "| rate | theirs | not installed | | | | | | 0.5 |",
                "| time | ours | 60.0 ms | 81.0 | 89.0 |  |  |  |  |",
                "",
                "| counted | | of | goal |",
                "|---|---|---|---|",
                "| failed | 0 | 700 requests | 0 |",
            ]
        );
        assert_eq!(lines[10..13], ["", "- quiet", ""]);
        let first: serde_json::Value = serde_json::from_str(lines[13]).unwrap();
        assert_eq!(first["best_p50_p99"], json!([120.0, 110.0, 100.0]));
        assert_eq!(lines.len(), 13 + 5);
    }

    #[test]
    fn a_reason_is_a_short_line() {
        assert_eq!(short("not reached:\n  no answer \n\n"), "not reached:; no answer");
        assert_eq!(short(&"é".repeat(REASON_MAX)), "é".repeat(REASON_MAX));
        assert_eq!(short(&"é".repeat(REASON_MAX + 1)), format!("{}…", "é".repeat(REASON_MAX)));
    }

    #[test]
    fn of_no_times_there_is_no_sample() {
        assert_eq!(Sample::times(Vec::new()), None);
        assert_eq!(Sample::times(vec![3.0, 1.0, 2.0]), Some(Sample { best: 1.0, p50: 2.0, p99: 2.0 }));
    }
}
