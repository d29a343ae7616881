//! Aligned columns.

use super::WIDTH;

/// The meaning of a cell's content to the reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// A heading.
    Heading,
    /// As it should be.
    Good,
    /// On the way.
    Waiting,
    /// Something has to be done.
    Bad,
}

/// Whether output is coloured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paint {
    /// It is not.
    Plain,
    /// It is, by ANSI escape sequences.
    Colour,
}

impl Paint {
    /// Colour on a terminal, unless `NO_COLOR` is set to something.
    pub fn for_stdout() -> Self {
        use std::io::IsTerminal as _;
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if std::io::stdout().is_terminal() && !refused {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    /// The text in the tone's colour.
    pub fn text(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if self == Self::Plain => None,
            Tone::Plain => None,
            Tone::Heading => Some("1"),
            Tone::Good => Some("32"),
            Tone::Waiting => Some("33"),
            Tone::Bad => Some("31"),
        };
        match code {
            Some(code) if !text.is_empty() => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }
}

/// Content of a column in one row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in a tone.
    pub fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// Rows of aligned columns, with two blanks between them. Where they are too wide together, cells are cut in the middle (the
/// ends of generated names differ): those of the first column, which holds names, before the widest.
#[derive(Clone, Debug)]
pub struct Table {
    indent: usize,
    is_first_whole: bool,
    rows: Vec<Vec<Cell>>,
}

const GAP: usize = 2;
/// No column is made narrower.
const MIN_WIDTH: usize = 8;
/// The first column is not made narrower than this while others can be.
const MIN_FIRST_WIDTH: usize = 20;

impl Table {
    /// A table with its headings, moved right by `indent`.
    pub fn new(indent: usize, headings: &[&str]) -> Self {
        let headings = headings
            .iter()
            .map(|heading| Cell::new(Tone::Heading, *heading))
            .collect();
        Self {
            indent,
            is_first_whole: false,
            rows: vec![headings],
        }
    }

    /// Cuts the first column after all the others: what it holds is of use only in full.
    #[must_use]
    pub const fn with_whole_first(mut self) -> Self {
        self.is_first_whole = true;
        self
    }

    /// Adds a row; it has as many cells as there are headings, or fewer.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text.
    pub fn render(&self, paint: Paint) -> String {
        let widths = self.widths();
        let mut out = String::new();
        for row in &self.rows {
            out.push_str(&" ".repeat(self.indent));
            let last = row.iter().rposition(|cell| !cell.text.is_empty());
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let text = clip(&cell.text, *width);
                let length = text.chars().count();
                out.push_str(&paint.text(cell.tone, &text));
                if last.is_none_or(|last| i >= last) {
                    break;
                }
                out.push_str(&" ".repeat(width - length + GAP));
            }
            out.push('\n');
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let room = WIDTH.saturating_sub(self.indent + GAP * columns.saturating_sub(1));
        let mut sum: usize = widths.iter().sum();
        while sum > room {
            let Some(column) = self.to_narrow(&widths) else {
                break;
            };
            widths[column] -= 1;
            sum -= 1;
        }
        widths
    }

    /// The column to narrow next, if any can be.
    fn to_narrow(&self, widths: &[usize]) -> Option<usize> {
        let is_wider = |column: usize, min| widths.get(column).is_some_and(|width| *width > min);
        if !self.is_first_whole && is_wider(0, MIN_FIRST_WIDTH) {
            return Some(0);
        }
        let others = usize::from(self.is_first_whole)..widths.len();
        let widest = others.max_by_key(|column| widths[*column]);
        let widest = widest.filter(|column| is_wider(*column, MIN_WIDTH));
        widest.or_else(|| is_wider(0, MIN_WIDTH).then_some(0))
    }
}

fn clip(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let end = (width - 1) / 2;
    let start = width - 1 - end;
    let beginning: String = text.chars().take(start).collect();
    let ending: String = text.chars().skip(length - end).collect();
    format!("{beginning}…{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_no_blanks_trail() {
        let mut table = Table::new(2, &["A", "LONGER"]);
        table.row(["x".into(), "y".into()]);
        table.row(["xyz".into(), "".into()]);
        assert_eq!(
            table.render(Paint::Plain),
            "  A    LONGER\n  x    y\n  xyz\n"
        );
    }

    #[test]
    fn what_is_too_wide_is_cut_in_the_middle() {
        let mut table = Table::new(0, &["NAME", "B"]);
        table.row([format!("{}-tail", "n".repeat(150)).into(), "y".into()]);
        let text = table.render(Paint::Plain);
        let row = text.lines().nth(1).unwrap();
        assert_eq!(row.chars().count(), WIDTH);
        assert!(row.contains('…') && row.ends_with("-tail  y"), "{row}");
    }

    #[test]
    fn the_first_column_can_stay_whole() {
        let mut table = Table::new(0, &["ADDRESS", "B"]).with_whole_first();
        let address = "2001:db8:1234:5678:9abc:def0:1234:5678";
        table.row([address.into(), "y".repeat(100).into()]);
        let text = table.render(Paint::Plain);
        let row = text.lines().nth(1).unwrap();
        assert_eq!(row.chars().count(), WIDTH);
        assert!(row.starts_with(&format!("{address}  y")), "{row}");
    }

    #[test]
    fn colour_changes_no_alignment() {
        let mut table = Table::new(0, &["A", "B"]);
        table.row([Cell::new(Tone::Good, "yes"), "y".into()]);
        let text = table.render(Paint::Colour);
        assert!(text.contains("\u{1b}[32myes\u{1b}[0m  y"), "{text:?}");
    }
}
