//! A table as runc prints one, which scripts cut at its columns.
//!
//! In: rows of as many cells each. Out: lines. Never wider than its cells ask for.

const WIDTH_LEAST: usize = 12;
const GAP: usize = 3;

/// Every column but the last is as wide as its widest cell and a gap, and no narrower than any column.
pub fn lines<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let length = |text: &str| text.chars().count();
    let width = |column: usize| rows.iter().map(|row| length(&row[column]) + GAP).max().unwrap_or(0).max(WIDTH_LEAST);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |row: &[String; COLUMNS]| {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID", "PID", "OWNER"], ["a-long-name", "7", "root"], ["\u{fc}", "", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(lines(&rows), "ID            PID         OWNER\na-long-name   7           root\n\u{fc}");
    }
}
