//! Which operator agents are told of: whoever has started last, until it is gone. Pure.

/// Looks in a row at which the other operator could not be reached until it counts as gone.
const MISSES: u32 = 3;

/// What to do about the place that agents read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// It is to say what this operator says.
    Write,
    /// Another operator has it, and is to be looked for.
    StepBack,
}

/// This operator's claim to it.
#[derive(Debug, Default)]
pub(super) struct Claims {
    has_written: bool,
    misses: u32,
}

impl Claims {
    /// By whom the place was written; `own`: by this operator.
    pub(super) const fn read(&self, writer: Option<&str>, own: bool) -> Claim {
        if writer.is_some() && !own && self.has_written {
            Claim::StepBack
        } else {
            Claim::Write
        }
    }

    /// It was written, or stands as it should.
    pub(super) const fn written(&mut self) {
        self.has_written = true;
        self.misses = 0;
    }

    /// The other operator was looked for.
    pub(super) const fn looked(&mut self, is_there: bool) {
        self.misses = if is_there { 0 } else { self.misses + 1 };
        if self.misses >= MISSES {
            self.has_written = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_starts_last_has_it() {
        let mut first = Claims::default();
        assert_eq!(first.read(None, false), Claim::Write);
        first.written();
        assert_eq!(first.read(Some("first"), true), Claim::Write);
        assert_eq!(Claims::default().read(Some("first"), false), Claim::Write);
        assert_eq!(first.read(Some("second"), false), Claim::StepBack);
        assert_eq!(first.read(None, false), Claim::Write, "deleted");
    }

    #[test]
    fn one_that_is_gone_is_followed() {
        let mut first = Claims::default();
        first.written();
        for is_there in [false, false, true, false, false] {
            first.looked(is_there);
            assert_eq!(first.read(Some("second"), false), Claim::StepBack);
        }
        first.looked(false);
        assert_eq!(first.read(Some("second"), false), Claim::Write);
        first.written();
        assert_eq!(first.read(Some("third"), false), Claim::StepBack);
    }
}
