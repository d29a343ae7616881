//! Four virtual servers, one per forwarding mode.

use anyhow::{Result, ensure};
use sluice_tests::net::fabric::{
    DIRECTORS, Fabric, client_sources, from_vips, vip_of_both, vip_of_one,
};
use sluice_tests::net::sluice::Sluice;
use sluice_tests::net::{Counters, Direction, Dual, Family, Protocol, Share};

use super::manifest;
use super::report::{Report, line};

/// Connections or UDP flows per line that is shown.
const FLOWS: usize = 400;
/// Allowed deviation of a spread, in standard deviations.
const DEVIATIONS: f64 = 3.5;

/// One mode's virtual server, as its manifest describes it.
struct Shown {
    name: &'static str,
    what: &'static str,
    vip: Dual,
    pools: &'static [(&'static str, u32)],
    servers: [&'static str; 2],
    replies_through_director: bool,
}

const VIRTUAL_SERVERS: [Shown; 4] = [
    Shown {
        name: "nat",
        what: "NAT: destination rewritten, replies return through director-1",
        vip: vip_of_one(10),
        pools: &[("nat", 1)],
        servers: ["nat-1", "nat-2"],
        replies_through_director: true,
    },
    Shown {
        name: "fullnat",
        what: "FullNAT: source and destination rewritten, replies return through director-1",
        vip: vip_of_one(20),
        pools: &[("fullnat", 1)],
        servers: ["fullnat-1", "fullnat-2"],
        replies_through_director: true,
    },
    Shown {
        name: "dr",
        what: "DR: MAC addresses rewritten by both directors, replies go straight to the client",
        vip: vip_of_both(30),
        pools: &[("dr", 1)],
        servers: ["dr-1", "dr-2"],
        replies_through_director: false,
    },
    Shown {
        name: "tun",
        what: "TUN: IP in IP by both directors, replies go straight to the client",
        vip: vip_of_both(40),
        pools: &[("tun-v1", 100), ("tun-v2", 0)],
        servers: ["tun-1", "tun-2"],
        replies_through_director: false,
    },
];

/// Applies each manifest and shows who answers.
pub(crate) fn show(report: &mut Report, fabric: &Fabric, sluice: &mut Sluice) -> Result<()> {
    let counters = count_replies(fabric)?;
    for shown in &VIRTUAL_SERVERS {
        report.step(shown.what);
        sluice.apply_text(shown.name, &manifest(shown.name)?)?;
        sluice.await_weights(shown.name, shown.pools)?;
        let [v4, v6] = Family::BOTH.map(|family| shown.vip.of(family));
        line("manifest", &format!("examples/demo/{}.yaml", shown.name));
        line("VIPs", &format!("{v4}  {v6}  port 80"));
        let before = replies(&counters)?;
        for family in Family::BOTH {
            for protocol in Protocol::BOTH {
                ask(report, fabric, shown, family, protocol);
            }
        }
        let replies = replies(&counters)? - before;
        report.check(
            &format!("{replies} packets from the VIP left the directors"),
            expect_way_back(shown, replies),
        );
    }
    Ok(())
}

fn ask(report: &mut Report, fabric: &Fabric, shown: &Shown, family: Family, protocol: Protocol) {
    let sources = client_sources(family, 1, FLOWS);
    let target = shown.vip.socket(family, 80);
    let what = format!("{family} {protocol}");
    match protocol.ask_from_each(fabric.client(), &sources, target) {
        Ok(spread) => {
            let even = spread.expect(&Share::equal(&shown.servers), DEVIATIONS);
            report.check(&format!("{what}: {spread}"), even);
        }
        Err(error) => report.check(&what, Err(error)),
    }
}

/// Far ends of the directors' links: on the directors themselves nftables sees nothing that XDP takes.
fn count_replies(fabric: &Fabric) -> Result<Vec<Counters<'_>>> {
    let rules =
        [("v4", Family::V4), ("v6", Family::V6)].map(|(name, family)| (name, from_vips(family)));
    let rules: Vec<_> = rules
        .iter()
        .map(|(name, expression)| (*name, Direction::In, expression.as_str()))
        .collect();
    DIRECTORS
        .iter()
        .map(|director| fabric.count_beyond(director, &rules))
        .collect()
}

fn replies(counters: &[Counters<'_>]) -> Result<u64> {
    let mut sum = 0;
    for counter in counters {
        sum += counter.packets("v4")? + counter.packets("v6")?;
    }
    Ok(sum)
}

fn expect_way_back(shown: &Shown, replies: u64) -> Result<()> {
    if shown.replies_through_director {
        ensure!(replies > 0, "the replies took another way");
    } else {
        ensure!(replies == 0, "replies came by the directors");
    }
    Ok(())
}
