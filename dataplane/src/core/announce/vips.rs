//! The VIPs of each group, kept up by changes of decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_api::{
    AddressGroup, DEFAULT_POOL_GROUPS, DecidedL2, DecidedVirtualServer, ExternalTrafficPolicy,
    FIRST_LOCAL_GROUP, MAX_LOCAL_GROUPS, ObjectKey, is_local_group, parse_vip_group, vip_group,
};

/// Stands for a pool in the names of groups of VIPs that have none.
pub(in crate::core) const NO_POOL: &str = "link";

/// The VIPs of each group, gateways of NAT servers among them. A VIP that several virtual servers share is in the group that the first of them says; they all say the
/// same.
#[derive(Debug, Default)]
pub(in crate::core) struct Vips {
    decided: BTreeMap<ObjectKey, Decided>,
    /// Whether VIPs without a group have one too, by their addresses.
    groups_all: bool,
    says: BTreeMap<IpAddr, BTreeMap<ObjectKey, String>>,
    groups: BTreeMap<String, Arc<BTreeSet<IpAddr>>>,
    /// Gateways of NAT servers, with their pools.
    gateways: BTreeSet<(ObjectKey, IpAddr)>,
    /// VIPs whose group is another one since this was last taken.
    changed: BTreeSet<IpAddr>,
}

/// What was decided of a virtual server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Decided {
    /// Its VIPs, with their groups.
    vips: BTreeMap<IpAddr, Option<String>>,
    /// If only nodes with a server of these pools may announce the VIPs: the pools.
    local: Option<Vec<ObjectKey>>,
}

impl Decided {
    fn of(key: &ObjectKey, decision: &DecidedVirtualServer) -> Self {
        let vips = decision.addresses.iter().map(|vip| (*vip, None));
        let mut vips: BTreeMap<IpAddr, Option<String>> = vips.collect();
        for AddressGroup { address, group } in &decision.groups {
            vips.insert(*address, Some(group.clone()));
        }
        let is_local = decision.external_traffic_policy == ExternalTrafficPolicy::Local;
        let pools = decision.pools.iter().filter(|pool| pool.weight > 0);
        let pools = pools.map(|pool| key.sibling(&pool.name));
        Self {
            vips,
            local: is_local.then(|| pools.collect()),
        }
    }
}

impl Vips {
    /// Takes in the decision on a virtual server; `None`: there is none any more.
    pub(in crate::core) fn set(
        &mut self,
        key: &ObjectKey,
        decision: Option<&DecidedVirtualServer>,
    ) {
        let now = decision.map_or_else(Decided::default, |decision| Decided::of(key, decision));
        let before = self.decided.remove(key).unwrap_or_default();
        if before != now {
            for vip in before.vips.into_keys() {
                self.say(key, vip, None);
            }
            self.say_all(key, &now);
        }
        if !now.vips.is_empty() {
            self.decided.insert(key.clone(), now);
        }
    }

    fn say_all(&mut self, key: &ObjectKey, decided: &Decided) {
        for (vip, group) in &decided.vips {
            let own = || own_group(*vip, decided.local.is_some());
            let group = group.clone().or_else(|| self.groups_all.then(own));
            self.say(key, *vip, group);
        }
    }

    /// Whether VIPs that have no group by a decision have one by their addresses.
    pub(in crate::core) fn group_all(&mut self, groups_all: bool) {
        if std::mem::replace(&mut self.groups_all, groups_all) == groups_all {
            return;
        }
        for (key, decided) in self.decided.clone() {
            self.say_all(&key, &decided);
        }
    }

    /// Takes in the gateways of NAT servers of the pools, which move as VIPs do: those of a pool are in its first group.
    pub(in crate::core) fn set_gateways(&mut self, pools: &BTreeMap<String, DecidedL2>) {
        let gateways = pools.iter().flat_map(|(pool, l2)| {
            let gateways = l2.gateways.iter();
            gateways.map(move |gateway| (ObjectKey::new("", pool.as_str()), *gateway))
        });
        let gateways: BTreeSet<(ObjectKey, IpAddr)> = gateways.collect();
        let before = std::mem::replace(&mut self.gateways, gateways.clone());
        for (pool, gateway) in before.difference(&gateways) {
            self.say(pool, *gateway, None);
        }
        for (pool, gateway) in gateways.difference(&before) {
            self.say(pool, *gateway, Some(vip_group(&pool.name, 0)));
        }
    }

    fn say(&mut self, key: &ObjectKey, address: IpAddr, group: Option<String>) {
        let before = self.group_of(address).map(str::to_owned);
        let says = self.says.entry(address).or_default();
        match group {
            Some(group) => says.insert(key.clone(), group),
            None => says.remove(key),
        };
        if says.is_empty() {
            self.says.remove(&address);
        }
        let after = self.group_of(address).map(str::to_owned);
        if before == after {
            return;
        }
        self.changed.insert(address);
        if let Some(before) = before
            && let Some(vips) = self.groups.get_mut(&before)
        {
            Arc::make_mut(vips).remove(&address);
            if vips.is_empty() {
                self.groups.remove(&before);
            }
        }
        if let Some(after) = after {
            let vips = self.groups.entry(after).or_default();
            Arc::make_mut(vips).insert(address);
        }
    }

    /// The group of a VIP.
    pub(in crate::core) fn group_of(&self, vip: IpAddr) -> Option<&str> {
        let says = self.says.get(&vip)?;
        says.values().next().map(String::as_str)
    }

    /// For each virtual server that has a VIP of a group, the pools of which a node must have a server to announce it. None: every
    /// director may.
    pub(in crate::core) fn local_pools(&self, group: &str) -> Vec<&[ObjectKey]> {
        if !is_local(group) {
            return Vec::new();
        }
        let vips = self.groups.get(group).into_iter().flat_map(|vips| &**vips);
        let keys = vips.flat_map(|vip| self.says.get(vip).into_iter().flat_map(BTreeMap::keys));
        let keys: BTreeSet<&ObjectKey> = keys.collect();
        let decided = keys.into_iter().filter_map(|key| self.decided.get(key));
        decided.filter_map(|it| it.local.as_deref()).collect()
    }

    /// The groups that have VIPs.
    pub(in crate::core) fn groups(&self) -> &BTreeMap<String, Arc<BTreeSet<IpAddr>>> {
        &self.groups
    }

    /// VIPs whose group is another one since they were last taken.
    pub(in crate::core) fn take_changed(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.changed)
    }
}

/// Whether only directors with servers of its virtual server may hold the group of this name.
pub(super) fn is_local(group: &str) -> bool {
    parse_vip_group(group).is_some_and(|(_, number)| is_local_group(number))
}

/// The group of a VIP that no pool has: the same on every node.
fn own_group(vip: IpAddr, is_local: bool) -> String {
    let (first, count) = if is_local {
        (FIRST_LOCAL_GROUP, MAX_LOCAL_GROUPS)
    } else {
        (0, DEFAULT_POOL_GROUPS)
    };
    let number = sluice_abi::group_hash(&vip.to_string()) % u64::from(count);
    vip_group(NO_POOL, first + u8::try_from(number).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::virtual_server;

    fn set(vips: &mut Vips, name: &str, groups: &[(&str, Option<&str>)]) {
        let mut decision = virtual_server();
        decision.addresses = groups.iter().map(|(vip, _)| vip.parse().unwrap()).collect();
        let groups = groups.iter().filter_map(|(vip, group)| {
            Some(AddressGroup {
                address: vip.parse().unwrap(),
                group: (*group)?.to_owned(),
            })
        });
        decision.groups = groups.collect();
        vips.set(&ObjectKey::new("shop", name), Some(&decision));
    }

    fn text(vips: &Vips) -> String {
        let groups = vips.groups().iter().map(|(name, vips)| {
            let vips: Vec<String> = vips.iter().map(ToString::to_string).collect();
            format!("{name}: {}", vips.join(" "))
        });
        groups.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_vip_is_in_its_group_while_a_virtual_server_says_so() {
        let mut vips = Vips::default();
        let both = [
            ("203.0.113.1", Some("edge-0")),
            ("2001:db8::1", Some("edge-0")),
        ];
        set(&mut vips, "a", &both);
        set(&mut vips, "b", &both[..1]);
        set(&mut vips, "c", &[("203.0.113.2", Some("edge-1"))]);
        set(&mut vips, "d", &[("203.0.113.3", None)]);
        assert_eq!(
            text(&vips),
            "edge-0: 203.0.113.1 2001:db8::1; edge-1: 203.0.113.2"
        );
        assert_eq!(vips.take_changed().len(), 3);
        vips.set(&ObjectKey::new("shop", "a"), None);
        assert_eq!(text(&vips), "edge-0: 203.0.113.1; edge-1: 203.0.113.2");
        vips.set(&ObjectKey::new("shop", "b"), None);
        assert_eq!(text(&vips), "edge-1: 203.0.113.2");
        assert_eq!(vips.take_changed().len(), 2);
        assert!(vips.decided.len() == 2 && vips.says.len() == 1);
    }

    #[test]
    fn what_has_not_changed_is_shared() {
        let mut vips = Vips::default();
        set(&mut vips, "a", &[("203.0.113.1", Some("edge-0"))]);
        let before = Arc::clone(&vips.groups()["edge-0"]);
        set(&mut vips, "a", &[("203.0.113.1", Some("edge-0"))]);
        set(&mut vips, "b", &[("203.0.113.1", Some("edge-0"))]);
        assert!(Arc::ptr_eq(&before, &vips.groups()["edge-0"]));
    }

    #[test]
    fn without_pools_addresses_have_groups_of_their_own() {
        let mut vips = Vips::default();
        set(&mut vips, "a", &[("203.0.113.1", None)]);
        assert_eq!(text(&vips), "");
        vips.group_all(true);
        let group = vips
            .group_of("203.0.113.1".parse().unwrap())
            .map(str::to_owned);
        assert!(
            group
                .as_ref()
                .is_some_and(|group| group.starts_with("link-"))
        );
        set(
            &mut vips,
            "b",
            &[("203.0.113.1", None), ("2001:db8::1", None)],
        );
        assert_eq!(vips.says.len(), 2);
        vips.group_all(false);
        assert_eq!((text(&vips).as_str(), vips.says.len()), ("", 0));
        assert_eq!(vips.take_changed().len(), 2);
    }
}
