//! Whose a frame is, by its Ethernet addresses.

use crate::headers::Tuple;
use crate::{FamilyTables, Packet, SharedWords, Tables};
use sluice_abi::{MacKey, OWN_BUCKET, own_bucket, own_mac, peer_bit};

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

/// Whose the frame is by its destination.
#[inline(always)]
pub(crate) fn whose<P: Packet>(packet: &P, macs: &impl SharedWords) -> Whose {
    let Some(address) = address_at(packet, 0) else {
        return Whose::Others;
    };
    let word = own_mac(address, packet.ifindex());
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
pub(crate) fn is_balanced<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    tables: &T,
    macs: &T::Macs<'_>,
    tuple: &Tuple<A>,
) -> bool {
    let Some(address) = address_at(packet, SOURCE) else {
        return false;
    };
    let (index, bit) = peer_bit(address);
    macs.load(index as usize) & bit != 0 && balanced_by(tables, address, tuple)
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
        && !FamilyTables::<A>::is_peers_own(tables, &tuple.source)
}

/// The Ethernet address at `offset`, as [`sluice_abi::mac_number`] but for the upper 16 bits: the two bytes behind it.
#[inline(always)]
fn address_at<P: Packet>(packet: &P, offset: usize) -> Option<u64> {
    packet
        .get::<8>(offset)
        .map(|bytes| u64::from_le_bytes(*bytes))
}
