//! Columns that line up, three blanks apart, without trailing blanks; the first row says what they are.

use std::fmt;

/// Rows of cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

const GAP: usize = 3;

impl Table {
    /// A table with a head and no rows.
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a row. Cells are made fit for one line.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell)).collect());
    }

    /// The widths of the columns.
    pub fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        (0..columns).map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0)).collect()
    }

    /// The rows after the head, in columns of at least these widths, which then grow to fit them.
    pub fn rows_in(&self, widths: &mut Vec<usize>) -> String {
        for (column, own) in self.widths().into_iter().enumerate() {
            match widths.get_mut(column) {
                Some(width) => *width = (*width).max(own),
                None => widths.push(own),
            }
        }
        self.rows.iter().skip(1).map(|row| line(row, widths)).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        self.rows.iter().try_for_each(|row| formatter.write_str(&line(row, &widths)))
    }
}

fn line(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, column) in row.iter().zip(widths) {
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', column.saturating_sub(width(cell)) + GAP));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// One column a character: names are ASCII, and messages stand in the last column.
fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// Line ends become blanks and other control characters are dropped: what a container writes must not move the cursor.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c }).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "STATE", "MESSAGE"]);
        table.row(vec!["web.10".into(), "running".into(), String::new()]);
        table.row(vec!["ü".into(), "new".into(), "two\nlines \u{1b}[31m".into()]);
        assert_eq!(table.to_string(), "NAME     STATE     MESSAGE\nweb.10   running\nü        new       two lines [31m\n");
    }

    #[test]
    fn later_rows_keep_the_first_widths_and_widen_them() {
        let mut first = Table::new(&["NAME", "STATE"]);
        first.row(vec!["web.1".into(), "new".into()]);
        let mut widths = first.widths();
        let mut later = Table::new(&["NAME", "STATE"]);
        later.row(vec!["a".into(), "running".into()]);
        later.row(vec!["long-name.1".into(), "new".into()]);
        assert_eq!(later.rows_in(&mut widths), "a             running\nlong-name.1   new\n");
    }
}
