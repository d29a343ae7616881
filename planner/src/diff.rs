//! The writes that lead from what the maps hold to what they shall hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_abi::{RingWord, ServerWord, VipWord};

use crate::{Image, MapOp, RingLayout, Socket};

/// The operations that turn `actual` into `desired`, in an order of which every prefix is safe:
///
/// 1. new records, ring slots, source sets and heads are written where nothing leads;
/// 2. entries that lead in and shall go are removed;
/// 3. words flip, from the inside out: a server's word before the ring that names it, the ring before the head's VIP word, and that
///    before the word by which the node answers for the VIP;
/// 4. after a grace period nothing refers to the old rings, server ids and source sets any more, and they go;
/// 5. after another one their slots are free for the next plan.
///
/// `layouts` has what rings that are not in place yet follow from.
pub(crate) fn diff(
    actual: &Image,
    desired: &Image,
    layouts: &BTreeMap<u32, Arc<RingLayout>>,
) -> Vec<MapOp> {
    let mut ops = writes(actual, desired, layouts);
    let before_flips = ops.len();
    removals_of_entries(actual, desired, &mut ops);
    flips(actual, desired, &mut ops);
    if ops.len() > before_flips {
        ops.push(MapOp::Grace);
    }
    let before_removals = ops.len();
    removals(actual, desired, &mut ops);
    if ops.len() > before_removals {
        ops.push(MapOp::Grace);
    }
    ops
}

fn writes(actual: &Image, desired: &Image, layouts: &BTreeMap<u32, Arc<RingLayout>>) -> Vec<MapOp> {
    let mut ops = Vec::new();
    for (&slot, &record) in &desired.records {
        if actual.records.get(&slot) != Some(&record) {
            ops.push(MapOp::WriteRecord { slot, record });
        }
    }
    for (id, ring) in &desired.rings {
        if actual.rings.get(id) != Some(ring)
            && let Some(layout) = layouts.get(id)
        {
            ops.push(MapOp::WriteRingSlots {
                offset: ring.word.offset(),
                layout: Arc::clone(layout),
            });
        }
    }
    for (set, blocks) in &desired.sources {
        if !actual.sources.contains_key(set) {
            let (set, blocks) = (*set, Arc::clone(blocks));
            ops.push(MapOp::WriteSources { set, blocks });
        }
    }
    for (&slot, &head) in &desired.heads {
        if actual.heads.get(&slot) != Some(&head) {
            ops.push(MapOp::WriteHead { slot, head });
        }
    }
    ops
}

/// Nobody answers for an address any more before its endpoints go, and these go before its marker.
fn removals_of_entries(actual: &Image, desired: &Image, ops: &mut Vec<MapOp>) {
    for &at in actual.announced.keys() {
        if !desired.announced.contains_key(&at) {
            ops.push(MapOp::RemoveAnnounced { at });
        }
    }
    let gone = |socket: &&Socket| !desired.vips.contains_key(socket);
    let (markers, sockets): (Vec<_>, Vec<_>) = actual
        .vips
        .keys()
        .filter(gone)
        .partition(|socket| socket.is_marker());
    for &socket in sockets.into_iter().chain(markers) {
        ops.push(MapOp::RemoveVip { socket });
    }
    for &local in actual.locals.keys() {
        if !desired.locals.contains_key(&local) {
            ops.push(MapOp::RemoveLocal { local });
        }
    }
    ops.extend(gone_nets(actual, desired, false));
    for &mac in actual.peers.difference(&desired.peers) {
        ops.push(MapOp::RemovePeer { mac });
    }
}

/// Entries of `PEER_NETS*` that go: those of all addresses, or the others. The former go last, so that no director's tunnels are
/// strangers' in between.
fn gone_nets(actual: &Image, desired: &Image, all: bool) -> impl Iterator<Item = MapOp> {
    let nets = actual.peer_nets.keys().copied();
    nets.filter(move |net| net.is_all() == all && !desired.peer_nets.contains_key(net))
        .map(|prefix| MapOp::RemovePeerNet { prefix })
}

fn flips(actual: &Image, desired: &Image, ops: &mut Vec<MapOp>) {
    // Who is a peer counts as one once what it sends on its own behalf is known.
    for (&prefix, &flags) in &desired.peer_nets {
        if actual.peer_nets.get(&prefix) != Some(&flags) {
            ops.push(MapOp::SetPeerNet { prefix, flags });
        }
    }
    ops.extend(gone_nets(actual, desired, true));
    for &mac in desired.peers.difference(&actual.peers) {
        ops.push(MapOp::AddPeer { mac });
    }
    for (&index, &word) in &desired.macs {
        if actual.macs.get(&index) != Some(&word) {
            ops.push(MapOp::SetMac { index, word });
        }
    }
    for &index in actual.macs.keys() {
        if !desired.macs.contains_key(&index) {
            ops.push(MapOp::SetMac { index, word: 0 });
        }
    }
    for (&socket, &index) in &desired.replies {
        if actual.replies.get(&socket) != Some(&index) {
            ops.push(MapOp::SetReply { socket, index });
        }
    }
    // A server begins to drain after the heads have stopped choosing it, and stops before they begin.
    let (mut now, mut later) = (Vec::new(), Vec::new());
    for (&id, &word) in desired.servers.iter().filter(|(_, word)| word.present()) {
        let old = actual.servers.get(&id).copied().unwrap_or_default();
        if old == word {
            continue;
        }
        let op = MapOp::SetServer { id, word };
        if old.present() && word.draining() && !old.draining() {
            if old.slot() != word.slot() || old.path() != word.path() {
                let word = ServerWord::new(word.slot(), word.epoch(), word.path(), false);
                now.push(MapOp::SetServer { id, word });
            }
            later.push(op);
        } else {
            now.push(op);
        }
    }
    ops.append(&mut now);
    for (&ring, wanted) in &desired.rings {
        if actual.rings.get(&ring).map(|old| old.word) != Some(wanted.word) {
            ops.push(MapOp::SetRing {
                ring,
                word: wanted.word,
            });
        }
    }
    for (&local, &server) in &desired.locals {
        if actual.locals.get(&local) != Some(&server) {
            ops.push(MapOp::SetLocal { local, server });
        }
    }
    ops.extend(vip_flips(actual, desired));
    ops.append(&mut later);
    for (&at, &word) in &desired.announced {
        if actual.announced.get(&at) != Some(&word) {
            ops.push(MapOp::SetAnnounced { at, word });
        }
    }
}

/// An address is marked once it has sockets.
fn vip_flips(actual: &Image, desired: &Image) -> Vec<MapOp> {
    let changed = |(socket, word): &(&Socket, &VipWord)| actual.vips.get(socket) != Some(word);
    let (markers, sockets): (Vec<_>, Vec<_>) = desired
        .vips
        .iter()
        .filter(changed)
        .partition(|(socket, _)| socket.is_marker());
    let in_order = sockets.into_iter().chain(markers);
    in_order
        .map(|(&socket, &word)| MapOp::SetVip { socket, word })
        .collect()
}

fn removals(actual: &Image, desired: &Image, ops: &mut Vec<MapOp>) {
    for &ring in actual.rings.keys() {
        if !desired.rings.contains_key(&ring) {
            ops.push(MapOp::SetRing {
                ring,
                word: RingWord(0),
            });
        }
    }
    let ids: BTreeSet<u32> = actual.servers.keys().copied().collect();
    for id in ids {
        let old = actual.servers.get(&id).copied().unwrap_or_default();
        let word = desired.servers.get(&id).copied().unwrap_or_default();
        if old != word && !word.present() {
            ops.push(MapOp::SetServer { id, word });
        }
    }
    for &socket in actual.replies.keys() {
        if !desired.replies.contains_key(&socket) {
            ops.push(MapOp::RemoveReply { socket });
        }
    }
    for (set, blocks) in &actual.sources {
        if !desired.sources.contains_key(set) {
            let (set, blocks) = (*set, Arc::clone(blocks));
            ops.push(MapOp::RemoveSources { set, blocks });
        }
    }
}
