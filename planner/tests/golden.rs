//! Small inputs and the dump of the maps that come of them.
//!
//! The dumps stand in `golden/`; `UPDATE_GOLDEN=1 cargo test -p sluice-planner --test golden` writes them anew.

mod common;

use std::fmt::Write;
use std::path::PathBuf;

use common::{
    DIRECTOR, REAL_SERVER, ROOMY, Snapshot, View, node, ports, server, snapshot, tcp,
    virtual_server, with_hops,
};
use sluice_api::{ForwardingMode, PoolSelection};
use sluice_planner::{Announced, Image, Mac, Via};

/// Plans for an empty node; also checks that the plan is live and repeats itself.
fn check(name: &str, snapshot: &Snapshot, view: &View) {
    let mut planner = common::planner(snapshot, view, &Image::default(), &ROOMY);
    planner.plan();
    assert_eq!(planner.plan(), [], "a plan after it");
    let mut again = common::planner(snapshot, view, planner.image(), &ROOMY);
    assert_eq!(again.plan(), [], "a plan of its own result");

    let mut text = planner.image().to_string();
    for problem in planner.problems().into_iter().chain(planner.full()) {
        writeln!(text, "problem {problem}").expect("a String takes all");
    }
    for exception in planner.exceptions() {
        writeln!(text, "not live {exception}").expect("a String takes all");
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"));
    sluice_golden_file::assert_golden(&path, &text);
}

fn two_servers() -> common::PoolEntry {
    (
        "web",
        vec![server("a", "10.0.0.1", 1), server("b", "10.0.0.2", 3)],
    )
}

const LINK: [(&str, Via); 2] = [("10.0.0.1", Via::Link), ("10.0.0.2", Via::Link)];

#[test]
fn tun_at_a_director() {
    let web = virtual_server(ForwardingMode::Tun, "192.0.2.1", &[("web", 100)]);
    let view = with_hops(node(DIRECTOR, &["10.0.0.254"]), &LINK);
    check(
        "tun_director",
        &snapshot(vec![("web", web)], vec![two_servers()]),
        &view,
    );
}

#[test]
fn tun_at_a_servers_node() {
    let web = virtual_server(ForwardingMode::Tun, "192.0.2.1", &[("web", 100)]);
    let view = node(REAL_SERVER, &["10.0.0.1"]);
    check(
        "tun_server",
        &snapshot(vec![("web", web)], vec![two_servers()]),
        &view,
    );
}

#[test]
fn dr_with_a_server_of_the_directors_own() {
    let mut web = virtual_server(
        ForwardingMode::Dr,
        "192.0.2.1",
        &[("web", 90), ("next", 10)],
    );
    web.pool_selection = PoolSelection::ClientAddress;
    let next = vec![server("c", "10.0.0.1", 1)];
    let mut view = with_hops(node(DIRECTOR, &["10.0.0.1"]), &LINK);
    view.node.peers.insert(Mac([2, 0, 0, 0, 0, 9]));
    let input = snapshot(vec![("web", web)], vec![two_servers(), ("next", next)]);
    let on = vec![
        (2, Mac([2, 0, 0, 0, 0, 0xfe])),
        (3, Mac([2, 0, 0, 0, 0, 0xfd])),
    ];
    let announced = Announced {
        group: 7,
        on,
        router: false,
    };
    view.announced.insert(common::ip("192.0.2.1"), announced);
    check("dr_own_server", &input, &view);
}

#[test]
fn dr_at_a_servers_node() {
    let web = virtual_server(
        ForwardingMode::Dr,
        "192.0.2.1",
        &[("web", 90), ("next", 10)],
    );
    let mut own = server("c", "10.0.0.1", 0);
    own.ports = ports(&[("http", 8080)]);
    let input = snapshot(vec![("web", web)], vec![two_servers(), ("next", vec![own])]);
    check("dr_server", &input, &node(REAL_SERVER, &["10.0.0.1"]));
}

#[test]
fn dr_does_not_reach_beyond_the_link() {
    let web = virtual_server(ForwardingMode::Dr, "192.0.2.1", &[("web", 1)]);
    let hops = [("10.0.0.1", Via::Link), ("10.0.0.2", Via::Router)];
    let view = with_hops(node(DIRECTOR, &["10.0.0.254"]), &hops);
    check(
        "dr_router",
        &snapshot(vec![("web", web)], vec![two_servers()]),
        &view,
    );
}

#[test]
fn nat_with_target_ports_in_both_families() {
    let mut web = virtual_server(ForwardingMode::Nat, "192.0.2.1", &[("web", 1)]);
    web.addresses.push(common::ip("2001:db8::1"));
    web.ports.push(tcp("https", 443));
    let both = |http, https| ports(&[("http", http), ("https", https)]);
    let mut web_pool = vec![
        server("a", "10.0.0.1", 1),
        server("b", "10.0.0.2", 1),
        server("c", "fd00::3", 0),
        server("d", "fd00::4", 2),
    ];
    for server in &mut web_pool {
        server.ports = both(8080, 8443);
    }
    web_pool[1].ports = both(8080, 9443);
    let hops = [
        ("10.0.0.1", Via::Bridge),
        ("fd00::3", Via::Router),
        ("fd00::4", Via::Link),
    ];
    let view = with_hops(node(DIRECTOR, &["10.0.0.2"]), &hops);
    check(
        "nat_ports",
        &snapshot(vec![("web", web)], vec![("web", web_pool)]),
        &view,
    );
}

#[test]
fn fullnat_with_a_missing_pool() {
    let web = virtual_server(
        ForwardingMode::FullNat,
        "192.0.2.1",
        &[("web", 1), ("gone", 1)],
    );
    let hops = [("10.0.0.1", Via::Link), ("10.0.0.2", Via::Bridge)];
    let view = with_hops(node(DIRECTOR, &["10.0.0.254"]), &hops);
    check(
        "fullnat_missing_pool",
        &snapshot(vec![("web", web)], vec![two_servers()]),
        &view,
    );
}

#[test]
fn what_is_refused_is_named() {
    let taken = virtual_server(ForwardingMode::Nat, "192.0.2.1", &[("web", 1)]);
    let own = virtual_server(ForwardingMode::Nat, "10.0.0.254", &[("web", 1)]);
    let nothing = virtual_server(ForwardingMode::Nat, "192.0.2.2", &[("web", 0)]);
    let itself = virtual_server(ForwardingMode::Nat, "10.0.0.2", &[("web", 1)]);
    let shares: Vec<(&str, u32)> = vec![("web", 1); 9];
    let many = virtual_server(ForwardingMode::Nat, "192.0.2.3", &shares);
    let bridge = virtual_server(ForwardingMode::Tun, "192.0.2.4", &[("bridged", 1)]);
    let input = snapshot(
        vec![
            ("a", taken.clone()),
            ("b", taken),
            ("bridge", bridge),
            ("itself", itself),
            ("many", many),
            ("nothing", nothing),
            ("own", own),
        ],
        vec![
            two_servers(),
            (
                "bridged",
                vec![server("x", "10.0.9.1", 1), server("y", "10.0.9.1", 1)],
            ),
        ],
    );
    let view = with_hops(node(DIRECTOR, &["10.0.0.254"]), &LINK);
    let view = with_hops(view, &[("10.0.9.1", Via::Bridge)]);
    check("refused", &input, &view);
}

#[test]
fn tun_servers_that_share_an_address() {
    let web = virtual_server(
        ForwardingMode::Tun,
        "192.0.2.1",
        &[("web", 90), ("next", 10)],
    );
    let on_port = |name, port| {
        let mut server = server(name, "10.0.0.1", 1);
        server.ports = ports(&[("http", port)]);
        server
    };
    let web_pool = vec![on_port("a", 8080), on_port("b", 8081), on_port("c", 8081)];
    let next = vec![on_port("d", 8082)];
    let input = snapshot(vec![("web", web)], vec![("web", web_pool), ("next", next)]);
    check(
        "tun_shared_address",
        &input,
        &node(REAL_SERVER, &["10.0.0.1"]),
    );
}
