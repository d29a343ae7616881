//! A node's side: decisions in, the content of its maps and its report out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_api::jiff::Timestamp;
use sluice_api::{
    ConditionType, ExceptionKind, LoadBalancerNodeStatus, NodeException, NodeRole, ObjectKey, Peer,
    Peers, Reason, Time, set_condition,
};
use sluice_planner::{
    Hop, Image, Limits, Mac, MapOp, NextHop, NodeView, ObjectKind, Planner, Prefix, Problem, Ring,
    Role, Slices, Via,
};

use crate::case::{AgentState, NodeNews, Way};
use crate::cluster::Decided;

/// Maps in which everything of a case has room.
const LIMITS: Limits = Limits {
    vips: 4096,
    replies: 4096,
    locals: 4096,
    peers: 64,
    peer_nets: 64,
    sources: 1024,
    announced: 64,
    heads: 4096,
    rings: 4096,
    ring_slots: 1 << 22,
    servers: 65_536,
    records: 65_536,
    servers_each: 16_384,
    ring_slots_each: 1 << 20,
    sources_each: 512,
};

/// A node and its maps.
pub(crate) struct Node {
    pub(crate) agent: AgentState,
    addresses: BTreeSet<IpAddr>,
    pod_cidrs: BTreeSet<IpNet>,
    ways: BTreeMap<IpAddr, Way>,
    planner: Planner,
    /// The virtual servers and pools that the planner knows.
    known: [BTreeSet<ObjectKey>; 2],
    /// The slots of rings, by where they begin.
    ring_slots: BTreeMap<u32, Vec<u32>>,
    /// The writes since they were last asked for.
    writes: Vec<MapOp>,
    notes: Vec<String>,
    status: LoadBalancerNodeStatus,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            agent: AgentState::default(),
            addresses: BTreeSet::new(),
            pod_cidrs: BTreeSet::new(),
            ways: BTreeMap::new(),
            planner: Planner::new(LIMITS, &Image::default()),
            known: Default::default(),
            ring_slots: BTreeMap::new(),
            writes: Vec::new(),
            notes: Vec::new(),
            status: LoadBalancerNodeStatus::default(),
        }
    }
}

impl Node {
    /// The content of its maps.
    pub(crate) fn image(&self) -> &Image {
        self.planner.image()
    }

    /// The server ids in the slots of a ring.
    pub(crate) fn slots(&self, ring: &Ring) -> &[u32] {
        &self.ring_slots[&ring.word.offset()]
    }

    pub(crate) fn hear(&mut self, news: &NodeNews) {
        if let Some(addresses) = &news.addresses {
            self.addresses = addresses.iter().copied().collect();
            self.status.addresses.clone_from(addresses);
        }
        if let Some(cidrs) = &news.pod_cidrs {
            self.pod_cidrs.clone_from(cidrs);
        }
        self.ways.extend(&news.ways);
        self.agent = news.agent.unwrap_or(self.agent);
        if let Some(missed) = &news.not_attached {
            let (kind, reason) = (ConditionType::NotAttached, Reason::AttachFailed);
            let conditions = &mut self.status.conditions;
            conditions.clear();
            if !missed.is_empty() {
                let now = Time(Timestamp::UNIX_EPOCH);
                set_condition(conditions, kind, true, reason, missed, 1, &now);
            }
        }
    }

    /// Brings the maps to what was decided, unless the agent does not work.
    pub(crate) fn follow(&mut self, name: &str, role: NodeRole, peers: &Peers, decided: &Decided) {
        if self.agent != AgentState::Live {
            return;
        }
        self.planner.set_view(NodeView {
            name: name.to_owned(),
            role: Role {
                director: role == NodeRole::Director,
                real_server: true,
            },
            addresses: self.addresses.clone(),
            macs: BTreeSet::new(),
            peers: peers
                .values()
                .flat_map(|peer| peer.addresses.iter().copied().map(mac))
                .collect(),
            peer_nets: peers.values().flat_map(Prefix::of_peer).collect(),
            keeps_peers: false,
        });
        self.tell(decided);
        let writes = self.planner.plan();
        assert_eq!(self.planner.plan(), [], "everything has room");
        for write in &writes {
            if let MapOp::WriteRingSlots { offset, layout } = write {
                self.ring_slots.insert(*offset, layout.slots());
            }
        }
        self.writes.extend(writes);

        let exceptions = self.planner.exceptions();
        let problems = self.planner.problems();
        let notes = problems.difference(&exceptions);
        self.notes = notes.map(ToString::to_string).collect();
        let revisions = decided.virtual_servers.values().map(|d| d.revision);
        let pool_revisions = decided.pools.values().map(|d| d.revision);
        let exceptions: BTreeSet<NodeException> =
            exceptions.into_iter().filter_map(exception).collect();
        self.status = LoadBalancerNodeStatus {
            addresses: self.status.addresses.clone(),
            conditions: self.status.conditions.clone(),
            acknowledged_revision: revisions.max().unwrap_or_default(),
            acknowledged_pool_revision: pool_revisions.max().unwrap_or_default(),
            exception_count: u32::try_from(exceptions.len()).expect("few"),
            exceptions: exceptions.into_iter().collect(),
            ..LoadBalancerNodeStatus::default()
        };
    }

    /// Tells the planner what is decided.
    fn tell(&mut self, decided: &Decided) {
        let keys = [
            decided.virtual_servers.keys().cloned().collect(),
            decided.pools.keys().cloned().collect(),
        ];
        let [virtual_servers, pools] = std::mem::replace(&mut self.known, keys);
        for key in virtual_servers.difference(&self.known[0]) {
            self.planner.set_virtual_server(key, None);
        }
        for key in pools.difference(&self.known[1]) {
            self.planner.set_servers(key, None);
        }
        for (key, decision) in &decided.virtual_servers {
            let content = Arc::new(decision.content.clone());
            self.planner.set_virtual_server(key, Some(content));
        }
        let slices = Slices::new(&decided.slices);
        for (key, decision) in &decided.pools {
            let servers = slices.servers(&key.namespace, &decision.content);
            for server in &servers {
                let next_hop = self.hop(server.address);
                self.planner.set_next_hop(server.address, Some(next_hop));
            }
            self.planner.set_servers(key, Some(servers.into()));
        }
    }

    /// As other nodes know it if it is a director.
    pub(crate) fn peer(&self) -> Peer {
        Peer {
            addresses: self.addresses.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
            ..Peer::default()
        }
    }

    pub(crate) fn status(&self) -> LoadBalancerNodeStatus {
        self.status.clone()
    }

    /// The writes since this was last called.
    pub(crate) fn take_writes(&mut self) -> Vec<MapOp> {
        std::mem::take(&mut self.writes)
    }

    /// Problems that are no exceptions: every decision is in force, but something is not served as described.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    fn hop(&self, to: IpAddr) -> NextHop {
        let via = match self.ways.get(&to) {
            None | Some(Way::Link) => Via::Link,
            Some(Way::Router) => Via::Router,
            Some(Way::Bridge) => Via::Bridge,
            Some(Way::Pending) => return NextHop::Pending,
            Some(Way::Overdue) => return NextHop::Overdue,
            Some(Way::Unreachable) => return NextHop::Unreachable,
        };
        let own = |address: &&IpAddr| address.is_ipv6() == to.is_ipv6();
        let Some(source) = self.addresses.iter().find(own) else {
            return NextHop::Unreachable;
        };
        NextHop::Resolved(Hop {
            via,
            ifindex: 2,
            source_mac: mac(*source),
            next_hop_mac: match via {
                Via::Router => Mac([2, 0, 0, 0, 1, 0]),
                Via::Link | Via::Bridge => mac(to),
            },
            mtu: 1500,
            source: *source,
        })
    }
}

/// Made of the address's last octet.
fn mac(address: IpAddr) -> Mac {
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    Mac([2, 0, 0, 0, 0, last])
}

fn exception(problem: &Problem) -> Option<NodeException> {
    let kind = match problem.kind {
        ObjectKind::VirtualServer => ExceptionKind::VirtualServer,
        ObjectKind::RealServerPool => ExceptionKind::RealServerPool,
        ObjectKind::LoadBalancerNode => return None,
    };
    Some(NodeException {
        kind,
        namespace: problem.object.namespace.clone(),
        name: problem.object.name.clone(),
        reason: problem.reason.as_str().to_owned(),
        message: problem.message.clone(),
    })
}
