//! What follows from claims that are heard: electors and witnesses hear of them, and VIPs that are announced here are defended.

use sluice_election::Source;

use super::frame::Claim;
use super::seats::Seat;
use super::strangers::Stranger;
use super::worker::{Worker, now};
use crate::state::AnnounceCounts;

impl Worker {
    /// Takes in that somebody says that an address is its own.
    pub(super) fn hear(&mut self, ifindex: u32, claim: Claim) {
        let Some(uplink) = self.plan.uplinks.get(&ifindex) else {
            return;
        };
        // Two uplinks of a node may be on one segment.
        let mut own = self.plan.uplinks.values();
        if own.any(|uplink| uplink.sender.mac == claim.mac) {
            return;
        }
        let stranger = Stranger {
            address: claim.address,
            uplink: uplink.name.clone(),
            mac: claim.mac,
        };
        let peer = self.node_of.get(&claim.mac).cloned();
        let group = self.group_of.get(&claim.address).cloned();
        if let Some(group) = &group {
            if let Some(name) = &peer {
                self.answered(group, ifindex, claim, &Source::Peer(name.clone()));
            } else {
                self.answered(group, ifindex, claim, &Source::Stranger);
                self.meet(group, ifindex, stranger);
            }
        }
        if peer.is_none() && !self.witnesses.heard(ifindex, claim) {
            return;
        }
        // Whoever lives on this link proves the way to it, for every group but the one that it claims.
        for (name, seat) in &mut self.electors {
            if Some(name) != group.as_ref() {
                seat.answered(ifindex, claim.address, &Source::Witness);
            }
        }
    }

    fn answered(&mut self, group: &str, ifindex: u32, claim: Claim, from: &Source) {
        if let Some(seat) = self.electors.get_mut(group) {
            seat.answered(ifindex, claim.address, from);
        }
    }

    /// A host that is no director claims a VIP. Only the holder of its group tells of that and defends it.
    fn meet(&mut self, group: &str, ifindex: u32, stranger: Stranger) {
        AnnounceCounts::count(&self.counts.strangers);
        if !self.holds(group) {
            return;
        }
        let address = stranger.address;
        self.strangers.hear(stranger, now());
        if self.strangers.defends(address, ifindex, now()) {
            AnnounceCounts::count(&self.counts.defences);
            self.announce_on(group, ifindex, address);
        }
    }

    /// Forgets claims that are over.
    pub(super) fn forget_strangers(&mut self) {
        let (electors, group_of) = (&self.electors, &self.group_of);
        let is_announced = |vip| {
            let group = group_of.get(&vip);
            let seat = group.and_then(|group| electors.get(group));
            seat.is_some_and(Seat::holds)
        };
        self.strangers.forget(is_announced, now());
    }

    /// Whether this node holds a group.
    pub(super) fn holds(&self, group: &str) -> bool {
        self.electors.get(group).is_some_and(Seat::holds)
    }
}
