//! How each followed address is reached. Only what a change concerns is asked for and worked out anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use sluice_planner::{Hop, Mac, NextHop, Via};

use super::neighbours::{Key, Neighbours, valid_mac};
use crate::netlink::{Medium, Prefix, Route, Table};

/// The node as the resolver sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    /// Links and neighbours.
    pub(super) table: &'a Table,
    /// Indices of the interfaces with an XDP program.
    pub(super) uplinks: &'a BTreeSet<u32>,
}

/// Who needs the way to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
    /// A pool has it as a server.
    Server,
    /// Another director has it.
    Peer,
}

/// Follows the ways to the addresses that matter.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    followed: BTreeMap<IpAddr, Followed>,
    /// Followed addresses whose route is to be looked up.
    doubted: BTreeSet<IpAddr>,
    /// Addresses whose next hop is to be worked out.
    touched: BTreeSet<IpAddr>,
    /// Interfaces and the followed addresses whose route leads through them.
    through: BTreeSet<(u32, IpAddr)>,
    /// Followed addresses that are this node's own by its routes.
    own: BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
struct Followed {
    server: bool,
    peer: bool,
    /// `None` until the route is known.
    route: Option<Route>,
    /// The neighbour on the way, and whether it leads to a server.
    neighbour: Option<(Key, bool)>,
    /// The next hop, or how far its resolution has come. An own address has none.
    next_hop: Option<NextHop>,
    /// Its Ethernet address on the link of an uplink, the last one that was known: a director that does not answer for a
    /// while is one all the same.
    mac: Option<Mac>,
}

impl Followed {
    /// The interface that the route leads through.
    fn through(&self) -> Option<u32> {
        match self.route {
            Some(Route::Out { ifindex, .. }) => Some(ifindex),
            _ => None,
        }
    }

    fn need(&mut self, need: Need) -> &mut bool {
        match need {
            Need::Server => &mut self.server,
            Need::Peer => &mut self.peer,
        }
    }
}

/// Where a route leads.
enum Way {
    /// By XDP to a neighbour.
    Neighbour { key: Key, hop: Hop },
    /// By the stack.
    Stack(Hop),
    /// To this node itself.
    Own,
    /// Nowhere.
    Nowhere,
}

/// The changes that working out next hops has led to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Next hops that are others than before.
    pub(super) next_hops: BTreeMap<IpAddr, Option<NextHop>>,
    /// Whether other addresses are the node's own than before.
    pub(super) own_changed: bool,
    /// Neighbours that nothing needs any more.
    pub(super) released: Vec<Key>,
}

impl Resolver {
    /// Follows an address from now on.
    pub(super) fn follow(&mut self, address: IpAddr, need: Need) {
        let followed = self.followed.entry(address).or_insert_with(|| {
            self.doubted.insert(address);
            Followed::default()
        });
        if !std::mem::replace(followed.need(need), true) {
            self.touched.insert(address);
        }
    }

    /// Follows an address no more, unless it is needed otherwise.
    pub(super) fn leave(&mut self, address: IpAddr, need: Need) {
        if let Some(followed) = self.followed.get_mut(&address) {
            *followed.need(need) = false;
            self.touched.insert(address);
        }
    }

    /// Every route may be another one.
    pub(super) fn doubt_all(&mut self) {
        self.doubted.extend(self.followed.keys());
    }

    /// The routes to addresses within a prefix may be others.
    pub(super) fn doubt_within(&mut self, prefix: Prefix) {
        let covered = self.followed.range(prefix.first()..=prefix.last());
        self.doubted.extend(covered.map(|(address, _)| address));
    }

    /// The routes through an interface may be others.
    pub(super) fn doubt_through(&mut self, interface: u32) {
        let first = (interface, IpAddr::from(Ipv4Addr::UNSPECIFIED));
        let through = self.through.range(first..);
        let through = through.take_while(|(ifindex, _)| *ifindex == interface);
        self.doubted.extend(through.map(|(_, address)| address));
    }

    /// Addresses whose route is to be looked up. They are doubted no more.
    pub(super) fn take_doubted(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.doubted).into_iter().collect()
    }

    /// The route to an address is this one.
    pub(super) fn found(&mut self, address: IpAddr, route: Route) {
        if let Some(followed) = self.followed.get_mut(&address) {
            let before = followed.through();
            followed.route = Some(route);
            let after = followed.through();
            if before != after {
                if let Some(ifindex) = before {
                    self.through.remove(&(ifindex, address));
                }
                self.through.extend(after.map(|ifindex| (ifindex, address)));
            }
            self.touched.insert(address);
        }
    }

    /// The route to an address could not be looked up. The one that was known stays.
    pub(super) fn not_found(&mut self, address: IpAddr) {
        if self.followed.contains_key(&address) {
            self.doubted.insert(address);
        }
    }

    /// The next hops of these addresses are to be worked out anew.
    pub(super) fn touch(&mut self, addresses: BTreeSet<IpAddr>) {
        self.touched.extend(addresses);
    }

    /// All next hops are to be worked out anew.
    pub(super) fn touch_all(&mut self) {
        self.touched.extend(self.followed.keys());
    }

    /// Works out the next hops of what was touched.
    pub(super) fn work_out(
        &mut self,
        around: Surroundings<'_>,
        neighbours: &mut Neighbours,
        now: Instant,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        for address in std::mem::take(&mut self.touched) {
            let Some(followed) = self.followed.get_mut(&address) else {
                continue;
            };
            let needed = followed.server || followed.peer;
            let route = followed.route.as_ref().filter(|_| needed);
            let way = route.map(|route| way(around, address, route));
            let neighbour = match &way {
                Some(Way::Neighbour { key, .. }) => Some((*key, followed.server)),
                _ => None,
            };
            let before = std::mem::replace(&mut followed.neighbour, neighbour);
            if let Some((key, is_server)) = neighbour.filter(|_| neighbour != before) {
                neighbours.enter(key, (address, is_server), around.table, now);
            }
            let key = neighbour.map(|(key, _)| key);
            if let Some((before, _)) = before.filter(|(before, _)| key != Some(*before))
                && neighbours.leave(before, address)
            {
                outcome.released.push(before);
            }
            let next_hop = match &way {
                None | Some(Way::Own) => None,
                Some(Way::Stack(hop)) => Some(NextHop::Resolved(*hop)),
                Some(Way::Nowhere) => Some(NextHop::Unreachable),
                Some(Way::Neighbour { key, hop }) => {
                    Some(neighbours.resolve(around.table, *key, *hop, now))
                }
            };
            followed.mac = match &way {
                Some(Way::Neighbour { key, hop }) if hop.via == Via::Link => {
                    valid_mac(around.table, *key).or(followed.mac)
                }
                _ => None,
            };
            if std::mem::replace(&mut followed.next_hop, next_hop) != next_hop {
                outcome.next_hops.insert(address, next_hop);
            }
            if !needed {
                if let Some(ifindex) = followed.through() {
                    self.through.remove(&(ifindex, address));
                }
                self.followed.remove(&address);
                self.doubted.remove(&address);
            }
            outcome.own_changed |= match way {
                Some(Way::Own) => self.own.insert(address),
                _ => self.own.remove(&address),
            };
        }
        outcome
    }

    /// Followed addresses that are this node's own by its routes.
    pub(super) fn own(&self) -> &BTreeSet<IpAddr> {
        &self.own
    }

    /// The Ethernet address of a followed address that is on the link of an uplink, as it was last known.
    pub(super) fn mac_on_link(&self, address: IpAddr) -> Option<Mac> {
        self.followed.get(&address)?.mac
    }
}

fn way(around: Surroundings<'_>, address: IpAddr, route: &Route) -> Way {
    let (ifindex, gateway, source, mtu) = match *route {
        Route::Local => return Way::Own,
        Route::None => return Way::Nowhere,
        Route::Out {
            ifindex,
            gateway,
            source,
            mtu,
        } => (ifindex, gateway, source, mtu),
    };
    let (Some(link), Some(source)) = (around.table.link_by_index(ifindex), source) else {
        return Way::Nowhere;
    };
    if link.medium == Medium::Loopback {
        return Way::Nowhere;
    }
    let mut hop = Hop {
        via: Via::Bridge,
        ifindex,
        source_mac: Mac::default(),
        next_hop_mac: Mac::default(),
        mtu: mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        source,
    };
    match link.mac {
        Some(source_mac) if around.uplinks.contains(&ifindex) => {
            hop.source_mac = source_mac;
            hop.via = if gateway.is_some() {
                Via::Router
            } else {
                Via::Link
            };
            Way::Neighbour {
                key: (ifindex, gateway.unwrap_or(address)),
                hop,
            }
        }
        _ if link.up => Way::Stack(hop),
        _ => Way::Nowhere,
    }
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
