//! The statuses that stand written on the API server, as far as the index knows them.

use sluice_api::{Kind, ObjectKey, RealServerPoolStatus, RolloutPolicyStatus, VirtualServerStatus};
use sluice_kube::Stamp;

use super::index::Index;
use super::slices::name_prefix;
use crate::order::{Numbers, Object, Stands, Written};

impl Index {
    /// The version of an object that is known.
    pub(super) fn stamp(&self, object: &Object) -> Option<&Stamp> {
        let (kind, key) = object;
        match kind {
            Kind::VirtualServer => self.virtual_servers.stamp(key),
            Kind::RealServerPool => self.pools.stamp(key),
            Kind::RolloutPolicy => self.policies.stamp(key),
            Kind::LoadBalancerNode => self.nodes.stamp(key),
            Kind::AddressPool => self.address_pools.stamp(key),
        }
    }
}

impl Written for Index {
    fn virtual_server(&self, key: &ObjectKey) -> Stands<'_, VirtualServerStatus> {
        let object = self.virtual_servers.objects.get(key);
        object.map_or(Stands::Nowhere, |object| Stands::of(object.status.as_ref()))
    }

    fn pool(&self, key: &ObjectKey) -> Stands<'_, RealServerPoolStatus> {
        let object = self.pools.objects.get(key);
        object.map_or(Stands::Nowhere, |object| Stands::of(object.status.as_ref()))
    }

    fn policy(&self, key: &ObjectKey) -> Stands<'_, RolloutPolicyStatus> {
        let object = self.policies.objects.get(key);
        object.map_or(Stands::Nowhere, |object| Stands::of(object.status.as_ref()))
    }

    fn version(&self, object: &Object) -> u64 {
        self.stamp(object).map_or(0, |stamp| stamp.version)
    }

    fn decided(&self, kind: Kind) -> Vec<(&ObjectKey, Numbers)> {
        match kind {
            Kind::VirtualServer => {
                let all = self.virtual_servers.objects.iter();
                all.filter_map(|(key, object)| {
                    Some((key, object.status.as_ref()?.decision.as_ref()?.into()))
                })
                .collect()
            }
            Kind::RealServerPool => {
                let all = self.pools.objects.iter();
                all.filter_map(|(key, object)| {
                    Some((key, object.status.as_ref()?.decision.as_ref()?.into()))
                })
                .collect()
            }
            Kind::RolloutPolicy | Kind::LoadBalancerNode | Kind::AddressPool => Vec::new(),
        }
    }

    /// Whether a decision is the first to name the pool's slices of pods, which were written just now: nodes watch slices and
    /// decisions apart, and one that hears of the decision first has no servers.
    fn slices_are_ahead(&self, key: &ObjectKey, status: &RealServerPoolStatus) -> bool {
        let of_pods = |status: &RealServerPoolStatus| {
            let decision = status.decision.as_ref();
            decision.is_some_and(|decision| decision.content.selector().is_some())
        };
        let last = self.pool(key).status();
        of_pods(status)
            && !last.is_some_and(of_pods)
            && self
                .slices
                .is_ahead(&key.namespace, &name_prefix(&key.name))
    }
}
