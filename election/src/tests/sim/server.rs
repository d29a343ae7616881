//! The API server with one Lease, and how requests get to it.

use std::time::Duration;

use super::rng::Rng;
use super::{MS, SECOND};
use crate::{LeaseView, Outcome};

/// How a node reaches the API server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    Ok,
    /// Takes up to one and a half seconds each way.
    Slow,
    /// Requests arrive at once, answers take up to the request timeout.
    SlowReply,
    /// Nothing is answered; requests may arrive seconds later.
    Hung,
    /// Connections are refused.
    Refused,
    /// Reads work, writes hang: a server without its quorum.
    ReadOnly,
}

#[derive(Clone, Debug)]
pub(crate) enum Request {
    Read,
    Write {
        version: String,
        holder: Option<String>,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    View(LeaseView),
    Written(Outcome),
    Failed,
}

/// How a request fares: when it arrives, when the answer does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journey {
    pub(crate) arrivals: Vec<u64>,
    pub(crate) back_ns: Option<u64>,
    pub(crate) refused_ns: Option<u64>,
}

/// The Lease as it stands, by true time.
#[derive(Debug)]
pub(crate) struct Server {
    version: u64,
    pub(crate) holder: Option<String>,
    renewals: u64,
    pub(crate) changed_ns: u64,
    /// In so many of a thousand cases a request, or its answer, is lost, or a write arrives twice, or fails though it was
    /// written.
    pub(crate) faults: u64,
}

impl Server {
    pub(crate) fn new(faults: u64) -> Self {
        Self {
            version: 1,
            holder: None,
            renewals: 0,
            changed_ns: 0,
            faults,
        }
    }

    pub(crate) fn view(&self) -> LeaseView {
        LeaseView {
            version: self.version.to_string(),
            holder: self.holder.clone(),
            renewed: self.renewals.to_string(),
            duration: Duration::from_secs(4),
        }
    }

    /// Draws what happens to a request that is sent now.
    pub(crate) fn send(&self, reach: Reach, is_write: bool, now_ns: u64, rng: &mut Rng) -> Journey {
        let is_hung = reach == Reach::Hung || (reach == Reach::ReadOnly && is_write);
        if is_hung {
            let arrives = rng.chance(300).then(|| now_ns + rng.range(MS, 6 * SECOND));
            return Journey {
                arrivals: arrives.into_iter().collect(),
                ..Journey::default()
            };
        }
        if reach == Reach::Refused {
            return Journey {
                refused_ns: Some(now_ns + MS),
                ..Journey::default()
            };
        }
        let most = if reach == Reach::Slow {
            1500 * MS
        } else {
            5 * MS
        };
        let way = |rng: &mut Rng| rng.range(MS / 5, most);
        let mut journey = Journey::default();
        if !rng.chance(self.faults) {
            journey.arrivals.push(now_ns + way(rng));
            if !rng.chance(self.faults) {
                journey.back_ns = Some(match reach {
                    Reach::SlowReply => rng.range(300 * MS, 980 * MS),
                    _ => way(rng),
                });
            }
            if rng.chance(self.faults) {
                journey
                    .arrivals
                    .push(now_ns + way(rng) + rng.below(3 * SECOND));
            }
        }
        journey
    }

    /// A request arrives. Says whether the Lease changed.
    pub(crate) fn take(&mut self, request: &Request, now_ns: u64, rng: &mut Rng) -> (Reply, bool) {
        let Request::Write { version, holder } = request else {
            return (Reply::View(self.view()), false);
        };
        // An empty version is Kubernetes' way to overwrite whatever stands.
        if !version.is_empty() && *version != self.version.to_string() {
            return (Reply::Written(Outcome::Conflict), false);
        }
        self.version += 1;
        self.renewals += 1;
        self.holder.clone_from(holder);
        self.changed_ns = now_ns;
        let outcome = if rng.chance(self.faults / 2) {
            Outcome::Failed
        } else {
            Outcome::Ok(self.view())
        };
        (Reply::Written(outcome), true)
    }
}
