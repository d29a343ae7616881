//! The words of a claim's slot.

use crate::flow::u32_at;
use crate::headers::Tuple;
use crate::reply::WayBack;
use crate::{FamilyTables, SharedWords, Tables, hash};
use sluice_abi::{ClaimData, ClaimKey, ConfigWord, FlowClock, SLOT_BUSY, SLOT_FREE, Timeouts};

/// Index of the key.
pub(super) const KEY: usize = 0;
/// Index of the data.
pub(super) const DATA: usize = 1;
/// Index of the server's and the own address.
const ENDS: usize = 2;

/// Words of two addresses.
const fn pair_words<const A: usize>() -> usize {
    if A == 4 { 1 } else { 4 }
}

/// Index of the client's address and the VIP.
pub(super) const fn clients<const A: usize>() -> usize {
    ENDS + pair_words::<A>()
}

/// Index of the client's and the VIP's port.
const fn client_ports<const A: usize>() -> usize {
    ENDS + 2 * pair_words::<A>()
}

/// Where replies of a flow come to, all but the own port.
pub(super) struct Place<const A: usize> {
    ends: [u64; 4],
    hash: u64,
    key: ClaimKey,
}

impl<const A: usize> Place<A> {
    #[inline(always)]
    pub(super) fn new<T: Tables>(
        tables: &T,
        server: &[u8; A],
        own: &[u8; A],
        server_port: [u8; 2],
        protocol: u8,
    ) -> Self {
        let ends = pair(server, own);
        Self {
            hash: hash::claim_ends(&ends, A == 4, tables.flow_seed()),
            ends,
            key: ClaimKey::new([0; 2], server_port, protocol),
        }
    }

    /// The key of the claim of this own port.
    #[inline(always)]
    pub(super) fn key(&self, own_port: [u8; 2]) -> ClaimKey {
        self.key.with_own_port(own_port)
    }

    /// Hash of the one slot for this key, to be masked by the table's size.
    #[inline(always)]
    pub(super) fn slot(&self, key: ClaimKey) -> u32 {
        hash::claim(self.hash, key.0)
    }

    /// Whether the slot's addresses are these.
    #[inline(always)]
    pub(super) fn is_in(&self, slot: &impl SharedWords) -> bool {
        has_pair::<A>(slot, ENDS, &self.ends)
    }

    #[inline(always)]
    pub(super) fn store(&self, slot: &impl SharedWords) {
        store_pair::<A>(slot, ENDS, &self.ends);
    }
}

/// A client and the virtual server that it asked for.
pub(super) struct Clients<const A: usize> {
    ends: [u64; 4],
    ports: u64,
}

impl<const A: usize> Clients<A> {
    #[inline(always)]
    pub(super) fn of(tuple: &Tuple<A>) -> Self {
        let client = u64::from(u16::from_be_bytes(tuple.source_port));
        let vip = u64::from(u16::from_be_bytes(tuple.destination_port));
        Self {
            ends: pair(&tuple.source, &tuple.destination),
            ports: client | vip << 16,
        }
    }

    #[inline(always)]
    pub(super) fn is_in(&self, slot: &impl SharedWords) -> bool {
        has_pair::<A>(slot, clients::<A>(), &self.ends)
            && slot.load(client_ports::<A>()) == self.ports
    }

    #[inline(always)]
    pub(super) fn store(&self, slot: &impl SharedWords) {
        store_pair::<A>(slot, clients::<A>(), &self.ends);
        slot.store(client_ports::<A>(), self.ports);
    }

    /// Reads them from a slot.
    #[inline(always)]
    pub(super) fn load(slot: &impl SharedWords, way: &mut WayBack<A>) {
        let at = clients::<A>();
        if A == 4 {
            let word = slot.load(at);
            set(&mut way.client, 0, word as u32);
            set(&mut way.vip, 0, (word >> 32) as u32);
        } else {
            let mut i = 0;
            while i < 2 {
                let (client, vip) = (slot.load(at + i), slot.load(at + 2 + i));
                set(&mut way.client, 8 * i, client as u32);
                set(&mut way.client, 8 * i + 4, (client >> 32) as u32);
                set(&mut way.vip, 8 * i, vip as u32);
                set(&mut way.vip, 8 * i + 4, (vip >> 32) as u32);
                i += 1;
            }
        }
        let ports = slot.load(client_ports::<A>());
        way.client_port = (ports as u16).to_be_bytes();
        way.vip_port = ((ports >> 16) as u16).to_be_bytes();
    }
}

/// Two addresses in words; IPv4 has one.
#[inline(always)]
fn pair<const A: usize>(first: &[u8; A], second: &[u8; A]) -> [u64; 4] {
    if A == 4 {
        [join(u32_at(first, 0), u32_at(second, 0)), 0, 0, 0]
    } else {
        let word = |address, at| join(u32_at(address, at), u32_at(address, at + 4));
        [
            word(first, 0),
            word(first, 8),
            word(second, 0),
            word(second, 8),
        ]
    }
}

#[inline(always)]
fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[inline(always)]
fn has_pair<const A: usize>(slot: &impl SharedWords, at: usize, ends: &[u64; 4]) -> bool {
    let mut difference = 0;
    let mut i = 0;
    while i < pair_words::<A>() {
        difference |= slot.load(at + i) ^ ends[i];
        i += 1;
    }
    difference == 0
}

#[inline(always)]
fn store_pair<const A: usize>(slot: &impl SharedWords, at: usize, ends: &[u64; 4]) {
    let mut i = 0;
    while i < pair_words::<A>() {
        slot.store(at + i, ends[i]);
        i += 1;
    }
}

#[inline(always)]
fn set<const A: usize>(address: &mut [u8; A], at: usize, word: u32) {
    if let Some(bytes) = address.get_mut(at..at + 4) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// Body of [`FamilyTables::claim_worth`]: how much the slot of this hash is worth to its claim, [`ClaimData::worth`].
#[inline(always)]
pub fn claim_worth<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    hash: u32,
    now: FlowClock,
) -> u32 {
    let Some(slot) = FamilyTables::<A>::claims(tables, hash) else {
        return ClaimData::HELD;
    };
    match slot.load(KEY) {
        SLOT_FREE => 0,
        SLOT_BUSY => ClaimData::HELD,
        _ => {
            let established = Timeouts(tables.config(ConfigWord::EstablishedTimeouts));
            ClaimData(slot.load(DATA)).worth(now, established)
        }
    }
}
