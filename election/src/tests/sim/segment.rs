//! The segments on which directors announce, one for each path, with a gateway on each.

use super::MS;
use super::rng::Rng;

/// Losses come one by one, or in bursts of 100 ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loss {
    None,
    /// In so many of a thousand cases a packet is lost.
    Random(u64),
    /// In so many of a thousand windows of 100 ms all packets from and to this node are lost, the gateway's included or not.
    Bursts {
        per_mille: u64,
        node: usize,
        spares_gateway: bool,
    },
}

/// Length of a burst of loss.
const BURST_NS: u64 = 100 * MS;

#[derive(Debug)]
pub(crate) struct Segment {
    /// Whether a node's port works, by node.
    pub(crate) ports: Vec<bool>,
    /// The part to which a node belongs, by node; the gateway is in part 0.
    pub(crate) parts: Vec<u8>,
    pub(crate) has_gateway: bool,
    pub(crate) loss: Loss,
    pub(crate) seed: u64,
}

impl Segment {
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        Self {
            ports: vec![true; nodes],
            parts: vec![0; nodes],
            has_gateway: true,
            loss: Loss::None,
            seed,
        }
    }

    /// Whether the node's port works and it is where the gateway is.
    pub(crate) fn is_connected(&self, node: usize) -> bool {
        self.ports[node] && self.parts[node] == 0
    }

    pub(crate) fn are_connected(&self, a: usize, b: usize) -> bool {
        self.ports[a] && self.ports[b] && self.parts[a] == self.parts[b]
    }

    /// Whether a question gets there and its answer back. Losses count for the pair of them.
    pub(crate) fn passes(&self, from: usize, to: usize, now_ns: u64, rng: &mut Rng) -> bool {
        self.are_connected(from, to) && !self.loses([from, to], false, now_ns, rng)
    }

    /// As [`Segment::passes`], to the gateway.
    pub(crate) fn passes_gateway(&self, from: usize, now_ns: u64, rng: &mut Rng) -> bool {
        self.has_gateway && self.is_connected(from) && !self.loses([from, from], true, now_ns, rng)
    }

    fn loses(&self, ends: [usize; 2], is_gateway: bool, now_ns: u64, rng: &mut Rng) -> bool {
        match self.loss {
            Loss::None => false,
            Loss::Random(per_mille) => rng.chance(per_mille),
            Loss::Bursts {
                per_mille,
                node,
                spares_gateway,
            } => {
                let mut window = Rng::new(self.seed ^ (now_ns / BURST_NS));
                let is_burst = window.chance(per_mille);
                is_burst && ends.contains(&node) && !(is_gateway && spares_gateway)
            }
        }
    }
}
