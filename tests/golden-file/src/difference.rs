//! The difference of two texts by lines.

/// Unchanged lines shown before and after a change.
const AROUND: usize = 3;

/// One line of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line<'a> {
    Same(&'a str),
    Missing(&'a str),
    New(&'a str),
}

/// The lines that differ, with a few around them.
pub(crate) fn difference(expected: &str, found: &str) -> String {
    let lines = compare(
        &expected.lines().collect::<Vec<_>>(),
        &found.lines().collect::<Vec<_>>(),
    );
    let changed = |i: usize| !matches!(lines[i], Line::Same(_));
    let shown = |i: usize| {
        let end = (i + AROUND + 1).min(lines.len());
        (i.saturating_sub(AROUND)..end).any(changed)
    };
    let mut text = String::new();
    for (i, line) in lines.iter().enumerate() {
        if !shown(i) {
            if i > 0 && shown(i - 1) {
                text.push_str("…\n");
            }
            continue;
        }
        let (sign, line) = match line {
            Line::Same(line) => (' ', line),
            Line::Missing(line) => ('-', line),
            Line::New(line) => ('+', line),
        };
        text.push(sign);
        text.push_str(line);
        text.push('\n');
    }
    if text.is_empty() {
        text.push_str("only line ends differ\n");
    }
    text
}

/// The longest common subsequence, by the table of its lengths. Golden files are short, so the table is small.
fn compare<'a>(expected: &[&'a str], found: &[&'a str]) -> Vec<Line<'a>> {
    let width = found.len() + 1;
    let mut length = vec![0_u32; (expected.len() + 1) * width];
    for i in (0..expected.len()).rev() {
        for j in (0..found.len()).rev() {
            length[i * width + j] = if expected[i] == found[j] {
                length[(i + 1) * width + j + 1] + 1
            } else {
                length[(i + 1) * width + j].max(length[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < expected.len() || j < found.len() {
        if i < expected.len() && j < found.len() && expected[i] == found[j] {
            lines.push(Line::Same(found[j]));
            (i, j) = (i + 1, j + 1);
        } else if j == found.len()
            || i < expected.len() && length[(i + 1) * width + j] >= length[i * width + j + 1]
        {
            lines.push(Line::Missing(expected[i]));
            i += 1;
        } else {
            lines.push(Line::New(found[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_are_shown_with_those_around_them() {
        let expected = "a\nb\nc\nd\ne\nf\ng\nh\ni\n";
        let found = "a\nb\nc\nd\ne\nF\ng\nh\ni\n";
        assert_eq!(
            difference(expected, found),
            " c\n d\n e\n-f\n+F\n g\n h\n i\n"
        );
    }

    #[test]
    fn what_lies_between_two_changes_is_left_out() {
        let between = "1\n2\n3\n4\n5\n6\n7\n8\n";
        let expected = format!("a\n{between}b\n");
        let found = format!("A\n{between}B\n");
        assert_eq!(
            difference(&expected, &found),
            "-a\n+A\n 1\n 2\n 3\n…\n 6\n 7\n 8\n-b\n+B\n"
        );
    }

    #[test]
    fn added_and_removed_lines_are_told_apart() {
        assert_eq!(difference("a\nc\n", "a\nb\nc\n"), " a\n+b\n c\n");
        assert_eq!(difference("a\nb\nc\n", "a\nc\n"), " a\n-b\n c\n");
        assert_eq!(difference("", "a\n"), "+a\n");
        assert_eq!(difference("a", "a\n"), "only line ends differ\n");
    }
}
