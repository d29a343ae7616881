//! The Leases of VIP groups. The operator makes one for each group of each pool that is announced by ARP and neighbour discovery, and
//! deletes it when the group is gone. Whose it is, agents settle among themselves: nothing here touches the holder.

use std::collections::BTreeSet;

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Value, json};
use sluice_api::{
    GROUP_LABEL, GROUP_LEASE_SECONDS, OPERATOR_MANAGER, ObjectKey, group_label, group_lease,
    group_of_lease, is_local_group, parse_vip_group, vip_group,
};
use sluice_kube::Stamp;
use sluice_kube::store::Change;

use super::index::Index;
use crate::core::Dirty;

/// The part of a group's Lease that the operator needs. Renewals do not change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GroupLeaseFacts {
    /// Whether the operator made it, and may delete it.
    is_ours: bool,
}

impl GroupLeaseFacts {
    pub(super) fn of(lease: &Lease) -> Self {
        let managers = lease.metadata.managed_fields.iter().flatten();
        let mut managers = managers.filter_map(|entry| entry.manager.as_deref());
        Self {
            is_ours: managers.any(|manager| manager == OPERATOR_MANAGER),
        }
    }
}

/// Leases that are to be made, by the names of their groups, and those that are to be deleted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct GroupLeases {
    pub(super) missing: Vec<String>,
    pub(super) gone: Vec<(ObjectKey, Stamp)>,
}

impl Index {
    /// Only what comes and goes matters, not who renews what.
    pub(super) fn group_leases_changed(&mut self, changes: &[Change<GroupLeaseFacts>]) {
        let now = |key| self.group_leases.objects.get(key);
        let mut changes = changes.iter();
        self.are_groups_stale |= changes.any(|it| it.before.as_ref() != now(&it.key));
    }

    /// What is to be done for the Leases of groups: what pools' decisions, as they stand, say of groups counts, and which virtual
    /// servers have one of their own.
    pub(super) fn group_lease_news(&self) -> GroupLeases {
        let pools = self.address_pools.objects.iter();
        let decisions = pools.filter_map(|(key, pool)| {
            let decision = pool.status.as_ref()?.decision.as_ref();
            Some((key.name.as_str(), decision?))
        });
        let groups = decisions.flat_map(|(pool, decision)| {
            let groups = decision.l2.as_ref().map_or(0, |l2| l2.groups);
            (0..groups).map(move |number| vip_group(pool, number))
        });
        let groups: BTreeSet<String> = groups.chain(self.ledger.local_groups()).collect();
        let key = |group: &String| ObjectKey::new(self.namespace.clone(), group_lease(group));
        let wanted: BTreeSet<ObjectKey> = groups.iter().map(key).collect();
        let ours = self.group_leases.objects.iter();
        let ours = ours.filter(|(key, facts)| facts.is_ours && !wanted.contains(*key));
        let gone = ours.filter(|(key, _)| !self.may_be_decided(&key.name));
        GroupLeases {
            gone: gone
                .filter_map(|(key, _)| Some((key.clone(), self.group_leases.stamp(key)?.clone())))
                .collect(),
            missing: groups
                .into_iter()
                .filter(|group| self.group_leases.stamp(&key(group)).is_none())
                .collect(),
        }
    }

    /// Takes in that this Lease was deleted, which its holder may have renewed since it was looked at.
    pub(super) fn group_gone(&mut self, key: &ObjectKey, stamp: &Stamp) {
        let known = self.group_leases.stamp(key);
        if known.is_some_and(|known| known.uid == stamp.uid) {
            self.group_leases.remove(key);
        }
    }

    /// Whether this Lease's group may be one that is not known yet: the pool is there and has no decision, or not all virtual servers
    /// have been asked for their groups.
    fn may_be_decided(&self, lease: &str) -> bool {
        let Some((pool, number)) = group_of_lease(lease).and_then(parse_vip_group) else {
            return false;
        };
        if is_local_group(number) && self.dirty == Dirty::All {
            return true;
        }
        let pool = self.address_pools.objects.get(&ObjectKey::new("", pool));
        pool.is_some_and(|pool| {
            let status = pool.status.as_ref();
            status.is_none_or(|status| status.decision.is_none())
        })
    }
}

/// A group's Lease as it is made: nobody holds it.
pub(super) fn lease(group: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": group_lease(group), "labels": {GROUP_LABEL: group_label(group)}},
        "spec": {"leaseDurationSeconds": GROUP_LEASE_SECONDS},
    })
}

#[cfg(test)]
mod tests {
    use sluice_api::{AddressPool, MAX_LABEL_LENGTH, is_label};
    use sluice_kube::Item;

    use super::*;

    const NAMESPACE: &str = "sluice-system";

    fn pool(index: &mut Index, name: &str, version: u64, status: &Value) {
        let object = json!({
            "metadata": {"name": name}, "spec": {"addresses": ["203.0.113.0/28"]}, "status": status,
        });
        let object: AddressPool = serde_json::from_value(object).expect("a pool");
        index.address_pools.apply(Item {
            key: ObjectKey::new("", name),
            stamp: Stamp {
                uid: name.to_owned(),
                version,
            },
            content: Ok(object),
        });
    }

    fn made(index: &mut Index, group: &str, manager: &str) {
        let mut object = lease(group);
        object["metadata"]["managedFields"] = json!([{"manager": manager}]);
        let object = serde_json::from_value(object).expect("a Lease");
        index.group_leases.apply(Item {
            key: ObjectKey::new(NAMESPACE, group_lease(group)),
            stamp: Stamp {
                uid: group.to_owned(),
                version: 1,
            },
            content: Ok(GroupLeaseFacts::of(&object)),
        });
    }

    fn gone(index: &Index) -> Vec<String> {
        let gone = index.group_lease_news().gone.into_iter();
        gone.map(|(key, _)| key.name).collect()
    }

    #[test]
    fn there_is_a_lease_for_each_group() {
        let mut index = Index::new(NAMESPACE);
        pool(&mut index, "edge", 1, &json!({}));
        assert_eq!(index.group_lease_news(), GroupLeases::default());
        let decided = |groups: u8| json!({"decision": {"generation": 1, "l2": {"groups": groups}}});
        pool(&mut index, "edge", 2, &decided(2));
        pool(
            &mut index,
            "routed",
            1,
            &json!({"decision": {"generation": 1}}),
        );
        assert_eq!(index.group_lease_news().missing, ["edge-0", "edge-1"]);
        made(&mut index, "edge-0", OPERATOR_MANAGER);
        made(&mut index, "edge-1", OPERATOR_MANAGER);
        assert_eq!(index.group_lease_news(), GroupLeases::default());

        made(&mut index, "edge-9", "somebody");
        pool(&mut index, "edge", 3, &decided(1));
        assert_eq!(
            gone(&index),
            ["sluice-vip-edge-1"],
            "what others made stays"
        );
        pool(&mut index, "edge", 4, &json!({}));
        assert_eq!(gone(&index), [""; 0], "nothing is decided yet");
        index.address_pools.remove(&ObjectKey::new("", "edge"));
        assert_eq!(gone(&index), ["sluice-vip-edge-0", "sluice-vip-edge-1"]);
    }

    #[test]
    fn a_group_of_one_virtual_server_has_a_lease_while_it_has_an_address() {
        let mut index = Index::new(NAMESPACE);
        let decided = json!({"decision": {"generation": 1, "l2": {"groups": 1}}});
        pool(&mut index, "edge", 1, &decided);
        made(&mut index, "edge-0", OPERATOR_MANAGER);
        made(&mut index, "edge-128", OPERATOR_MANAGER);
        assert_eq!(gone(&index), [""; 0], "nobody was asked yet");
        index.dirty = Dirty::Objects(BTreeSet::new());
        assert_eq!(gone(&index), ["sluice-vip-edge-128"]);
    }

    #[test]
    fn a_group_with_a_long_name_has_a_label_too() {
        let group = vip_group(&"p".repeat(63), 15);
        let lease = lease(&group);
        let label = lease["metadata"]["labels"][GROUP_LABEL].as_str();
        let label = label.expect("a label");
        assert!(
            label.len() <= MAX_LABEL_LENGTH && is_label(label),
            "{label}"
        );
        assert_ne!(label, group_label(&vip_group(&"p".repeat(63), 14)));
        let name = lease["metadata"]["name"].as_str();
        assert_eq!(name, Some(format!("sluice-vip-{group}").as_str()));
    }
}
