//! What follows from claims that are heard: electors and witnesses hear of them, and VIPs that are announced here are defended.

use std::collections::BTreeMap;

use sluice_election::Source;

use super::first_use::By;
use super::frame::{self, Claim};
use super::seats::Seat;
use super::strangers::{Claimed, Stranger};
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
            let by = peer.as_ref().map_or(By::Stranger, |_| By::Director);
            self.first_use.answered(claim.address, by, now());
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

    /// A host that is no director claims a VIP. Whoever does not announce the VIP for that reason tells of it; otherwise only the
    /// holder of its group does, and defends it.
    fn meet(&mut self, group: &str, ifindex: u32, stranger: Stranger) {
        AnnounceCounts::count(&self.counts.strangers);
        let address = stranger.address;
        let is_in_use = self.first_use.is_in_use(address);
        let holds = self.electors.get(group).is_some_and(Seat::holds);
        if !is_in_use && (!holds || self.first_use.is_new(address)) {
            return;
        }
        self.strangers.hear(stranger, now());
        if !is_in_use && self.strangers.defends(address, ifindex, now()) {
            AnnounceCounts::count(&self.counts.defences);
            let mut links = self.plan.links(group, address);
            if let Some(link) = links.find(|(at, _)| *at == ifindex) {
                self.announce_on(link, group, address);
            }
        }
    }

    /// Forgets claims that are over.
    pub(super) fn forget_strangers(&mut self) {
        let (electors, group_of) = (&self.electors, &self.group_of);
        let first_use = &self.first_use;
        let concerns = |vip| {
            let group = group_of.get(&vip);
            let seat = group.and_then(|group| electors.get(group));
            seat.is_some_and(Seat::holds) || first_use.is_in_use(vip)
        };
        self.strangers.forget(concerns, now());
    }

    /// The claims that are told of.
    pub(super) fn claimed(&self) -> BTreeMap<Stranger, Claimed> {
        let claimed = |stranger: &Stranger| {
            if self.first_use.is_in_use(stranger.address) {
                return Claimed::Withheld;
            }
            Claimed::Defended
        };
        let strangers = self.strangers.all();
        let claims = strangers.map(|stranger| (stranger.clone(), claimed(stranger)));
        claims.collect()
    }

    /// Asks who has the VIPs that are new.
    pub(super) fn probe_new(&mut self) {
        while let Some((vip, group)) = self.first_use.take_due(now()) {
            let mut is_asked = false;
            for (ifindex, uplink) in self.plan.links(&group, vip) {
                AnnounceCounts::count(&self.counts.probes);
                self.send(ifindex, &frame::probe(&uplink.sender, vip));
                is_asked = true;
            }
            if !is_asked {
                self.first_use.postpone(vip, now());
            }
        }
    }
}
