//! The fate of a packet, for callers and in the form that the verifier can follow.

use sluice_abi::DropReason;

/// The fate of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not Sluice's, or for another hook: unchanged to the stack.
    Pass,
    /// Rewritten and for this node's own stack.
    Up,
    /// Rewritten, out of the interface it came by.
    Tx,
    /// Rewritten with its MAC addresses, out of the interface with this index.
    Redirect(u32),
    /// Rewritten; the stack's neighbour table adds the MAC addresses on the interface with this index (tc only).
    Neigh(u32),
    /// Dropped and counted.
    Drop(DropReason),
}

/// [`Verdict`] without [`Verdict::Drop`], as a struct: an enum leaves the payload of variants without one undefined, and
/// the compiler may copy it from a register that the verifier knows was never written.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// The action.
    pub action: Action,
    /// The interface of [`Action::Redirect`] and [`Action::Neigh`], else 0.
    pub ifindex: u32,
}

/// An action for a packet that is not dropped; see [`Verdict`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[allow(missing_docs, reason = "documented on Verdict")]
pub enum Action {
    Pass,
    Up,
    Tx,
    Redirect,
    Neigh,
    /// Not decided yet: [`crate::unwrap`] does.
    Unwrap,
    /// Not decided yet: [`crate::reply`] does.
    Reply,
    /// Not decided yet: [`crate::answer`] or [`crate::guard`] does.
    Announce,
    /// Not decided yet: [`crate::refuse`] does.
    Refuse,
}

impl Outcome {
    pub(crate) const UNWRAP: Self = Self {
        action: Action::Unwrap,
        ifindex: 0,
    };
    pub(crate) const REPLY: Self = Self {
        action: Action::Reply,
        ifindex: 0,
    };
    pub(crate) const ANNOUNCE: Self = Self {
        action: Action::Announce,
        ifindex: 0,
    };
    pub(crate) const REFUSE: Self = Self {
        action: Action::Refuse,
        ifindex: 0,
    };
    pub(crate) const PASS: Self = Self {
        action: Action::Pass,
        ifindex: 0,
    };
    pub(crate) const UP: Self = Self {
        action: Action::Up,
        ifindex: 0,
    };
    pub(crate) const TX: Self = Self {
        action: Action::Tx,
        ifindex: 0,
    };

    #[inline(always)]
    pub(crate) fn redirect(ifindex: u32) -> Self {
        Self {
            action: Action::Redirect,
            ifindex,
        }
    }

    #[inline(always)]
    pub(crate) fn neigh(ifindex: u32) -> Self {
        Self {
            action: Action::Neigh,
            ifindex,
        }
    }
}

impl From<Result<Outcome, DropReason>> for Verdict {
    fn from(decided: Result<Outcome, DropReason>) -> Self {
        match decided {
            Err(reason) => Self::Drop(reason),
            Ok(Outcome { action, ifindex }) => match action {
                Action::Pass
                | Action::Unwrap
                | Action::Reply
                | Action::Announce
                | Action::Refuse => Self::Pass,
                Action::Up => Self::Up,
                Action::Tx => Self::Tx,
                Action::Redirect => Self::Redirect(ifindex),
                Action::Neigh => Self::Neigh(ifindex),
            },
        }
    }
}
