//! Settings of the node's network that keep packets from being served though everything else is in place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sluice_abi::ForwardingMode as RecordMode;
use sluice_abi::Path;
use sluice_api::ForwardingMode;
use sluice_planner::{Image, Planner};

use super::intent::Intent;
use super::io::Effect;
use super::network::Network;
use super::program::{Program, is_director};
use crate::netlink::{Medium, Settings};

/// Time between two looks at the settings: the kernel tells of no change.
const LOOK: Duration = Duration::from_secs(10);

/// What is wrong with the settings, in words.
#[derive(Debug, Default)]
pub(super) struct Advice {
    looked_at: Option<Instant>,
    waiting: bool,
    complaints: Vec<String>,
}

impl Advice {
    /// Has the settings of the uplinks read when that is due. It comes with any turn.
    pub(super) fn turn(&mut self, intent: &Intent, now: Instant, effects: &mut Vec<Effect>) {
        if self.waiting || self.looked_at.is_some_and(|at| now < at + LOOK) {
            return;
        }
        let uplinks: Vec<String> = intent.interfaces().map(str::to_owned).collect();
        if !uplinks.is_empty() {
            self.looked_at = Some(now);
            self.waiting = true;
            effects.push(Effect::ReadSettings(uplinks));
        }
    }

    /// Takes in settings of uplinks, by name.
    pub(super) fn settings_read(
        &mut self,
        settings: &BTreeMap<String, Settings>,
        (intent, network, program): (&Intent, &Network, &Program),
    ) {
        self.waiting = false;
        self.complaints = complaints(settings, intent, network, program);
    }

    /// Whether the rooms after this one have to wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    pub(super) fn complaints(&self) -> &[String] {
        &self.complaints
    }
}

fn complaints(
    settings: &BTreeMap<String, Settings>,
    intent: &Intent,
    network: &Network,
    program: &Program,
) -> Vec<String> {
    let planner = program.tables.planner().read();
    let node = intent.node.as_ref();
    let director = node.is_some_and(|node| is_director(&node.spec));
    let returning = director.then(|| families_with_replies(&planner));
    let returning = returning.unwrap_or_default();
    let mut complaints = Vec::new();
    for (name, settings) in settings {
        let link = network.table().link_by_name(name);
        let Some((ifindex, _)) = link.filter(|(_, link)| link.medium == Medium::Ethernet) else {
            continue;
        };
        complaints.extend(of_forwarding(name, *settings, &returning));
        let is_way_out = network.has_gateway(ifindex);
        if settings.sends_redirects == Some(true)
            && is_way_out
            && has_record(planner.image(), |path, mode, leads| {
                path == Path::Xdp && mode == Some(RecordMode::Nat) && leads == ifindex
            })
        {
            complaints.push(format!(
                "{name} sends ICMP redirects on the network of a router and of NAT servers, which then answer past this \
                 node: set net.ipv4.conf.all.send_redirects and net.ipv4.conf.{name}.send_redirects to 0"
            ));
        }
        if settings.filters_strictly == Some(true)
            && !is_way_out
            && network.has_gateways()
            && has_record(planner.image(), |path, _, _| path == Path::Local)
        {
            complaints.push(format!(
                "{name} drops packets whose way back leads through another interface, such as those of clients beyond the \
                 default route to servers of this node: set net.ipv4.conf.all.rp_filter and \
                 net.ipv4.conf.{name}.rp_filter to 2"
            ));
        }
    }
    complaints
}

/// Of the families in which replies come back.
fn of_forwarding(name: &str, settings: Settings, returning: &BTreeSet<bool>) -> Vec<String> {
    let families = [
        (false, settings.forwards_v4, "net.ipv4.ip_forward"),
        (true, settings.forwards_v6, "net.ipv6.conf.all.forwarding"),
    ];
    let off = families
        .into_iter()
        .filter(|(ipv6, forwards, _)| *forwards == Some(false) && returning.contains(ipv6));
    let complaint = |(ipv6, _, remedy): (bool, Option<bool>, &str)| {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        format!(
            "{name} does not forward {family}, so replies of NAT and FullNAT servers are dropped as no_route: set {remedy} \
             to 1"
        )
    };
    off.map(complaint).collect()
}

/// The families in which servers' replies come back through this node: whether it is IPv6.
fn families_with_replies(planner: &Planner) -> BTreeSet<bool> {
    let served = planner.served_modes();
    let returning =
        served.filter(|(_, mode)| matches!(mode, ForwardingMode::Nat | ForwardingMode::FullNat));
    returning.map(|(at, _)| at.address.is_ipv6()).collect()
}

/// Whether a server is in the maps for which this holds: by its path, its mode and the interface that leads there.
fn has_record(image: &Image, holds: impl Fn(Path, Option<RecordMode>, u32) -> bool) -> bool {
    let mut present = image.servers.values().filter(|word| word.present());
    present.any(|word| {
        let record = image.records.get(&word.slot());
        record.is_some_and(|record| holds(word.path(), record.facts.mode(), record.ifindex))
    })
}
