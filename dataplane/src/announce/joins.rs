//! The solicited-node groups of IPv6 VIPs, joined on every uplink on which they may be announced, so that a node that takes over is
//! asked at once. The kernel stays in them without the agent.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use tracing::warn;

use super::frame::solicited_node;
use super::plan::Plan;
use crate::netlink::Requests;

/// Time between two looks at what is joined: an interface that was down has left all groups.
const LOOK: Duration = Duration::from_secs(10);

pub(super) struct Joins {
    requests: Requests,
    wanted: BTreeSet<(u32, Ipv6Addr)>,
    /// Uplinks that are up: on others no group can be joined.
    up: BTreeSet<u32>,
    joined: BTreeSet<(u32, Ipv6Addr)>,
    looked: Option<Instant>,
    was_refused: bool,
}

impl Joins {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            requests: Requests::open().map_err(io::Error::other)?,
            wanted: BTreeSet::new(),
            up: BTreeSet::new(),
            joined: BTreeSet::new(),
            looked: None,
            was_refused: false,
        })
    }

    /// Joins what a plan needs, and leaves what it does not.
    pub(super) fn set(&mut self, plan: &Plan) {
        let groups = plan.groups.values();
        let wanted = groups
            .flat_map(|group| {
                let uplinks = group.uplinks.iter();
                let uplinks = uplinks.filter_map(|it| Some((*it, plan.uplinks.get(it)?)));
                uplinks.flat_map(move |on| {
                    let vips = group
                        .vips
                        .iter()
                        .filter(move |vip| group.announces(**vip, on));
                    vips.filter_map(move |vip| match vip {
                        IpAddr::V6(vip) => Some((on.0, solicited_node(*vip))),
                        IpAddr::V4(_) => None,
                    })
                })
            })
            .collect();
        let uplinks = plan.uplinks.iter().filter(|(_, uplink)| uplink.up);
        let up = uplinks.map(|(&ifindex, _)| ifindex).collect();
        if (&wanted, &up) == (&self.wanted, &self.up) {
            return;
        }
        (self.wanted, self.up) = (wanted, up);
        self.looked = None;
        self.turn();
    }

    /// Looks from time to time, and when interfaces have changed.
    pub(super) fn turn(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        let outcome = self.reconcile();
        if let Err(error) = &outcome
            && !self.was_refused
        {
            warn!("IPv6 VIPs may not be found behind switches that snoop on MLD: {error}");
        }
        self.was_refused = outcome.is_err();
    }

    fn reconcile(&mut self) -> Result<(), crate::netlink::Error> {
        // What this process joined is known also where the kernel does not keep who made an address.
        let mut joined = self.requests.joined_groups()?;
        let unlisted = self.joined.difference(&joined).copied();
        let unwanted: Vec<_> = unlisted.filter(|key| !self.wanted.contains(key)).collect();
        joined.extend(unwanted);
        for &(ifindex, group) in joined.difference(&self.wanted) {
            self.requests.leave_group(ifindex, group)?;
        }
        self.joined = self.wanted.clone();
        for &(ifindex, group) in self.wanted.difference(&joined) {
            if self.up.contains(&ifindex) {
                self.requests.join_group(ifindex, group)?;
            }
        }
        Ok(())
    }
}
