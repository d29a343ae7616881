//! VIP groups: who holds each, by its Lease and by what the nodes say.
//!
//! Both may lag. A Lease names the node that may hold the group; the node's status says whether it does. Where they differ, both
//! are told. What a silent node said last does not count.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::coordination::v1::Lease;
use serde::Serialize;
use sluice_api::{
    Authority, DecidedVirtualServer, Time, UnheldGroup, UnheldReason, group_of_lease,
    parse_vip_group,
};
use sluice_kube::lease::LeaseFacts;

use super::Objects;
use super::nodes::Nodes;

/// Who announces an address.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct AnnouncementView {
    /// The address.
    pub address: IpAddr,
    /// Its address pool; absent: nobody is to announce it.
    pub pool: Option<String>,
    /// Its VIP group; absent: nobody is to announce it.
    pub group: Option<String>,
    /// The node that the group's Lease names; where Leases may not be listed, the one that says that it holds the group.
    pub holder: Option<String>,
    /// The nodes whose status says that they hold the group, those that are silent aside; absent: nodes may not be listed.
    pub holding_nodes: Option<Vec<String>>,
    /// When the holder got the Lease, by its own clock; where nobody holds the group, since when nobody answers, by the clock of the
    /// first that says so.
    pub since: Option<Time>,
    /// Seconds from then on, by the API server's clock; 0 where that is behind.
    pub held_seconds: Option<u64>,
    /// The nodes that hear nobody answer for the group's addresses.
    pub unheld_by: Vec<UnheldView>,
    /// By what the holder holds the group, as it says.
    pub authority: Option<Authority>,
    /// What all of this comes to.
    pub state: HoldState,
    /// What is amiss; absent: nothing.
    pub message: Option<String>,
}

/// A node that hears nobody answer for a group's addresses.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct UnheldView {
    /// The node.
    pub node: String,
    /// Since when, by its own clock.
    pub since: Time,
    /// Why, as far as it knows.
    pub reason: Option<UnheldReason>,
}

/// Whether a VIP group has a holder.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldState {
    /// The holder says that it holds the group: it answers for the addresses.
    Armed,
    /// The holder renews the Lease; nodes may not be listed.
    Renewed,
    /// The Lease names a node that does not say that it holds the group yet.
    TakingOver,
    /// Another node than the holder says that it holds the group.
    Contested,
    /// The Lease was not renewed in time.
    Expired,
    /// The Lease names nobody, or nodes hear nobody answer for the group's addresses.
    NoHolder,
    /// Nobody is to announce the address.
    NotAnnounced,
    /// Neither Leases nor nodes may be listed.
    Unknown,
}

/// The Leases of VIP groups, dated by the API server's clock.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupLeases {
    now: i64,
    by_group: BTreeMap<String, GroupLease>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct GroupLease {
    created: Option<Time>,
    holder: Option<String>,
    since: Option<Time>,
    written: Option<i64>,
    duration: i64,
}

impl GroupLeases {
    /// Reads Leases. `now` is in seconds since 1970, not later than when they were read; without it the newest Lease tells how
    /// late it is at least.
    pub fn new(leases: Vec<Lease>, now: Option<i64>) -> Self {
        let mut by_group: BTreeMap<String, GroupLease> = BTreeMap::new();
        for lease in leases {
            let name = lease.metadata.name.as_deref();
            let Some(group) = name.and_then(group_of_lease) else {
                continue;
            };
            let (group, lease) = (group.to_owned(), GroupLease::of(lease));
            // Anybody may make one of this name in a namespace of his own. Sluice's was there before.
            let known = by_group.get(&group);
            if known.is_none_or(|known| lease.is_older_than(known)) {
                by_group.insert(group, lease);
            }
        }
        let newest = by_group.values().filter_map(|lease| lease.written).max();
        Self {
            now: now.or(newest).unwrap_or_default(),
            by_group,
        }
    }

    fn seconds_from(&self, time: &Time) -> u64 {
        u64::try_from(self.now - time.0.as_second()).unwrap_or_default()
    }

    fn of(&self, group: &str) -> ByLease {
        let Some(lease) = self.by_group.get(group) else {
            return ByLease::default();
        };
        let age = lease.written.map(|written| self.now - written);
        let is_late = |age: &i64| *age > lease.duration;
        ByLease {
            holder: lease.holder.clone(),
            since: lease.since.clone(),
            held_seconds: lease.since.as_ref().map(|since| self.seconds_from(since)),
            late: age.filter(is_late).map(|age| (age, lease.duration)),
        }
    }
}

impl GroupLease {
    fn of(lease: Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        let since = spec.acquire_time.filter(|_| holder.is_some());
        Self {
            created: lease.metadata.creation_timestamp.clone().map(|t| Time(t.0)),
            since: since.map(|time| Time(time.0)),
            duration: spec.lease_duration_seconds.unwrap_or_default().into(),
            written: LeaseFacts::of(lease).written,
            holder,
        }
    }

    fn is_older_than(&self, other: &Self) -> bool {
        let created = |lease: &Self| lease.created.as_ref().map(|time| time.0);
        match (created(self), created(other)) {
            (Some(mine), Some(others)) => mine < others,
            (mine, _) => mine.is_some(),
        }
    }
}

/// What a group's Lease says.
#[derive(Clone, Default)]
struct ByLease {
    holder: Option<String>,
    since: Option<Time>,
    held_seconds: Option<u64>,
    /// Seconds since the last renewal, and for how many it counts, if it counts no longer.
    late: Option<(i64, i64)>,
}

/// What nodes say of a group: those that hold it, and by what.
type Said = BTreeMap<String, Option<Authority>>;

/// What is known of all VIP groups.
pub(super) struct Groups<'a> {
    /// `None`: Leases may not be listed.
    leases: Option<&'a GroupLeases>,
    /// `None`: nodes may not be listed.
    said: Option<BTreeMap<String, Said>>,
    unheld: BTreeMap<String, Vec<UnheldView>>,
}

impl<'a> Groups<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        let said = objects.known_nodes().map(|nodes| {
            let mut said: BTreeMap<String, Said> = BTreeMap::new();
            for (node, group) in nodes.held() {
                let of_group = said.entry(group.name).or_default();
                of_group.insert(node, group.authority);
            }
            said
        });
        let mut unheld: BTreeMap<String, Vec<UnheldView>> = BTreeMap::new();
        for (node, group) in objects.known_nodes().iter().flat_map(Nodes::unheld) {
            let UnheldGroup {
                name,
                since,
                reason,
            } = group;
            unheld.entry(name).or_default().push(UnheldView {
                node,
                since,
                reason,
            });
        }
        Self {
            leases: objects.group_leases.as_ref(),
            said,
            unheld,
        }
    }

    /// Who announces the addresses of a virtual server, in its order.
    pub(super) fn announcements(&self, decided: &DecidedVirtualServer) -> Vec<AnnouncementView> {
        let group_of = |address| {
            let group = decided.groups.iter().find(|entry| entry.address == address);
            group.map(|entry| entry.group.as_str())
        };
        let addresses = decided.addresses.iter().copied();
        let announcement = |address| match group_of(address) {
            Some(group) => self.announcement(address, group),
            None => AnnouncementView::of(address, HoldState::NotAnnounced),
        };
        addresses.map(announcement).collect()
    }

    fn announcement(&self, address: IpAddr, group: &str) -> AnnouncementView {
        let said = self.said.as_ref();
        let said = said.map(|said| said.get(group).cloned().unwrap_or_default());
        let by_lease = self.leases.map(|leases| leases.of(group));
        let (state, message) = judge(group, by_lease.as_ref(), said.as_ref());
        let alone = said.as_ref().filter(|said| said.len() == 1);
        let alone = alone.and_then(|said| said.keys().next().cloned());
        let lease = by_lease.clone().unwrap_or_default();
        let holder = match by_lease {
            Some(lease) => lease.holder,
            None => alone,
        };
        let says = holder.as_ref().zip(said.as_ref());
        let unheld_by = self.unheld.get(group).cloned().unwrap_or_default();
        let (state, message) = hear(group, (state, message), &unheld_by);
        let first = unheld_by.iter().map(|it| &it.since).min();
        let unheld_since = first.filter(|_| state == HoldState::NoHolder);
        let (since, held_seconds) = match unheld_since {
            Some(since) => {
                let seconds = self.leases.map(|leases| leases.seconds_from(since));
                (Some(since.clone()), seconds)
            }
            None => (lease.since, lease.held_seconds),
        };
        AnnouncementView {
            pool: parse_vip_group(group).map(|(pool, _)| pool.to_owned()),
            group: Some(group.to_owned()),
            authority: says.and_then(|(holder, said)| *said.get(holder)?),
            holding_nodes: said.map(|said| said.into_keys().collect()),
            since,
            held_seconds,
            unheld_by,
            message,
            holder,
            ..AnnouncementView::of(address, state)
        }
    }
}

impl AnnouncementView {
    const fn of(address: IpAddr, state: HoldState) -> Self {
        Self {
            address,
            pool: None,
            group: None,
            holder: None,
            holding_nodes: None,
            since: None,
            held_seconds: None,
            unheld_by: Vec::new(),
            authority: None,
            state,
            message: None,
        }
    }
}

/// What it comes to, and what is amiss, with what nodes hear. One that hears nobody at all proves nothing.
fn hear(
    group: &str,
    (state, message): (HoldState, Option<String>),
    unheld_by: &[UnheldView],
) -> (HoldState, Option<String>) {
    let hears = |it: &UnheldView| it.reason != Some(UnheldReason::NoWitness);
    let Some(first) = unheld_by.iter().map(|it| &it.since).min() else {
        return (state, message);
    };
    let nodes = unheld_by.iter().map(|it| match it.reason {
        Some(reason) => format!("{} ({reason:?})", it.node),
        None => it.node.clone(),
    });
    let nodes: Vec<String> = nodes.collect();
    let verb = if nodes.len() == 1 { "hears" } else { "hear" };
    let nodes = nodes.join(" and ");
    let text = format!("{nodes} {verb} nobody answer for {group} since {}", first.0);
    let message = message.map_or(text.clone(), |message| format!("{message}; {text}"));
    let is_unheld = unheld_by.iter().any(hears) || state == HoldState::Expired;
    let state = if is_unheld {
        HoldState::NoHolder
    } else {
        state
    };
    (state, Some(message))
}

/// What the two come to, and what is amiss.
fn judge(group: &str, lease: Option<&ByLease>, said: Option<&Said>) -> (HoldState, Option<String>) {
    let list = |nodes: &[&String]| {
        let nodes: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
        nodes.join(" and ")
    };
    let says = |nodes: &[&String]| match nodes {
        [node] => format!("{node} says that it holds it"),
        nodes => format!("{} say that they hold it", list(nodes)),
    };
    let all: Vec<&String> = said.into_iter().flat_map(BTreeMap::keys).collect();
    let Some(lease) = lease else {
        return match (said, all.as_slice()) {
            (None, _) => (HoldState::Unknown, None),
            (_, []) => (
                HoldState::NoHolder,
                Some(format!("no node says that it holds {group}")),
            ),
            (_, [_]) => (HoldState::Armed, None),
            (_, nodes) => {
                let text = format!("{} say that they hold {group}", list(nodes));
                (HoldState::Contested, Some(text))
            }
        };
    };
    let Some(holder) = &lease.holder else {
        let mut text = format!("the Lease of {group} names nobody");
        if !all.is_empty() {
            text = format!("{text}; {}", says(&all));
        }
        return (HoldState::NoHolder, Some(text));
    };
    let others: Vec<&String> = all.iter().copied().filter(|node| *node != holder).collect();
    if let Some((age, duration)) = lease.late {
        let mut text = format!(
            "the Lease of {group} names {holder}, counts for {duration} s and was last renewed {age} s ago"
        );
        if !others.is_empty() {
            text = format!("{text}; {}", says(&others));
        }
        return (HoldState::Expired, Some(text));
    }
    let does_hold = said.map(|said| said.contains_key(holder));
    match (does_hold, others.as_slice()) {
        (None, _) => (HoldState::Renewed, None),
        (Some(true), []) => (HoldState::Armed, None),
        (Some(false), []) => {
            let text = format!(
                "the Lease of {group} names {holder}, which does not say yet that it holds it"
            );
            (HoldState::TakingOver, Some(text))
        }
        (Some(true), others) => {
            let text = format!("the Lease of {group} names {holder}; {}, too", says(others));
            (HoldState::Contested, Some(text))
        }
        (Some(false), others) => {
            let text = format!("the Lease of {group} names {holder}, but {}", says(others));
            (HoldState::Contested, Some(text))
        }
    }
}
