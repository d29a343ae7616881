//! How each server is reached, and which neighbours must be known for it.
//!
//! A next hop is *pending* for its first second, then *overdue* until it is resolved. A neighbour that was resolved and
//! stops answering is *unreachable* at once, and asked for again every second.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sluice_planner::{Hop, Mac, NextHop, Via};

use crate::netlink::{NeighbourState, Prefix, Route, Table};

/// How long a next hop may take before a server enters its ring without.
const PENDING_LIMIT: Duration = Duration::from_secs(1);
/// Time between two requests to resolve a neighbour that is not known.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Time between two uses of a neighbour that the kernel does not keep fresh by itself.
const KEEP_FRESH: Duration = Duration::from_secs(10);

/// The node as the resolver sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    /// Links and neighbours.
    pub(super) table: &'a Table,
    /// Indices of the interfaces with an XDP program.
    pub(super) uplinks: &'a BTreeSet<u32>,
}

/// A neighbour: an interface and an address beyond it.
type Key = (u32, IpAddr);

/// Follows routes and neighbours of the addresses that matter.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    /// The followed addresses; `None` until the route is known.
    routes: BTreeMap<IpAddr, Option<Route>>,
    /// Followed addresses whose route is to be looked up.
    doubted: BTreeSet<IpAddr>,
    tracked: BTreeMap<Key, Tracked>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tracked {
    unresolved_since: Option<Instant>,
    last_asked: Option<Instant>,
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

impl Resolver {
    /// Sets the addresses to follow. Those that are new are doubted.
    pub(super) fn follow(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.routes.retain(|address, _| addresses.contains(address));
        self.doubted.retain(|address| addresses.contains(address));
        for &address in addresses {
            if let Entry::Vacant(place) = self.routes.entry(address) {
                place.insert(None);
                self.doubted.insert(address);
            }
        }
    }

    /// Every route may be another one.
    pub(super) fn doubt_all(&mut self) {
        self.doubted.extend(self.routes.keys());
    }

    /// The routes to addresses within a prefix may be others.
    pub(super) fn doubt_within(&mut self, prefix: Prefix) {
        let covered = self.routes.range(prefix.first()..=prefix.last());
        self.doubted.extend(covered.map(|(address, _)| address));
    }

    /// The routes through an interface may be others.
    pub(super) fn doubt_through(&mut self, interface: u32) {
        let leads_there = |route: &Option<Route>| match route {
            Some(Route::Out { ifindex, .. }) => *ifindex == interface,
            _ => false,
        };
        let routes = self.routes.iter();
        let through = routes.filter(|(_, route)| leads_there(route));
        self.doubted.extend(through.map(|(address, _)| address));
    }

    /// Addresses whose route is to be looked up. They are doubted no more.
    pub(super) fn take_doubted(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.doubted).into_iter().collect()
    }

    /// The route to an address is this one.
    pub(super) fn found(&mut self, address: IpAddr, route: Route) {
        if let Some(known) = self.routes.get_mut(&address) {
            *known = Some(route);
        }
    }

    /// The route to an address could not be looked up. The one that was known stays.
    pub(super) fn not_found(&mut self, address: IpAddr) {
        if self.routes.contains_key(&address) {
            self.doubted.insert(address);
        }
    }

    /// Brings the neighbours up to date; `others` are needed beside those of the addresses. Returns those that are not needed
    /// any more.
    pub(super) fn track(
        &mut self,
        around: Surroundings<'_>,
        others: &BTreeSet<Key>,
        now: Instant,
    ) -> Vec<Key> {
        let mut needed = others.clone();
        for (address, route) in self.known_routes() {
            if let Way::Neighbour { key, .. } = way(around, address, route) {
                needed.insert(key);
            }
        }
        let mut released = Vec::new();
        self.tracked.retain(|key, _| {
            let keep = needed.contains(key);
            if !keep {
                released.push(*key);
            }
            keep
        });
        for key in needed {
            let tracked = self.tracked.entry(key).or_default();
            tracked.unresolved_since = match state(around.table, key) {
                NeighbourState::Valid => None,
                _ => tracked.unresolved_since.or(Some(now)),
            };
        }
        released
    }

    /// Neighbours that the kernel is to be asked for now. They count as asked.
    pub(super) fn due(&mut self, table: &Table, now: Instant) -> Vec<Key> {
        let mut due = Vec::new();
        for (key, tracked) in &mut self.tracked {
            let is_due = pause(table, *key)
                .is_some_and(|pause| tracked.last_asked.is_none_or(|at| now >= at + pause));
            if is_due {
                tracked.last_asked = Some(now);
                due.push(*key);
            }
        }
        due
    }

    /// When something changes by itself: a pending next hop gets overdue, or a neighbour is due.
    pub(super) fn deadline(&self, table: &Table, now: Instant) -> Option<Instant> {
        let times = self.tracked.iter().flat_map(|(key, tracked)| {
            let overdue = tracked
                .unresolved_since
                .map(|since| since + PENDING_LIMIT)
                .filter(|&at| at > now);
            let ask = pause(table, *key)
                .map(|pause| tracked.last_asked.map_or(now, |asked| asked + pause));
            [overdue, ask]
        });
        times.flatten().min()
    }

    /// What is known of the way to each address. Own addresses are left out.
    pub(super) fn next_hops(
        &self,
        around: Surroundings<'_>,
        now: Instant,
    ) -> BTreeMap<IpAddr, NextHop> {
        let hop = |(address, route): (IpAddr, &Route)| {
            let next_hop = match way(around, address, route) {
                Way::Own => return None,
                Way::Stack(hop) => NextHop::Resolved(hop),
                Way::Nowhere => NextHop::Unreachable,
                Way::Neighbour { key, hop } => self.resolve(around.table, key, hop, now),
            };
            Some((address, next_hop))
        };
        self.known_routes().filter_map(hop).collect()
    }

    /// Followed addresses that are this node's own by its routes.
    pub(super) fn own(&self) -> impl Iterator<Item = IpAddr> {
        let own = self
            .known_routes()
            .filter(|(_, route)| **route == Route::Local);
        own.map(|(address, _)| address)
    }

    fn known_routes(&self) -> impl Iterator<Item = (IpAddr, &Route)> {
        let routes = self.routes.iter();
        routes.filter_map(|(&address, route)| Some((address, route.as_ref()?)))
    }

    /// The Ethernet address of a followed address that is on the link of an uplink.
    pub(super) fn mac_on_link(&self, around: Surroundings<'_>, address: IpAddr) -> Option<Mac> {
        match way(around, address, self.routes.get(&address)?.as_ref()?) {
            Way::Neighbour { key, hop } if hop.via == Via::Link => valid_mac(around.table, key),
            _ => None,
        }
    }

    /// Those of `neighbours` that are not followed.
    pub(super) fn not_tracked(&self, neighbours: impl Iterator<Item = Key>) -> Vec<Key> {
        neighbours
            .filter(|key| !self.tracked.contains_key(key))
            .collect()
    }

    /// Whether the kernel keeps followed neighbours fresh by itself.
    pub(super) fn sees_managed(&self, table: &Table) -> bool {
        let mut keys = self.tracked.keys();
        keys.any(|&(ifindex, address)| {
            table
                .neighbour_at(ifindex, address)
                .is_some_and(|entry| entry.managed)
        })
    }

    /// Neighbours that are followed, and how many of them are not resolved.
    pub(super) fn counts(&self) -> (usize, usize) {
        let unresolved = self
            .tracked
            .values()
            .filter(|tracked| tracked.unresolved_since.is_some());
        (self.tracked.len(), unresolved.count())
    }

    fn resolve(&self, table: &Table, key: Key, hop: Hop, now: Instant) -> NextHop {
        if let Some(next_hop_mac) = valid_mac(table, key) {
            return NextHop::Resolved(Hop {
                next_hop_mac,
                ..hop
            });
        }
        let since = self
            .tracked
            .get(&key)
            .and_then(|tracked| tracked.unresolved_since);
        let waiting = since.is_none_or(|since| now < since + PENDING_LIMIT);
        match state(table, key) {
            NeighbourState::Failed => NextHop::Unreachable,
            _ if waiting => NextHop::Pending,
            _ => NextHop::Overdue,
        }
    }
}

fn state(table: &Table, (ifindex, address): Key) -> NeighbourState {
    table
        .neighbour_at(ifindex, address)
        .map_or(NeighbourState::Incomplete, |entry| entry.state)
}

fn valid_mac(table: &Table, (ifindex, address): Key) -> Option<Mac> {
    let entry = table.neighbour_at(ifindex, address)?;
    entry.mac.filter(|_| entry.state == NeighbourState::Valid)
}

/// Time between two requests for a neighbour; `None`: nothing is to be asked.
fn pause(table: &Table, (ifindex, address): Key) -> Option<Duration> {
    match table.neighbour_at(ifindex, address) {
        Some(entry) if entry.fixed => None,
        Some(entry) if entry.state == NeighbourState::Valid => {
            (!entry.managed).then_some(KEEP_FRESH)
        }
        _ => Some(ASK_AGAIN),
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
    if link.loopback {
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
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
    use netlink_packet_route::neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState as Nud,
    };
    use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

    use super::*;

    const UPLINK: u32 = 2;
    const BRIDGE: u32 = 3;
    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 7);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
    const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    fn table() -> Table {
        let mut table = Table::default();
        for (ifindex, name) in [(UPLINK, "eth0"), (BRIDGE, "br0")] {
            let mut message = LinkMessage::default();
            message.header.index = ifindex;
            message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
            message.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
                LinkAttribute::Mtu(1500),
            ];
            table.apply(&RouteNetlinkMessage::NewLink(message));
        }
        table
    }

    fn hear(table: &mut Table, address: Ipv4Addr, nud: Nud) {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = UPLINK;
        message.header.state = nud;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
            NeighbourAttribute::LinkLayerAddress(SERVER_MAC.0.to_vec()),
        ];
        table.apply(&RouteNetlinkMessage::NewNeighbour(message));
    }

    fn route(ifindex: u32, gateway: Option<Ipv4Addr>) -> Route {
        Route::Out {
            ifindex,
            gateway: gateway.map(IpAddr::from),
            source: Some(OWN.into()),
            mtu: Some(1400),
        }
    }

    fn resolver(address: Ipv4Addr, route: Route) -> Resolver {
        let mut resolver = Resolver::default();
        resolver.follow(&BTreeSet::from([address.into()]));
        assert_eq!(resolver.take_doubted(), [IpAddr::from(address)]);
        resolver.found(address.into(), route);
        resolver
    }

    fn look(resolver: &mut Resolver, table: &Table, now: Instant, address: Ipv4Addr) -> NextHop {
        let uplinks = BTreeSet::from([UPLINK]);
        let around = Surroundings {
            table,
            uplinks: &uplinks,
        };
        resolver.track(around, &BTreeSet::new(), now);
        resolver.next_hops(around, now)[&IpAddr::from(address)]
    }

    #[test]
    fn a_new_next_hop_is_pending_then_overdue_then_resolved() {
        let mut table = table();
        let mut resolver = resolver(SERVER, route(UPLINK, None));
        let start = Instant::now();
        assert_eq!(look(&mut resolver, &table, start, SERVER), NextHop::Pending);
        assert_eq!(resolver.deadline(&table, start), Some(start));
        assert_eq!(resolver.due(&table, start).len(), 1);
        assert_eq!(
            resolver.deadline(&table, start),
            Some(start + PENDING_LIMIT)
        );
        let later = start + PENDING_LIMIT;
        assert_eq!(look(&mut resolver, &table, later, SERVER), NextHop::Overdue);
        hear(&mut table, SERVER, Nud::Reachable);
        let NextHop::Resolved(hop) = look(&mut resolver, &table, later, SERVER) else {
            unreachable!("it is resolved")
        };
        assert_eq!(
            (hop.via, hop.next_hop_mac, hop.mtu),
            (Via::Link, SERVER_MAC, 1400)
        );
    }

    #[test]
    fn a_neighbour_that_stops_answering_is_unreachable_and_asked_for_again() {
        let mut table = table();
        hear(&mut table, SERVER, Nud::Reachable);
        let mut resolver = resolver(SERVER, route(UPLINK, None));
        let start = Instant::now();
        look(&mut resolver, &table, start, SERVER);
        assert_eq!(resolver.due(&table, start).len(), 1, "to be kept fresh");
        hear(&mut table, SERVER, Nud::Failed);
        let lost = look(&mut resolver, &table, start, SERVER);
        assert_eq!(lost, NextHop::Unreachable);
        assert!(resolver.due(&table, start).is_empty(), "just asked");
        assert_eq!(resolver.due(&table, start + ASK_AGAIN).len(), 1);
    }

    #[test]
    fn a_router_is_the_neighbour_of_what_is_behind_it() {
        let mut table = table();
        hear(&mut table, GATEWAY, Nud::Stale);
        let mut resolver = resolver(FAR, route(UPLINK, Some(GATEWAY)));
        let NextHop::Resolved(hop) = look(&mut resolver, &table, Instant::now(), FAR) else {
            unreachable!("the router is known")
        };
        assert_eq!((hop.via, hop.next_hop_mac), (Via::Router, SERVER_MAC));
    }

    #[test]
    fn a_bridge_needs_no_neighbour() {
        let table = table();
        let mut resolver = resolver(SERVER, route(BRIDGE, None));
        let NextHop::Resolved(hop) = look(&mut resolver, &table, Instant::now(), SERVER) else {
            unreachable!("the stack delivers")
        };
        assert_eq!((hop.via, hop.ifindex), (Via::Bridge, BRIDGE));
        assert_eq!(resolver.counts(), (0, 0));
    }

    #[test]
    fn without_a_route_there_is_no_way() {
        let table = table();
        let mut resolver = resolver(SERVER, Route::None);
        let hop = look(&mut resolver, &table, Instant::now(), SERVER);
        assert_eq!(hop, NextHop::Unreachable);
    }

    #[test]
    fn neighbours_that_are_fixed_are_never_asked_for() {
        let mut table = table();
        hear(&mut table, SERVER, Nud::Permanent);
        let mut resolver = resolver(SERVER, route(UPLINK, None));
        let now = Instant::now();
        look(&mut resolver, &table, now, SERVER);
        assert!(resolver.due(&table, now).is_empty());
        assert_eq!(resolver.deadline(&table, now), None);
    }

    #[test]
    fn a_failed_look_up_keeps_the_route_and_is_repeated() {
        let table = table();
        let mut resolver = resolver(SERVER, route(BRIDGE, None));
        resolver.doubt_all();
        assert_eq!(resolver.take_doubted().len(), 1);
        resolver.not_found(SERVER.into());
        let hop = look(&mut resolver, &table, Instant::now(), SERVER);
        assert!(matches!(hop, NextHop::Resolved(_)));
        assert_eq!(resolver.take_doubted().len(), 1);
    }

    #[test]
    fn what_is_followed_no_more_is_forgotten() {
        let mut resolver = resolver(SERVER, route(UPLINK, None));
        resolver.doubt_all();
        resolver.follow(&BTreeSet::new());
        assert!(resolver.take_doubted().is_empty());
        resolver.not_found(SERVER.into());
        resolver.found(SERVER.into(), Route::None);
        assert!(resolver.take_doubted().is_empty() && resolver.routes.is_empty());
    }

    #[test]
    fn only_routes_that_a_change_can_concern_are_doubted() {
        let mut resolver = Resolver::default();
        let v6: IpAddr = "fd00::7".parse().unwrap();
        resolver.follow(&BTreeSet::from([SERVER.into(), FAR.into(), v6]));
        resolver.take_doubted();
        resolver.found(SERVER.into(), route(UPLINK, None));
        resolver.found(FAR.into(), route(BRIDGE, Some(GATEWAY)));
        resolver.found(v6, Route::None);
        let mut doubted = |address: &str, length| {
            let prefix = Prefix::new(address.parse().unwrap(), length);
            resolver.doubt_within(prefix);
            resolver.take_doubted()
        };
        assert_eq!(doubted("10.0.0.0", 24), [IpAddr::from(SERVER)]);
        assert!(doubted("10.0.0.6", 32).is_empty());
        assert!(doubted("192.168.0.0", 16).is_empty());
        assert_eq!(doubted("0.0.0.0", 0), [IpAddr::from(SERVER), FAR.into()]);
        assert_eq!(doubted("::", 0), [v6]);
        resolver.doubt_through(BRIDGE);
        assert_eq!(resolver.take_doubted(), [IpAddr::from(FAR)]);
    }
}
