//! Hosts that are no directors and claim VIPs which are announced here: who is told of, and when a VIP is defended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use sluice_election::Time;
use sluice_planner::Mac;

/// The most claims that are told of; those beyond have to wait until one of these is over.
const MAX_CLAIMS: usize = sluice_api::MAX_ADDRESS_CLAIMS;
/// A claim that was not heard for so long is over. The holder asks for each of its VIPs twice in this time.
const MEMORY: Duration = Duration::from_secs(70);
/// Least time between two defences of an address on an uplink (RFC 5227, section 1.1: `DEFEND_INTERVAL`).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// A claim of a VIP by a host that is no director.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stranger {
    /// The VIP.
    pub address: IpAddr,
    /// Name of the uplink on which it was claimed.
    pub uplink: String,
    /// The host's Ethernet address.
    pub mac: Mac,
}

/// What becomes of a VIP that a stranger claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claimed {
    /// This node announces it, and defends it.
    Defended,
    /// It is new, and this node does not announce it since the stranger has it.
    Withheld,
}

/// What strangers claim.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// When each was last heard.
    heard: BTreeMap<Stranger, Time>,
    /// When VIPs were last defended, by uplink.
    defended: BTreeMap<(IpAddr, u32), Time>,
}

impl Strangers {
    /// Takes in a claim.
    pub(super) fn hear(&mut self, stranger: Stranger, now: Time) {
        if self.heard.len() < MAX_CLAIMS || self.heard.contains_key(&stranger) {
            self.heard.insert(stranger, now);
        }
    }

    /// Whether a VIP that is claimed on an uplink is to be defended now, as RFC 5227 section 2.4 (b) has it. One that was defended
    /// just before is not: two hosts that both insist would flood the link.
    pub(super) fn defends(&mut self, address: IpAddr, ifindex: u32, now: Time) -> bool {
        let last = self.defended.get(&(address, ifindex));
        let is_due = last.is_none_or(|last| now.since(*last) >= DEFEND_INTERVAL);
        if is_due {
            self.defended.insert((address, ifindex), now);
        }
        is_due
    }

    /// Forgets what is over, and claims of VIPs that are no concern of this node any more.
    pub(super) fn forget(&mut self, concerns: impl Fn(IpAddr) -> bool, now: Time) {
        self.heard
            .retain(|stranger, heard| now.since(*heard) < MEMORY && concerns(stranger.address));
        self.defended
            .retain(|_, last| now.since(*last) < DEFEND_INTERVAL);
    }

    /// When the next claim is over.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.heard.values().min().map(|heard| *heard + MEMORY)
    }

    /// The claims that are told of.
    pub(super) fn all(&self) -> impl Iterator<Item = &Stranger> {
        self.heard.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::default() + Duration::from_secs(seconds)
    }

    fn stranger(number: u8) -> Stranger {
        Stranger {
            address: [192, 0, 2, number].into(),
            uplink: "eth0".to_owned(),
            mac: Mac([2, 0, 0, 0, 9, number]),
        }
    }

    #[test]
    fn a_vip_is_defended_once_in_ten_seconds_on_each_uplink() {
        let mut strangers = Strangers::default();
        let (one, other) = (stranger(1).address, stranger(2).address);
        let mut defended = Vec::new();
        for second in 0..=25 {
            if strangers.defends(one, 2, at(second)) {
                defended.push(second);
            }
            strangers.forget(|_| true, at(second));
        }
        assert_eq!(defended, [0, 10, 20]);
        assert!(strangers.defends(one, 3, at(25)), "another link");
        assert!(strangers.defends(other, 2, at(25)), "another VIP");
        strangers.forget(|_| true, at(60));
        assert!(strangers.defended.is_empty());
    }

    #[test]
    fn a_claim_is_told_of_until_it_was_not_heard_for_a_while() {
        let mut strangers = Strangers::default();
        strangers.hear(stranger(2), at(0));
        strangers.hear(stranger(1), at(30));
        strangers.hear(stranger(2), at(60));
        assert_eq!(strangers.deadline(), Some(at(100)));
        strangers.forget(|_| true, at(99));
        let both = [stranger(1), stranger(2)];
        assert!(strangers.all().eq(&both), "in order");
        strangers.forget(|_| true, at(100));
        assert!(strangers.all().eq(&[stranger(2)]));
        strangers.forget(|_| false, at(101));
        assert_eq!(strangers.all().count(), 0, "it is not announced here");
        assert_eq!(strangers.deadline(), None);
    }

    #[test]
    fn those_that_are_told_of_stay_while_more_come() {
        let mut strangers = Strangers::default();
        for number in 0..=u8::MAX {
            strangers.hear(stranger(number), at(0));
        }
        let all: Vec<Stranger> = strangers.all().cloned().collect();
        assert_eq!(all.len(), MAX_CLAIMS);
        strangers.hear(stranger(200), at(10));
        strangers.hear(stranger(0), at(20));
        assert!(strangers.all().eq(&all));
        strangers.forget(|_| true, at(80));
        assert!(strangers.all().eq(&[stranger(0)]));
    }
}
