//! The gateway of NAT's servers, which is where their VIPs are.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::fabric::{BACK_LINK, back_gateway};
use super::failover::{AFTER, Failover, expect_short};
use super::{Family, until};

/// The virtual server of NAT, and one of its servers.
const SERVED: &str = "nat";
const SERVER: &str = "nat-1";
/// Two directors that held at a time, as after a test before, have settled it, and servers have learnt who goes on.
const LEARNT: Duration = Duration::from_secs(10);

/// A director that servers do not reach any more loses the VIPs, too, and servers reply through the next one.
pub fn moves(stage: &mut Failover) -> Result<()> {
    let before = known(stage)?;
    let silence = |stage: &mut Failover, holder: &str| stage.fabric.back_end(holder)?.silence();
    let (holder, reports) = stage.disturb(SERVED, silence, AFTER)?;
    let after = stage.holder_of(SERVED);
    stage.fabric.back_end(&holder)?.unsilence()?;
    ensure!(after? != holder, "{holder} holds the group still");
    expect_short(&reports)?;
    stage.settle()?;
    ensure!(
        known(stage)? != before,
        "servers reply through {holder} still"
    );

    let cut = |stage: &mut Failover, holder: &str| stage.fabric.back_end(holder)?.cut();
    let (holder, reports) = stage.disturb(SERVED, cut, AFTER)?;
    stage.fabric.back_end(&holder)?.mend()?;
    expect_short(&reports)?;
    stage.settle()
}

/// Waits until a server knows the holder's Ethernet address as that of its gateway, which is a router. Returns the address.
fn known(stage: &Failover) -> Result<String> {
    stage.ask(SERVED)?;
    let holder = stage.holder_of(SERVED)?;
    let mac = stage
        .fabric
        .node(&holder)?
        .namespace
        .port(BACK_LINK)
        .mac()?;
    let server = &stage.fabric.node(SERVER)?.namespace;
    for family in Family::BOTH {
        let gateway = back_gateway().of(family);
        let mut seen = String::new();
        until("a server to know its gateway", LEARNT, || {
            seen = server
                .ip(&format!("neigh show {gateway}"))
                .unwrap_or_default();
            let is_router = family == Family::V4 || seen.contains("router");
            seen.contains(&mac) && is_router
        })
        .with_context(|| format!("{holder} has {mac}, and {SERVER} knows {seen}"))?;
    }
    Ok(mac)
}
