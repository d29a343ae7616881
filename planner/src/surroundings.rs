//! What the maps hold of a node's surroundings, whatever virtual servers there are: own Ethernet addresses and the other
//! directors.

use std::collections::{BTreeMap, BTreeSet};

use sluice_abi::{MapName, NET_TUNNELS};
use sluice_api::ObjectKey;

use crate::macs::Macs;
use crate::problem::{ObjectKind, Problem, Reason};
use crate::tables::Tables;
use crate::{Image, Limits, Mac, NodeView, Prefix};

/// The part of an image that is about a node's surroundings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Surroundings {
    peers: BTreeSet<Mac>,
    macs: BTreeMap<u32, u64>,
    peer_nets: BTreeMap<Prefix, u32>,
}

impl Surroundings {
    /// Those in an image.
    pub(crate) fn of(image: &Image) -> Self {
        Self {
            peers: image.peers.clone(),
            macs: image.macs.clone(),
            peer_nets: image.peer_nets.clone(),
        }
    }

    /// As the node sees them, as far as there is room.
    pub(crate) fn wanted(view: &NodeView, tables: &Tables) -> Self {
        let (limits, image) = (&tables.limits, &tables.image);
        let (peers, peer_nets) = if view.keeps_peers {
            (image.peers.clone(), &image.peer_nets)
        } else {
            let peers = view.peers.iter().take(limits.peers as usize);
            (peers.copied().collect(), &view.peer_nets)
        };
        let [v4, v6] = [true, false].map(|v4| Nets::new(peer_nets, v4, limits));
        let peer_nets = v4.fitting.into_iter().chain(v6.fitting).collect();
        let macs = Macs::new(&image.macs, &view.macs, &peers).words;
        Self {
            peers,
            macs,
            peer_nets,
        }
    }

    /// Makes an image say the same.
    pub(crate) fn put_into(self, image: &mut Image) {
        image.peers = self.peers;
        image.macs = self.macs;
        image.peer_nets = self.peer_nets;
    }
}

/// The entries of one of `PEER_NETS*`.
struct Nets {
    fitting: Vec<(Prefix, u32)>,
    /// How many there is no room for.
    left_out: usize,
}

impl Nets {
    /// Tunnels are taken from anybody where no director's address is known, or not all of them: an entry is kept for that.
    fn new(nets: &BTreeMap<Prefix, u32>, v4: bool, limits: &Limits) -> Self {
        let known = nets.iter().map(|(net, flags)| (*net, *flags));
        let known = known.filter(|(net, _)| net.address.is_ipv4() == v4 && !net.is_all());
        let room = (limits.peer_nets as usize).saturating_sub(1);
        let left_out = known.clone().count().saturating_sub(room);
        let is_told = known.clone().any(|(_, flags)| flags & NET_TUNNELS != 0);
        let anybody = (left_out > 0 || !is_told).then_some((Prefix::all(v4), NET_TUNNELS));
        let anybody = anybody.filter(|_| limits.peer_nets > 0);
        Self {
            fitting: known.take(room).chain(anybody).collect(),
            left_out,
        }
    }
}

/// What does not fit into the maps.
pub(crate) fn left_out(view: &NodeView, tables: &Tables) -> BTreeSet<Problem> {
    let limits = &tables.limits;
    let mut problems = BTreeSet::new();
    let mut report = |map: MapName, limit: u32, consequence: String| {
        problems.insert(Problem {
            kind: ObjectKind::LoadBalancerNode,
            object: ObjectKey::new("", &view.name),
            reason: Reason::LimitExceeded,
            message: format!(
                "{} is full ({limit} entries), so {consequence}: give the agent larger maps",
                map.as_str()
            ),
            exception: true,
        });
    };
    let more = view.peers.len().saturating_sub(limits.peers as usize);
    if more > 0 {
        let consequence = format!("packets from {more} directors more are balanced again");
        report(MapName::Peers, limits.peers, consequence);
    }
    for (map, v4) in [(MapName::PeerNets4, true), (MapName::PeerNets6, false)] {
        let more = Nets::new(&view.peer_nets, v4, limits).left_out;
        if more > 0 {
            let consequence = format!(
                "directors reach no VIP from {more} of their own addresses and pods, and whoever sends a tunnel is taken for a \
                 director"
            );
            report(map, limits.peer_nets, consequence);
        }
    }
    let left_out = Macs::new(&tables.image.macs, &view.macs, &BTreeSet::new()).left_out;
    if let Some((ifindex, mac)) = left_out.first() {
        let more = left_out.len();
        let consequence = format!(
            "frames to {more} own Ethernet addresses such as {mac} by interface {ifindex} are not balanced"
        );
        report(MapName::Macs, sluice_abi::OWN_MAC_WORDS, consequence);
    }
    problems
}
