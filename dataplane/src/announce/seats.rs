//! Electors, and what they are told of the plan.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_election::{Elector, Event, Role, Source, Time, Witness};
use sluice_planner::Mac;
use tracing::warn;

use super::plan::{Group, Path, Plan, Uplink};
use super::worker::{Worker, now};

/// An elector and what it is asked for by.
pub(super) struct Seat {
    pub(super) elector: Elector,
    pub(super) paths: Vec<Path>,
    /// Whether there is somebody to ask, as the elector knows.
    witness: Option<Witness>,
    pub(super) index: u16,
    pub(super) hash: u64,
}

impl Seat {
    pub(super) fn is_due(&self, time: Time) -> bool {
        let due = self.elector.next_deadline();
        due.is_some_and(|due| due <= time)
    }

    /// Whether this node holds the group.
    pub(super) fn holds(&self) -> bool {
        self.elector.state().role == Role::Holder
    }

    /// Takes in that an address was claimed on an uplink.
    pub(super) fn answered(&mut self, ifindex: u32, address: IpAddr, from: &Source) {
        let on_it =
            |path: &Path| path.ifindex == ifindex && path.vip.is_ipv4() == address.is_ipv4();
        if let Some(path) = self.paths.iter().position(on_it) {
            let from = from.clone();
            self.elector.on(Event::Answer { path, from }, now());
        }
    }
}

impl Worker {
    pub(super) fn set_plan(&mut self, plan: Plan) {
        let before = std::mem::replace(&mut self.plan, plan);
        let time = now();
        let gone: Vec<String> = self
            .electors
            .keys()
            .filter(|group| !self.plan.groups.contains_key(*group))
            .cloned()
            .collect();
        for group in gone {
            self.leave(&group, before.groups.get(&group));
        }
        if !Arc::ptr_eq(&before.peers, &self.plan.peers) {
            self.node_of = self.nodes();
        }
        if before.uplinks != self.plan.uplinks || !Arc::ptr_eq(&before.peers, &self.plan.peers) {
            self.witnesses.set(&self.plan);
        }
        // IPv6 solicitations must reach the node before it is armed.
        self.joins.set(&self.plan);
        let witness = self.plan.witness();
        let groups: Vec<String> = self.plan.groups.keys().cloned().collect();
        for name in groups {
            self.seat(&name, before.groups.get(&name), witness, time);
        }
        self.first_use.set(self.new_vips(), time);
        let is_back = |(ifindex, uplink): (&u32, &Uplink)| {
            let known = before.uplinks.get(ifindex);
            uplink.up && known.is_some_and(|known| !known.up)
        };
        if self.plan.uplinks.iter().any(is_back) {
            self.bursts.begin_again(time);
        }
    }

    /// Has an elector for a group, and tells it what is new.
    fn seat(&mut self, name: &str, before: Option<&Group>, witness: Witness, time: Time) {
        let Some(group) = self.plan.groups.get(name) else {
            return;
        };
        let has_vips = before.is_some_and(|before| Arc::ptr_eq(&before.vips, &group.vips));
        if !has_vips {
            forget_vips(&mut self.group_of, name, before);
            let vips = group.vips.iter().map(|vip| (*vip, name.to_owned()));
            self.group_of.extend(vips);
        }
        if !has_vips || before.is_some_and(|before| before.new != group.new) {
            self.bursts.keep(name, &group.answered(), time);
        }
        let known = self.electors.get(name);
        let known = known.map_or(&[][..], |seat| seat.paths.as_slice());
        let paths = self.plan.paths(group, known);
        let (node, settings) = (&self.node, &self.settings);
        let is_new = !self.electors.contains_key(name);
        let seat = self
            .electors
            .entry(name.to_owned())
            .or_insert_with(|| Seat {
                elector: Elector::new(name, node, settings.clone(), time),
                paths: Vec::new(),
                witness: None,
                index: group.index,
                hash: sluice_abi::group_hash(name),
            });
        if is_new && self.is_server_lost {
            seat.elector.on(Event::ServerLost, time);
        }
        if is_new || seat.paths != paths {
            seat.elector.on(Event::Paths(paths.len()), time);
            seat.paths = paths;
        }
        if seat.witness != Some(witness) {
            seat.witness = Some(witness);
            seat.elector.on(Event::Witness(witness), time);
        }
        let known = before.filter(|_| !is_new);
        if known.is_none_or(|known| known.candidates != group.candidates) {
            let candidates = group.candidates.as_ref().clone();
            seat.elector.on(Event::Candidates(candidates), time);
        }
        if known.is_none_or(|known| known.health != group.health) {
            seat.elector.on(Event::Health(group.health), time);
        }
    }

    /// A group is none of this node's any more: nobody is asked for it, so its Lease expires by itself.
    fn leave(&mut self, group: &str, before: Option<&Group>) {
        self.bursts.end(group);
        if let Some(seat) = self.electors.remove(group)
            && let Err(error) = self.maps.forget_group(seat.index.into())
        {
            warn!(group, "cannot forget the VIP group: {error}");
        }
        forget_vips(&mut self.group_of, group, before);
    }

    /// The new VIPs, with their groups.
    fn new_vips(&self) -> BTreeMap<IpAddr, String> {
        let groups = self.plan.groups.iter();
        let vips =
            groups.flat_map(|(name, group)| group.new.iter().map(|vip| (*vip, name.clone())));
        vips.collect()
    }

    /// The other directors by Ethernet address. Uplinks of one segment may have other names elsewhere.
    fn nodes(&self) -> BTreeMap<Mac, String> {
        let peers = self.plan.peers.iter();
        let macs = peers.flat_map(|(node, peer)| {
            let macs = peer.macs.values();
            macs.map(move |mac| (*mac, node.clone()))
        });
        macs.collect()
    }
}

/// Takes a group's VIPs, as they were planned before, off the index of groups, unless another group has them now.
fn forget_vips(group_of: &mut BTreeMap<IpAddr, String>, name: &str, before: Option<&Group>) {
    for vip in before.iter().flat_map(|before| before.vips.iter()) {
        if group_of.get(vip).is_some_and(|of| of == name) {
            group_of.remove(vip);
        }
    }
}
