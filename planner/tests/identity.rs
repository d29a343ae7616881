//! To its flows a server is its address, port and mode: pools around it may be renamed, come and go.

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use common::{
    DIRECTOR, PoolEntry, ROOMY, Snapshot, Told, View, ip, name, node, planner, server, snapshot,
    tcp, udp, virtual_server, with_hops,
};
use sluice_abi::REFUSES;
use sluice_api::{DecidedFallback, ForwardingMode, Protocol, WhenAllDown};
use sluice_planner::{Image, NextHop, Reason, Resets, Server, Tenths, Via};

const MODES: [ForwardingMode; 4] = [
    ForwardingMode::Nat,
    ForwardingMode::FullNat,
    ForwardingMode::Dr,
    ForwardingMode::Tun,
];

fn view() -> View {
    let hops = [("10.0.0.1", Via::Link), ("10.0.0.2", Via::Link)];
    with_hops(node(DIRECTOR, &["10.0.0.254"]), &hops)
}

fn both() -> Vec<Server> {
    vec![server("a", "10.0.0.1", 1), server("b", "10.0.0.2", 1)]
}

fn one(weight: u32) -> Vec<Server> {
    vec![server("a", "10.0.0.1", weight)]
}

/// A virtual server with these shares, and these pools.
fn decided(mode: ForwardingMode, shares: &[(&str, u32)], pools: Vec<PoolEntry>) -> Snapshot {
    snapshot(
        vec![("web", virtual_server(mode, "192.0.2.1", shares))],
        pools,
    )
}

/// Ids and epochs of the servers in the maps, by address.
fn ids(planner: &Told) -> BTreeMap<IpAddr, Vec<(u32, u8)>> {
    let image = planner.image();
    let mut ids: BTreeMap<IpAddr, Vec<(u32, u8)>> = BTreeMap::new();
    for (&id, word) in image.servers.iter().filter(|(_, word)| word.present()) {
        let [a, b, c, d, ..] = image.records[&word.slot()].addr;
        let of_address = ids.entry(IpAddr::from([a, b, c, d])).or_default();
        of_address.push((id, word.epoch()));
    }
    ids
}

fn settle(planner: &mut Told, snapshot: &Snapshot) -> BTreeMap<IpAddr, Vec<(u32, u8)>> {
    planner.set_snapshot(snapshot);
    while !planner.plan().is_empty() {}
    ids(planner)
}

#[test]
fn a_renamed_pool_keeps_its_flows() {
    for mode in MODES {
        let blue = decided(mode, &[("blue", 1)], vec![("blue", both())]);
        let mut planner = planner(&blue, &view(), &Image::default(), &ROOMY);
        let before = settle(&mut planner, &blue);
        assert_eq!(before.len(), 2);
        let green = decided(mode, &[("green", 1)], vec![("green", both())]);
        assert_eq!(settle(&mut planner, &green), before, "{mode:?}");
        assert!(planner.servers().all(|server| server.pool == "green"));
    }
}

/// The new name may come to be while nothing is known of the way to the servers, as when the agent starts.
#[test]
fn a_renamed_pool_keeps_the_way_to_its_servers() {
    let blue = decided(ForwardingMode::Dr, &[("blue", 1)], vec![("blue", both())]);
    let mut planner = planner(&blue, &view(), &Image::default(), &ROOMY);
    settle(&mut planner, &blue);
    let paths = |planner: &Told| {
        let present = planner.image().servers.values();
        let present = present.filter(|word| word.present());
        present.map(|word| word.path()).collect::<Vec<_>>()
    };
    let before = paths(&planner);
    let mut pending = view();
    for next_hop in pending.next_hops.values_mut() {
        *next_hop = NextHop::Pending;
    }
    planner.set_view(pending);
    let green = decided(ForwardingMode::Dr, &[("green", 1)], vec![("green", both())]);
    settle(&mut planner, &green);
    assert_eq!(paths(&planner), before);
}

#[test]
fn a_server_that_moves_to_another_pool_keeps_its_flows() {
    for mode in MODES {
        let shares = [("blue", 1), ("green", 1)];
        let step = |blue, green| decided(mode, &shares, vec![("blue", blue), ("green", green)]);
        let mut planner = planner(&Snapshot::default(), &view(), &Image::default(), &ROOMY);
        let first = settle(&mut planner, &step(one(1), vec![]));
        for _ in 0..5 {
            // With both pools at once for a while, then straight over.
            for (blue, green) in [
                (one(1), one(1)),
                (vec![], one(1)),
                (one(1), one(1)),
                (one(1), vec![]),
                (vec![], one(1)),
                (one(1), vec![]),
            ] {
                let now = settle(&mut planner, &step(blue, green));
                for (address, ids) in &first {
                    let now = &now[address];
                    assert!(ids.iter().all(|id| now.contains(id)), "{mode:?}: {now:?}");
                    assert!(now.len() <= 2, "{mode:?}: one for each pool: {now:?}");
                }
            }
        }
        assert!(settle(&mut planner, &step(vec![], vec![])).is_empty());
    }
}

#[test]
fn an_agent_that_starts_anew_keeps_spare_ids() {
    let shares = [("blue", 1), ("green", 1)];
    let step = |blue, green| {
        let pools = vec![("blue", blue), ("green", green)];
        decided(ForwardingMode::Nat, &shares, pools)
    };
    let mut before = planner(&Snapshot::default(), &view(), &Image::default(), &ROOMY);
    settle(&mut before, &step(one(1), one(1)));
    let moved = step(vec![], one(1));
    let ids = settle(&mut before, &moved);
    assert_eq!(ids.values().map(Vec::len).collect::<Vec<_>>(), [2]);
    let mut after = planner(&moved, &view(), before.image(), &ROOMY);
    assert_eq!(after.plan(), []);
    assert_eq!(settle(&mut after, &moved), ids);
}

#[test]
fn a_server_drains_if_all_its_pools_drain_it() {
    let cases = [(1, 1, false), (0, 1, false), (1, 0, false), (0, 0, true)];
    for (blue, green, drains) in cases {
        let shares = [("blue", 1), ("green", 1)];
        let pools = vec![("blue", one(blue)), ("green", one(green))];
        let both = decided(ForwardingMode::Nat, &shares, pools);
        let mut planner = planner(&both, &view(), &Image::default(), &ROOMY);
        settle(&mut planner, &both);
        let words = planner.image().servers.values();
        for word in words.filter(|word| word.present()) {
            assert_eq!(word.draining(), drains, "weights {blue} and {green}");
        }
    }
}

/// A server at another port, or in another mode, is another server.
#[test]
fn another_port_or_mode_is_another_server() {
    let at = |port| {
        let mut server = server("a", "10.0.0.1", 1);
        server.ports = Arc::new(sluice_planner::ServerPorts {
            by_name: vec![("http".into(), Some(port))],
            default: None,
        });
        vec![server]
    };
    let blue = decided(ForwardingMode::Nat, &[("blue", 1)], vec![("blue", at(80))]);
    let mut planner = planner(&blue, &view(), &Image::default(), &ROOMY);
    let before = settle(&mut planner, &blue);
    let green = decided(
        ForwardingMode::Nat,
        &[("green", 1)],
        vec![("green", at(81))],
    );
    let moved = settle(&mut planner, &green);
    assert_ne!(moved, before);
    let full_nat = decided(
        ForwardingMode::FullNat,
        &[("blue", 1)],
        vec![("blue", at(81))],
    );
    assert_ne!(settle(&mut planner, &full_nat), moved);
}

/// Datagrams of a flow go elsewhere at once when its server is down, and a connection stays where it is.
#[test]
fn a_server_that_is_down_gives_up_datagrams_alone() {
    for mode in MODES {
        for port in [tcp("dns", 53), udp("dns", 53)] {
            let is_udp = port.protocol == Protocol::Udp;
            let mut web = virtual_server(mode, "192.0.2.1", &[("blue", 1)]);
            web.ports = vec![port];
            let decided = snapshot(vec![("web", web)], vec![("blue", both())]);
            let mut planner = planner(&decided, &view(), &Image::default(), &ROOMY);
            let before = settle(&mut planner, &decided);
            let [first, second] = ["10.0.0.1", "10.0.0.2"].map(ip);
            let down = |addresses: &[IpAddr]| {
                let tenths = addresses
                    .iter()
                    .map(|address| (SocketAddr::new(*address, 0), 0));
                let tenths = [(name("blue"), tenths.collect())].into();
                View { tenths, ..view() }
            };
            planner.set_view(down(&[first]));
            let after = settle(&mut planner, &decided);
            assert_eq!(after[&second], before[&second], "{mode:?}");
            let expected = (!is_udp).then(|| &before[&first]);
            assert_eq!(after.get(&first), expected, "{mode:?}");
            assert!(planner.problems().is_empty(), "{:?}", planner.problems());
            planner.set_view(view());
            let back = settle(&mut planner, &decided);
            assert_eq!(back[&first] == before[&first], !is_udp, "{mode:?}");
            planner.set_view(down(&[first, second]));
            let all = settle(&mut planner, &decided);
            assert_eq!(all, back, "{mode:?}: all are down, so all take flows");
        }
    }
}

#[test]
fn connections_of_a_server_that_is_down_are_reset_where_the_pool_wants_it() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for resets in [Resets::Never, Resets::WhenDown, Resets::Now] {
            let mut web = virtual_server(ForwardingMode::Dr, "192.0.2.1", &[("blue", 1)]);
            web.ports[0].protocol = protocol;
            let servers = both().into_iter().map(|server| Server { resets, ..server });
            let mut servers: Vec<Server> = servers.collect();
            if resets == Resets::Now {
                servers[0].weight = 0;
                servers[1].resets = Resets::Never;
            }
            let decided = snapshot(vec![("web", web)], vec![("blue", servers)]);
            let mut planner = planner(&decided, &view(), &Image::default(), &ROOMY);
            let resetting = |planner: &Told| {
                let words = planner.image().servers.values();
                words.filter(|word| word.resets()).count()
            };
            settle(&mut planner, &decided);
            let ended = protocol == Protocol::Tcp && resets == Resets::Now;
            assert_eq!(
                resetting(&planner),
                usize::from(ended),
                "{protocol:?} {resets:?}"
            );
            let down = |addresses: &[&str]| {
                let sockets = addresses.iter().map(|it| (SocketAddr::new(ip(it), 0), 0));
                let tenths = sockets.collect();
                View {
                    tenths: [(name("blue"), tenths)].into(),
                    ..view()
                }
            };
            planner.set_view(down(&["10.0.0.1"]));
            settle(&mut planner, &decided);
            let one = protocol == Protocol::Tcp && resets != Resets::Never;
            assert_eq!(
                resetting(&planner),
                usize::from(one),
                "{protocol:?} {resets:?}: one is down"
            );
            planner.set_view(down(&["10.0.0.1", "10.0.0.2"]));
            settle(&mut planner, &decided);
            assert_eq!(
                resetting(&planner),
                usize::from(ended),
                "{protocol:?} {resets:?}: all are down"
            );
            planner.set_view(view());
            settle(&mut planner, &decided);
            assert_eq!(
                resetting(&planner),
                usize::from(ended),
                "{protocol:?} {resets:?}: both are up"
            );
            assert!(planner.problems().is_empty(), "{:?}", planner.problems());
        }
    }
}

#[test]
fn where_all_are_down_the_virtual_server_says_who_takes_flows() {
    for (what, flags) in [
        (WhenAllDown::LastKnown, 0),
        (WhenAllDown::Drop, 0),
        (WhenAllDown::Reject, REFUSES),
    ] {
        let mut web = virtual_server(ForwardingMode::Dr, "192.0.2.1", &[("blue", 1)]);
        web.when_all_down = what;
        let decided = snapshot(vec![("web", web)], vec![("blue", both())]);
        let mut planner = planner(&decided, &view(), &Image::default(), &ROOMY);
        let ring = |planner: &Told| {
            let head = planner.image().heads.values().next().expect("a head");
            assert_eq!(head.flags, flags);
            head.pools[0].ring
        };
        let before = settle(&mut planner, &decided);
        assert_ne!(ring(&planner), 0, "{what:?}");
        let down = |addresses: &[&str]| {
            let sockets = addresses.iter().map(|it| (SocketAddr::new(ip(it), 0), 0));
            let tenths = [(name("blue"), sockets.collect())].into();
            View { tenths, ..view() }
        };
        planner.set_view(down(&["10.0.0.1"]));
        settle(&mut planner, &decided);
        assert_ne!(ring(&planner), 0, "{what:?}: one is up");
        planner.set_view(down(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(settle(&mut planner, &decided), before, "flows go on");
        let takes = what == WhenAllDown::LastKnown;
        assert_eq!(ring(&planner) != 0, takes, "{what:?}");
        assert!(planner.problems().is_empty(), "{:?}", planner.problems());
        planner.set_view(view());
        settle(&mut planner, &decided);
        assert_ne!(ring(&planner), 0, "{what:?}: they are up again");
    }
}

#[test]
fn a_fallback_pool_takes_the_flows_of_one_that_has_too_few_servers() {
    for mode in [ForwardingMode::Dr, ForwardingMode::Nat] {
        let mut web = virtual_server(
            mode,
            "192.0.2.1",
            &[("blue", 3), ("green", 1), ("sorry", 0)],
        );
        let fallback = DecidedFallback {
            pool_name: "sorry".into(),
            min_ready_percent: 60,
        };
        web.fallback = Some(fallback);
        let pools = vec![
            ("blue", both()),
            ("green", vec![server("g", "10.0.0.3", 1)]),
            ("sorry", vec![server("s", "10.0.0.4", 1)]),
        ];
        let decided = snapshot(vec![("web", web)], pools);
        let four = || {
            let more = [("10.0.0.3", Via::Link), ("10.0.0.4", Via::Link)];
            with_hops(view(), &more)
        };
        let mut planner = planner(&decided, &four(), &Image::default(), &ROOMY);
        settle(&mut planner, &decided);
        let tags = |planner: &Told| {
            let head = planner.image().heads.values().next().expect("a head");
            head.pools.map(|pool| pool.tag)[..3].to_vec()
        };
        let own = tags(&planner);
        let down = |addresses: &[&str]| {
            let port = if mode == ForwardingMode::Dr { 0 } else { 80 };
            let sockets = addresses
                .iter()
                .map(|it| (SocketAddr::new(ip(it), port), 0));
            let down: Tenths = sockets.collect();
            let pools = ["blue", "green", "sorry"];
            let tenths = pools.map(|pool| (name(pool), down.clone()));
            View {
                tenths: tenths.into(),
                ..four()
            }
        };
        let half = [own[2], own[1], own[2]];
        for (addresses, wanted) in [
            (&["10.0.0.1"][..], half),
            (&["10.0.0.1", "10.0.0.2"], half),
            (&["10.0.0.1", "10.0.0.3"], [own[2]; 3]),
            // Who falls back needs somebody to fall back on.
            (
                &["10.0.0.1", "10.0.0.2", "10.0.0.4"],
                [own[0], own[1], own[2]],
            ),
            (&[], [own[0], own[1], own[2]]),
        ] {
            planner.set_view(down(addresses));
            settle(&mut planner, &decided);
            assert_eq!(tags(&planner), wanted, "{mode:?}: {addresses:?}");
            // An agent that starts anew finds the maps as it left them.
            let mut again = self::planner(&decided, &down(addresses), planner.image(), &ROOMY);
            assert!(again.plan().is_empty(), "{mode:?}: {addresses:?}");
            let falls_back = wanted[0] != own[0];
            let told = planner.problems().iter().any(|problem| {
                problem.object == name("blue") && problem.reason == Reason::FallbackServes
            });
            assert_eq!(told, falls_back, "{:?}", planner.problems());
            assert!(
                planner.exceptions().is_empty(),
                "{:?}",
                planner.exceptions()
            );
        }
    }
}
