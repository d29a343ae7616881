//! Electors that are wrong on purpose: the simulation has to catch each.

use crate::elector::Elector;
use crate::{Action, Time};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flaw {
    /// The deadline counts from the answer to a renewal, not from when it was sent.
    DeadlineFromReply,
    /// The Lease is overwritten whatever its version.
    SwapWithoutVersion,
    /// The kernel is armed before the Lease is swapped.
    ArmBeforeSwap,
    /// A silent holder is suspected though nobody else answers either.
    NoWitnessRule,
}

impl Elector {
    pub(crate) fn flawed_version(&self, version: String) -> String {
        match self.flaw {
            Some(Flaw::SwapWithoutVersion) => String::new(),
            _ => version,
        }
    }

    pub(crate) fn flawed_sent(&self, sent: Time, now: Time) -> Time {
        match self.flaw {
            Some(Flaw::DeadlineFromReply) => now,
            _ => sent,
        }
    }

    pub(crate) fn flawed_swap(&mut self, now: Time) {
        if self.flaw == Some(Flaw::ArmBeforeSwap) {
            let until = now + self.settings.lease_duration - self.settings.margin;
            self.out.extend([Action::Arm { until }, Action::Announce]);
        }
    }
}
