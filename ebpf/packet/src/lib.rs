//! The forwarding decision: one source for the XDP program, the tc programs and the host.
//!
//! Everything here is pure: a [`Packet`] gives the bytes, [`Tables`] gives the maps, the clock and random choices, and a
//! [`Verdict`] comes back. The programs crate implements the traits over BPF contexts and maps, tests over vectors.
//!
//! The way of a packet through [`ingress`]:
//!
//! ```text
//! parse ─► IPIP to one of our servers? ── yes ─► unwrap: VIP → server, record the way back, up
//!            │ no
//!          VIP? ── yes ─► balance: flow table, else pool and ring ─► deliver by mode and path
//!            │ no
//!          reply? (claimed FullNAT port, or a backend's endpoint) ── yes ─► restore VIP, route to the client
//!            │ no
//!          pass
//! ```
//!
//! [`egress`] restores the VIP in replies of servers that live on this node.
//!
//! Only packets addressed to a VIP, or replies to them, are ever dropped; all other traffic passes, however malformed.
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

mod balance;
mod checksum;
mod deliver;
mod flow;
pub mod hash;
mod headers;
mod reply;
mod rewrite;
mod tables;
mod unwrap;
mod verdict;

pub use checksum::update_transport;
pub use flow::{Key as FlowKey, change_words, find_words, insert_words};
pub use tables::{Bucket, FamilyTables, Hook, Packet, Route, Tables};
pub use verdict::{Action, Outcome, Verdict};

use headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use sluice_abi::DropReason;

/// Decides on a packet that came in by an uplink, or by a bridge or overlay behind which servers are.
pub fn ingress<P: Packet, T: Tables>(packet: &mut P, tables: &T, hook: Hook) -> Verdict {
    let decided = match headers::ethertype(packet) {
        Some(ETHERTYPE_IPV4) => ingress_family::<4, P, T>(packet, tables, hook),
        Some(ETHERTYPE_IPV6) => ingress_family::<16, P, T>(packet, tables, hook),
        _ => Ok(Outcome::PASS),
    };
    decided.into()
}

fn ingress_family<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
) -> Result<Outcome, DropReason> {
    let outcome = forward::<A, P, T>(packet, tables, hook)?;
    match outcome.action {
        Action::Unwrap => unwrap::<A, P, T>(packet, tables),
        Action::Reply => reply::<A, P, T>(packet, tables, hook),
        _ => Ok(outcome),
    }
}

/// Restores the VIP in a packet that this node's stack sends, if it is a reply of a server that lives here.
pub fn egress<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let decided = match headers::ethertype(packet) {
        Some(ETHERTYPE_IPV4) => egress_family::<4, P, T>(packet, tables),
        Some(ETHERTYPE_IPV6) => egress_family::<16, P, T>(packet, tables),
        _ => Ok(Outcome::PASS),
    };
    decided.into()
}

/// [`egress`] of one family; `A` is the length of its addresses.
#[inline(always)]
pub fn egress_family<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    reply::local::<A, P, T>(packet, tables)
}

/// First part of [`ingress`], for one family: a packet to a VIP. [`Action::Unwrap`] and [`Action::Reply`] ask for the part
/// of that name. Programs keep the parts in functions of their own, so that no chain of stack frames exceeds the 512 bytes
/// that the verifier allows.
#[inline(always)]
pub fn forward<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
) -> Result<Outcome, DropReason> {
    let Some(ip) = headers::Ip::<A>::parse(packet, headers::ETHERNET) else {
        return Ok(Outcome::PASS);
    };
    if ip.is_tunnel() {
        return Ok(Outcome::UNWRAP);
    }
    let Some(mut tuple) = headers::Tuple::<A>::parse(packet, &ip) else {
        return balance::not_transport::<A, P, T>(packet, tables, &ip);
    };
    match tables.vip(&tuple.destination_endpoint()) {
        Some(vip) => balance::balance::<A, P, T>(packet, tables, hook, &ip, &mut tuple, vip),
        None => Ok(Outcome::REPLY),
    }
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
