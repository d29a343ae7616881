//! The sum over the result lines of cargo's test binaries.

use std::fmt;

/// Counts of tests over several test binaries.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Summary {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`; any other line counts for nothing.
    pub(crate) fn add(&mut self, line: &str) {
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

    /// Whether a test failed.
    pub(crate) fn failed(&self) -> bool {
        self.failed > 0
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
                ignored: 1
            }
        );
        assert_eq!(summary.to_string(), "8 passed, 2 failed");
        assert!(summary.failed());
    }

    #[test]
    fn nothing_is_empty() {
        assert!(Summary::default().is_empty());
        assert_eq!(Summary::default().to_string(), "0 passed, 0 failed");
    }
}
