//! Answers that come from somewhere else than from the VIP that was asked.
//!
//! Sockets are connected, so that no client takes them for answers. They are counted where they arrive.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::net::address::Family;
use crate::net::counter::{Counters, Direction};
use crate::net::fabric::{DIRECTORS, Fabric, UPLINK, from_vips, header, not_from_vips};
use crate::net::lab::Mode;

use super::history::{Disturbance, History};
use super::service::{Addresses, SPARE_PORT};
use super::verdict::Verdict;

/// From one look to the next.
const LOOK: Duration = Duration::from_secs(1);
/// How long servers may go on with connections that a director has forgotten, or that are no longer theirs.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// Under what packets are counted that come from neither a VIP nor a server, or from another port.
const OTHERS: &str = "other";

/// Counters at the client.
#[derive(Debug)]
pub(super) struct Strays {
    looked: Duration,
    /// Packets so far, by the name of the mode whose servers sent them.
    seen: BTreeMap<String, u64>,
}

impl Strays {
    /// Begins to count.
    pub(super) fn count(fabric: &Fabric, addresses: &Addresses) -> Result<Self> {
        let mut rules = Vec::new();
        for family in Family::BOTH {
            let (header, version) = (header(family), if family == Family::V4 { 4 } else { 6 });
            let list = |modes: &[Mode]| {
                let servers = modes.iter().flat_map(|mode| mode.servers());
                let servers = servers.filter_map(|name| addresses.get(name));
                let servers: Vec<_> = servers.map(|a| a.of(family).to_string()).collect();
                format!("{{ {} }}", servers.join(", "))
            };
            let transport = "meta l4proto { tcp, udp }";
            for mode in Mode::ALL {
                let name = mode.virtual_server();
                let rule = format!("{header} saddr {} {transport}", list(&[mode]));
                rules.push((format!("{name}{version}"), rule));
            }
            let servers = list(&Mode::ALL);
            let strangers = format!("{} {header} saddr != {servers}", not_from_vips(family));
            rules.push((format!("{OTHERS}{version}"), strangers));
            let ports = format!("{{ 80, {SPARE_PORT} }}");
            let wrong_port = format!("{} {transport} th sport != {ports}", from_vips(family));
            rules.push((format!("{OTHERS}_port{version}"), wrong_port));
        }
        let rules = rules
            .iter()
            .map(|(name, rule)| (name.as_str(), Direction::In, rule.as_str()));
        Counters::install(fabric.client().port(UPLINK), &rules.collect::<Vec<_>>())?;
        Ok(Self {
            looked: Duration::ZERO,
            seen: BTreeMap::new(),
        })
    }

    /// Looks once a second what has come.
    pub(super) fn look(
        &mut self,
        now: Duration,
        fabric: &Fabric,
        history: &History,
        verdict: &mut Verdict,
    ) -> Result<()> {
        if now < self.looked + LOOK {
            return Ok(());
        }
        let from = std::mem::replace(&mut self.looked, now).saturating_sub(FORGOTTEN);
        let seen = Counters::of(fabric.client().port(UPLINK)).all()?;
        for (name, packets) in &seen {
            let new = packets - self.seen.get(name).unwrap_or(&0);
            let sender = name.trim_end_matches(['4', '6']);
            let mode = Mode::ALL
                .into_iter()
                .find(|mode| mode.virtual_server() == sender);
            let excuses = |d| mode.is_some_and(|mode| excuses(mode, d));
            if new > 0 && history.touched(from, now, excuses) {
                verdict.strays_excused += new;
            } else if new > 0 {
                verdict.breaks(tell(new, name, now, history));
            }
        }
        self.seen = seen;
        Ok(())
    }
}

/// Whether servers of a mode may send in their own names after that: their connections are lost, and they do not know it yet.
fn excuses(mode: Mode, disturbance: Disturbance) -> bool {
    match disturbance {
        Disturbance::ServerOut(name) => mode.servers().contains(&name),
        Disturbance::Lost(director) => mode == Mode::Nat && director == DIRECTORS[0],
        _ => false,
    }
}

fn tell(packets: u64, from: &str, now: Duration, history: &History) -> String {
    let before: Vec<_> = history.told(now, FORGOTTEN).collect();
    let (now, before) = (now.as_secs_f64(), before.join("\n    "));
    format!("- {now:.1} s, {packets} packets of the kind {from:?} came to the client\n    {before}")
}
