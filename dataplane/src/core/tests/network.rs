//! Asking the kernel: what, when, and no more than that.

use std::net::Ipv4Addr;
use std::time::Duration;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::neighbour::NeighbourState as Nud;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{
    BRIDGE, BRIDGE_INDEX, Input, POD, SERVER, UPLINK, UPLINK_INDEX, World, link, neighbour, out,
};
use crate::netlink::Route;

pub(super) fn route(destination: &str, length: u8) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = length;
    if length > 0 {
        let destination = RouteAddress::Inet(destination.parse().unwrap());
        message.attributes = vec![RouteAttribute::Destination(destination)];
    }
    RouteNetlinkMessage::NewRoute(message)
}

pub(super) fn address(ifindex: u32, address: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    message.header.prefix_len = 24;
    message.attributes = vec![AddressAttribute::Address(address.into())];
    RouteNetlinkMessage::NewAddress(message)
}

/// Those of the effects done that ask the kernel for something.
fn asked(done: Vec<String>) -> Vec<String> {
    let is_question = |word: &&str| ["ReadTable", "ReadGateways", "FindRoutes"].contains(word);
    let mut asked = done;
    asked.retain(|what| what.split(' ').next().as_ref().is_some_and(is_question));
    asked
}

#[test]
fn a_change_of_a_route_asks_for_the_addresses_that_it_covers() {
    let mut world = World::settled(&[SERVER, POD]);
    let nothing: [&str; 0] = [];
    assert_eq!(asked(world.hear(route("192.168.0.0", 16))), nothing);
    assert_eq!(asked(world.hear(route("10.0.0.0", 31))), nothing);
    assert_eq!(
        asked(world.hear(route("10.244.0.0", 24))),
        [format!("FindRoutes {POD}")]
    );
    let both = format!("FindRoutes {SERVER},{POD}");
    assert_eq!(
        asked(world.hear(route("10.0.0.0", 8))),
        std::slice::from_ref(&both)
    );
    let rule = RouteNetlinkMessage::NewRule(RuleMessage::default());
    assert!(asked(world.hear(rule)).contains(&both));
}

#[test]
fn a_default_route_is_asked_for_its_gateways_after_a_rest() {
    let mut world = World::settled(&[]);
    assert!(asked(world.hear(route("0.0.0.0", 0))).is_empty());
    let rest = Duration::from_millis(9_800);
    assert_eq!(asked(world.after(rest)), ["ReadGateways"]);
    assert!(asked(world.after(rest)).is_empty());
    assert!(asked(world.hear(route("192.168.0.0", 16))).is_empty());
    assert!(asked(world.after(rest)).is_empty(), "no default route");
}

#[test]
fn interfaces_of_pods_that_come_and_go_ask_nothing() {
    let mut world = World::settled(&[SERVER, POD]);
    let veth = |up| link(9, "veth9", up);
    for message in [
        veth(false),
        veth(true),
        address(9, Ipv4Addr::new(169, 254, 3, 4)),
    ] {
        assert!(asked(world.hear(message)).is_empty());
    }
    let RouteNetlinkMessage::NewLink(gone) = veth(false) else {
        unreachable!()
    };
    let gone = RouteNetlinkMessage::DelLink(gone);
    assert!(asked(world.hear(gone)).is_empty());
}

#[test]
fn an_interface_that_fails_asks_for_what_it_led_to_and_one_that_is_back_for_all() {
    let mut world = World::settled(&[SERVER, POD]);
    let down = asked(world.hear(link(BRIDGE_INDEX, BRIDGE, false)));
    assert_eq!(down, [format!("FindRoutes {POD}")]);
    let back = asked(world.hear(link(BRIDGE_INDEX, BRIDGE, true)));
    assert!(back.contains(&format!("FindRoutes {SERVER},{POD}")));
    // An own address may be the source of any route.
    let own = asked(world.hear(address(BRIDGE_INDEX, Ipv4Addr::new(10, 244, 0, 1))));
    assert!(own.contains(&format!("FindRoutes {SERVER},{POD}")));
}

#[test]
fn lost_news_is_made_up_for_by_asking_for_everything() {
    let mut world = World::settled(&[SERVER]);
    world.tell(Input::NetlinkLost);
    let asked = asked(world.turn());
    assert_eq!(asked, ["ReadTable", "FindRoutes 10.0.0.2"]);
}

#[test]
fn a_question_that_fails_is_asked_again_later_and_what_was_known_stays() {
    let mut world = World::settled(&[SERVER, POD]);
    world.failing.insert("FindRoutes");
    let failed = world.hear(route("10.0.0.0", 24));
    assert_eq!(failed, ["FindRoutes 10.0.0.2"]);
    assert_eq!(world.maps.records.len(), 2);
    assert_eq!(world.pause(), Some(Duration::from_millis(100)));
    assert!(world.turn().is_empty(), "not before its time");
    world.failing.clear();
    world.routes.insert(super::ip(SERVER), Route::None);
    let again = world.after(Duration::from_millis(100));
    assert_eq!(&again[..2], ["FindRoutes 10.0.0.2", "Apply"]);
    assert!(world.turn().is_empty());
}

#[test]
fn the_table_is_read_again_until_it_can_be() {
    let mut world = World::settled(&[SERVER]);
    world.failing.insert("ReadTable");
    world.tell(Input::NetlinkLost);
    assert_eq!(asked(world.turn()), ["ReadTable"]);
    assert!(asked(world.turn()).is_empty());
    assert_eq!(
        asked(world.after(Duration::from_millis(100))),
        ["ReadTable"]
    );
    assert_eq!(world.pause(), Some(Duration::from_millis(200)));
    world.failing.clear();
    let asked = asked(world.after(Duration::from_millis(200)));
    assert_eq!(asked, ["ReadTable", "FindRoutes 10.0.0.2"]);
}

#[test]
fn a_next_hop_that_is_lost_changes_the_maps_alone() {
    let mut world = World::settled(&[SERVER]);
    let lost = world.hear(neighbour(SERVER, Nud::Failed));
    assert_eq!(&lost[..1], ["Apply"]);
    assert!(asked(lost).is_empty());
    assert_eq!(world.published.neighbours_unresolved, 1);
    let found = world.hear(neighbour(SERVER, Nud::Reachable));
    assert_eq!(&found[..1], ["Apply"]);
    assert_eq!(world.published.neighbours_unresolved, 0);
}

#[test]
fn neighbours_are_asked_for_through_a_link_with_a_carrier_only() {
    let mut world = World::settled(&[SERVER]);
    let keep = format!("KeepNeighbour {SERVER}");
    world.notice(neighbour(SERVER, Nud::Failed));
    assert!(world.after(Duration::from_secs(1)).contains(&keep));
    let mut down = world.hear(link(UPLINK_INDEX, UPLINK, false));
    down.extend(world.after(Duration::from_secs(5)));
    assert!(!down.contains(&keep), "{down:?}");
    assert!(world.hear(link(UPLINK_INDEX, UPLINK, true)).contains(&keep));
    // Also when it has just been asked for.
    world.after(Duration::from_millis(100));
    world.hear(link(UPLINK_INDEX, UPLINK, false));
    assert!(world.hear(link(UPLINK_INDEX, UPLINK, true)).contains(&keep));
}

#[test]
fn a_server_that_moves_behind_another_interface_releases_its_neighbour() {
    let mut world = World::settled(&[SERVER]);
    world.routes.insert(super::ip(SERVER), out(BRIDGE_INDEX));
    let done = world.hear(route("10.0.0.0", 24));
    assert_eq!(
        done[..3],
        ["FindRoutes 10.0.0.2", "Apply", "Attach br0"].map(str::to_owned)
    );
    assert_eq!(world.published.neighbours, 0);
    world.routes.insert(super::ip(SERVER), out(UPLINK_INDEX));
    let done = world.hear(route("10.0.0.0", 24));
    assert!(!done.contains(&format!("Attach {UPLINK}")), "{done:?}");
}
