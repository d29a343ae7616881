//! Machines that run packets: the programs in the kernel, or the same decision on the host.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use sluice_abi::{BUCKET_ENTRIES, DropReason, FarEnd, FlowData, FlowState, Stat};
use sluice_packet::Verdict;

use super::{
    layout,
    setup::{Claim, Setup},
};

/// The programs of the object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Program {
    /// `sluice_xdp`.
    Xdp,
    /// `sluice_ingress`.
    Ingress,
    /// `sluice_egress`.
    Egress,
}

/// A packet to be run, and what the programs ask besides.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Which program gets it.
    pub program: Program,
    /// The clock, in nanoseconds.
    pub now_ns: u64,
    /// The random number.
    pub random: u32,
    /// The frame.
    pub frame: &'a [u8],
    /// Whether there is room before the frame for an outer header.
    pub headroom: bool,
}

/// Answer to the kernel on a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Up the stack (XDP, tc ingress) or out (tc egress).
    Pass,
    /// Back out of the interface.
    Tx,
    /// Out of another interface.
    Redirect,
    /// Away.
    Drop(DropReason),
}

impl From<Verdict> for Action {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass | Verdict::Up => Self::Pass,
            Verdict::Tx => Self::Tx,
            Verdict::Redirect(_) | Verdict::Neigh(_) => Self::Redirect,
            Verdict::Drop(reason) => Self::Drop(reason),
        }
    }
}

/// The fate of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// The answer to the kernel.
    pub action: Action,
    /// The whole verdict, where it can be seen: on the host.
    pub verdict: Option<Verdict>,
    /// The frame; empty when it was dropped.
    pub frame: Vec<u8>,
}

/// Runs packets one after the other on tables of its own.
pub trait Machine {
    /// Whether it can run a packet without headroom.
    fn fills_headroom(&self) -> bool;
    /// Begins anew: these tables, empty flow tables, counters at 0.
    fn reset(&mut self, setup: &Setup) -> anyhow::Result<()>;
    /// Changes what the agent writes, as it would under traffic: flows, claims and counters stay.
    fn configure(&mut self, setup: &Setup) -> anyhow::Result<()>;
    /// Runs one packet.
    fn run(&mut self, input: &Input<'_>) -> anyhow::Result<Output>;
    /// Tables that packets have written.
    fn state(&mut self) -> anyhow::Result<State>;
}

/// The tables that packets write, of one family.
#[derive(Clone, PartialEq, Debug)]
pub struct FamilyState {
    /// Words of the flow table's buckets.
    pub flows: Vec<Vec<u64>>,
    /// Words of the half-open table's buckets.
    pub half_open: Vec<Vec<u64>>,
    /// Slots of claims that are not free, by index.
    pub claims: BTreeMap<u32, Vec<u64>>,
}

/// Everything that packets write. Counters that are 0 are left out.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    /// IPv4.
    pub v4: FamilyState,
    /// IPv6.
    pub v6: FamilyState,
    /// Packets, bytes, flows, reply packets and reply bytes by server id.
    pub counters: BTreeMap<u32, [u64; 5]>,
    /// Packets by reason.
    pub drops: BTreeMap<DropReason, u64>,
    /// Events.
    pub stats: BTreeMap<Stat, u64>,
    /// `NEXT_HOPS`, words other than 0.
    pub next_hops: BTreeMap<u32, u64>,
    /// `NEW_FLOWS`, words other than 0.
    pub new_flows: BTreeMap<u32, u64>,
    /// Slots of `SAMPLES` that are not free, by index.
    pub samples: BTreeMap<u32, Vec<u64>>,
}

/// Which table an entry was found in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Table {
    /// `FLOWS*`.
    Established,
    /// `HALF*`.
    HalfOpen,
}

/// A flow table entry, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where it is.
    pub table: Table,
    /// The server id.
    pub server: u32,
    /// The id's epoch.
    pub epoch: u8,
    /// State of the flow.
    pub state: FlowState,
    /// In time units of the state.
    pub time: u16,
    /// The claimed port.
    pub port: u16,
}

/// Identity of an entry: the client, and the tag of the other end.
pub type FlowId = (SocketAddr, u16);

impl State {
    /// All entries; a flow may have several.
    pub fn flows(&self) -> Vec<(FlowId, Entry)> {
        let mut flows = Vec::new();
        for (table, v4, v6) in [
            (Table::Established, &self.v4.flows, &self.v6.flows),
            (Table::HalfOpen, &self.v4.half_open, &self.v6.half_open),
        ] {
            flows.extend(v4.iter().flat_map(|bucket| entries(table, bucket, 2)));
            flows.extend(v6.iter().flat_map(|bucket| entries(table, bucket, 4)));
        }
        flows
    }

    /// The entry of a flow: established if it has both.
    pub fn flow(&self, client: SocketAddr, far: FarEnd) -> Option<Entry> {
        let wanted = (client, layout::tag(far));
        self.flows()
            .into_iter()
            .filter(|(id, _)| *id == wanted)
            .map(|(_, entry)| entry)
            .min_by_key(|entry| entry.table)
    }

    /// All claims.
    pub fn claims(&self) -> Vec<Claim> {
        let v4 = self.v4.claims.values();
        let v4 = v4.map(|words| layout::to_claim::<4>(words));
        let v6 = self.v6.claims.values();
        v4.chain(v6.map(|words| layout::to_claim::<16>(words)))
            .collect()
    }

    /// Number of events.
    pub fn stat(&self, stat: Stat) -> u64 {
        self.stats.get(&stat).copied().unwrap_or(0)
    }
}

/// The entries of a bucket whose entries have `words` words, by the table in `sluice_abi`.
fn entries(table: Table, bucket: &[u64], words: usize) -> Vec<(FlowId, Entry)> {
    let mut found = Vec::new();
    for entry in bucket.chunks(words).take(BUCKET_ENTRIES) {
        let key = entry[0].to_le_bytes();
        let data = FlowData(entry[words - 1]);
        let (Some(state), true) = (data.state(), entry[0] > 1) else {
            continue;
        };
        let ip: IpAddr = if words == 2 {
            Ipv4Addr::new(key[0], key[1], key[2], key[3]).into()
        } else {
            let mut octets = [0; 16];
            octets[..8].copy_from_slice(&entry[1].to_le_bytes());
            octets[8..].copy_from_slice(&entry[2].to_le_bytes());
            Ipv6Addr::from(octets).into()
        };
        let client = SocketAddr::new(ip, u16::from_le_bytes([key[4], key[5]]));
        let tag = u16::from_le_bytes([key[6], key[7]]);
        found.push((
            (client, tag),
            Entry {
                table,
                server: data.server(),
                epoch: data.epoch(),
                state,
                time: data.time(),
                port: data.port(),
            },
        ));
    }
    found
}
