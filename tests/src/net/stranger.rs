//! A host of the segment that is no director and answers for VIPs by its own stack.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_api::{ConditionType, is_true};

use super::fabric::UPLINK;
use super::failover::{Failover, target};
use super::{Family, until};

/// The host: a server that no agent runs on.
const HOST: &str = "fullnat-1";
/// The virtual server whose VIPs it claims.
pub const VICTIM: &str = "dr";
/// Claims are heard and told of within this time.
const HEARD: Duration = Duration::from_secs(20);

/// A host takes the VIPs of a virtual server: their holder tells of it, and wins neighbours back that believe the host.
pub fn defended(stage: &mut Failover) -> Result<()> {
    stage.sluice.expect_complaint("claims a VIP");
    let holder = stage.holder_of(VICTIM)?;
    let mac = stage.fabric.node(HOST)?.namespace.port(UPLINK).mac()?;
    let own = stage.fabric.node(&holder)?.namespace.port(UPLINK).mac()?;
    // Neighbours that know nothing take no notice of what is announced.
    for vip in vips() {
        let entry = format!("{vip} lladdr {mac} nud stale dev {UPLINK}");
        stage.neighbour.ip(&format!("neigh replace {entry}"))?;
    }
    take(stage, "add")?;
    let told = until("the holder to tell of the claims", HEARD, || {
        let status = stage.sluice.node(&holder).unwrap_or_default();
        let claims = status.address_claims.iter();
        let claims = claims.filter(|claim| claim.mac_address.to_string() == mac);
        let told: Vec<String> = claims.map(|claim| claim.address.to_string()).collect();
        is_true(&status.conditions, ConditionType::AddressClaimed)
            && vips().iter().all(|vip| told.contains(vip))
    });
    let defended = until("the VIPs to be defended", HEARD, || {
        let known = |vip: &String| stage.neighbour.ip(&format!("neigh show {vip}"));
        vips()
            .iter()
            .all(|vip| known(vip).is_ok_and(|entry| entry.contains(&own)))
    });
    let metrics = stage.sluice.metrics(&holder);
    take(stage, "del")?;
    told?;
    defended?;
    let metrics = metrics?;
    let defences = metrics.get("sluice_vip_defences_total");
    ensure!(
        defences.is_some_and(|count| (2.0..=8.0).contains(count)),
        "{defences:?} defences"
    );
    stage.settle()?;
    stage.ask(VICTIM)
}

/// The victim's VIPs.
fn vips() -> [String; 2] {
    Family::BOTH.map(|family| target(VICTIM, family).ip().to_string())
}

/// Gives the host the victim's VIPs, or takes them off it.
fn take(stage: &Failover, verb: &str) -> Result<()> {
    let host = &stage.fabric.node(HOST).context("the host")?.namespace;
    for (vip, length) in vips().into_iter().zip([32, 128]) {
        host.ip(&format!("address {verb} {vip}/{length} dev {UPLINK}"))?;
    }
    Ok(())
}
