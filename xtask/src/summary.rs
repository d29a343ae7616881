//! The sum over the result lines of cargo's test binaries, and what they say of failures.

use std::fmt;

/// How much of a failure is said again: lines, and characters of each.
const FAILURE_LINES: usize = 6;
const LINE_CHARACTERS: usize = 300;

/// Counts of tests over several test binaries.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// The first lines of each failure.
    failures: Vec<Vec<String>>,
    in_failure: bool,
}

impl Summary {
    /// Adds a line of a test binary's output.
    pub(crate) fn add(&mut self, line: &str) {
        self.count(line);
        // Rust's harness says why at the end, below `---- name stdout ----`; suites with their own say it below the name.
        let of_test = line.starts_with("test ");
        if line.starts_with("---- ") || of_test && line.contains(" ... FAILED (") {
            self.failures.push(Vec::new());
            self.in_failure = true;
        } else if of_test || line == "failures:" {
            self.in_failure = false;
        }
        if let Some(failure) = self.failures.last_mut()
            && self.in_failure
            && failure.len() < FAILURE_LINES
            && !line.trim().is_empty()
        {
            failure.push(line.chars().take(LINE_CHARACTERS).collect());
        }
    }

    /// Counts a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`; any other line counts for nothing.
    fn count(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let mut words = count.split(' ');
            let Some(number) = words.next().and_then(|word| word.parse::<u64>().ok()) else {
                continue;
            };
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                Some("ignored") => self.ignored += number,
                _ => {}
            }
        }
    }

    /// Adds the sum of another run.
    pub(crate) fn join(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.failures.extend(other.failures);
        self.in_failure = false;
    }

    /// Whether a test failed.
    pub(crate) fn failed(&self) -> bool {
        self.failed > 0
    }

    /// The first lines of each failure, to be said again where a reader looks first: at the end.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        self.failures.iter().map(|lines| lines.join("\n    "))
    }

    /// How many tests were skipped.
    pub(crate) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Whether no test ran.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_binaries_and_ignores_other_lines() {
        let mut summary = Summary::default();
        for line in [
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s",
            "test result in a test's own output: 9 passed",
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            summary.add(line);
        }
        assert_eq!(
            summary,
            Summary {
                passed: 8,
                failed: 2,
                ignored: 1,
                ..Summary::default()
            }
        );
        assert_eq!(summary.to_string(), "8 passed, 2 failed");
        assert!(summary.failed());
    }

    #[test]
    fn failures_of_both_harnesses_are_kept() {
        let mut summary = Summary::default();
        for line in [
            "test a check ... ok (1.0 s)",
            "test another check ... FAILED (2.0 s)",
            "no answer",
            "",
            "because of this",
            "test nothing is left behind ... ok (0.1 s)",
            "test tests::sum ... FAILED",
            "test tests::more ... ok",
            "failures:",
            "---- tests::sum stdout ----",
            "assertion failed",
            "failures:",
            "    tests::sum",
        ] {
            summary.add(line);
        }
        let failures: Vec<String> = summary.failures().collect();
        assert_eq!(
            failures,
            [
                "test another check ... FAILED (2.0 s)\n    no answer\n    because of this",
                "---- tests::sum stdout ----\n    assertion failed",
            ]
        );
    }

    #[test]
    fn nothing_is_empty() {
        assert!(Summary::default().is_empty());
        assert_eq!(Summary::default().to_string(), "0 passed, 0 failed");
    }
}
