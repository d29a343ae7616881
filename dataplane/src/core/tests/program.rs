//! Maps and attachments: order, failures, and what is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netlink_packet_route::neighbour::NeighbourState as Nud;
use sluice_api::{AttachMode, LoadBalancerNodeStatus, Peer, Peers, XdpMode};
use sluice_planner::{Mac, Prefix};

use super::{Input, POD, SERVER, UPLINK, World, decisions, ip, neighbour, node};
use crate::core::Effect;
use crate::maps::Hook;
use crate::source::Event;

#[test]
fn the_network_is_known_before_maps_are_written_and_they_are_before_programs_are_attached() {
    let mut world = World::new(LoadBalancerNodeStatus::default());
    assert_eq!(world.turn(), ["ReadTable", "ReadGateways"]);
    assert!(world.not_ready().contains("is not known yet"));
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    world.tell(Input::Source(decisions(7, &[SERVER])));
    assert_eq!(
        world.turn(),
        [
            "FindRoutes 10.0.0.2",
            "KeepNeighbour 10.0.0.2",
            "ReadImage",
            "Apply",
            "Attach eth0",
            "ListAttached",
            "WriteStatus"
        ]
    );
    assert_eq!(world.not_ready(), "");
    let status = world.status.unwrap();
    assert_eq!(status.acknowledged_revision, 7);
    assert_eq!(status.interfaces[0].attach_mode, AttachMode::Native);
}

#[test]
fn peers_of_an_earlier_agent_stay_until_others_are_told() {
    let mut world = World::new(LoadBalancerNodeStatus::default());
    let known = Mac([2, 0, 0, 0, 0, 9]);
    world.maps.peers.insert(known);
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    for revision in [7, 8] {
        world.tell(Input::Source(decisions(revision, &[SERVER])));
        world.turn();
        assert_eq!(world.maps.peers, [known].into());
    }
    world.tell(Input::Source(Event::Peers(BTreeMap::new())));
    world.turn();
    assert!(world.maps.peers.is_empty());
}

/// They leave with the Ethernet address of their node, as balanced packets do.
#[test]
fn what_pods_of_directors_send_is_told_from_what_directors_balanced() {
    let mut world = World::settled(&[]);
    let peer = |own: &str, pods: &str| Peer {
        addresses: [ip(own)].into(),
        pod_cidrs: [pods.parse().unwrap()].into(),
        ..Peer::default()
    };
    let peers = [
        ("d2".to_owned(), peer(SERVER, "10.244.2.0/24")),
        ("d3".to_owned(), peer("10.9.0.3", "fd00:3::/64")),
    ];
    world.tell(Input::Source(Event::Peers(peers.into())));
    world.turn();
    let nets = |world: &World| -> Vec<String> {
        let nets = world.maps.peer_nets.iter();
        let text = |(net, flags): (&Prefix, &u32)| {
            let tunnels = flags & sluice_abi::NET_TUNNELS != 0;
            format!("{net}{}", if tunnels { " tunnels" } else { "" })
        };
        nets.map(text).collect()
    };
    let all = [
        "10.0.0.2/32 tunnels",
        "10.9.0.3/32 tunnels",
        "10.244.2.0/24",
        "::/0 tunnels",
        "fd00:3::/64",
    ];
    assert_eq!(nets(&world), all);
    let peers = [("d2".to_owned(), peer(SERVER, "10.244.7.0/24"))];
    world.tell(Input::Source(Event::Peers(peers.into())));
    world.turn();
    assert_eq!(
        nets(&world),
        ["10.0.0.2/32 tunnels", "10.244.7.0/24", "::/0 tunnels"]
    );
}

#[test]
fn a_director_that_does_not_answer_stays_one() {
    let mut world = World::settled(&[]);
    let peer = Peer {
        addresses: [ip(SERVER)].into(),
        ..Peer::default()
    };
    let peers = Peers::from([("d2".to_owned(), peer)]);
    world.tell(Input::Source(Event::Peers(peers)));
    world.turn();
    let known = BTreeSet::from([Mac([2, 0, 0, 0, 0, 7])]);
    assert_eq!(world.maps.peers, known);
    world.hear(neighbour(SERVER, Nud::Failed));
    assert_eq!(world.maps.peers, known);
    world.tell(Input::Source(Event::Peers(BTreeMap::new())));
    world.turn();
    assert!(world.maps.peers.is_empty());
}

#[test]
fn programs_are_attached_though_nothing_is_decided() {
    let mut world = World::new(LoadBalancerNodeStatus::default());
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    let done = world.turn();
    assert!(done.contains(&"Attach eth0".to_owned()), "{done:?}");
    assert!(!done.contains(&"ReadImage".to_owned()), "{done:?}");
}

#[test]
fn nothing_is_done_twice() {
    let mut world = World::settled(&[SERVER, POD]);
    assert!(world.turn().is_empty());
    world.tell(Input::Source(decisions(8, &[SERVER, POD])));
    assert!(world.turn().is_empty(), "only the number is another one");
    assert_eq!(world.published.acknowledged_revision, 8);
}

#[test]
fn maps_that_cannot_be_written_are_read_back_and_written_again() {
    let mut world = World::settled(&[SERVER]);
    world.failing.insert("Apply");
    world.tell(Input::Source(decisions(8, &[SERVER, POD])));
    world.turn();
    assert!(world.not_ready().contains("cannot do it: no"));
    let status = world.status.clone().unwrap();
    assert_eq!(status.acknowledged_revision, 7, "8 is not live");
    assert_eq!(world.pause(), Some(Duration::from_millis(100)));
    assert!(!world.turn().contains(&"ReadImage".to_owned()));
    // Each failure makes the pause longer, of reading too.
    world.failing.insert("ReadImage");
    let again = world.after(Duration::from_millis(100));
    assert_eq!(again, ["ReadImage"]);
    world.failing.clear();
    assert!(world.turn().is_empty());
    let again = world.after(Duration::from_millis(200));
    assert_eq!(again[..2], ["ReadImage", "Apply"].map(str::to_owned));
    assert_eq!(world.not_ready(), "");
    assert_eq!(world.published.acknowledged_revision, 8);
}

#[test]
fn what_does_not_fit_is_planned_once_more_and_named() {
    let mut world = World::settled(&[SERVER]);
    let many: Vec<String> = (1..100).map(|i| format!("10.0.1.{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for address in &many {
        world
            .routes
            .insert(ip(address), super::out(super::BRIDGE_INDEX));
    }
    world.tell(Input::Source(decisions(8, &many)));
    let done = world.turn();
    let applied = done.iter().filter(|what| what.starts_with("Apply"));
    assert_eq!(applied.count(), 2, "{done:?}");
    let exceptions = &world.published.exceptions;
    assert!(exceptions[0].reason.contains("LimitExceeded"));
}

#[test]
fn an_attachment_that_fails_is_tried_again_after_a_pause() {
    let mut world = World::new(LoadBalancerNodeStatus::default());
    world.failing.insert("Attach");
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    world.turn();
    assert!(world.not_ready().contains("eth0: cannot do it"));
    assert!(!world.turn().contains(&"Attach eth0".to_owned()));
    world.failing.clear();
    let again = world.after(Duration::from_secs(2));
    assert!(again.contains(&"Attach eth0".to_owned()), "{again:?}");
    assert_eq!(world.not_ready(), "");
}

#[test]
fn what_somebody_takes_off_is_attached_again() {
    let mut world = World::settled(&[SERVER]);
    world.attached.remove(&(Hook::Ingress, UPLINK.to_owned()));
    let done = world.after(Duration::from_secs(5));
    let round = ["LookForPrograms 3", "Attach eth0", "ListAttached"];
    assert!(done.join(" ").contains(&round.join(" ")), "{done:?}");
    let done = world.after(Duration::from_secs(5));
    assert!(done.contains(&"LookForPrograms 3".to_owned()), "{done:?}");
    assert!(!done.contains(&"Attach eth0".to_owned()), "{done:?}");
}

#[test]
fn another_xdp_mode_attaches_anew() {
    let mut world = World::settled(&[SERVER]);
    world.tell(Input::Source(node(2, XdpMode::Generic)));
    let done = world.turn();
    assert_eq!(done[..1], ["Attach eth0".to_owned()]);
    world.tell(Input::Source(node(3, XdpMode::Generic)));
    assert!(!world.turn().contains(&"Attach eth0".to_owned()));
}

#[test]
fn an_interface_that_is_no_uplink_any_more_loses_its_programs() {
    let mut world = World::settled(&[SERVER, POD]);
    assert!(world.attached.contains(&(Hook::Ingress, "br0".to_owned())));
    let Event::Node(mut other) = node(2, XdpMode::Auto) else {
        unreachable!()
    };
    other.spec.interfaces = vec!["br0".to_owned()];
    world.tell(Input::Source(Event::Node(other)));
    let done = world.turn();
    // A server is behind it still, whose replies are taken there.
    let detached = "Detach xdp of eth0,egress of eth0".to_owned();
    assert!(done.contains(&detached), "{done:?}");
    assert!(done.contains(&"Attach br0".to_owned()), "{done:?}");
}

#[test]
fn a_room_that_waits_holds_up_those_after_it() {
    let mut world = World::settled(&[SERVER]);
    world.tell(Input::Source(decisions(8, &[SERVER, POD])));
    world.tell(Input::NetlinkLost);
    let now = world.now;
    assert!(matches!(
        world.core.on(Input::Turn, now)[..],
        [Effect::ReadTable]
    ));
    assert!(world.core.on(Input::Turn, now).is_empty());
    let table = world.table.clone();
    let next = world.core.on(Input::TableRead(Ok(table)), now);
    assert!(matches!(next[..], [Effect::FindRoutes(_)]), "{next:?}");
}
