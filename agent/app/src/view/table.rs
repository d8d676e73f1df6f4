//! Tables of text for people.

/// Rows under headings, with columns as wide as they need to be.
#[derive(Debug)]
pub(crate) struct Table {
    /// Whether each row begins with its node.
    is_merged: bool,
    rows: Vec<Vec<String>>,
}

// === impl Table ===

impl Table {
    /// Creates a table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self::of_nodes(false, headings)
    }

    /// Creates a table with a column for the node in front if it is merged from several.
    pub(crate) fn of_nodes(is_merged: bool, headings: &[&str]) -> Self {
        let node = is_merged.then_some("NODE");
        let headings = node.iter().chain(headings).map(|heading| (*heading).to_owned());
        Self { is_merged, rows: vec![headings.collect()] }
    }

    /// Adds a row of a node.
    pub(crate) fn row_of(&mut self, node: &str, cells: Vec<String>) {
        let node = self.is_merged.then(|| node.to_owned());
        self.row(&node.into_iter().chain(cells).collect::<Vec<_>>());
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// Returns the table as text, or `nothing` if it has no rows.
    pub(crate) fn render(&self, nothing: &str) -> String {
        if self.rows.len() < 2 {
            return format!("{nothing}\n");
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row: &Vec<String>| row.get(column));
            cells.map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
            let line: String = cells.collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Replaces control characters: text written by others could move the terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    let shown = |char: char| match char {
        '\n' | '\t' => ' ',
        char if char.is_control() => '?',
        char => char,
    };
    text.chars().map(shown).collect()
}

/// Renders a number of bytes in short.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut whole = count;
    let mut unit = 0;
    while whole >= 10_240 && unit + 1 < UNITS.len() {
        whole /= 1024;
        unit += 1;
    }
    format!("{whole} {}", UNITS.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["A", "B"]);
        table.row(&["long cell".into(), "x".into()]);
        assert_eq!(table.render("none"), "A          B\nlong cell  x\n");
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(Table::new(&["A"]).render("no pods"), "no pods\n");
    }

    #[test]
    fn bytes_keep_at_least_two_digits() {
        assert_eq!(bytes(10_239), "10239 B");
        assert_eq!(bytes(10 * 1024 * 1024), "10 MiB");
    }
}
