//! The forwarding decision: one source for the XDP program, the tc programs and the host.
//!
//! Everything here is pure: a [`Packet`] gives the bytes, [`Tables`] gives the maps, the clock and random choices, and a
//! [`Verdict`] comes back. The programs crate implements the traits over BPF contexts and maps, tests over vectors.
//!
//! The way of a packet through [`ingress`]:
//!
//! ```text
//! frame for this node? ── no ─► pass
//!            │ yes
//! parse ─► IPIP to one of our servers? ── yes ─► unwrap: VIP → server, record the way back, up
//!            │ no
//!          VIP? ── yes ─► balance: flow table, else pool and ring ─► deliver by mode and path
//!            │ no
//!          reply? (claimed FullNAT port, or a server's port) ── yes ─► restore VIP, route to the client
//!            │ no
//!          pass
//! ```
//!
//! [`egress`] restores the VIP in replies of servers that live on this node. Both also meet who asks for the VIPs that this node
//! announces, and who speaks in their name ([`answer`], [`guard`]).
//!
//! Only packets addressed to a VIP or about it, or replies to them, are ever dropped; all other traffic passes, however malformed.
//! Functions are `inline(always)` where the verifier could otherwise not follow packet pointers through a call.
#![no_std]
#![forbid(unsafe_code)]
#![allow(
    clippy::inline_always,
    reason = "the verifier cannot follow packet pointers through calls"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "words are packed and unpacked by truncation"
)]

mod announce;
mod balance;
mod checksum;
mod choice;
mod deliver;
mod dispatch;
mod flow;
mod fullnat;
pub mod hash;
mod headers;
mod lookup;
mod mac;
mod marker;
mod next_hop;
mod refuse;
mod reply;
mod rewrite;
mod sample;
mod schedule;
mod server;
mod tables;
mod unwrap;
mod verdict;
mod words;

pub use checksum::update_transport;
pub use dispatch::{
    Egress, Ingress, Step, dispatch_egress, dispatch_ingress, egress, ethertype, ingress,
};
pub use flow::{change_words, find_words, insert_words};
pub use fullnat::claim_worth;
pub use sample::sample_words;
pub use tables::{AlignedMac, FamilyTables, Hook, Packet, Route, SharedWords, Tables};
pub use verdict::{Action, Outcome, Verdict};
pub use words::copy;

use sluice_abi::DropReason;

/// First part of [`ingress`], for one family: a packet to a VIP. [`Action::Unwrap`], [`Action::Reply`], [`Action::Announce`] and
/// [`Action::Refuse`] ask for another part.
#[inline(always)]
pub fn forward<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
) -> Result<Outcome, DropReason> {
    lookup::forward::<A, P, T>(packet, tables, hook)
}

/// Part of [`ingress`]: a packet that may be in a tunnel to a server of this node.
#[inline(always)]
pub fn unwrap<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    unwrap::unwrap::<A, P, T>(packet, tables)
}

/// Part of [`ingress`]: a packet that may be a server's reply.
#[inline(always)]
pub fn reply<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
) -> Result<Outcome, DropReason> {
    reply::remote::<A, P, T>(packet, tables, hook)
}

/// Part of [`ingress`]: a packet that may ask who has an address, by ARP if `A` is 4, else by neighbour discovery.
#[inline(always)]
pub fn answer<const A: usize, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    announce::answer::<A, P, T>(packet, tables)
}

/// Part of [`ingress`]: a packet to a VIP that no server takes, whose sender is to be told.
#[inline(always)]
pub fn refuse<const A: usize, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    refuse::refuse::<A, P, T>(packet, tables)
}

/// First part of [`egress`]: restores the VIP in a packet that this node's stack sends, if it is a reply of a server that
/// lives here. [`Action::Announce`] asks for [`guard`].
#[inline(always)]
pub fn local_reply<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    reply::local::<A, P, T>(packet, tables)
}

/// Part of [`egress`]: a packet that may say who has an address, by ARP if `A` is 4, else by neighbour discovery.
#[inline(always)]
pub fn guard<const A: usize, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    announce::guard::<A, P, T>(packet, tables)
}
