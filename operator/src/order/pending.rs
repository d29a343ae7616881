//! Statuses that wait to be written, and writes that are under way.

use sluice_api::{Kind, ObjectKey};

use super::{Object, Status};

/// Pause after nothing was taken; it doubles up to the longest.
const FIRST_PAUSE_MS: u64 = 250;
const LONGEST_PAUSE_MS: u64 = 10_000;

/// Earlier ones first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    /// Decisions, by which nodes forward, and the rollouts that ask for them.
    Decision,
    /// Other changes of statuses: acknowledgements at once, the rest once it has waited for long enough.
    News,
    /// The rest while it waits.
    Quiet,
}

/// Kinds in the order of writing: each builds only on those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rank {
    Policy,
    Pool,
    /// A pool that gains servers and loses some.
    PoolThatExchanges,
    /// A pool that loses servers. Those may move to another pool, whose decision comes first: in between they are in both, and
    /// never in none.
    PoolThatLoses,
    VirtualServer,
}

impl Rank {
    pub(super) const fn of(kind: Kind) -> Self {
        match kind {
            Kind::RolloutPolicy | Kind::LoadBalancerNode | Kind::AddressPool => Self::Policy,
            Kind::RealServerPool => Self::Pool,
            Kind::VirtualServer => Self::VirtualServer,
        }
    }

    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::Policy => Kind::RolloutPolicy,
            Self::Pool | Self::PoolThatExchanges | Self::PoolThatLoses => Kind::RealServerPool,
            Self::VirtualServer => Kind::VirtualServer,
        }
    }
}

pub(super) type Place = (Class, Rank, ObjectKey);

pub(super) fn object(place: &Place) -> Object {
    (place.1.kind(), place.2.clone())
}

/// A status that is not written yet.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Pending {
    pub(super) status: Status,
    /// Whether its decision is to get a revision.
    pub(super) is_new: bool,
    /// The version of the object that it was decided from. Once another is known, it has to be decided anew.
    pub(super) version: u64,
}

/// A write that is under way.
#[derive(Debug)]
pub(super) struct Flight {
    /// The revision that it gives, if it does.
    pub(super) revision: Option<u64>,
    pub(super) version: u64,
    pub(super) sent_ms: u64,
    pub(super) turn: Turn,
    /// The pending status that it writes; `None`: a decision is written once more to close its kind.
    pub(super) pending: Option<Pending>,
}

impl Flight {
    /// Whether nodes will be told another number.
    pub(super) fn gives_numbers(&self) -> bool {
        self.revision.is_some() || self.pending.is_none()
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// All but those of the last turn.
    First,
    /// Those whose last write failed, or found the API server unavailable.
    Last,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    pub(super) began_ms: u64,
    pub(super) length_ms: u64,
}

impl Pause {
    /// The pause after one more write that was not taken.
    pub(super) fn after(last: Option<Self>, flight: &Flight, now_ms: u64) -> Self {
        let length_ms = match last {
            // Sent before the pause began, so it tells nothing new.
            Some(pause) if flight.sent_ms < pause.began_ms => return pause,
            // One object that is never taken makes no pause longer.
            Some(pause) if flight.turn == Turn::Last => pause.length_ms,
            Some(pause) => (pause.length_ms * 2).min(LONGEST_PAUSE_MS),
            None => FIRST_PAUSE_MS,
        };
        Self {
            began_ms: now_ms,
            length_ms,
        }
    }

    pub(super) fn end_ms(self) -> u64 {
        self.began_ms + self.length_ms
    }
}
