//! Witnesses: hosts other than a group's holder that prove by an answer that a path works. The gateways of the uplink are, and without
//! one two other directors, at their own addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use sluice_election::Time;
use sluice_planner::Mac;

use super::frame::{Claim, To};
use super::plan::{Path, Plan};
use crate::netlink::is_within;

/// Directors that are asked where there is no gateway.
const PEERS: usize = 2;
/// Questions to a witness are this far apart: one answer serves all groups.
const PAUSE: Duration = Duration::from_millis(15);
/// So many questions without an answer to the Ethernet address that was known, and everybody is asked.
const MISSES: u32 = 5;

/// Witnesses by uplink and address.
#[derive(Debug, Default)]
pub(super) struct Witnesses(BTreeMap<(u32, IpAddr), Witness>);

#[derive(Debug, Default)]
struct Witness {
    mac: Option<Mac>,
    asked: Option<Time>,
    /// Questions since the last answer.
    unanswered: u32,
}

impl Witnesses {
    /// Takes over who may be asked.
    pub(super) fn set(&mut self, plan: &Plan) {
        let mut known = std::mem::take(&mut self.0);
        for (&ifindex, uplink) in &plan.uplinks {
            for of in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
                let mut addresses: Vec<IpAddr> =
                    uplink.gateways.iter().copied().filter(of).collect();
                if addresses.is_empty() {
                    let peers = plan.peers.values();
                    let peers = peers.filter(|peer| peer.macs.contains_key(&uplink.name));
                    // Hosts need not answer on one link for what they have on another (RFC 4861 section 7.2.3).
                    let is_there =
                        |address: &IpAddr| of(address) && is_within(*address, &uplink.subnets);
                    let theirs = peers.filter_map(|peer| {
                        let own = peer.addresses.iter();
                        own.clone()
                            .copied()
                            .find(is_there)
                            .or_else(|| own.copied().find(of))
                    });
                    addresses.extend(theirs.take(PEERS));
                }
                for address in addresses {
                    let key = (ifindex, address);
                    self.0.insert(key, known.remove(&key).unwrap_or_default());
                }
            }
        }
    }

    /// The questions by which a path is tested now.
    pub(super) fn questions(&mut self, path: Path, now: Time) -> Vec<(IpAddr, To)> {
        let mut questions = Vec::new();
        for ((ifindex, address), witness) in &mut self.0 {
            if *ifindex != path.ifindex || address.is_ipv4() != path.vip.is_ipv4() {
                continue;
            }
            if witness.asked.is_some_and(|asked| now.since(asked) < PAUSE) {
                continue;
            }
            witness.asked = Some(now);
            witness.unanswered = witness.unanswered.saturating_add(1);
            let mac = witness.mac.filter(|_| witness.unanswered <= MISSES);
            questions.push((*address, mac.map_or(To::All, To::Host)));
        }
        questions
    }

    /// Takes in a claim. Returns whether a witness made it.
    pub(super) fn heard(&mut self, ifindex: u32, claim: Claim) -> bool {
        let Some(witness) = self.0.get_mut(&(ifindex, claim.address)) else {
            return false;
        };
        witness.mac = Some(claim.mac);
        witness.unanswered = 0;
        true
    }
}
