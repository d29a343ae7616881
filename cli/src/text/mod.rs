//! The views as text that fits [`WIDTH`] columns.

mod rollout;
mod state;
mod status;
mod table;
mod vips;

pub use rollout::{phase_line, rollout};
pub use status::status;
pub use table::{Cell, Paint, Table, Tone};
pub use vips::vips;

/// Columns that output fits.
pub const WIDTH: usize = 100;

/// A labelled text, wrapped at [`WIDTH`] and indented to the text's beginning. Words longer than a line stand alone.
pub fn field(label: &str, text: &str) -> String {
    const LABEL: usize = 13;
    let mut out = format!("  {label:<width$}", width = LABEL - 2);
    let mut column = LABEL;
    for (i, word) in text.split_whitespace().enumerate() {
        let length = word.chars().count();
        if i > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            out.push_str(&" ".repeat(LABEL));
            column = LABEL;
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// Seconds as `1h2m3s`.
pub fn duration(seconds: u32) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest:02}s"),
        _ => format!("{hours}h{minutes:02}m{rest:02}s"),
    }
}

/// Seconds in the one unit that tells enough, as kubectl has it.
pub fn age(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // From two of a unit on it is used.
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / MINUTE),
        7_200..172_800 => format!("{}h", seconds / HOUR),
        _ => format!("{}d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_fields_are_wrapped_and_indented() {
        let text = field("Message", &"word ".repeat(40));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.lines()
                .nth(1)
                .unwrap()
                .starts_with("             word")
        );
        assert_eq!(field("Empty", ""), "  Empty\n");
    }

    #[test]
    fn ages_have_one_unit() {
        let ages = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(age);
        assert_eq!(ages, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(61), "1m01s");
        assert_eq!(duration(3_723), "1h02m03s");
    }
}
