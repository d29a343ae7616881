//! The VIPs of each group, kept up by changes of decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_api::{AddressGroup, DEFAULT_POOL_GROUPS, DecidedVirtualServer, ObjectKey, vip_group};

/// Stands for a pool in the names of groups of VIPs that have none.
pub(in crate::core) const NO_POOL: &str = "link";

/// The VIPs of each group. A VIP that several virtual servers share is in the group that the first of them says; they all say the
/// same.
#[derive(Debug, Default)]
pub(in crate::core) struct Vips {
    /// The VIPs of each virtual server, with the groups that were decided for them.
    decided: BTreeMap<ObjectKey, BTreeMap<IpAddr, Option<String>>>,
    /// Whether VIPs without a group have one too, by their addresses.
    groups_all: bool,
    says: BTreeMap<IpAddr, BTreeMap<ObjectKey, String>>,
    groups: BTreeMap<String, Arc<BTreeSet<IpAddr>>>,
    /// VIPs whose group is another one since this was last taken.
    changed: BTreeSet<IpAddr>,
}

impl Vips {
    /// Takes in the decision on a virtual server; `None`: there is none any more.
    pub(in crate::core) fn set(
        &mut self,
        key: &ObjectKey,
        decision: Option<&DecidedVirtualServer>,
    ) {
        let mut vips: BTreeMap<IpAddr, Option<String>> = BTreeMap::new();
        if let Some(decision) = decision {
            vips.extend(decision.addresses.iter().map(|vip| (*vip, None)));
            for AddressGroup { address, group } in &decision.groups {
                vips.insert(*address, Some(group.clone()));
            }
        }
        let before = self.decided.remove(key).unwrap_or_default();
        if before != vips {
            for (vip, _) in before {
                self.say(key, vip, None);
            }
            for (vip, group) in &vips {
                self.say(key, *vip, self.group_or_own(*vip, group.as_ref()));
            }
        }
        if !vips.is_empty() {
            self.decided.insert(key.clone(), vips);
        }
    }

    /// Whether VIPs that have no group by a decision have one by their addresses.
    pub(in crate::core) fn group_all(&mut self, groups_all: bool) {
        if std::mem::replace(&mut self.groups_all, groups_all) == groups_all {
            return;
        }
        for (key, vips) in self.decided.clone() {
            for (vip, group) in vips {
                self.say(&key, vip, self.group_or_own(vip, group.as_ref()));
            }
        }
    }

    fn group_or_own(&self, vip: IpAddr, group: Option<&String>) -> Option<String> {
        let own = || self.groups_all.then(|| own_group(vip));
        group.cloned().or_else(own)
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

    /// The groups that have VIPs.
    pub(in crate::core) fn groups(&self) -> &BTreeMap<String, Arc<BTreeSet<IpAddr>>> {
        &self.groups
    }

    /// VIPs whose group is another one since they were last taken.
    pub(in crate::core) fn take_changed(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.changed)
    }
}

/// The group of a VIP that no pool has: the same on every node.
fn own_group(vip: IpAddr) -> String {
    let hash = sluice_abi::group_hash(&vip.to_string());
    let number = hash % u64::from(DEFAULT_POOL_GROUPS);
    vip_group(NO_POOL, u8::try_from(number).unwrap_or(0))
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
