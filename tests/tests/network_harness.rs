//! The harness itself, on plain kernel routing: what it reports must be what happened.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::env;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use sluice_tests::net::fabric::{
    DIRECTORS, Fabric, Place, ServerSpec, client_sources, from_vips, vip_of_both,
};
use sluice_tests::net::{
    Cidr, Connection, ConnectionMaker, Counters, Direction, Dual, Echo, Family, KeptConnections,
    Namespace, Process, Protocol, Route, Run, UdpStream, Veth, Web, expect_no_remains, remains,
    retransmitted_segments, sweep, until,
};

const CLIENT_NET: Dual = net(1);
const SERVER_NET: Dual = net(2);
const CLIENT: Dual = CLIENT_NET.host(2);
const SERVER: Dual = SERVER_NET.host(2);
const PORT: u16 = 80;
const LIMIT: Duration = Duration::from_secs(10);

const fn net(number: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(10, 99, number, 0),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x99, number as u16, 0, 0, 0, 0),
    }
}

/// client – router – server.
struct Line {
    web: Web,
    echo: Echo,
    client: Namespace,
    router: Namespace,
    run: Run,
}

fn line() -> Line {
    let run = Run::start().unwrap();
    let [client, router, server] =
        ["client", "router", "server"].map(|l| run.namespace(l).unwrap());
    for (end, port, net) in [
        (&client, "client0", CLIENT_NET),
        (&server, "server0", SERVER_NET),
    ] {
        let (near, far) = (end.port("eth0"), router.port(port));
        Veth::between(near, far).mtu(1600).create().unwrap();
        near.addresses(net.host(2).prefixes(24, 64)).unwrap();
        far.addresses(net.host(1).prefixes(24, 64)).unwrap();
        for family in Family::BOTH {
            end.route(&Route::default_via(net.host(1).of(family)))
                .unwrap();
        }
    }
    router.enable_forwarding().unwrap();
    router.filter_reverse_path().unwrap();
    let both = Family::BOTH.map(|family| SERVER.socket(family, PORT));
    Line {
        web: Web::start(&run, &server, "one", &both).unwrap(),
        echo: Echo::start(&server, "one", &both).unwrap(),
        client,
        router,
        run,
    }
}

#[test]
fn questions_are_answered_and_counted() {
    let line = line();
    let rules = [
        (
            "to_server",
            Direction::Out,
            "ip daddr 10.99.2.2 tcp dport 80 tcp flags & (syn | ack) == syn",
        ),
        ("from_server", Direction::In, "udp sport 80"),
    ];
    let counters = Counters::install(line.router.port("server0"), &rules).unwrap();
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            let source = SocketAddr::new(CLIENT.of(family), 12345);
            let answer = line
                .client
                .within(|| protocol.ask(Some(source), SERVER.socket(family, PORT)))
                .unwrap()
                .unwrap();
            assert_eq!((answer.server.as_str(), answer.client), ("one", source));
        }
    }
    assert_eq!(counters.packets("to_server").unwrap(), 1);
    assert_eq!(counters.packets("from_server").unwrap(), 2);
    assert_eq!(line.echo.received(), 2);
    assert_eq!(retransmitted_segments(&line.client).unwrap(), 0);
}

#[test]
fn failed_connections_are_told_and_not_retried() {
    let mut line = line();
    let targets = Family::BOTH.map(|family| SERVER.socket(family, PORT));
    let maker = ConnectionMaker::start(&line.client, &targets, 2, Duration::ZERO).unwrap();
    until("connections", LIMIT, || maker.made() > 100).unwrap();
    let before = maker.take_report();
    before.expect_none_failed().unwrap();
    assert!(before.spread.of("one") >= 100);
    let kept =
        KeptConnections::open(&line.client, &targets, 10, Duration::from_millis(10)).unwrap();
    assert_eq!(kept.servers()["one"], 10);
    until("rounds", LIMIT, || kept.rounds() > 2).unwrap();

    line.web.process().kill().unwrap();
    let made = maker.made();
    until("failures", LIMIT, || maker.made() > made + 10).unwrap();
    let after = maker.stop();
    assert!(after.failed > 0 && !after.failures.is_empty());
    after.expect_none_failed().unwrap_err();
    kept.close().unwrap_err();
}

#[test]
fn bulk_arrives_whole() {
    let line = line();
    line.client
        .within(|| {
            let mut connection = Connection::open(None, SERVER.socket(Family::V4, PORT)).unwrap();
            connection.download().unwrap();
            connection.upload(300_000).unwrap();
            connection.ask().unwrap();
            assert_eq!(connection.seen_as().ip(), CLIENT.of(Family::V4));
        })
        .unwrap();
}

#[test]
fn kept_connections_close_whole() {
    let line = line();
    let target = [SERVER.socket(Family::V6, PORT)];
    let kept = KeptConnections::open(&line.client, &target, 3, Duration::ZERO).unwrap();
    assert!(kept.close().unwrap() > 0);
}

#[test]
fn lost_packets_are_missed() {
    let line = line();
    let target = SERVER.socket(Family::V6, PORT);
    let stream = UdpStream::start(&line.client, target, Duration::from_millis(1)).unwrap();
    until("a stream", LIMIT, || stream.sent() > 200).unwrap();
    let report = stream.finish().unwrap();
    report.expect_whole().unwrap();
    assert!(report.sent > 200 && line.echo.received() == report.sent);

    line.router
        .nft(
            "table inet lossy { chain forward {
                type filter hook forward priority 0;
                numgen inc mod 20 0 drop
            }
            }",
        )
        .unwrap();
    let stream = UdpStream::start(&line.client, target, Duration::from_millis(1)).unwrap();
    until("a stream", LIMIT, || stream.sent() > 100).unwrap();
    stream.finish().unwrap().expect_whole().unwrap_err();

    let target = [SERVER.socket(Family::V4, PORT)];
    let maker = ConnectionMaker::start(&line.client, &target, 4, Duration::ZERO).unwrap();
    until("lossy connections", LIMIT, || maker.made() > 20).unwrap();
    drop(maker);
    assert!(retransmitted_segments(&line.client).unwrap() > 0);
}

#[test]
fn invented_sources_are_filtered() {
    let line = line();
    let came = Counters::install(
        line.router.port("client0"),
        &[("came", Direction::In, "udp dport 80")],
    )
    .unwrap();
    // The neighbours know each other afterwards: a solicitation from an invented source would be filtered too.
    for family in Family::BOTH {
        let ask = || Protocol::Udp.ask(None, SERVER.socket(family, PORT));
        line.client.within(ask).unwrap().unwrap();
    }
    for family in Family::BOTH {
        let stranger = net(3).host(9).of(family);
        let lo = line.client.port("lo");
        lo.addresses([Cidr::single(stranger)]).unwrap();
        let send = || {
            let socket = UdpSocket::bind(SocketAddr::new(stranger, 0))?;
            socket.send_to(b"x", SERVER.socket(family, PORT))
        };
        line.client.within(send).unwrap().unwrap();
    }
    until("both packets", LIMIT, || came.packets("came").unwrap() == 4).unwrap();
    // Those that a packet overtook do not come any more.
    for family in Family::BOTH {
        let ask = || Protocol::Udp.ask(None, SERVER.socket(family, PORT));
        line.client.within(ask).unwrap().unwrap();
    }
    assert_eq!(line.echo.received(), 4);
}

#[test]
fn complaints_in_logs_are_found_and_daemons_end() {
    let run = Run::start().unwrap();
    let namespace = run.namespace("node").unwrap();
    let mut command = namespace.command("sh");
    command.args(["-c", "echo ' WARN odd: x'; exec sleep 60"]);
    let mut process = Process::start(&namespace, "odd", command).unwrap();
    until("a line", LIMIT, || !process.complaints(&[]).is_empty()).unwrap();
    assert!(process.complaints(&["odd: x"]).is_empty());
    process.expect_running().unwrap();
    process.kill().unwrap();
    process.expect_running().unwrap_err();
}

#[test]
fn the_fabric_leads_everywhere_and_spreads_flows_over_directors() {
    let fabric = Fabric::build(&[
        ServerSpec::new("near"),
        ServerSpec::new("far").at(Place::Far),
        ServerSpec::new("pod").at(Place::Pod),
    ])
    .unwrap();
    let vip = vip_of_both(1);
    let names = [("v4", Family::V4), ("v6", Family::V6)];
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            for server in ["near", "far"] {
                let target = fabric.address(server).unwrap().socket(family, PORT);
                let sources = client_sources(family, 1, 20);
                let spread = protocol
                    .ask_from_each(fabric.client(), &sources, target)
                    .unwrap();
                assert_eq!(spread.of(server), 20);
            }
            let pod = fabric.address("pod").unwrap().socket(family, PORT);
            let director = &fabric.node("director-1").unwrap().namespace;
            director
                .within(|| protocol.ask(None, pod))
                .unwrap()
                .unwrap();
        }
    }

    let rules = names.map(|(name, family)| (name, Direction::In, from_vips(family)));
    let rules: Vec<_> = rules
        .iter()
        .map(|(n, d, rule)| (*n, *d, rule.as_str()))
        .collect();
    let mut echoes = Vec::new();
    let mut counters = Vec::new();
    for director in DIRECTORS {
        let namespace = &fabric.node(director).unwrap().namespace;
        let lo = namespace.port("lo");
        lo.addresses(vip.prefixes(32, 128)).unwrap();
        let sockets = Family::BOTH.map(|family| vip.socket(family, PORT));
        echoes.push(Echo::start(namespace, director, &sockets).unwrap());
        counters.push(fabric.count_beyond(director, &rules).unwrap());
    }
    for (name, family) in names {
        let sources = client_sources(family, 2, 400);
        let spread = Protocol::Udp
            .ask_from_each(fabric.client(), &sources, vip.socket(family, PORT))
            .unwrap();
        for (director, counter) in DIRECTORS.into_iter().zip(&counters) {
            assert!(spread.of(director) > 120, "{spread}");
            assert_eq!(counter.packets(name).unwrap(), spread.of(director));
        }
    }
}

const CRASHER: &str = "SLUICE_TEST_CRASHER";

/// Not a test by itself: what the next one starts as a process of its own, to be killed in the middle.
#[test]
fn crasher() {
    if env::var_os(CRASHER).is_none() {
        return;
    }
    let line = line();
    std::fs::create_dir(line.run.pin_directory("node")).unwrap();
    println!("\nready {}", line.run.name());
    std::thread::sleep(LIMIT);
}

#[test]
fn a_killed_run_is_swept_and_a_finished_one_leaves_nothing() {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "crasher", "--nocapture"])
        .env(CRASHER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let run = out
        .lines()
        .find_map(|line| Some(line.unwrap().strip_prefix("ready ")?.to_owned()))
        .unwrap();
    assert!(remains().unwrap().contains(&run));
    expect_no_remains(&run).unwrap_err();
    sweep().unwrap();
    assert!(remains().unwrap().contains(&run), "a living run was swept");
    child.kill().unwrap();
    child.wait().unwrap();
    sweep().unwrap();
    expect_no_remains(&run).unwrap();

    let finished = Run::start().unwrap();
    let name = finished.name().to_owned();
    finished.namespace("node").unwrap();
    assert!(remains().unwrap().contains(&name));
    drop(finished);
    expect_no_remains(&name).unwrap();
}
