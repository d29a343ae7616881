//! What real segments do to directors: hubs and flooding switches, clients and routers whose neighbour entries go, ports that
//! clients use again.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_tests::net::fabric::{DIRECTORS, UPLINK, client_sources};
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{
    ConnectionMaker, Dual, Family, KeptConnections, Namespace, Protocol, UdpStream,
    expect_no_retransmissions, manifest, retransmitted_segments, until,
};

/// New connections behind a hub.
const CONNECTIONS: u64 = 500;
const LIMIT: Duration = Duration::from_mins(1);
/// How long the director's kernel believes a neighbour, 1 s instead of 30 s as it is by default, and longest time until a
/// changed Ethernet address is noticed: after up to 1.5 s the kernel may doubt it, within 2.2 s a reply asks it to, and 8 s
/// later it has found out.
const BELIEVED_MS: [&str; 2] = ["1000", "30000"];
const NOTICED: Duration = Duration::from_secs(20);
/// Questions of a client whose neighbour entry is removed before each.
const QUESTIONS: usize = 20;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for mode in Mode::ALL {
        suite.check(format!("{mode} behind a hub"), move |lab| hub(lab, mode));
    }
    suite.check("a client on the link that is no neighbour", |lab| {
        let (guest, address) = lab.fabric.guest()?;
        unknown_neighbour(lab, &guest, address)?;
        another_address(lab, &guest, address.v4)
    });
    for mode in [Mode::Nat, Mode::Dr, Mode::Tun] {
        suite.check(
            format!("{mode} a port used again after the server was out"),
            move |lab| port_used_again(lab, mode),
        );
    }
    for mode in Mode::ALL {
        suite.check(format!("{mode} a pool gets another name"), move |lab| {
            renamed_pool(lab, mode)
        });
    }
    suite.check("forwarding that is off is named", forwarding_off);
    suite.main(|| Lab::build(&Mode::ALL, &[], &[]))
}

/// A switch that remembers no address sends each frame to everybody: both directors and all servers see all of them.
fn hub(lab: &mut Lab, mode: Mode) -> Result<()> {
    let client = lab.fabric.client().clone();
    lab.fabric.set_hub(true)?;
    let result = serves(&client, mode);
    lab.fabric.set_hub(false)?;
    result
}

fn serves(client: &Namespace, mode: Mode) -> Result<()> {
    let targets = Family::BOTH.map(|family| mode.target(family));
    let retransmitted = retransmitted_segments(client)?;
    let stream = UdpStream::start(client, targets[0], Duration::from_millis(5))?;
    let opener = ConnectionMaker::start(client, &targets, 2, Duration::ZERO)?;
    until("new connections", LIMIT, || opener.made() >= CONNECTIONS)?;
    opener.stop().expect_none_failed()?;
    stream.finish()?.expect_whole()?;
    expect_no_retransmissions(client, retransmitted)
}

/// The mode whose servers answer clients on the directors' link by way of the director.
const RETURNING: Mode = Mode::FullNat;

/// A client on the directors' link whose neighbour entry the director has lost: XDP does not know where to send replies, and
/// strict reverse-path filters take no packet with a VIP as its source.
fn unknown_neighbour(lab: &Lab, guest: &Namespace, address: Dual) -> Result<()> {
    let director = &lab.fabric.node(DIRECTORS[0])?.namespace;
    for family in Family::BOTH {
        let via = lab.fabric.address(DIRECTORS[0])?.of(family);
        let option = family.option();
        guest.ip(&format!(
            "{option} route replace {} via {via}",
            RETURNING.vip().of(family)
        ))?;
        // The client asks nobody, so that the director does not learn of it by that.
        let mac = director.port(UPLINK).mac()?;
        guest.ip(&format!(
            "{option} neighbour replace {via} lladdr {mac} dev {UPLINK} nud permanent"
        ))?;
        for protocol in Protocol::BOTH {
            for question in 0..QUESTIONS {
                // There may be none.
                let _ = director.ip(&format!(
                    "{option} neighbour delete {} dev {UPLINK}",
                    address.of(family)
                ));
                guest
                    .within(|| protocol.ask(None, RETURNING.target(family)))?
                    .with_context(|| format!("question {question}"))?;
            }
        }
    }
    Ok(())
}

/// The client's Ethernet address changes, and nobody tells the director: the client asks for no address by ARP.
fn another_address(lab: &Lab, guest: &Namespace, address: Ipv4Addr) -> Result<()> {
    let director = &lab.fabric.node(DIRECTORS[0])?.namespace;
    let believed = format!("net.ipv4.neigh.{UPLINK}.base_reachable_time_ms");
    let [shortly, by_default] = BELIEVED_MS;
    director.sysctl(&believed, shortly)?;
    // An entry that is there already is believed for as long as was set when it was made.
    director.ip(&format!("neighbour flush dev {UPLINK} to {address}"))?;
    let via = lab.fabric.address(DIRECTORS[0])?.v4;
    let result = follows_an_address(guest, (via, &director.port(UPLINK).mac()?));
    director.sysctl(&believed, by_default)?;
    result
}

/// `router` is the address and Ethernet address of the director.
fn follows_an_address(guest: &Namespace, router: (Ipv4Addr, &str)) -> Result<()> {
    let stream = UdpStream::start(
        guest,
        RETURNING.target(Family::V4),
        Duration::from_millis(5),
    )?;
    until("the stream to flow", LIMIT, || stream.answered() > 100)?;
    guest.nft(
        "table arp silent {
            chain output { type filter hook output priority 0; policy accept; arp operation request drop; }
        }",
    )?;
    let (via, mac) = router;
    guest.ip(&format!("link set {UPLINK} address 02:00:5e:00:53:99"))?;
    guest.ip(&format!(
        "neighbour replace {via} lladdr {mac} dev {UPLINK} nud permanent"
    ))?;
    let changed = Instant::now();
    thread::sleep(Duration::from_millis(500));
    let before = stream.answered();
    until("answers at the new address", NOTICED, || {
        stream.answered() > before + 100
    })?;
    println!(
        "answers again after {:.1} s",
        changed.elapsed().as_secs_f64()
    );
    stream.finish()?;
    Ok(())
}

/// The same source before and after the servers were taken out and put back: answers come from the VIP.
fn port_used_again(lab: &mut Lab, mode: Mode) -> Result<()> {
    let file = format!("{}-pools", mode.virtual_server());
    let names = mode.servers();
    let members = lab.members(&names)?;
    let port = mode.target_port();
    let pools = |members: &[(&str, Dual, u32)]| {
        let (stable, candidate) = members.split_at(members.len() - 1);
        [
            manifest::pool(mode.stable(), stable, port),
            manifest::pool(mode.candidate(), candidate, port),
        ]
    };
    let client = lab.fabric.client().clone();
    for family in Family::BOTH {
        let sources = client_sources(family, 61, 40);
        let target = mode.target(family);
        // Twice at a distance: the second question confirms the flow.
        ask_from(&client, &sources, target)?;
        thread::sleep(Duration::from_secs(2));
        ask_from(&client, &sources, target)?;
        for server in &names[..2] {
            let without = members.iter().filter(|(name, ..)| name != server);
            let without: Vec<_> = without.copied().collect();
            lab.sluice.apply(&file, &pools(&without))?;
            lab.sluice.await_pool(mode.stable(), without.len() - 1)?;
            lab.sluice.apply(&file, &pools(&members))?;
            lab.sluice.await_pool(mode.stable(), 2)?;
        }
        ask_from(&client, &sources, target)?;
    }
    Ok(())
}

fn ask_from(client: &Namespace, sources: &[SocketAddr], target: SocketAddr) -> Result<()> {
    let spread = Protocol::Udp.ask_from_each(client, sources, target)?;
    ensure!(spread.total() == sources.len() as u64, "{spread}");
    Ok(())
}

fn forwarding_off(lab: &mut Lab) -> Result<()> {
    let name = DIRECTORS[1];
    let director = lab.fabric.node(name)?.namespace.clone();
    let setting = format!("net.ipv4.conf.{UPLINK}.forwarding");
    let advice = |lab: &Lab| {
        let status = lab.sluice.node(name)?;
        let kind = sluice_api::ConditionType::NetworkAdvice;
        let condition = sluice_api::find_condition(&status.conditions, kind)?;
        Some(condition.message.clone())
    };
    director.sysctl(&setting, "0")?;
    until("the condition", LIMIT, || {
        advice(lab).is_some_and(|text| text.contains("set net.ipv4.ip_forward to 1"))
    })?;
    director.sysctl(&setting, "1")?;
    until("the condition to go", LIMIT, || {
        advice(lab).is_none_or(|text| !text.contains("ip_forward"))
    })
}

/// The same servers in a pool of another name, by one edit.
fn renamed_pool(lab: &mut Lab, mode: Mode) -> Result<()> {
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    let retransmitted = retransmitted_segments(&client)?;
    let kept = KeptConnections::open(&client, &targets, 20, Duration::from_millis(20))?;
    let stream = UdpStream::start(&client, targets[1], Duration::from_millis(5))?;
    let servers = mode.servers();
    let members = lab.members(&servers[..2])?;
    let file = format!("{}-renamed", mode.virtual_server());
    lab.sluice.apply(
        &file,
        &[manifest::pool("renamed", &members, mode.target_port())],
    )?;
    let renamed = [("renamed", 100)];
    let server = manifest::virtual_server(mode.virtual_server(), mode.name(), mode.vip(), &renamed);
    lab.sluice.apply(mode.virtual_server(), &[server])?;
    lab.sluice.await_weights(mode.virtual_server(), &renamed)?;
    let rounds = kept.rounds();
    until("the kept connections to be used", LIMIT, || {
        kept.rounds() >= rounds + 10
    })?;
    kept.close()?;
    stream.finish()?.expect_whole()?;
    expect_no_retransmissions(&client, retransmitted)?;
    lab.set_shares(mode, 100, 0)?;
    lab.sluice.remove(&file)
}
