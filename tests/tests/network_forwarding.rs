//! Every mode, family and protocol over real links: who serves, what servers see, which way replies go.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use sluice_tests::net::fabric::{
    DIRECTORS, Place, ServerSpec, client_sources, from_address, vip_of_both, vip_of_one,
};
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::manifest::{self, Role};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{Connection, Counters, Direction, Dual, Family, Protocol, Share, Spread};

/// Ports that FullNAT claims, as documented.
const FULLNAT_PORTS: std::ops::RangeInclusive<u16> = 4096..=29_999;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for mode in Mode::ALL {
        for family in Family::BOTH {
            for protocol in Protocol::BOTH {
                suite.check(
                    format!("{mode} {family} {protocol} is served by XDP"),
                    move |lab| serves(lab, mode, family, protocol),
                );
            }
            suite.check(
                format!("{mode} {family} carries bulk with offloads on"),
                move |lab| carries_bulk(lab, mode, family),
            );
        }
    }
    for case in PATHS {
        suite.check(case.to_string(), move |lab| reaches(lab, case));
    }
    suite.check("directors that are servers balance once", directors_serve);
    suite.check("a pod's own traffic is not captured", pods_are_no_clients);
    suite.check("two FullNAT clients share a source port", share_a_port);
    suite.check("servers keep their offloads", offloads_are_on);
    suite.main(|| {
        let more = [
            ServerSpec::new("far").at(Place::Far),
            ServerSpec::new("far-nat").at(Place::Far).behind_director(),
            ServerSpec::new("pod").at(Place::Pod),
            ServerSpec::new("back").at(Place::Back),
        ];
        let mut lab = Lab::build(&Mode::ALL, &more, &[("far", Role::RealServer)])?;
        for director in DIRECTORS {
            lab.fabric.serve(director, director)?;
        }
        Ok(lab)
    })
}

/// Asks from fixed sources and looks at both far ends meanwhile.
fn serves(lab: &mut Lab, mode: Mode, family: Family, protocol: Protocol) -> Result<()> {
    let from_vip = from_address(mode.vip().of(family));
    let name = format!(
        "{}_{}_{protocol}",
        mode.virtual_server(),
        family.option().trim_start_matches('-')
    );
    let name = format!("replies_{name}");
    let [one, two] = DIRECTORS;
    let [toward, away] = ["to", "from"].map(|way| format!("{name}_{way}"));
    let rules = [
        (toward.as_str(), Direction::Out, from_vip.as_str()),
        (away.as_str(), Direction::In, from_vip.as_str()),
    ];
    let counters: [Counters<'_>; 2] = [
        lab.fabric.count_beyond(one, &rules)?,
        lab.fabric.count_beyond(two, &rules)?,
    ];
    let before = forwarded_by_stack(lab)?;
    let sources = client_sources(family, 11, 400);
    let spread = protocol.ask_from_each(lab.fabric.client(), &sources, mode.target(family))?;
    spread.expect(&Share::equal(&mode.servers()[..2]), 3.0)?;

    let mut packets = [0; 2];
    for counter in &counters {
        packets[0] += counter.packets(&toward)?;
        packets[1] += counter.packets(&away)?;
    }
    if mode.replies_through_director() {
        ensure!(
            packets[0] == 0,
            "{} replies went to a director twice",
            packets[0]
        );
        ensure!(
            packets[1] >= 400,
            "only {} replies left a director",
            packets[1]
        );
    } else {
        ensure!(packets == [0, 0], "replies passed a director: {packets:?}");
    }
    let stack = forwarded_by_stack(lab)? - before;
    ensure!(
        stack == 0,
        "the stack forwarded {stack} packets: XDP should have"
    );

    let source = SocketAddr::new(sources[0].ip(), 999);
    let answer = lab
        .fabric
        .client()
        .within(|| protocol.ask(Some(source), mode.target(family)))??;
    if mode == Mode::FullNat {
        let own = lab.fabric.address(one)?.of(family);
        ensure!(
            answer.client.ip() == own,
            "the server saw {}",
            answer.client
        );
        ensure!(
            FULLNAT_PORTS.contains(&answer.client.port()),
            "{}",
            answer.client
        );
    } else {
        ensure!(answer.client == source, "the server saw {}", answer.client);
    }
    Ok(())
}

/// Packets that the directors' stacks forwarded (IpExt and Ip6 statistics).
fn forwarded_by_stack(lab: &Lab) -> Result<u64> {
    let mut sum = 0;
    for director in DIRECTORS {
        let namespace = &lab.fabric.node(director)?.namespace;
        sum += namespace.within(|| -> Result<u64> {
            let four = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
            let six = std::fs::read_to_string("/proc/thread-self/net/snmp6")?;
            let four = four.lines().filter(|line| line.starts_with("Ip: ")).nth(1);
            let four = four.and_then(|line| line.split(' ').nth(6)).unwrap_or("0");
            let six = six
                .lines()
                .find_map(|line| line.strip_prefix("Ip6OutForwDatagrams"));
            Ok(four.parse::<u64>()? + six.unwrap_or("0").trim().parse::<u64>()?)
        })??;
    }
    Ok(sum)
}

fn carries_bulk(lab: &mut Lab, mode: Mode, family: Family) -> Result<()> {
    lab.fabric.client().within(|| {
        let mut connection = Connection::open(None, mode.target(family))?;
        connection.download()?;
        connection.upload(300_000)?;
        connection.ask()
    })?
}

/// A way to a server that is not on the directors' segment.
#[derive(Clone, Copy)]
struct PathCase {
    mode: &'static str,
    server: &'static str,
    host: u8,
}

impl std::fmt::Display for PathCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} reaches {}", self.mode, self.server)
    }
}

/// NAT and FullNAT behind a router, at another link, behind a bridge and at the director's own address; TUN behind a router
/// and at the own address; DR at the own address.
const PATHS: [PathCase; 11] = [
    case("NAT", "far-nat", 51),
    case("FullNAT", "far", 52),
    case("TUN", "far", 53),
    case("NAT", "back", 63),
    case("FullNAT", "back", 64),
    case("NAT", "pod", 54),
    case("FullNAT", "pod", 55),
    case("NAT", "director-1", 56),
    case("FullNAT", "director-1", 57),
    case("DR", "director-1", 58),
    case("TUN", "director-1", 59),
];

const fn case(mode: &'static str, server: &'static str, host: u8) -> PathCase {
    PathCase { mode, server, host }
}

fn serve_one(
    lab: &mut Lab,
    name: &str,
    mode: &str,
    vip: Dual,
    servers: &[&str],
    target_port: Option<u16>,
) -> Result<()> {
    let members = lab.members(servers)?;
    let objects = [
        manifest::pool(name, &members, target_port),
        manifest::virtual_server(name, mode, vip, &[(name, 1)]),
    ];
    lab.sluice.apply(name, &objects)?;
    lab.sluice.await_weights(name, &[(name, 1)])
}

fn reaches(lab: &mut Lab, case: PathCase) -> Result<()> {
    let vip = vip_of_one(case.host);
    let name = format!("{}-{}", case.mode.to_lowercase(), case.server);
    let translated = matches!(case.mode, "NAT" | "FullNAT").then_some(8080);
    serve_one(lab, &name, case.mode, vip, &[case.server], translated)?;
    for family in Family::BOTH {
        let target = vip.socket(family, 80);
        for protocol in Protocol::BOTH {
            // A client port in use towards a server by way of one VIP is not free for another VIP on it.
            let sources = client_sources(family, u64::from(case.host), 50);
            let spread = protocol.ask_from_each(lab.fabric.client(), &sources, target)?;
            ensure!(spread.of(case.server) == 50, "{spread}");
            let source = SocketAddr::new(sources[0].ip(), 900 + u16::from(case.host));
            let answer = lab
                .fabric
                .client()
                .within(|| protocol.ask(Some(source), target))??;
            // A server at the director's own address sees the client in every mode.
            if case.mode != "FullNAT" || case.server.starts_with("director") {
                ensure!(answer.client == source, "the server saw {}", answer.client);
            } else {
                ensure!(answer.client != source, "the server saw the client");
            }
        }
        lab.fabric.client().within(|| -> Result<()> {
            let mut connection = Connection::open(None, target)?;
            connection.download()?;
            connection.upload(300_000)
        })??;
    }
    lab.sluice.remove(&name)
}

/// A packet that one director sent to a server on the other is not balanced again.
fn directors_serve(lab: &mut Lab) -> Result<()> {
    for (mode, host) in [("DR", 60), ("TUN", 61)] {
        let (name, vip) = (
            format!("{}-directors", mode.to_lowercase()),
            vip_of_both(host),
        );
        serve_one(lab, &name, mode, vip, &DIRECTORS, None)?;
        for family in Family::BOTH {
            for protocol in Protocol::BOTH {
                let sources = client_sources(family, u64::from(host), 400);
                let target = vip.socket(family, 80);
                let spread: Spread =
                    protocol.ask_from_each(lab.fabric.client(), &sources, target)?;
                spread.expect(&Share::equal(&DIRECTORS), 3.0)?;
            }
        }
        lab.sluice.remove(&name)?;
    }
    Ok(())
}

/// A virtual server at the address of somebody else, which a pod on the director's node talks to: the bridge that the pod is
/// behind has programs, for there are servers behind it.
fn pods_are_no_clients(lab: &mut Lab) -> Result<()> {
    let victim = lab.fabric.address("far-nat")?;
    let servers = lab.members(&["pod", Mode::FullNat.servers()[0]])?;
    let objects = [
        manifest::pool("captor", &servers, Some(8080)),
        manifest::virtual_server("captor", "FullNAT", victim, &[("captor", 1)]),
    ];
    lab.sluice.apply("captor", &objects)?;
    lab.sluice.await_weights("captor", &[("captor", 1)])?;
    let pod = &lab.fabric.node("pod")?.namespace;
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            let to = victim.socket(family, 80);
            let answer = pod.within(|| protocol.ask(None, to))??;
            ensure!(
                answer.server == "far-nat",
                "{protocol} {family}: {answer:?}"
            );
        }
    }
    lab.sluice.remove("captor")
}

fn share_a_port(lab: &mut Lab) -> Result<()> {
    let vip = vip_of_one(62);
    serve_one(lab, "shared", "FullNAT", vip, &["fullnat-1"], None)?;
    for family in Family::BOTH {
        let target = vip.socket(family, 80);
        let mut sources = client_sources(family, 3, 2);
        for source in &mut sources {
            source.set_port(7777);
        }
        lab.fabric.client().within(|| -> Result<()> {
            let mut one = Connection::open(Some(sources[0]), target)?;
            let mut two = Connection::open(Some(sources[1]), target)?;
            ensure!(one.seen_as() != two.seen_as(), "both are {}", one.seen_as());
            one.ask()?;
            two.ask()?;
            one.ask()
        })??;
        for source in &sources {
            lab.fabric
                .client()
                .within(|| Protocol::Udp.ask(Some(*source), target))??;
        }
    }
    lab.sluice.remove("shared")
}

fn offloads_are_on(lab: &mut Lab) -> Result<()> {
    for mode in Mode::ALL {
        for server in mode.servers() {
            let text = lab.fabric.node(server)?.namespace.run("ethtool -k eth0")?;
            for offload in ["tx-checksumming: on", "tcp-segmentation-offload: on"] {
                ensure!(text.contains(offload), "{server}: not {offload}");
            }
        }
    }
    Ok(())
}
