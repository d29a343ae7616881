//! Whose a frame is, by its Ethernet addresses.

use crate::headers::Tuple;
use crate::{FamilyTables, Packet, SharedWords, Tables};
use sluice_abi::{MacKey, NET_SENDS, OWN_BUCKET, own_bucket, own_mac, peer_bit};

/// Offset of a frame's source address.
const SOURCE: usize = 6;

/// Whose a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// For somebody else: a switch may flood frames, and each director would serve them.
    Others,
    /// For this node, by an uplink.
    Uplink,
    /// For this node, by a bridge or overlay behind which servers are.
    Device,
}

/// The Ethernet addresses of a frame, as [`sluice_abi::mac_number`] but for the upper 16 bits: the two bytes behind each.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    destination: u64,
    source: u64,
}

impl Ends {
    /// Reads both while the frame's bounds are at hand.
    #[inline(always)]
    pub(crate) fn of<P: Packet>(packet: &P) -> Option<Self> {
        let source = u64::from_le_bytes(*packet.get::<8>(SOURCE)?);
        let destination = u64::from_le_bytes(*packet.get::<8>(0)?);
        Some(Self {
            destination,
            source,
        })
    }
}

/// Whose the frame is by its destination.
#[inline(always)]
pub(crate) fn whose<P: Packet>(packet: &P, ends: Ends, macs: &impl SharedWords) -> Whose {
    let word = own_mac(ends.destination, packet.ifindex());
    let first = own_bucket(word);
    let mut place = 0;
    while place < OWN_BUCKET {
        if macs.load((first + place) as usize) == word {
            return Whose::Uplink;
        }
        place += 1;
    }
    if packet.is_for_device() {
        Whose::Device
    } else {
        Whose::Others
    }
}

/// Whether another director has balanced the packet already: it sent the frame, and not on its own behalf.
#[inline(always)]
pub(crate) fn is_balanced<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    ends: Ends,
    macs: &T::Macs<'_>,
    tuple: &Tuple<A>,
) -> bool {
    let (index, bit) = peer_bit(ends.source);
    macs.load(index as usize) & bit != 0 && balanced_by(tables, ends.source, tuple)
}

/// Whether this sender is another director, and the packet is not its own. A function of its own, as the steps of
/// [`crate::balance`].
#[inline(never)]
fn balanced_by<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    address: u64,
    tuple: &Tuple<A>,
) -> bool {
    let bytes = address.to_le_bytes();
    let mac = [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]];
    tables.is_peer(&MacKey { mac, pad: [0; 2] })
        && FamilyTables::<A>::peer_net(tables, &tuple.source) & NET_SENDS == 0
}
