//! The writes of statuses and their order. Pure: it does no I/O, and time is an argument.
//!
//! ```text
//! core::Outcome ─► Schedule::decide ─► pending, by class ─► Schedule::next ─► a write ─► API server or directory
//!                                          ▲                                               │
//!                                          └──────────────── Schedule::answered ───────────┘
//! ```
//!
//! # Order
//!
//! Rollouts come before the weights they ask for, a pool before the virtual servers that send flows to it, a pool that gains
//! servers before one that loses some (a server that moves is in one of them at any time, and keeps its flows), decisions
//! before what only tells how things stand. Whatever does not depend on each other is under way at the same time. An
//! object that is not taken is left alone for a while (see [`Waits`]) together with what builds on it; everything else
//! goes on. What the API server failed at comes when nothing else is left, so it holds nothing up.
//!
//! # Revisions
//!
//! A changed decision gets its revision when it is written, so a revision is higher than all that were written before.
//! Nodes acknowledge "everything of this kind up to revision N", and of writes that are under way together the later may
//! arrive first. So each decision says what a node that reads it may claim: its *complete revision*. Every decision of
//! that kind up to it had been answered when this one was sent. It is the own revision when nothing else was under way;
//! else it ends below the lowest that was. When all are answered and no decision that stands says so, one of them is
//! written once more with the highest revision as its complete one: the kind is *closed*. Whatever went wrong in between
//! (a refused write, a restart, an object that is gone), the next closing makes it good.

mod pending;
mod schedule;
#[cfg(test)]
mod tests;
mod waits;

use sluice_api::{
    Decision, Kind, ObjectKey, PoolDecision, RealServerPoolStatus, RolloutPolicyStatus,
    VirtualServerStatus,
};

pub(crate) use schedule::Schedule;
pub(crate) use waits::{Failure, Waits};

/// An object whose status is written.
pub(crate) type Object = (Kind, ObjectKey);

/// The status of an object.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Status {
    /// Of a virtual server.
    VirtualServer(VirtualServerStatus),
    /// Of a pool.
    Pool(RealServerPoolStatus),
    /// Of a policy.
    Policy(RolloutPolicyStatus),
}

/// A status to be written.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Write {
    /// The object.
    pub(crate) object: Object,
    /// Its new status.
    pub(crate) status: Status,
}

/// The next thing to do.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Next {
    /// This write, at once, and then ask again.
    Write(Box<Write>),
    /// Nothing before this time, unless an answer or news comes.
    At(u64),
    /// Nothing until an answer or news comes.
    Idle,
}

/// The statuses that stand written, on the API server or in the directory.
pub(crate) trait Written {
    /// A virtual server's status.
    fn virtual_server(&self, key: &ObjectKey) -> Stands<'_, VirtualServerStatus>;
    /// A pool's status.
    fn pool(&self, key: &ObjectKey) -> Stands<'_, RealServerPoolStatus>;
    /// A policy's status.
    fn policy(&self, key: &ObjectKey) -> Stands<'_, RolloutPolicyStatus>;
    /// Which version of an object is known. A changed object is tried again sooner.
    fn version(&self, object: &Object) -> u64;
    /// The virtual servers and pools that have a decision.
    fn decided(&self, kind: Kind) -> Vec<(&ObjectKey, Numbers)>;
    /// Whether nodes may not have heard of the slices that this pool's new decision makes them read.
    fn slices_are_ahead(&self, key: &ObjectKey, status: &RealServerPoolStatus) -> bool;
}

/// The status that stands written for an object.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Stands<'a, S> {
    /// There is no such object.
    Nowhere,
    /// An object without a status.
    Unwritten,
    /// This status.
    Written(&'a S),
}

impl<'a, S> Stands<'a, S> {
    /// The status of an object that there is.
    pub(crate) fn of(status: Option<&'a S>) -> Self {
        status.map_or(Self::Unwritten, Self::Written)
    }

    /// The status, if there is one.
    pub(crate) fn status(self) -> Option<&'a S> {
        match self {
            Self::Written(status) => Some(status),
            Self::Nowhere | Self::Unwritten => None,
        }
    }

    /// The result of `class` for the status; `None` if there is no object.
    fn classify<T>(self, class: impl FnOnce(Option<&'a S>) -> Option<T>) -> Option<T> {
        match self {
            Self::Nowhere => None,
            Self::Unwritten | Self::Written(_) => class(self.status()),
        }
    }
}

/// The numbers of a decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Numbers {
    /// Its revision.
    pub(crate) revision: u64,
    /// The complete revision: a node that reads the decision may acknowledge everything up to it.
    pub(crate) complete: u64,
}

impl From<&Decision> for Numbers {
    fn from(decision: &Decision) -> Self {
        Self {
            revision: decision.revision,
            complete: decision.complete_revision,
        }
    }
}

impl From<&PoolDecision> for Numbers {
    fn from(decision: &PoolDecision) -> Self {
        Self {
            revision: decision.revision,
            complete: decision.complete_revision,
        }
    }
}

impl Status {
    fn numbers(&self) -> Option<Numbers> {
        match self {
            Self::VirtualServer(status) => status.decision.as_ref().map(Numbers::from),
            Self::Pool(status) => status.decision.as_ref().map(Numbers::from),
            Self::Policy(_) => None,
        }
    }

    fn number(&mut self, numbers: Numbers) {
        let (revision, complete) = match self {
            Self::VirtualServer(VirtualServerStatus {
                decision: Some(decision),
                ..
            }) => (&mut decision.revision, &mut decision.complete_revision),
            Self::Pool(RealServerPoolStatus {
                decision: Some(decision),
                ..
            }) => (&mut decision.revision, &mut decision.complete_revision),
            _ => return,
        };
        (*revision, *complete) = (numbers.revision, numbers.complete);
    }
}
