//! A host of the segment that is no director and answers for VIPs by its own stack.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_api::{ConditionType, find_condition, is_true};

use super::address::Dual;
use super::fabric::{UPLINK, vip_on_link};
use super::failover::{Failover, NODES, SPARE, target};
use super::{Family, Protocol, manifest, until};

/// The host: a server that no agent runs on.
const HOST: &str = "fullnat-1";
/// The virtual server whose VIPs it claims.
pub const VICTIM: &str = "dr";
/// A virtual server that comes late, and its real server.
const LATE: &str = "late";
const SERVER: &str = "dr-2";
/// Claims are heard and told of within this time.
const HEARD: Duration = Duration::from_secs(20);

/// A host takes the VIPs of a virtual server: their holder tells of it, and wins neighbours back that believe the host.
pub fn defended(stage: &mut Failover) -> Result<()> {
    stage.sluice.expect_complaint("claims a VIP");
    let vips = Family::BOTH.map(|family| target(VICTIM, family).ip().to_string());
    let mac = stage.fabric.node(HOST)?.namespace.port(UPLINK).mac()?;
    // Neighbours that know nothing take no notice of what is announced.
    for vip in &vips {
        let entry = format!("{vip} lladdr {mac} nud stale dev {UPLINK}");
        stage.neighbour.ip(&format!("neigh replace {entry}"))?;
    }
    let before = defences(stage)?;
    take(stage, "add", &vips)?;
    let told = until("the holder to tell of the claims", HEARD, || {
        let holder = stage.holder_of(VICTIM);
        let status = holder.ok().and_then(|holder| stage.sluice.node(&holder));
        let status = status.unwrap_or_default();
        let claims = status.address_claims.iter();
        let claims = claims.filter(|claim| claim.mac_address.to_string() == mac);
        let told: Vec<String> = claims.map(|claim| claim.address.to_string()).collect();
        is_true(&status.conditions, ConditionType::AddressClaimed)
            && vips.iter().all(|vip| told.contains(vip))
    });
    let defended = until("the VIPs to be defended", HEARD, || {
        let known = |vip: &String| stage.neighbour.ip(&format!("neigh show {vip}"));
        vips.iter()
            .all(|vip| known(vip).is_ok_and(|entry| !entry.contains(&mac)))
    });
    take(stage, "del", &vips)?;
    told?;
    defended?;
    let count = defences(stage)? - before;
    ensure!((2.0..=12.0).contains(&count), "{count} defences");
    stage.settle()?;
    stage.ask(VICTIM)
}

/// How often directors have defended VIPs.
fn defences(stage: &Failover) -> Result<f64> {
    let of_node = |node: &&str| {
        let metrics = stage.sluice.metrics(node)?;
        let count = metrics.get("sluice_vip_defences_total").copied();
        count.context("the counter of defences")
    };
    NODES.iter().map(of_node).sum()
}

/// A virtual server gets VIPs that a host has: nobody announces them until the host has let them go, and all directors say why.
pub fn in_use(stage: &mut Failover) -> Result<()> {
    for text in ["claims a VIP", "nobody holds the VIP group"] {
        stage.sluice.expect_complaint(text);
    }
    let vips = texts(vip_on_link(SPARE));
    take(stage, "add", &vips)?;
    let address = stage.fabric.address(SERVER)?;
    let objects = [
        manifest::pool(LATE, &[(SERVER, address, 1)], None),
        manifest::virtual_server(LATE, "DR", vip_on_link(SPARE), &[(LATE, 1)]),
    ];
    stage.sluice.apply(LATE, &objects)?;
    let told = until("all directors to tell who has the VIPs", HEARD, || {
        NODES.iter().all(|node| withholds(stage, node, &vips))
    });
    let asked = Family::BOTH.map(|family| owner(stage, vip_on_link(SPARE).of(family)));
    let asked = asked.into_iter().collect::<Result<Vec<_>>>();
    take(stage, "del", &vips)?;
    told?;
    let mac = stage.fabric.node(HOST)?.namespace.port(UPLINK).mac()?;
    let asked = asked?;
    ensure!(asked.iter().all(|known| known.contains(&mac)), "{asked:?}");
    // Neighbours that believe the host find the VIPs when they are announced.
    for family in Family::BOTH {
        let target = vip_on_link(SPARE).socket(family, 80);
        until("the VIPs to be served", HEARD, || {
            let asked = stage.neighbour.within(|| Protocol::Tcp.ask(None, target));
            asked.is_ok_and(|answer| answer.is_ok())
        })?;
    }
    stage.sluice.remove(LATE)?;
    stage.settle()
}

/// Whether a director says that it does not announce these VIPs.
fn withholds(stage: &Failover, node: &str, vips: &[String]) -> bool {
    let status = stage.sluice.node(node).unwrap_or_default();
    let condition = find_condition(&status.conditions, ConditionType::AddressClaimed);
    let claims = status.address_claims.iter().filter(|claim| claim.withheld);
    let told: Vec<String> = claims.map(|claim| claim.address.to_string()).collect();
    condition.is_some_and(|condition| condition.reason == "AddressInUse")
        && vips.iter().all(|vip| told.contains(vip))
}

/// What a neighbour finds when it asks for an address.
fn owner(stage: &Failover, vip: IpAddr) -> Result<String> {
    let target = SocketAddr::new(vip, 80);
    // The host refuses the connection.
    let _ = stage.neighbour.within(|| Protocol::Tcp.ask(None, target))?;
    stage.neighbour.ip(&format!("neigh show {vip}"))
}

/// Addresses as text.
fn texts(addresses: Dual) -> [String; 2] {
    Family::BOTH.map(|family| addresses.of(family).to_string())
}

/// Gives the host addresses, or takes them off it.
fn take(stage: &Failover, verb: &str, vips: &[String; 2]) -> Result<()> {
    let host = &stage.fabric.node(HOST).context("the host")?.namespace;
    for (vip, length) in vips.iter().zip([32, 128]) {
        host.ip(&format!("address {verb} {vip}/{length} dev {UPLINK}"))?;
    }
    Ok(())
}
