//! The agent in a network namespace, over the real programs. Needs root and `cargo xtask build-bpf`.
//!
//! Every agent here runs with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON alone.

mod node;

use std::fs;
use std::time::Duration;

use anyhow::Result;
use aya::maps::{Array, Map, MapData};
use nix::time::{ClockId, clock_gettime};
use node::{LIMIT, Node, SERVER, UPLINK, attach_mode};
use sluice_abi::{
    ClaimData, ClaimKey, ClaimState, ConfigWord, FlowClock, FlowData, FlowState, GROUP_WORDS, TCP,
    Timeouts, group_hash,
};
use sluice_agent::maps::Tick;
use sluice_api::{AttachMode, ConditionType, LoadBalancerNodeStatus, find_condition};
use sluice_tests::net::until;

fn config(node: &Node) -> Result<Array<MapData, u64>> {
    let data = MapData::from_pin(node.pins.join("CONFIG"))?;
    Ok(Array::try_from(Map::from_map_data(data)?)?)
}

/// The deadlines of VIP groups, and the hashes of their names.
fn groups(node: &Node) -> Result<Array<MapData, [u64; GROUP_WORDS]>> {
    let data = MapData::from_pin(node.pins.join("GROUPS"))?;
    Ok(Array::try_from(Map::from_map_data(data)?)?)
}

/// The program's id on the uplink, as `ip` shows it.
fn program(node: &Node) -> Result<Option<String>> {
    let text = node.director.ip(&format!("-d link show dev {UPLINK}"))?;
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "prog/xdp");
    Ok(words.nth(2).map(str::to_owned))
}

/// Whether the agent tells that its programs are not on the uplink, with these words.
fn is_missed(status: &LoadBalancerNodeStatus, words: &str) -> bool {
    let missed = status.not_attached();
    missed.is_some_and(|missed| missed.contains(UPLINK) && missed.contains(words))
}

#[test]
fn a_killed_agent_leaves_everything_and_the_next_one_takes_over() -> Result<()> {
    let mut node = Node::build()?;
    node.decide(7, &[SERVER])?;
    node.start(&[])?;
    node.await_live(7)?;
    node.await_maps(&["record", SERVER])?;
    let seed = config(&node)?.get(&(ConfigWord::FlowSeed as u32), 0)?;
    assert_ne!(seed, 0);
    let group = [u64::MAX, group_hash("default-3")];
    groups(&node)?.set(5, group, 0)?;
    let before = program(&node)?;
    assert!(before.is_some(), "a program is attached");

    node.agent()?.kill()?;
    assert_eq!(program(&node)?, before, "it stays");
    node.start(&[])?;
    until("the program to be replaced", LIMIT, || {
        program(&node).is_ok_and(|now| now.is_some() && now != before)
    })?;
    node.await_live(7)?;
    assert!(node.agent()?.log().contains("adopted the pinned maps"));
    let adopted = config(&node)?.get(&(ConfigWord::FlowSeed as u32), 0)?;
    assert_eq!(adopted, seed, "flows are found by the same seed");
    assert_eq!(groups(&node)?.get(&5, 0)?, group, "what is armed stays so");
    node.await_neighbours()?;
    let operations = node.metric("sluice_map_operations_total")?;
    assert!(operations.abs() < 0.5, "{operations} needless operations");
    assert_eq!(node.agent()?.complaints(&[]), [""; 0]);

    node.agent()?.stop(Duration::from_secs(10))?;
    assert!(program(&node)?.is_some(), "ending it does not detach");
    Ok(())
}

#[test]
fn maps_that_differ_are_not_adopted() -> Result<()> {
    let mut node = Node::build()?;
    node.start(&[])?;
    node.await_status("the uplink to be attached", |status| {
        attach_mode(status) == Some(AttachMode::Native)
    })?;
    node.agent()?.kill()?;

    node.start(&["--flow-table-size", "1000"])?;
    let log = node.await_end()?;
    for part in [
        "FLOWS4",
        "256 entries",
        "65536 entries",
        "sizes it had",
        "sluice-agent detach",
    ] {
        assert!(log.contains(part), "{part} in {log}");
    }
    config(&node)?.set(ConfigWord::AbiVersion as u32, 999_u64, 0)?;
    node.start(&[])?;
    let log = node.await_end()?;
    for part in ["CONFIG", "ABI version 999", "sluice-agent detach"] {
        assert!(log.contains(part), "{part} in {log}");
    }
    assert!(program(&node)?.is_some(), "what was there goes on");
    Ok(())
}

/// Drops of clients whose address no list has.
const NOT_ALLOWED: &str = "sluice_dropped_packets_total{reason=\"source_not_allowed\"}";

#[test]
fn lists_of_clients_are_adopted_and_replaced() -> Result<()> {
    let options = ["--max-sources", "64"];
    let of_maps = |node: &Node, metric: &str| node.metric(&format!("{metric}{{map=\"SOURCES\"}}"));
    let mut node = Node::build()?;
    let list = ["198.51.100.0/24", "192.0.2.7/32", "2001:db8::/32"];
    node.decide_from(7, &[SERVER], Some(&list))?;
    node.start(&options)?;
    node.await_live(7)?;
    node.await_maps(&["source set 2: 198.51.100.0/24"])?;
    node.await_maps(&["head", "from source set 2"])?;
    assert!((of_maps(&node, "sluice_map_entries")? - 2.0).abs() < 0.5);
    assert!((of_maps(&node, "sluice_map_entries_limit")? - 64.0).abs() < 0.5);
    node.knock()?;
    assert!(node.metric(NOT_ALLOWED)? > 0.5);

    node.agent()?.kill()?;
    node.start(&options)?;
    node.await_live(7)?;
    node.await_neighbours()?;
    let operations = node.metric("sluice_map_operations_total")?;
    assert!(operations.abs() < 0.5, "{operations} needless operations");

    // It changes while no agent is there.
    node.agent()?.kill()?;
    node.decide_from(8, &[SERVER], Some(&["192.0.2.7/32"]))?;
    node.start(&options)?;
    node.await_live(8)?;
    node.await_maps(&["source set 3: 192.0.2.7/32"])?;
    node.await_maps(&["head", "from source set 3"])?;
    assert!((of_maps(&node, "sluice_map_entries")? - 1.0).abs() < 0.5);
    assert_eq!(node.agent()?.complaints(&[]), [""; 0]);
    Ok(())
}

/// Maps of an agent that knew no lists have no `SOURCES*`: they are made, and all else is adopted.
#[test]
fn maps_without_lists_of_clients_are_adopted() -> Result<()> {
    let mut node = Node::build()?;
    node.decide(7, &[SERVER])?;
    node.start(&[])?;
    node.await_live(7)?;
    node.agent()?.kill()?;
    for map in ["SOURCES4", "SOURCES6"] {
        fs::remove_file(node.pins.join(map))?;
    }
    node.start(&[])?;
    node.await_live(7)?;
    assert!(node.agent()?.log().contains("adopted the pinned maps"));
    node.await_neighbours()?;
    let operations = node.metric("sluice_map_operations_total")?;
    assert!(operations.abs() < 0.5, "{operations} needless operations");
    node.decide_from(8, &[SERVER], Some(&["192.0.2.7/32"]))?;
    node.await_live(8)?;
    node.knock()?;
    assert!(node.metric(NOT_ALLOWED)? > 0.5);
    Ok(())
}

#[test]
fn one_agent_has_the_pins() -> Result<()> {
    let mut node = Node::build()?;
    node.start(&[])?;
    node.await_status("a status", |_| true)?;
    let error = node
        .subcommand("detach")
        .map_or_else(|e| e.to_string(), |_| String::new());
    assert!(error.contains("in use by another agent"), "{error}");
    Ok(())
}

#[test]
fn detach_leaves_nothing() -> Result<()> {
    for options in [&[][..], &["--tc", "clsact"]] {
        let mut node = Node::build()?;
        node.decide(7, &[SERVER])?;
        node.start(options)?;
        node.await_live(7)?;
        if !options.is_empty() {
            let filters = node
                .director
                .run(&format!("tc filter show dev {UPLINK} ingress"))?;
            assert!(filters.contains("sluice_ingress"), "{filters}");
            // Replacing keeps one filter of each kind.
            node.agent()?.kill()?;
            node.start(options)?;
            node.await_live(7)?;
            let filters = node
                .director
                .run(&format!("tc filter show dev {UPLINK} egress"))?;
            assert_eq!(filters.matches("handle").count(), 1, "{filters}");
        }
        node.agent()?.stop(Duration::from_secs(10))?;
        let removed = node.subcommand("detach")?;
        assert!(removed.contains("xdp of eth0"), "{removed}");
        assert_eq!(node.pinned(), [""; 0], "{}", node.name());
        assert!(!node.pins.exists());
        assert_eq!(program(&node)?, None);
        let qdiscs = node.director.run(&format!("tc qdisc show dev {UPLINK}"))?;
        assert!(!qdiscs.contains("clsact"), "{qdiscs}");
        let neighbours = node.director.ip("neighbour show")?;
        assert!(!neighbours.contains("managed"), "{neighbours}");
        let again = node.subcommand("detach")?;
        assert!(again.contains("nothing was attached"), "{again}");
    }
    Ok(())
}

#[test]
fn a_qdisc_of_somebody_else_stays() -> Result<()> {
    let mut node = Node::build()?;
    node.director
        .run(&format!("tc qdisc add dev {UPLINK} clsact"))?;
    node.start(&["--tc", "clsact"])?;
    node.await_status("the uplink to be attached", |status| {
        attach_mode(status) == Some(AttachMode::Native)
    })?;
    node.agent()?.stop(Duration::from_secs(10))?;
    node.subcommand("detach")?;
    let qdiscs = node.director.run(&format!("tc qdisc show dev {UPLINK}"))?;
    assert!(qdiscs.contains("clsact"), "{qdiscs}");
    let filters = node
        .director
        .run(&format!("tc filter show dev {UPLINK} ingress"))?;
    assert!(!filters.contains("sluice"), "{filters}");
    Ok(())
}

#[test]
fn next_hops_follow_the_network() -> Result<()> {
    let mut node = Node::build()?;
    node.decide(7, &[SERVER])?;
    node.start(&[])?;
    node.await_live(7)?;

    // Another MAC address of the server.
    node.server.ip("link set eth0 address 02:00:00:00:00:99")?;
    node.director.ip(&format!(
        "neighbour replace {SERVER} dev {UPLINK} lladdr 02:00:00:00:00:99 nud reachable"
    ))?;
    node.await_maps(&["record", SERVER, "02:00:00:00:00:99"])?;

    // Another one of the director.
    node.director
        .ip(&format!("link set {UPLINK} address 02:00:00:00:00:11"))?;
    node.await_maps(&["record", SERVER, "02:00:00:00:00:11"])?;

    // A server that is there no more: dropped by name, and found again when it comes back.
    node.server.ip("link set eth0 arp off")?;
    node.server
        .ip(&format!("address delete {SERVER}/24 dev eth0"))?;
    node.director
        .ip(&format!("neighbour delete {SERVER} dev {UPLINK}"))?;
    node.await_maps(&["server", "unresolved"])?;
    node.server.ip("link set eth0 arp on")?;
    node.server
        .ip(&format!("address add {SERVER}/24 dev eth0"))?;
    node.await_maps(&["record", SERVER, "02:00:00:00:00:99"])?;
    node.await_live(7)?;

    // An uplink that is made anew.
    node.director.ip(&format!("link delete {UPLINK}"))?;
    node.await_status("the uplink to be missed", |status| {
        attach_mode(status) == Some(AttachMode::None)
            && find_condition(&status.conditions, ConditionType::Ready)
                .is_some_and(|ready| ready.status == "False" && ready.message.contains(UPLINK))
            && is_missed(status, "there is no interface eth0: create it")
    })?;
    node.connect()?;
    let status = node.await_live(7)?;
    assert_eq!(status.not_attached(), None);
    assert!(program(&node)?.is_some());
    Ok(())
}

#[test]
fn an_uplink_that_another_program_has_is_told_until_it_is_free() -> Result<()> {
    let mut node = Node::build()?;
    node.decide(7, &[SERVER])?;
    node.start(&[])?;
    node.await_live(7)?;
    node.agent()?.kill()?;
    // To an agent with other pins, what is attached is somebody else's.
    let others = node.take_other_pins();
    node.start(&[])?;
    let status = node.await_status("the uplink to be missed", |status| {
        is_missed(status, "another XDP program is there: take it off")
    })?;
    assert_eq!(status.acknowledged_revision, 7, "it is in the maps");
    fs::remove_file(others.join("links/xdp-eth0"))?;
    let status = node.await_live(7)?;
    assert_eq!(status.not_attached(), None);
    assert_eq!(node.agent()?.complaints(&["not attached"]), [""; 0]);
    Ok(())
}

#[test]
fn an_uplink_without_ethernet_headers_takes_no_program() -> Result<()> {
    let mut node = Node::build()?;
    node.director.ip(&format!("link set {UPLINK} name lan0"))?;
    node.director
        .ip(&format!("tuntap add dev {UPLINK} mode tun"))?;
    node.director.ip(&format!("link set {UPLINK} up"))?;
    node.start(&[])?;
    node.await_status("the uplink to be refused", |status| {
        is_missed(status, "no Ethernet frames") && attach_mode(status) == Some(AttachMode::None)
    })?;
    assert_eq!(program(&node)?, None);
    Ok(())
}

#[test]
fn a_server_behind_a_bridge_is_left_to_tc() -> Result<()> {
    let mut node = Node::build()?;
    node.director.ip("link add name br0 type bridge")?;
    node.director.ip("link set br0 up")?;
    node.director.ip("address add 10.3.0.1/24 dev br0")?;
    let (near, far) = (node.director.port("pod0"), node.server.port("pod"));
    sluice_tests::net::Veth::between(near, far).create()?;
    near.join(node.director.port("br0"))?;
    node.server.ip("address add 10.3.0.2/24 dev pod")?;
    node.decide(7, &["10.3.0.2"])?;
    node.start(&[])?;
    node.await_live(7)?;
    node.await_maps(&["server", "tc"])?;
    until("the bridge to be attached", LIMIT, || {
        node.pinned().iter().any(|pin| pin.ends_with("ingress-br0"))
    })?;
    Ok(())
}

#[test]
fn what_cannot_be_read_changes_nothing() -> Result<()> {
    let mut node = Node::build()?;
    node.decide(7, &[SERVER])?;
    node.start(&[])?;
    node.await_live(7)?;
    node.await_maps(&["record", SERVER])?;

    // Another agent meets the maps without any decision in sight.
    let decided = node.directory().join(".status/VirtualServer");
    let aside = node.directory().join(".status/.aside");
    fs::rename(&decided, &aside)?;
    node.agent()?.kill()?;
    node.start(&[])?;
    node.await_status("the agent to attach", |status| {
        attach_mode(status) == Some(AttachMode::Native)
    })?;
    until("the agent to answer", LIMIT, || {
        node.subcommand("dump").is_ok()
    })?;
    let dump = node.subcommand("dump")?;
    assert!(dump.contains("vip 203.0.113.1 tcp 80"), "{dump}");
    fs::rename(aside, decided)?;

    // A broken status file: what is known stays, and the rest is followed once it is whole.
    let path = node
        .directory()
        .join(".status/VirtualServer/default/web.yaml");
    fs::write(&path, "status: {decision: [")?;
    until("a complaint", LIMIT, || {
        node.agent()
            .is_ok_and(|agent| agent.log().contains("cannot read decisions"))
    })?;
    assert!(node.subcommand("dump")?.contains("vip 203.0.113.1 tcp 80"));
    node.decide(9, &[SERVER])?;
    node.await_live(9)?;
    Ok(())
}

#[test]
fn another_xdp_mode_takes_effect_while_running() -> Result<()> {
    let mut node = Node::build()?;
    node.start(&[])?;
    let is =
        |mode| move |status: &sluice_api::LoadBalancerNodeStatus| attach_mode(status) == Some(mode);
    node.await_status("native mode", is(AttachMode::Native))?;
    node.write_spec("Generic")?;
    let status = node.await_status("generic mode", is(AttachMode::Generic))?;
    assert_eq!(status.observed_generation, 2);
    for _ in 0..5 {
        node.write_spec("Native")?;
        node.await_status("native mode", is(AttachMode::Native))?;
        node.write_spec("Generic")?;
        node.await_status("generic mode", is(AttachMode::Generic))?;
    }
    // The kernel takes no other program while the last one goes.
    assert_eq!(node.agent()?.complaints(&[]), [""; 0]);

    // A mode that the driver refuses: veth has no native one towards a peer with large frames.
    node.server.ip("link set eth0 mtu 9000")?;
    node.write_spec("Native")?;
    let status = node.await_status("the refusal", |status| {
        status.interfaces.iter().any(|i| i.reason.is_some())
    })?;
    assert_eq!(attach_mode(&status), Some(AttachMode::Generic));
    assert!(program(&node)?.is_some(), "it forwards as before");
    assert_eq!(node.agent()?.complaints(&["stays as it was"]), [""; 0]);
    Ok(())
}

#[test]
fn what_somebody_detaches_is_attached_again() -> Result<()> {
    for options in [&[][..], &["--tc", "clsact"]] {
        let mut node = Node::build()?;
        node.start(options)?;
        node.await_status("the uplink to be attached", |status| {
            attach_mode(status) == Some(AttachMode::Native)
        })?;
        let by_filter = !options.is_empty();
        let links = ["xdp-eth0", "ingress-eth0", "egress-eth0"];
        let links = if by_filter { &links[..1] } else { &links[..] };
        let has_filters = |node: &Node| {
            let mut ways = ["ingress", "egress"].into_iter();
            ways.all(|way| {
                let show = format!("tc filter show dev {UPLINK} {way}");
                let shown = node.director.run(&show);
                shown.is_ok_and(|filters| filters.contains(&format!("sluice_{way}")))
            })
        };
        // A link that nobody holds goes, and its program with it: some time later, until when there is no room for another.
        for link in links {
            fs::remove_file(node.pins.join("links").join(link))?;
        }
        if by_filter {
            assert!(has_filters(&node));
            node.director
                .run(&format!("tc qdisc del dev {UPLINK} clsact"))?;
            assert!(!has_filters(&node));
        }
        until("everything to be attached again", LIMIT, || {
            let pinned = node.pinned();
            program(&node).is_ok_and(|program| program.is_some())
                && links
                    .iter()
                    .all(|link| pinned.iter().any(|pin| pin == link))
                && (!by_filter || has_filters(&node))
        })?;
        let log = node.agent()?.log();
        for hook in ["xdp", "ingress", "egress"] {
            let named = format!("interface=\"eth0\" hook=\"{hook}\"");
            assert!(log.contains(&named), "{named} in {log}");
        }
        let complaints = node
            .agent()?
            .complaints(&["somebody has detached", "not attached"]);
        assert_eq!(complaints, [""; 0]);
    }
    Ok(())
}

/// The monotonic clock.
fn flow_time() -> Result<FlowClock> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let nanoseconds = Duration::from(time).as_nanos();
    Ok(FlowClock::from_ns(u64::try_from(nanoseconds)?))
}

#[test]
fn ticks_are_as_long_as_the_kernel_says() -> Result<()> {
    let first = Tick::measure()?;
    std::thread::sleep(Duration::from_millis(500));
    let second = Tick::measure()?;
    assert_eq!(first.ns, second.ns);
    // Half a second of ticks of another length would shift the offset by much more.
    let shift = second.offset.wrapping_sub(first.offset).cast_signed();
    assert!(
        shift.unsigned_abs() <= 3 * first.ns,
        "{first:?}, then {second:?}"
    );
    Ok(())
}

#[test]
fn packets_times_are_those_of_the_monotonic_clock() -> Result<()> {
    let mut node = Node::build()?;
    node.decide(7, &[SERVER])?;
    node.start(&["--half-open-table-size", "1024"])?;
    node.await_live(7)?;
    node.await_neighbours()?;
    let before = flow_time()?;
    node.knock()?;

    let flows = MapData::from_pin(node.pins.join("HALF4"))?;
    let flows: Array<MapData, [u64; 8]> = Array::try_from(Map::from_map_data(flows)?)?;
    let mut entries = Vec::new();
    for bucket in flows.iter() {
        let bucket = bucket?;
        entries.extend(
            bucket
                .chunks(2)
                .filter(|entry| entry[0] != 0)
                .map(|entry| FlowData(entry[1])),
        );
    }
    let [entry] = entries[..] else {
        panic!("one flow: {entries:?}");
    };
    assert_eq!(entry.state(), Some(FlowState::Syn));
    // Between the two looks at the clock, and at most a tick of the coarse clock earlier: a busy machine may take its time.
    let now = flow_time()?;
    let passed = now.0 - before.0;
    let age = entry.age(FlowState::Syn, now);
    assert!(u32::from(age) <= passed + 1, "{entry:?} {before:?} {now:?}");
    let log = node.agent()?.log();
    assert!(!log.contains("by a call for each packet"), "{log}");
    Ok(())
}

/// The far end of the second link has no XDP program, so the near one takes no frames from XDP.
#[test]
fn redirects_that_a_device_refuses_are_counted() -> Result<()> {
    let mut node = Node::build()?;
    let _far = node.second_link()?;
    node.write_spec_of("Native", "eth0, eth1")?;
    node.decide(7, &["10.0.1.2"])?;
    node.start(&[])?;
    node.await_live(7)?;
    node.await_neighbours()?;
    let refused = "sluice_dropped_packets_total{reason=\"redirect_refused\"}";
    assert!(node.metric(refused)?.abs() < 0.5);
    node.knock()?;
    until("the refusal to be counted", LIMIT, || {
        node.metric(refused).is_ok_and(|n| n >= 1.0)
    })?;
    Ok(())
}

#[test]
fn what_expired_is_swept_away() -> Result<()> {
    let mut node = Node::build()?;
    node.start(&[])?;
    node.await_status("a status", |_| true)?;
    let now = flow_time()?;
    let timeout = u32::from(Timeouts::HALF_OPEN.of(FlowState::Syn));
    let long_ago = FlowClock(now.0.wrapping_sub(timeout + 10));
    let data = |time| FlowData::new(1, 0, FlowState::Syn, time, 5000).0;

    let flows = MapData::from_pin(node.pins.join("HALF4"))?;
    let mut flows: Array<MapData, [u64; 8]> = Array::try_from(Map::from_map_data(flows)?)?;
    let (dead, alive) = (7_u64 << 48 | 1, 7_u64 << 48 | 2);
    let bucket = [dead, data(long_ago), alive, data(now), 0, 0, 0, 0];
    flows.set(3, bucket, 0)?;

    let claims = MapData::from_pin(node.pins.join("FULLNAT4"))?;
    let mut claims: Array<MapData, [u64; 8]> = Array::try_from(Map::from_map_data(claims)?)?;
    for (port, time) in [(5000_u16, long_ago), (5001, now)] {
        let mut slot = [0; 8];
        slot[0] = ClaimKey::new(port.to_be_bytes(), [0, 80], TCP).0;
        slot[1] = ClaimData::new(1, 0, ClaimState::HalfOpen, time).0;
        claims.set(u32::from(port), slot, 0)?;
    }
    until("the dead to be forgotten", LIMIT, || {
        let bucket = flows.get(&3, 0).unwrap_or([1; 8]);
        bucket[0] == 0
    })?;
    assert_eq!(flows.get(&3, 0)?[2], alive);
    until(
        "the half-open flows and claims to be counted",
        LIMIT,
        || {
            let is_one = |name| node.metric(name).is_ok_and(|n| (n - 1.0).abs() < 0.5);
            is_one("sluice_fullnat_half_open_claims") && is_one("sluice_flows{state=\"syn\"}")
        },
    )?;
    assert!(node.metric("sluice_expired_flows_total")? >= 1.0);
    // Packets take over what gives way; the agent leaves it.
    assert!(claims.get(&5000, 0)?[0] != 0);
    Ok(())
}
