//! Who has which addresses in the cluster. A change concerns the virtual servers that claim one of them, and nobody else.

use std::collections::BTreeSet;

use ipnet::IpNet;
use sluice_api::ObjectKey;
use sluice_kube::store::Change;

use super::facts::{NodeFacts, ServiceFacts, SliceFacts};
use super::index::Index;
use crate::core::{Holder, HolderKind};

const NONE: &BTreeSet<IpNet> = &BTreeSet::new();

impl Index {
    pub(super) fn services_changed(&mut self, changes: &[Change<ServiceFacts>]) {
        for Change { key, before, .. } in changes {
            let now = self.services.objects.get(key).cloned();
            if before.is_some() != now.is_some() {
                let concerned = self.links.with_service(key).clone();
                self.dirty.extend(concerned);
            }
            if now.is_some() {
                self.cluster.services.insert(key.clone());
            } else {
                self.cluster.services.remove(key);
            }
            let (old, new) = (before.as_ref(), now.as_ref());
            let blocks = [old, new].map(|facts| facts.map_or(NONE, |facts| &facts.cluster_ips));
            self.hold(HolderKind::ClusterIp, key, blocks);
            let blocks = [old, new].map(|facts| facts.map_or(NONE, |facts| &facts.external));
            self.hold(HolderKind::Service, key, blocks);
            // What a Service of ours has of us keeps nobody from having it.
            let is_foreign = |facts: &&ServiceFacts| !self.serves(facts);
            let blocks = [old.filter(is_foreign), new.filter(is_foreign)];
            let blocks = blocks.map(|facts| facts.map_or(NONE, |facts| &facts.of_balancer));
            self.hold(HolderKind::LoadBalancer, key, blocks);
            self.balanced_changed(key, old);
        }
    }

    /// Takes the addresses of a slice's endpoints.
    pub(super) fn endpoints_changed(&mut self, key: &ObjectKey, before: Option<&SliceFacts>) {
        let now = self.slices.objects.get(key);
        let now = now.map_or_else(BTreeSet::new, |facts| facts.addresses.clone());
        let before = before.map_or(NONE, |facts| &facts.addresses);
        self.hold(HolderKind::EndpointSlice, key, [before, &now]);
    }

    pub(super) fn kube_nodes_changed(&mut self, changes: &[Change<NodeFacts>]) {
        for Change { key, before, .. } in changes {
            let now = self.kube_nodes.objects.get(key).cloned();
            self.departures
                .node_changed(&key.name, before.is_some(), now.is_some());
            let (old, new) = (before.as_ref(), now.as_ref());
            if old.map(|facts| &facts.labels) != new.map(|facts| &facts.labels) {
                self.selectable_nodes_changed();
            }
            let blocks = [old, new].map(|facts| facts.map_or(NONE, |facts| &facts.own));
            self.hold(HolderKind::Node, key, blocks);
            let blocks = [old, new].map(|facts| facts.map_or(NONE, |facts| &facts.pods));
            self.hold(HolderKind::PodCidr, key, blocks);
        }
    }

    pub(super) fn service_cidrs_changed(&mut self, changes: &[Change<BTreeSet<IpNet>>]) {
        for Change { key, before, .. } in changes {
            let now = self.service_cidrs.objects.get(key).cloned();
            let blocks = [before.as_ref(), now.as_ref()].map(|blocks| blocks.unwrap_or(NONE));
            self.hold(HolderKind::ServiceCidr, key, blocks);
        }
    }

    /// Takes which blocks somebody had and has.
    fn hold(&mut self, kind: HolderKind, key: &ObjectKey, [before, now]: [&BTreeSet<IpNet>; 2]) {
        if before == now {
            return;
        }
        let holder = Holder::new(kind, key.clone());
        for block in self.addresses.put(&holder, before, now) {
            self.dirty.extend(self.links.within(block).cloned());
        }
    }
}
