//! The room of announcement: which VIPs this node may announce on which uplinks, by whom else, and whether it is fit to. Who does
//! announce is the announcer's to decide ([`crate::announce`]), which is told by a plan and tells of this node's part.

mod candidates;
mod indices;
mod known;
mod steady;
mod vips;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_api::{
    AddressClaim, AttachMode, GroupRole, GroupStatus, InterfaceStatus, MAX_GATEWAYS, MacAddress,
    Peer, Reason, Time, UnheldGroup, UnheldReason, is_local_group, parse_vip_group,
};
use sluice_election::{Candidate, Health, Obstacle};
use sluice_planner::{Announced, Mac};

use super::intent::Intent;
use super::io::Effect;
use super::network::Network;
use super::program::{self, Program};
use crate::announce::{Cause, Claimed, Group, GroupState, Peers, Plan, Told, Uplink};
use crate::maps::Group as GroupEntry;
use crate::netlink::{Link, Prefix, is_within};

use indices::Indices;
use known::Known;
use steady::Steady;
pub(super) use vips::Vips;
use vips::{NO_POOL, is_local};
use ways::{Carries, Pool, Way, WayOut};

/// What to do about hosts that claim VIPs. It comes first, since a long message is cut.
const CLAIMED_REMEDY: &str = "take these addresses off the other hosts, or out of the AddressPool; a proxy ARP that answers for \
    all addresses claims VIPs, too";

/// How long programs may take to be attached once everything is known.
const PLACING: Duration = Duration::from_secs(5);

/// The room of announcement.
#[derive(Debug)]
pub(super) struct Announce {
    node: String,
    indices: Indices,
    /// The groups that may be announced here.
    ways: BTreeMap<String, Way>,
    /// The VIPs of each that are announced here.
    vips: BTreeMap<String, Arc<BTreeSet<IpAddr>>>,
    /// VIPs that are to be announced otherwise than the program knows.
    changed: BTreeMap<IpAddr, Option<Announced>>,
    known: Known,
    /// Counts such changes.
    version: u64,
    steady: Steady,
    /// The other directors, and the version of them that this was made of.
    peers: (Arc<Peers>, Option<u64>),
    /// The plan that the announcer has.
    plan: Option<Plan>,
    /// Whether the announcer goes on by what an earlier agent remembered until there is a plan.
    is_remembered: bool,
    /// Since when everything is known and in force.
    in_force_since: Option<Instant>,
    /// What the announcer says.
    told: Told,
    /// Groups for which there is no number.
    unnumbered: usize,
    /// Gateways of NAT servers that are in no uplink's subnet.
    astray: BTreeSet<IpAddr>,
    /// Why nothing can be announced.
    unable: Option<String>,
}

/// Facts about announcement that outlive an agent, or that the user chose.
#[derive(Clone, Debug, Default)]
pub struct AnnounceOptions {
    /// Groups in adopted maps.
    pub adopted: Vec<GroupEntry>,
    /// The VIPs in adopted maps that are answered for.
    pub answered: BTreeSet<IpAddr>,
    /// How long an uplink's path is whole before groups return to this node.
    pub stable_time: Duration,
    /// Whether the announcer goes on by what an earlier agent remembered.
    pub is_remembered: bool,
    /// Why this node can announce nothing, if it cannot.
    pub unable: Option<String>,
}

impl Announce {
    pub(super) fn new(node: &str, options: AnnounceOptions) -> Self {
        Self {
            node: node.to_owned(),
            indices: Indices::new(&options.adopted),
            ways: BTreeMap::new(),
            vips: BTreeMap::new(),
            changed: BTreeMap::new(),
            known: Known::new(options.answered),
            version: 0,
            steady: Steady::new(options.stable_time),
            peers: (Arc::default(), None),
            plan: None,
            is_remembered: options.is_remembered,
            in_force_since: None,
            told: Told::default(),
            unnumbered: 0,
            astray: BTreeSet::new(),
            unable: options.unable,
        }
    }

    /// Works out which VIPs are announced on which uplinks, for the program.
    pub(super) fn prepare(&mut self, intent: &mut Intent, network: &Network) {
        let ways = self.find_ways(intent, network);
        let mut vips = intent.vips.take_changed();
        vips.append(&mut self.known.take_freed());
        let groups: BTreeSet<&String> = ways.keys().chain(self.ways.keys()).collect();
        for group in groups {
            if ways.get(group) != self.ways.get(group) {
                let of_group = intent.vips.groups().get(group);
                vips.extend(of_group.iter().flat_map(|vips| vips.iter()));
            }
        }
        self.ways = ways;
        for vip in vips {
            let group = intent.vips.group_of(vip);
            match group {
                Some(_) => self.known.keep(vip),
                None => self.known.forget(vip),
            }
            let way = group.and_then(|group| self.ways.get(group));
            let announced = way.and_then(|way| way.announced(vip, self.known.is_answered(vip)));
            self.changed.insert(vip, announced);
            self.version += 1;
        }
        self.find_vips(intent);
    }

    /// Works out which VIPs of each group are announced here. What has not changed is shared.
    fn find_vips(&mut self, intent: &Intent) {
        let mut before = std::mem::take(&mut self.vips);
        for (group, way) in &self.ways {
            let Some(decided) = intent.vips.groups().get(group) else {
                continue;
            };
            let mut vips = Arc::clone(decided);
            if way.is_choosy() {
                let here = decided.iter().filter(|vip| way.is_here(**vip));
                vips = Arc::new(here.copied().collect());
            }
            let vips = before
                .remove(group)
                .filter(|known| *known == vips)
                .unwrap_or(vips);
            self.vips.insert(group.clone(), vips);
        }
    }

    fn find_ways(&mut self, intent: &Intent, network: &Network) -> BTreeMap<String, Way> {
        let decided = intent.vips.groups().keys();
        let here = decided.filter_map(|group| Some((group, self.pool_here(intent, group)?)));
        let here: Vec<(&String, Pool<'_>)> = here.collect();
        self.indices.keep(here.iter().map(|(group, _)| *group));
        self.unnumbered = 0;
        self.astray.clear();
        let there = uplinks(intent, network);
        let there = there.map(|(name, at, _, mac)| (name, at, mac, subnets(network, at)));
        let there: Vec<_> = there.collect();
        let mut ways = BTreeMap::new();
        for (group, pool) in here {
            let Some(index) = self.indices.of(group) else {
                self.unnumbered += 1;
                continue;
            };
            let gateways = pool.gateways_of(group);
            let uplinks = there.iter().map(|(name, ifindex, mac, subnets)| {
                let here = gateways.iter().filter(|it| is_within(**it, subnets));
                WayOut {
                    ifindex: *ifindex,
                    mac: *mac,
                    gateways: here.copied().collect(),
                    vips: match (pool.announces_on(name), pool.on_link) {
                        (false, _) => Carries::None,
                        (true, false) => Carries::All,
                        (true, true) => Carries::Within(subnets.clone()),
                    },
                }
            });
            let is_used = |it: &WayOut| it.vips != Carries::None || !it.gateways.is_empty();
            let way = Way {
                index,
                uplinks: uplinks.filter(is_used).collect(),
                gateways,
            };
            let astray = way.gateways.iter().filter(|it| !way.is_here(**it));
            self.astray.extend(astray);
            ways.insert(group.clone(), way);
        }
        ways
    }

    /// The pool of a group, if this node is one of those that may announce it.
    fn pool_here<'a>(&self, intent: &'a Intent, group: &'a str) -> Option<Pool<'a>> {
        let node = intent.node.as_ref()?;
        if !program::is_director(&node.spec) {
            return None;
        }
        let (name, number) = parse_vip_group(group)?;
        let announcing = &intent.announcing;
        if announcing.all_on_link && name == NO_POOL {
            return Some(Pool {
                name,
                l2: None,
                on_link: true,
            });
        }
        let pool = Pool {
            name,
            l2: Some(announcing.pools.get(name)?),
            on_link: false,
        };
        let l2 = pool.l2;
        let has_group = l2.is_some_and(|l2| number < l2.groups || is_local_group(number));
        (has_group && pool.names(&self.node)).then_some(pool)
    }

    /// VIPs that are to be announced otherwise than when this was last called.
    pub(super) fn take_changed(&mut self) -> BTreeMap<IpAddr, Option<Announced>> {
        std::mem::take(&mut self.changed)
    }

    /// Changes whenever [`Self::take_changed`] may have something.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Tells the announcer what is new.
    pub(super) fn turn(
        &mut self,
        (intent, network, program): (&Intent, &Network, &Program),
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let in_force = program.tables.revisions().is_some() && program.tables.failure().is_none();
        let is_able = in_force && self.unable.is_none();
        let attached = program.attachments.uplinks();
        let attached = attached.filter(|uplink| uplink.attach_mode != AttachMode::None);
        let attached: BTreeSet<&str> = attached.map(|uplink| uplink.name.as_str()).collect();
        let whole: BTreeSet<String> = uplinks(intent, network)
            .filter(|(name, ifindex, link, _)| {
                let works = link.up && !network.is_returning(*ifindex);
                is_able && works && attached.contains(name)
            })
            .map(|(name, ..)| name.to_owned())
            .collect();
        self.steady.look(&whole, now);
        self.find_peers(intent);
        let plan = Plan {
            uplinks: planned_uplinks(intent, network),
            peers: Arc::clone(&self.peers.0),
            groups: self.planned_groups(intent, network, &whole, now),
        };
        let is_new = match &self.plan {
            Some(before) => *before != plan,
            None if self.is_remembered => {
                self.replaces_memory(&plan, intent.synced && in_force, now)
            }
            None => !plan.groups.is_empty(),
        };
        if is_new {
            self.plan = Some(plan.clone());
            effects.push(Effect::Announce(Box::new(plan)));
        }
    }

    /// Whether the first plan takes the place of what an earlier agent remembered, by which the announcer goes on: once everything is
    /// in place, or cannot be expected to be any more.
    fn replaces_memory(&mut self, plan: &Plan, is_in_force: bool, now: Instant) -> bool {
        if !is_in_force {
            return false;
        }
        let since = *self.in_force_since.get_or_insert(now);
        let mut groups = plan.groups.values();
        groups.all(|group| group.health == Health::Whole) || now >= since + PLACING
    }

    fn find_peers(&mut self, intent: &Intent) {
        if self.peers.1 == Some(intent.peers_version) {
            return;
        }
        let peer = |peer: &Peer| crate::announce::Peer {
            macs: peer
                .interfaces
                .iter()
                .map(|(name, interface)| (name.clone(), Mac(interface.mac.0)))
                .collect(),
            addresses: peer.addresses.clone(),
        };
        let peers = intent.peers.iter();
        let peers = peers.map(|(name, told)| (name.clone(), peer(told)));
        self.peers = (Arc::new(peers.collect()), Some(intent.peers_version));
    }

    fn planned_groups(
        &self,
        intent: &Intent,
        network: &Network,
        whole: &BTreeSet<String>,
        now: Instant,
    ) -> BTreeMap<String, Group> {
        let mut groups = BTreeMap::new();
        let mut new = self.known.new_by_group(|vip| intent.vips.group_of(vip));
        // All groups of a pool have the same, but for those that only directors with servers may hold.
        let mut of_pools: BTreeMap<&str, Vec<Candidate>> = BTreeMap::new();
        for (name, way) in &self.ways {
            let (Some(vips), Some(pool)) = (self.vips.get(name), self.pool_here(intent, name))
            else {
                continue;
            };
            let before = self.plan.as_ref().and_then(|plan| plan.groups.get(name));
            let of_pool = of_pools.entry(pool.name);
            let of_pool =
                of_pool.or_insert_with(|| self.candidates(intent, network, &pool, (whole, now)));
            let mut candidates = of_pool.clone();
            self.keep_serving(&mut candidates, intent, network, name);
            let candidates = match before.map(|before| &before.candidates) {
                Some(before) if **before == candidates => Arc::clone(before),
                _ => Arc::new(candidates),
            };
            let on: BTreeSet<u32> = way.uplinks.iter().map(|it| it.ifindex).collect();
            let names = uplinks(intent, network).filter(|(_, ifindex, ..)| on.contains(ifindex));
            let mut names = names.map(|(name, ..)| name);
            let carries_vips = way.uplinks.iter().any(|it| it.vips != Carries::None);
            let is_whole = carries_vips && names.all(|name| whole.contains(name));
            let only_gateways = way.uplinks.iter().filter(|it| it.vips == Carries::None);
            let group = Group {
                index: way.index,
                uplinks: on,
                on_link: pool.on_link,
                gateways: way.gateways.clone(),
                only_gateways: only_gateways.map(|it| it.ifindex).collect(),
                vips: Arc::clone(vips),
                new: new.remove(name.as_str()).map_or_else(BTreeSet::new, |new| {
                    new.into_iter().filter(|vip| vips.contains(vip)).collect()
                }),
                candidates,
                health: if is_whole {
                    Health::Whole
                } else {
                    Health::Broken
                },
            };
            groups.insert(name.clone(), group);
        }
        groups
    }

    /// Takes in what the announcer says.
    pub(super) fn tell(&mut self, told: Told) {
        self.known.free(&told.free);
        self.told = told;
    }

    /// Groups that nobody holds, among those that this node watches, for its status.
    pub(super) fn unheld(&self) -> impl Iterator<Item = UnheldGroup> + '_ {
        self.told.unheld.iter().map(|(name, unheld)| UnheldGroup {
            name: name.clone(),
            since: Time(unheld.since),
            reason: unheld.cause.map(|cause| match cause {
                Cause::Obstacle(Obstacle::NoCandidate) if is_local(name) => {
                    UnheldReason::NoLocalServer
                }
                Cause::Obstacle(Obstacle::NoCandidate) => UnheldReason::NoCandidate,
                Cause::Obstacle(Obstacle::LeaseRefused) => UnheldReason::LeaseRefused,
                Cause::Obstacle(Obstacle::NoWitness) => UnheldReason::NoWitness,
                Cause::AddressInUse => UnheldReason::AddressInUse,
            }),
        })
    }

    /// VIPs of held groups for which this node does not answer yet.
    pub(super) fn new_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let held = self.told.groups.iter();
        let held = held.filter(|(_, state)| matches!(state, GroupState::Holder(_)));
        let planned = |group| self.plan.as_ref().and_then(|plan| plan.groups.get(group));
        let held = held.filter_map(move |(group, _)| planned(group));
        held.flat_map(|group| &group.new).copied()
    }

    /// Claims of VIPs, for the status.
    pub(super) fn claims(&self) -> impl Iterator<Item = AddressClaim> + '_ {
        self.told
            .strangers
            .iter()
            .map(|(stranger, claimed)| AddressClaim {
                address: stranger.address,
                interface: stranger.uplink.clone(),
                mac_address: MacAddress(stranger.mac.0),
                withheld: *claimed == Claimed::Withheld,
            })
    }

    /// The same in words, with the remedy.
    pub(super) fn claimed(&self) -> (Reason, Vec<String>) {
        let claims = self.told.strangers.iter().map(|(stranger, claimed)| {
            let (address, uplink, mac) = (stranger.address, &stranger.uplink, stranger.mac);
            match claimed {
                Claimed::Defended => {
                    format!("{address} is claimed by {mac} on {uplink}, which is no director")
                }
                Claimed::Withheld => {
                    format!(
                        "{address} is not announced: {mac} on {uplink} has it, which is no director"
                    )
                }
            }
        });
        let mut texts: Vec<String> = claims.collect();
        if !texts.is_empty() {
            texts.insert(0, CLAIMED_REMEDY.to_owned());
        }
        let mut claims = self.told.strangers.values();
        let reason = if claims.any(|claimed| *claimed == Claimed::Withheld) {
            Reason::AddressInUse
        } else {
            Reason::AnsweredElsewhere
        };
        (reason, texts)
    }

    /// This node's part in groups, for its status.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupStatus> + '_ {
        self.told.groups.iter().filter_map(|(name, state)| {
            let (role, authority) = match state {
                GroupState::Holder(sluice_election::Authority::Lease) => {
                    (GroupRole::Holder, Some(sluice_api::Authority::Lease))
                }
                GroupState::Holder(sluice_election::Authority::Peers) => {
                    (GroupRole::Holder, Some(sluice_api::Authority::Peers))
                }
                GroupState::Candidate => (GroupRole::Candidate, None),
                GroupState::Bystander(_) => return None,
            };
            Some(GroupStatus {
                name: name.clone(),
                role,
                authority,
            })
        })
    }

    /// An uplink with what others must know of it.
    pub(super) fn told_uplink(
        &self,
        uplink: &InterfaceStatus,
        network: &Network,
        now: Instant,
    ) -> InterfaceStatus {
        let link = network.table().link_by_name(&uplink.name);
        let mac = link.and_then(|(_, link)| link.mac);
        let gateways = link.map(|(ifindex, _)| network.gateways_through(ifindex));
        let gateways: BTreeSet<IpAddr> = gateways.into_iter().flatten().collect();
        InterfaceStatus {
            mac_address: mac.map(|mac| MacAddress(mac.0)),
            gateways: gateways.into_iter().take(MAX_GATEWAYS).collect(),
            steady: self.steady.is(&uplink.name, now),
            ..uplink.clone()
        }
    }

    /// Why something is not announced that should be.
    pub(super) fn problem(&self) -> Option<String> {
        if let Some(unable) = &self.unable {
            return Some(format!("VIPs are not announced here: {unable}"));
        }
        if let Some(gateway) = self.astray.first() {
            return Some(format!(
                "the VIPs of an AddressPool with the gateway {gateway} are not announced here: give an uplink an address in the \
                 gateway's network, or leave this node out by the pool's spec.announce.l2.nodeSelector"
            ));
        }
        (self.unnumbered > 0).then(|| {
            format!(
                "{} VIP groups are not announced here: a node takes part in {} at most, have fewer with spec.announce.l2.groups",
                self.unnumbered,
                sluice_abi::MAX_GROUPS
            )
        })
    }

    /// When something changes by itself.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let placed = self.in_force_since.map(|since| since + PLACING);
        let placed = placed.filter(|_| self.plan.is_none());
        placed.into_iter().chain(self.steady.deadline(now)).min()
    }
}

/// The uplinks that are there and have an Ethernet address: name, index, link and that address.
fn uplinks<'a>(
    intent: &'a Intent,
    network: &'a Network,
) -> impl Iterator<Item = (&'a str, u32, &'a Link, Mac)> {
    intent.interfaces().filter_map(|name| {
        let (ifindex, link) = network.table().link_by_name(name)?;
        Some((name, ifindex, link, link.mac?))
    })
}

fn planned_uplinks(intent: &Intent, network: &Network) -> BTreeMap<u32, Uplink> {
    let names = intent.interfaces();
    let planned = names.filter_map(|name| Uplink::find(name, network.table(), network.gateways()));
    planned.collect()
}

/// The subnets of an uplink and of what is on top of it.
fn subnets(network: &Network, ifindex: u32) -> Vec<Prefix> {
    let table = network.table();
    table.subnets(&table.stacked_on([ifindex]))
}
