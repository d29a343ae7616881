use std::net::Ipv4Addr;
use std::time::Duration;

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

/// A network, and the next hops that follow from it.
struct Ways {
    table: Table,
    resolver: Resolver,
    neighbours: Neighbours,
    /// As the resolver told.
    next_hops: BTreeMap<IpAddr, Option<NextHop>>,
    start: Instant,
}

impl Ways {
    /// An address is followed whose route is known.
    fn new(table: Table, address: Ipv4Addr, route: Route) -> Self {
        let mut resolver = Resolver::default();
        resolver.follow(address.into(), Need::Server);
        assert_eq!(resolver.take_doubted(), [IpAddr::from(address)]);
        resolver.found(address.into(), route);
        Self {
            table,
            resolver,
            neighbours: Neighbours::default(),
            next_hops: BTreeMap::new(),
            start: Instant::now(),
        }
    }

    /// Hears of a neighbour's state.
    fn hear(&mut self, address: Ipv4Addr, nud: Nud, later: Duration) {
        hear(&mut self.table, address, nud);
        let key = (UPLINK, address.into());
        let now = self.start + later;
        let users = self.neighbours.heard(key, &self.table, now);
        self.resolver.touch(users);
    }

    /// Works out what has changed.
    fn work_out(&mut self, later: Duration) -> Outcome {
        let uplinks = BTreeSet::from([UPLINK]);
        let around = Surroundings {
            table: &self.table,
            uplinks: &uplinks,
        };
        let neighbours = &mut self.neighbours;
        let now = self.start + later;
        let outcome = self.resolver.work_out(around, neighbours, now);
        self.next_hops.extend(outcome.next_hops.clone());
        outcome
    }

    fn next_hop(&mut self, address: Ipv4Addr, later: Duration) -> Option<NextHop> {
        self.work_out(later);
        self.next_hops.get(&address.into()).copied().flatten()
    }

    /// How many neighbours the kernel is to be asked for.
    fn asked(&mut self, later: Duration) -> usize {
        let due = self.neighbours.take_due(&self.table, self.start + later);
        self.resolver.touch(due.overdue);
        due.asked.len()
    }

    /// Time from the start until something is due.
    fn due(&self) -> Option<Duration> {
        let deadline = self.neighbours.deadline();
        deadline.map(|at| at.duration_since(self.start))
    }
}

const NOW: Duration = Duration::ZERO;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_new_next_hop_is_pending_then_overdue_then_resolved() {
    let mut ways = Ways::new(table(), SERVER, route(UPLINK, None));
    assert_eq!(ways.next_hop(SERVER, NOW), Some(NextHop::Pending));
    assert_eq!(ways.due(), Some(NOW));
    assert_eq!(ways.asked(NOW), 1);
    assert_eq!(ways.due(), Some(SECOND));
    assert_eq!(ways.asked(SECOND), 1);
    assert_eq!(ways.next_hop(SERVER, SECOND), Some(NextHop::Overdue));
    ways.hear(SERVER, Nud::Reachable, SECOND);
    let Some(NextHop::Resolved(hop)) = ways.next_hop(SERVER, SECOND) else {
        unreachable!("it is resolved")
    };
    assert_eq!(
        (hop.via, hop.next_hop_mac, hop.mtu),
        (Via::Link, SERVER_MAC, 1400)
    );
    assert_eq!(ways.neighbours.counts(), (1, 0));
}

#[test]
fn a_neighbour_that_stops_answering_is_unreachable_and_asked_for_again() {
    let mut known = table();
    hear(&mut known, SERVER, Nud::Reachable);
    let mut ways = Ways::new(known, SERVER, route(UPLINK, None));
    ways.work_out(NOW);
    assert_eq!(ways.asked(NOW), 1, "to be kept fresh");
    assert_eq!(ways.due(), Some(10 * SECOND));
    ways.hear(SERVER, Nud::Failed, NOW);
    assert_eq!(ways.next_hop(SERVER, NOW), Some(NextHop::Unreachable));
    assert_eq!(ways.asked(NOW), 0, "just asked");
    assert_eq!(ways.asked(SECOND), 1);
    assert_eq!(ways.neighbours.counts(), (1, 1));
}

/// How often the kernel is asked within this time.
fn asked_within(ways: &mut Ways, time: Duration) -> usize {
    let mut asked = 0;
    while let Some(due) = ways.due().filter(|due| *due < time) {
        asked += ways.asked(due);
        ways.work_out(due);
    }
    asked
}

#[test]
fn a_director_that_does_not_answer_is_asked_for_ever_more_seldom() {
    let mut known = table();
    hear(&mut known, SERVER, Nud::Reachable);
    let mut ways = Ways::new(known, SERVER, route(UPLINK, None));
    ways.resolver.follow(SERVER.into(), Need::Peer);
    ways.resolver.leave(SERVER.into(), Need::Server);
    ways.work_out(NOW);
    assert_eq!(ways.asked(NOW), 1, "to be kept fresh");
    ways.hear(SERVER, Nud::Failed, NOW);
    ways.work_out(NOW);
    let key = (UPLINK, IpAddr::from(SERVER));
    assert_eq!(ways.neighbours.take_unanswered(), [key].into());
    let address = SERVER.into();
    assert_eq!(ways.resolver.mac_on_link(address), Some(SERVER_MAC));
    let hour = 3_600 * SECOND;
    let asked = asked_within(&mut ways, hour);
    assert!((50..70).contains(&asked), "{asked} times in an hour");
    // Packets are sent to a server, so that one is wanted back at once.
    ways.resolver.follow(address, Need::Server);
    ways.work_out(hour);
    assert_eq!(ways.asked(hour), 1);
    assert_eq!(asked_within(&mut ways, hour + 60 * SECOND), 59);
    assert!(ways.neighbours.take_unanswered().is_empty());
    ways.resolver.leave(address, Need::Server);
    ways.hear(SERVER, Nud::Reachable, hour + 60 * SECOND);
    ways.work_out(hour + 60 * SECOND);
    assert!(ways.neighbours.take_unanswered().is_empty());
}

#[test]
fn a_router_is_the_neighbour_of_what_is_behind_it() {
    let mut known = table();
    hear(&mut known, GATEWAY, Nud::Stale);
    let mut ways = Ways::new(known, FAR, route(UPLINK, Some(GATEWAY)));
    let Some(NextHop::Resolved(hop)) = ways.next_hop(FAR, NOW) else {
        unreachable!("the router is known")
    };
    assert_eq!((hop.via, hop.next_hop_mac), (Via::Router, SERVER_MAC));
    // The last one to leave lets it go.
    ways.resolver.follow(SERVER.into(), Need::Peer);
    ways.resolver
        .found(SERVER.into(), route(UPLINK, Some(GATEWAY)));
    ways.resolver.leave(FAR.into(), Need::Server);
    assert!(ways.work_out(NOW).released.is_empty());
    ways.resolver.leave(SERVER.into(), Need::Peer);
    let gateway = (UPLINK, IpAddr::from(GATEWAY));
    assert_eq!(ways.work_out(NOW).released, [gateway]);
    assert_eq!((ways.due(), ways.neighbours.counts()), (None, (0, 0)));
}

#[test]
fn a_gateway_stays_while_a_default_route_has_it() {
    let mut ways = Ways::new(table(), FAR, route(UPLINK, Some(GATEWAY)));
    let gateway = (UPLINK, IpAddr::from(GATEWAY));
    let (now, some) = (ways.start, BTreeSet::from([gateway]));
    let neighbours = &mut ways.neighbours;
    assert!(neighbours.set_gateways(&some, &ways.table, now).is_empty());
    ways.work_out(NOW);
    ways.resolver.leave(FAR.into(), Need::Server);
    assert!(ways.work_out(NOW).released.is_empty());
    let none = BTreeSet::new();
    let neighbours = &mut ways.neighbours;
    assert_eq!(neighbours.set_gateways(&none, &ways.table, now), [gateway]);
}

#[test]
fn a_bridge_needs_no_neighbour() {
    let mut ways = Ways::new(table(), SERVER, route(BRIDGE, None));
    let Some(NextHop::Resolved(hop)) = ways.next_hop(SERVER, NOW) else {
        unreachable!("the stack delivers")
    };
    assert_eq!((hop.via, hop.ifindex), (Via::Bridge, BRIDGE));
    assert_eq!(ways.neighbours.counts(), (0, 0));
}

#[test]
fn without_a_route_there_is_no_way() {
    let mut ways = Ways::new(table(), SERVER, Route::None);
    assert_eq!(ways.next_hop(SERVER, NOW), Some(NextHop::Unreachable));
}

#[test]
fn an_own_address_needs_no_next_hop() {
    let mut ways = Ways::new(table(), SERVER, route(UPLINK, None));
    ways.work_out(NOW);
    ways.resolver.found(SERVER.into(), Route::Local);
    assert!(ways.work_out(NOW).own_changed);
    assert_eq!(ways.next_hop(SERVER, NOW), None);
    assert!(ways.resolver.own().contains(&IpAddr::from(SERVER)));
    ways.resolver.found(SERVER.into(), Route::Local);
    let again = ways.work_out(NOW);
    assert!(!again.own_changed && again.next_hops.is_empty());
    ways.resolver.leave(SERVER.into(), Need::Server);
    assert!(ways.work_out(NOW).own_changed);
    assert!(ways.resolver.own().is_empty());
}

#[test]
fn neighbours_that_are_fixed_are_never_asked_for() {
    let mut known = table();
    hear(&mut known, SERVER, Nud::Permanent);
    let mut ways = Ways::new(known, SERVER, route(UPLINK, None));
    ways.work_out(NOW);
    assert_eq!((ways.asked(NOW), ways.due()), (0, None));
}

#[test]
fn a_failed_look_up_keeps_the_route_and_is_repeated() {
    let mut ways = Ways::new(table(), SERVER, route(BRIDGE, None));
    ways.resolver.doubt_all();
    assert_eq!(ways.resolver.take_doubted().len(), 1);
    ways.resolver.not_found(SERVER.into());
    let hop = ways.next_hop(SERVER, NOW);
    assert!(matches!(hop, Some(NextHop::Resolved(_))));
    assert_eq!(ways.resolver.take_doubted().len(), 1);
}

#[test]
fn what_is_followed_no_more_is_forgotten() {
    let mut ways = Ways::new(table(), SERVER, route(UPLINK, None));
    ways.resolver.doubt_all();
    ways.resolver.follow(SERVER.into(), Need::Peer);
    ways.resolver.leave(SERVER.into(), Need::Server);
    assert!(ways.next_hop(SERVER, NOW).is_some(), "a peer still");
    ways.resolver.leave(SERVER.into(), Need::Peer);
    assert_eq!(ways.next_hop(SERVER, NOW), None);
    ways.resolver.not_found(SERVER.into());
    ways.resolver.found(SERVER.into(), Route::None);
    assert!(ways.resolver.take_doubted().is_empty());
    assert_eq!(ways.next_hop(SERVER, NOW), None);
}

#[test]
fn only_routes_that_a_change_can_concern_are_doubted() {
    let mut resolver = Resolver::default();
    let v6: IpAddr = "fd00::7".parse().unwrap();
    for address in [SERVER.into(), FAR.into(), v6] {
        resolver.follow(address, Need::Server);
    }
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
