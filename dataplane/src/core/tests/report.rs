//! Status: what is told, when it is written, and how a node is left.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType};
use sluice_api::{
    AttachMode, ConditionType, LoadBalancerNodeStatus, MAX_NODE_ADDRESSES, NodeRole, XdpMode,
    find_condition,
};

use super::deltas::of_role;
use super::network::address;
use super::{
    BRIDGE_INDEX, Core, Input, OWN, POD, SERVER, UPLINK, UPLINK_INDEX, World, decisions, ip, link,
    node, out,
};
use crate::netlink::Settings;
use crate::source::Event;

const BEAT: Duration = Duration::from_secs(5);
const GATHER: Duration = Duration::from_millis(200);

fn status(world: &World) -> &LoadBalancerNodeStatus {
    world.status.as_ref().unwrap()
}

#[test]
fn several_decisions_in_a_row_are_acknowledged_by_one_write() {
    let mut world = World::settled(&[SERVER]);
    for revision in 8..12 {
        world.tell(Input::Source(decisions(revision, &[SERVER])));
        assert!(world.after(GATHER / 8).is_empty());
    }
    assert!(world.pause().is_some_and(|pause| pause <= GATHER));
    assert_eq!(world.after(GATHER), ["WriteStatus"]);
    assert_eq!(status(&world).acknowledged_revision, 11);
}

#[test]
fn a_burst_without_end_is_acknowledged_every_second() {
    let mut world = World::settled(&[SERVER]);
    let mut writes = 0;
    for revision in 8..48 {
        world.tell(Input::Source(decisions(revision, &[SERVER])));
        let done = world.after(GATHER / 2);
        writes += done.iter().filter(|done| *done == "WriteStatus").count();
    }
    assert!((3..=4).contains(&writes), "{writes} in 4 s");
}

/// The condition on settings of the node's network, if there is one.
fn advice(world: &World) -> Option<String> {
    let conditions = &status(world).conditions;
    let condition = find_condition(conditions, ConditionType::NetworkAdvice)?;
    assert_eq!(condition.status, "True");
    Some(condition.message.clone())
}

#[test]
fn settings_that_stand_in_the_way_are_named_with_their_remedy() {
    const LOOK: Duration = Duration::from_secs(11);
    let mut world = World::settled(&[SERVER]);
    let good = Settings {
        forwards_v4: Some(true),
        forwards_v6: Some(false),
        sends_redirects: Some(false),
        filters_strictly: Some(true),
    };
    world.settings = good;
    world.after(LOOK);
    world.after(GATHER);
    assert_eq!(advice(&world), None, "no VIP is IPv6");
    let cases = [
        (
            Settings {
                forwards_v4: Some(false),
                ..good
            },
            Some("set net.ipv4.ip_forward to 1"),
        ),
        (Settings::default(), None),
        (
            Settings {
                sends_redirects: Some(true),
                ..good
            },
            // The default route leads through the bridge.
            None,
        ),
    ];
    for (settings, remedy) in cases {
        world.settings = settings;
        world.after(LOOK);
        world.after(GATHER);
        let advice = advice(&world);
        match remedy {
            None => assert_eq!(advice, None, "{settings:?}"),
            Some(remedy) => {
                let advice = advice.unwrap();
                assert!(
                    advice.starts_with("eth0 ") && advice.contains(remedy),
                    "{advice}"
                );
            }
        }
    }
}

#[test]
fn redirects_and_filters_depend_on_the_way_out() {
    const LOOK: Duration = Duration::from_secs(11);
    let mut world = World::settled(&[SERVER, OWN]);
    world.settings = Settings {
        forwards_v4: Some(true),
        sends_redirects: Some(true),
        filters_strictly: Some(true),
        ..Settings::default()
    };
    world.after(LOOK);
    world.after(GATHER);
    let advised = advice(&world).unwrap();
    assert!(
        advised.contains("rp_filter to 2"),
        "the way out is elsewhere: {advised}"
    );
    assert!(!advised.contains("redirects"), "{advised}");
    world.gateway = UPLINK_INDEX;
    world.hear(super::link(UPLINK_INDEX, "eth0", false));
    world.hear(super::link(UPLINK_INDEX, "eth0", true));
    world.after(LOOK);
    world.after(LOOK);
    world.after(GATHER);
    let advised = advice(&world).unwrap();
    assert!(advised.contains("send_redirects to 0"), "{advised}");
    assert!(!advised.contains("rp_filter"), "{advised}");
}

/// Every agent acknowledged what no packet could meet.
#[test]
fn an_uplink_without_programs_is_told_in_a_condition_until_they_are_attached() {
    let RouteNetlinkMessage::NewLink(uplink) = link(UPLINK_INDEX, UPLINK, true) else {
        unreachable!("a link")
    };
    let mut world = World::settled(&[SERVER]);
    assert_eq!(status(&world).not_attached(), None);
    world.hear(RouteNetlinkMessage::DelLink(uplink.clone()));
    world.after(GATHER);
    let told = "eth0: there is no interface eth0: create it, or correct spec.interfaces";
    assert_eq!(status(&world).not_attached(), Some(told));
    assert_eq!(status(&world).acknowledged_revision, 7);

    // Another one of that name, first of a kind that nothing could come by, then one that takes no program.
    let mut tunnel = uplink.clone();
    tunnel.header.link_layer_type = LinkLayerType::None;
    world.hear(RouteNetlinkMessage::NewLink(tunnel.clone()));
    world.after(GATHER);
    let missed = status(&world).not_attached().unwrap();
    assert!(missed.contains("no Ethernet frames"), "{missed}");
    world.hear(RouteNetlinkMessage::DelLink(tunnel));
    world.failing.insert("Attach");
    world.hear(RouteNetlinkMessage::NewLink(uplink));
    world.after(GATHER);
    assert_eq!(
        status(&world).not_attached(),
        Some("eth0: cannot do it: no")
    );
    assert_eq!(status(&world).interfaces[0].attach_mode, AttachMode::None);

    world.failing.clear();
    world.after(Duration::from_secs(2));
    world.after(GATHER);
    assert_eq!(status(&world).not_attached(), None);
    assert_eq!(status(&world).interfaces[0].attach_mode, AttachMode::Native);
}

#[test]
fn a_pool_whose_replies_are_lost_behind_a_bridge_is_an_exception() {
    let mut world = World::settled(&[SERVER]);
    world.failing.insert("AttachBridge");
    world.tell(Input::Source(decisions(8, &[SERVER, POD])));
    world.turn();
    world.after(GATHER);
    let told = |world: &World| {
        let exceptions = status(world).exceptions.iter();
        let texts = exceptions.map(|e| format!("{} {}: {}", e.name, e.reason, e.message));
        texts.collect::<Vec<String>>()
    };
    let lost = "v1 AttachFailed: replies of servers behind br0 are lost: cannot do it: no";
    assert_eq!(told(&world), [lost]);
    assert_eq!(status(&world).not_attached(), None, "packets come in");
    world.failing.clear();
    world.after(Duration::from_secs(2));
    world.after(GATHER);
    assert_eq!(told(&world), [""; 0]);
}

#[test]
fn a_table_with_little_room_left_is_named_by_a_condition() {
    let mut world = World::settled(&[SERVER]);
    let many: Vec<String> = (1..=60).map(|i| format!("10.0.1.{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for address in &many {
        world.routes.insert(ip(address), out(BRIDGE_INDEX));
    }
    // Of 64: 94 %, 81 % and 78 %.
    for (revision, servers, is_told) in [(8, 60, true), (9, 52, true), (10, 50, false)] {
        world.tell(Input::Source(decisions(revision, &many[..servers])));
        world.turn();
        world.after(GATHER);
        let conditions = &status(&world).conditions;
        let condition = find_condition(conditions, ConditionType::NearlyFull);
        let message = condition.map_or("", |condition| &condition.message);
        let named = message.contains("Servers holds 80 % or more of its 64 entries");
        assert_eq!(named, is_told, "{servers}: {message}");
    }
}

#[test]
fn what_changes_back_is_not_written() {
    let mut world = World::settled(&[SERVER]);
    world.tell(Input::Source(Event::Held(Some("another world".to_owned()))));
    world.turn();
    assert!(world.not_ready().contains("another world"));
    assert_eq!(world.published.acknowledged_revision, 0);
    world.tell(Input::Source(Event::Held(None)));
    assert!(world.after(GATHER).is_empty());
}

#[test]
fn the_heart_beats_though_nothing_changes() {
    let mut world = World::settled(&[SERVER]);
    let first = status(&world).heartbeat_time.clone();
    assert!(world.pause().is_some_and(|pause| pause <= BEAT));
    let done = world.after(BEAT);
    assert!(done.contains(&"WriteStatus".to_owned()), "{done:?}");
    assert_ne!(status(&world).heartbeat_time, first);
}

#[test]
fn what_an_earlier_agent_acknowledged_stays_until_more_is_known() {
    let mut world = World::new(LoadBalancerNodeStatus {
        acknowledged_revision: 5,
        acknowledged_pool_revision: 4,
        ..LoadBalancerNodeStatus::default()
    });
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    world.turn();
    assert_eq!(status(&world).acknowledged_revision, 5);
    assert_eq!(status(&world).acknowledged_pool_revision, 4);
}

#[test]
fn a_spec_that_is_refused_is_named_until_another_is_in_force() {
    let mut world = World::settled(&[SERVER]);
    let refused = Event::NodeRefused("spec.interfaces: too long".to_owned());
    world.tell(Input::Source(refused));
    world.turn();
    assert_eq!(world.not_ready(), "spec.interfaces: too long");
    world.tell(Input::Source(node(2, XdpMode::Auto)));
    world.turn();
    assert_eq!(world.not_ready(), "");
}

#[test]
fn a_missing_node_is_told_from_one_that_is_not_read_yet() {
    let mut world = World::new(LoadBalancerNodeStatus::default());
    world.turn();
    assert!(world.not_ready().contains("not known yet"));
    world.tell(Input::SourceSynced(true));
    world.turn();
    assert!(world.not_ready().contains("create it"));
    assert_eq!(world.status, None);
}

#[test]
fn a_node_that_cannot_be_left_is_left_later_and_says_so() {
    let mut world = World::settled(&[SERVER, POD]);
    world.failing.insert("LeaveNode");
    world.tell(Input::Source(Event::Detach { generation: 3 }));
    assert_eq!(world.turn(), ["LeaveNode"]);
    assert_eq!(world.not_ready(), "cannot detach: cannot do it: no");
    assert!(world.turn().is_empty());
    assert_eq!(world.pause(), Some(Duration::from_millis(100)));
    world.failing.clear();
    let done = world.after(Duration::from_millis(100));
    assert_eq!(done, ["LeaveNode", "WriteStatus"]);
    let left = status(&world);
    let condition = find_condition(&left.conditions, ConditionType::Detached).unwrap();
    assert_eq!(
        (condition.status.as_str(), left.observed_generation),
        ("True", 3)
    );

    world.tell(Input::Source(decisions(9, &[SERVER])));
    world.tell(Input::NetlinkLost);
    assert!(world.turn().is_empty(), "it does nothing more");
    assert_eq!(world.pause(), Some(BEAT));
    assert_eq!(world.after(BEAT), ["WriteStatus"]);
    assert_eq!(status(&world).acknowledged_revision, 0);
}

#[test]
fn a_core_that_begins_detached_only_says_so() {
    let core = Core::detached(LoadBalancerNodeStatus::default(), 3);
    let mut world = World::around(core);
    assert_eq!(world.pause(), Some(Duration::ZERO));
    assert_eq!(world.turn(), ["WriteStatus"]);
    assert!(world.not_ready().starts_with("detached: "));
    assert!(world.turn().is_empty());
}

#[test]
fn an_admin_port_that_is_taken_is_told_and_the_node_is_ready() {
    let mut world = World::settled(&[SERVER]);
    let reason = "cannot listen on 127.0.0.1:9200".to_owned();
    world.tell(Input::DoorsClosed(vec![reason.clone()]));
    world.turn();
    world.after(GATHER);
    let ready = &status(&world).conditions[0];
    assert_eq!((ready.status.as_str(), &ready.message), ("True", &reason));
    world.tell(Input::DoorsClosed(Vec::new()));
    world.turn();
    world.after(GATHER);
    assert_eq!(status(&world).conditions[0].message, "");
}

/// An interface with more attributes.
fn link_with(ifindex: u32, name: &str, more: &[LinkAttribute]) -> RouteNetlinkMessage {
    let RouteNetlinkMessage::NewLink(mut message) = link(ifindex, name, true) else {
        unreachable!("a link")
    };
    message.attributes.extend_from_slice(more);
    RouteNetlinkMessage::NewLink(message)
}

fn loopback() -> RouteNetlinkMessage {
    let RouteNetlinkMessage::NewLink(mut message) = link(1, "lo", true) else {
        unreachable!("a link")
    };
    message.header.flags |= LinkFlags::Loopback;
    RouteNetlinkMessage::NewLink(message)
}

fn own(world: &World) -> Vec<IpAddr> {
    status(world).addresses.clone()
}

#[test]
fn own_addresses_are_those_of_uplinks_and_what_is_on_top_and_of_a_directors_loopback() {
    let mut world = World::settled(&[SERVER]);
    let before = own(&world);
    let ip = |n| Ipv4Addr::new(198, 51, 100, n);
    // A bridge that the uplink is a port of, a VLAN on it, loopback, and a pod's end of a veth, which names an index there.
    let kind = |kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
    let port = [LinkAttribute::Controller(31)];
    let vlan = [LinkAttribute::Link(31), kind(InfoKind::Vlan)];
    let veth = [LinkAttribute::Link(UPLINK_INDEX), kind(InfoKind::Veth)];
    world.hear(link_with(UPLINK_INDEX, "eth0", &port));
    world.hear(link(31, "br1", true));
    world.hear(link_with(32, "br1.7", &vlan));
    world.hear(loopback());
    world.hear(link(33, "kube-ipvs0", true));
    world.hear(link_with(34, "cali1", &veth));
    for (ifindex, n) in [
        (UPLINK_INDEX, 2),
        (31, 31),
        (32, 32),
        (1, 1),
        (33, 33),
        (34, 34),
        (BRIDGE_INDEX, 35),
    ] {
        world.hear(address(ifindex, ip(n)));
    }
    world.hear(address(1, Ipv4Addr::new(127, 0, 0, 9)));
    world.after(GATHER);
    let expect = |numbers: &[u8]| -> Vec<IpAddr> {
        let new = numbers.iter().map(|n| IpAddr::from(ip(*n)));
        let mut all: Vec<IpAddr> = before.iter().copied().chain(new).collect();
        all.sort();
        all
    };
    assert_eq!(own(&world), expect(&[1, 2, 31, 32]));
    // A server may have a VIP on loopback.
    world.tell(Input::Source(of_role(NodeRole::RealServer)));
    world.turn();
    world.after(GATHER);
    assert_eq!(own(&world), expect(&[2, 31, 32]));
}

#[test]
fn addresses_that_have_no_room_in_the_status_are_told() {
    let mut world = World::settled(&[SERVER]);
    for n in 0..=u16::try_from(MAX_NODE_ADDRESSES).unwrap() {
        let [high, low] = n.to_be_bytes();
        world.notice(address(UPLINK_INDEX, Ipv4Addr::new(198, 18, high, low)));
    }
    world.turn();
    world.after(GATHER);
    assert_eq!(own(&world).len(), MAX_NODE_ADDRESSES);
    let not_ready = world.not_ready();
    assert!(
        not_ready.contains("addresses on uplinks and loopback")
            && not_ready.contains("take some off"),
        "{not_ready}"
    );
}
