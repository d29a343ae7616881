//! Whose addresses are: what of it a virtual server may not newly have as a VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_api::ObjectKey;

/// Whose addresses pools may not name as static servers, by the operator's option.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub enum RefusedServers {
    /// Nodes' own, the API server's among them where it runs on one.
    Nodes,
    /// Those in the ranges of nodes' pods.
    Pods,
    /// Cluster IPs and the ranges that they come from, the API server's Service among them.
    Services,
}

/// Whoever has addresses. Many of them may belong to one, so the key is shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Holder {
    /// What has them.
    pub kind: HolderKind,
    /// Its name.
    pub key: Arc<ObjectKey>,
}

/// What has addresses. Where several have one, the first of these is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum HolderKind {
    /// A Node, as its own.
    Node,
    /// A Service in the cluster.
    ClusterIp,
    /// The range that Services get cluster IPs from.
    ServiceCidr,
    /// The range that a Node's pods get addresses from.
    PodCidr,
    /// An address pool, as a gateway of NAT servers.
    Gateway,
    /// Nobody may have it: the operator's option says so.
    Reserved,
    /// A Service, as an external IP. Whoever may edit Services says so.
    Service,
    /// A Service that somebody else serves, as an address of its load balancer.
    LoadBalancer,
    /// An EndpointSlice, as that of an endpoint.
    EndpointSlice,
}

impl HolderKind {
    /// Which of the operator's choices keeps pools from naming such an address.
    const fn as_server(self) -> Option<RefusedServers> {
        match self {
            Self::Node => Some(RefusedServers::Nodes),
            Self::PodCidr => Some(RefusedServers::Pods),
            Self::ClusterIp | Self::ServiceCidr => Some(RefusedServers::Services),
            // Who may write Services could keep others' pools from being edited.
            Self::Gateway
            | Self::Reserved
            | Self::Service
            | Self::LoadBalancer
            | Self::EndpointSlice => None,
        }
    }

    /// Whether packets to the address are the holder's even where a virtual server is served there. No tenant can bring that
    /// about.
    pub(super) const fn is_stronger_than_a_decision(self) -> bool {
        matches!(self, Self::Node | Self::ClusterIp)
    }
}

impl Holder {
    /// `key` has a namespace where the holder has one.
    pub fn new(kind: HolderKind, key: ObjectKey) -> Self {
        Self {
            kind,
            key: Arc::new(key),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match self.kind {
            HolderKind::Node => write!(f, "is an address of node {key}"),
            HolderKind::ClusterIp => write!(f, "is the cluster IP of Service {key}"),
            HolderKind::ServiceCidr => write!(f, "is in the range of ServiceCIDR {key}"),
            HolderKind::PodCidr => write!(f, "is in the range of the pods of node {key}"),
            HolderKind::Gateway => write!(f, "is a gateway of AddressPool {key}"),
            HolderKind::Reserved => write!(f, "is in the reserved range {}", key.name),
            HolderKind::Service => write!(f, "is an external IP of Service {key}"),
            HolderKind::LoadBalancer => write!(f, "is a load balancer address of Service {key}"),
            HolderKind::EndpointSlice => write!(f, "is an endpoint of EndpointSlice {key}"),
        }
    }
}

/// Addresses by block. A single one is a block of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    holders: BTreeMap<IpNet, Vec<Holder>>,
    /// How many blocks there are of each length: IPv6 or not, and bits.
    lengths: BTreeMap<(bool, u8), usize>,
    refused_servers: BTreeSet<RefusedServers>,
    /// Gateways of NAT servers.
    gateways: Vec<(IpNet, Holder)>,
}

impl Addresses {
    /// Takes which blocks somebody has. Returns those that are new or gone.
    pub fn put(
        &mut self,
        holder: &Holder,
        before: &BTreeSet<IpNet>,
        now: &BTreeSet<IpNet>,
    ) -> Vec<IpNet> {
        for block in before.difference(now) {
            self.remove(holder, *block);
        }
        for block in now.difference(before) {
            self.add(holder.clone(), *block);
        }
        before.symmetric_difference(now).copied().collect()
    }

    /// Takes blocks that nobody may have.
    pub fn reserve(&mut self, blocks: &BTreeSet<IpNet>) {
        for block in blocks {
            let key = ObjectKey::new("", block.to_string());
            self.add(Holder::new(HolderKind::Reserved, key), *block);
        }
    }

    /// Takes the gateways of NAT servers, with the address pools that have them.
    pub(super) fn set_gateways(&mut self, gateways: &BTreeMap<IpAddr, String>) {
        let holder =
            |pool: &String| Holder::new(HolderKind::Gateway, ObjectKey::new("", pool.as_str()));
        let gateways = gateways.iter();
        let gateways: Vec<(IpNet, Holder)> = gateways
            .map(|(gateway, pool)| (IpNet::from(*gateway), holder(pool)))
            .collect();
        for (block, holder) in std::mem::take(&mut self.gateways) {
            self.remove(&holder, block);
        }
        for (block, holder) in &gateways {
            self.add(holder.clone(), *block);
        }
        self.gateways = gateways;
    }

    /// Takes whose addresses pools may not name.
    pub fn refuse_servers(&mut self, whose: &BTreeSet<RefusedServers>) {
        self.refused_servers.clone_from(whose);
    }

    /// Whether pools may not name addresses of these.
    pub(super) fn refuses(&self, whose: RefusedServers) -> bool {
        self.refused_servers.contains(&whose)
    }

    /// Who has this address, if pools may not name it for that.
    pub(super) fn refused_server(&self, address: IpAddr) -> Option<&Holder> {
        let is_refused = |kind: HolderKind| kind.as_server().is_some_and(|it| self.refuses(it));
        self.holders(address)
            .filter(|holder| is_refused(holder.kind))
            .min()
    }

    /// Everybody who has this address.
    pub fn holders(&self, address: IpAddr) -> impl Iterator<Item = &Holder> {
        let lengths = self.lengths.keys();
        let lengths = lengths.filter(move |(v6, _)| *v6 == address.is_ipv6());
        let blocks = lengths.filter_map(move |(_, length)| IpNet::new(address, *length).ok());
        blocks
            .filter_map(|block| self.holders.get(&block.trunc()))
            .flatten()
    }

    fn add(&mut self, holder: Holder, block: IpNet) {
        let block = block.trunc();
        let known = self.holders.entry(block).or_insert_with(|| {
            *self.lengths.entry(length(block)).or_default() += 1;
            Vec::with_capacity(1)
        });
        if !known.contains(&holder) {
            known.push(holder);
        }
    }

    fn remove(&mut self, holder: &Holder, block: IpNet) {
        let block = block.trunc();
        let Some(known) = self.holders.get_mut(&block) else {
            return;
        };
        known.retain(|other| other != holder);
        if !known.is_empty() {
            return;
        }
        self.holders.remove(&block);
        if let Some(count) = self.lengths.get_mut(&length(block)) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length(block));
            }
        }
    }
}

fn length(block: IpNet) -> (bool, u8) {
    (block.addr().is_ipv6(), block.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(texts: &[&str]) -> BTreeSet<IpNet> {
        let parse = |text: &&str| text.parse().expect("a block");
        texts.iter().map(parse).collect()
    }

    #[test]
    fn holders_are_found_by_any_of_their_blocks() {
        let holder = |kind, name: &str| Holder::new(kind, ObjectKey::new("", name));
        let node = holder(HolderKind::Node, "n1");
        let pods = holder(HolderKind::PodCidr, "n1");
        let service = holder(HolderKind::Service, "web");
        let mut known = Addresses::default();
        let empty = BTreeSet::new();
        let own = blocks(&["10.0.0.1/32", "2001:db8::1/128"]);
        assert_eq!(known.put(&node, &empty, &own).len(), 2);
        known.put(&pods, &empty, &blocks(&["10.0.0.7/24"]));
        known.put(&service, &empty, &blocks(&["10.0.0.1/32"]));
        let found = |known: &Addresses, address: &str| -> Vec<Holder> {
            let holders = known.holders(address.parse().expect("an address"));
            holders.cloned().collect()
        };
        let both = [pods.clone(), node.clone(), service.clone()];
        assert_eq!(found(&known, "10.0.0.1"), both);
        assert_eq!(found(&known, "10.0.0.255"), std::slice::from_ref(&pods));
        assert_eq!(found(&known, "2001:db8::1"), std::slice::from_ref(&node));
        assert_eq!(found(&known, "2001:db8::2"), []);
        assert_eq!(found(&known, "10.0.1.1"), []);

        let one = blocks(&["2001:db8::1/128"]);
        let changed = known.put(&node, &own, &one);
        assert_eq!(changed, ["10.0.0.1/32".parse().expect("a block")]);
        assert_eq!(found(&known, "10.0.0.1"), [pods.clone(), service.clone()]);
        known.put(&node, &one, &empty);
        known.put(&pods, &blocks(&["10.0.0.7/24"]), &empty);
        known.put(&service, &blocks(&["10.0.0.1/32"]), &empty);
        assert_eq!(known, Addresses::default(), "nothing is left");
    }
}
