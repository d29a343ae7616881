//! Which part of the decision a packet meets, the same for programs and hosts.
//!
//! A hook says by [`Ingress`] and [`Egress`] how it runs a part. Programs make each part a function of its own, so that
//! no chain of stack frames exceeds the 512 bytes that the verifier allows; a host calls them as they are.

use crate::headers::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::{
    Action, FamilyTables, Hook, Outcome, Packet, Tables, Verdict, forward, headers, reply, unwrap,
};
use sluice_abi::DropReason;

/// Result of the first part.
pub enum Step<D> {
    /// It is decided.
    Done(D),
    /// It may be in a tunnel to a server of this node: [`Ingress::unwrap`] decides.
    Unwrap,
    /// It may be a server's reply: [`Ingress::reply`] decides.
    Reply,
    /// It may be about who has an address: [`Ingress::answer`] or [`Egress::guard`] decides.
    Announce,
    /// No server takes it, and its sender is to be told: [`Ingress::refuse`] does.
    Refuse,
}

/// The parts of the decision on a packet that came in; `A` is the length of its family's addresses.
pub trait Ingress<const A: usize> {
    /// The answer that the hook gets in the end.
    type Done;
    /// Runs [`forward`].
    fn forward(&mut self) -> Step<Self::Done>;
    /// Runs [`unwrap`].
    fn unwrap(&mut self) -> Self::Done;
    /// Runs [`reply`].
    fn reply(&mut self) -> Self::Done;
    /// Runs [`crate::answer`] at XDP; at other hooks the packet passes.
    fn answer(&mut self) -> Self::Done;
    /// Runs [`crate::refuse`]; XDP alone asks for it.
    fn refuse(&mut self) -> Self::Done;
}

/// The decision on a packet that this node's stack sends; `A` is the length of its family's addresses.
pub trait Egress<const A: usize> {
    /// The answer that the hook gets in the end.
    type Done;
    /// Runs [`crate::local_reply`].
    fn local_reply(&mut self) -> Step<Self::Done>;
    /// Runs [`crate::guard`].
    fn guard(&mut self) -> Self::Done;
}

/// Decides on a packet that came in by an uplink, or by a bridge or overlay behind which servers are. `None`: neither IPv4
/// nor IPv6 nor ARP, so it passes.
#[inline(always)]
pub fn dispatch_ingress<D, P>(packet: &mut P, ethertype: Option<[u8; 2]>) -> Option<D>
where
    P: Ingress<4, Done = D> + Ingress<16, Done = D>,
{
    match ethertype {
        Some(ETHERTYPE_IPV4) => Some(ingress_family::<4, D, P>(packet)),
        Some(ETHERTYPE_IPV6) => Some(ingress_family::<16, D, P>(packet)),
        Some(ETHERTYPE_ARP) => Some(Ingress::<4>::answer(packet)),
        _ => None,
    }
}

#[inline(always)]
fn ingress_family<const A: usize, D, P: Ingress<A, Done = D>>(packet: &mut P) -> D {
    match packet.forward() {
        Step::Done(done) => done,
        Step::Unwrap => packet.unwrap(),
        Step::Reply => packet.reply(),
        Step::Announce => packet.answer(),
        Step::Refuse => packet.refuse(),
    }
}

/// Decides on a packet that this node's stack sends. `None`: neither IPv4 nor IPv6 nor ARP, so it passes.
#[inline(always)]
pub fn dispatch_egress<D, P>(packet: &mut P, ethertype: Option<[u8; 2]>) -> Option<D>
where
    P: Egress<4, Done = D> + Egress<16, Done = D>,
{
    match ethertype {
        Some(ETHERTYPE_IPV4) => egress_family::<4, D, P>(packet),
        Some(ETHERTYPE_IPV6) => egress_family::<16, D, P>(packet),
        Some(ETHERTYPE_ARP) => Some(Egress::<4>::guard(packet)),
        _ => None,
    }
}

#[inline(always)]
fn egress_family<const A: usize, D, P: Egress<A, Done = D>>(packet: &mut P) -> Option<D> {
    match packet.local_reply() {
        Step::Done(done) => Some(done),
        Step::Announce => Some(packet.guard()),
        Step::Unwrap | Step::Reply | Step::Refuse => None,
    }
}

/// A frame's EtherType, by which the dispatchers tell families.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<[u8; 2]> {
    headers::ethertype(packet)
}

/// A hook that runs the parts as they are.
struct Direct<'a, P, T> {
    packet: &'a mut P,
    tables: &'a T,
    hook: Hook,
}

type Decided = Result<Outcome, DropReason>;

impl<const A: usize, P: Packet, T: Tables + FamilyTables<A>> Ingress<A> for Direct<'_, P, T> {
    type Done = Decided;

    fn forward(&mut self) -> Step<Decided> {
        match forward::<A, P, T>(self.packet, self.tables, self.hook) {
            Ok(outcome) if outcome.action == Action::Unwrap => Step::Unwrap,
            Ok(outcome) if outcome.action == Action::Reply => Step::Reply,
            Ok(outcome) if outcome.action == Action::Announce => Step::Announce,
            Ok(outcome) if outcome.action == Action::Refuse => Step::Refuse,
            decided => Step::Done(decided),
        }
    }

    fn unwrap(&mut self) -> Decided {
        unwrap::<A, P, T>(self.packet, self.tables)
    }

    fn reply(&mut self) -> Decided {
        reply::<A, P, T>(self.packet, self.tables, self.hook)
    }

    fn answer(&mut self) -> Decided {
        match self.hook {
            Hook::Xdp => crate::answer::<A, P, T>(self.packet, self.tables),
            Hook::Tc => Ok(Outcome::PASS),
        }
    }

    fn refuse(&mut self) -> Decided {
        crate::refuse::<A, P, T>(self.packet, self.tables)
    }
}

impl<const A: usize, P: Packet, T: Tables + FamilyTables<A>> Egress<A> for Direct<'_, P, T> {
    type Done = Decided;

    fn local_reply(&mut self) -> Step<Decided> {
        match crate::local_reply::<A, P, T>(self.packet, self.tables) {
            Ok(outcome) if outcome.action == Action::Announce => Step::Announce,
            decided => Step::Done(decided),
        }
    }

    fn guard(&mut self) -> Decided {
        crate::guard::<A, P, T>(self.packet, self.tables)
    }
}

/// [`dispatch_ingress`] on a host.
pub fn ingress<P: Packet, T: Tables>(packet: &mut P, tables: &T, hook: Hook) -> Verdict {
    let ethertype = ethertype(packet);
    let mut direct = Direct {
        packet,
        tables,
        hook,
    };
    dispatch_ingress(&mut direct, ethertype)
        .unwrap_or(Ok(Outcome::PASS))
        .into()
}

/// [`dispatch_egress`] on a host.
pub fn egress<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let ethertype = ethertype(packet);
    let mut direct = Direct {
        packet,
        tables,
        hook: Hook::Tc,
    };
    dispatch_egress(&mut direct, ethertype)
        .unwrap_or(Ok(Outcome::PASS))
        .into()
}
