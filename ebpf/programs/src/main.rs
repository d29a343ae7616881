//! Sluice's programs: `sluice_xdp` on uplinks, `sluice_ingress` and `sluice_egress` on tc. Thin entry points over
//! `sluice_packet`; [`context`] gives it the packet, [`tables`] the maps.
#![no_std]
#![no_main]
// Atomic instructions are inline assembly: rustc's BPF target has none.
#![feature(asm_experimental_arch)]
// To treat variable packet offsets apart.
#![feature(core_intrinsics)]
#![allow(internal_features)]
#![allow(unsafe_code)]

mod context;
mod maps;
mod tables;

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    helpers::{bpf_redirect, bpf_redirect_neigh},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use context::{Skb, XdpFrame};
use sluice_abi::DropReason;
use sluice_packet::{Action, Hook, Outcome, Packet, egress_family, forward, reply, unwrap};
use tables::Maps;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Asks for the part of the decision that unwraps; no action of XDP or tc.
const UNWRAP: u32 = 0x100;
/// Asks for the part of the decision on replies.
const REPLY: u32 = 0x101;

/// The parts of the decision for one family, each a function of its own: the verifier allows 512 bytes of stack for a
/// chain of calls.
macro_rules! parts {
    ($packet:ty, $action:ident, $hook:expr, $a:literal, $all:ident, $forward:ident, $unwrap:ident, $reply:ident) => {
        #[inline(always)]
        fn $all(packet: &mut $packet) -> u32 {
            match $forward(packet) {
                UNWRAP => $unwrap(packet),
                REPLY => $reply(packet),
                action => action,
            }
        }
        #[inline(never)]
        fn $forward(packet: &mut $packet) -> u32 {
            let decided = forward::<$a, _, _>(packet, &Maps::new(packet.context()), $hook);
            $action(decided, packet.unknown_zero())
        }
        #[inline(never)]
        fn $unwrap(packet: &mut $packet) -> u32 {
            let decided = unwrap::<$a, _, _>(packet, &Maps::new(packet.context()));
            $action(decided, packet.unknown_zero())
        }
        #[inline(never)]
        fn $reply(packet: &mut $packet) -> u32 {
            let decided = reply::<$a, _, _>(packet, &Maps::new(packet.context()), $hook);
            $action(decided, packet.unknown_zero())
        }
    };
}
parts!(
    XdpFrame,
    xdp_action,
    Hook::Xdp,
    4,
    xdp_ipv4,
    xdp_forward4,
    xdp_unwrap4,
    xdp_reply4
);
parts!(
    XdpFrame,
    xdp_action,
    Hook::Xdp,
    16,
    xdp_ipv6,
    xdp_forward6,
    xdp_unwrap6,
    xdp_reply6
);
parts!(
    Skb,
    tc_action,
    Hook::Tc,
    4,
    tc_ipv4,
    tc_forward4,
    tc_unwrap4,
    tc_reply4
);
parts!(
    Skb,
    tc_action,
    Hook::Tc,
    16,
    tc_ipv6,
    tc_forward6,
    tc_unwrap6,
    tc_reply6
);

/// Balances packets to VIPs, unwraps tunnelled ones, and returns replies to clients.
#[xdp]
pub fn sluice_xdp(context: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(context);
    match frame.get::<2>(12) {
        Some(&ETHERTYPE_IPV4) => xdp_ipv4(&mut frame),
        Some(&ETHERTYPE_IPV6) => xdp_ipv6(&mut frame),
        _ => xdp_action::XDP_PASS,
    }
}

/// What XDP cannot deliver: servers behind a bridge or overlay, and their replies.
#[classifier]
pub fn sluice_ingress(context: TcContext) -> i32 {
    let mut skb = Skb::new(context);
    match skb.get::<2>(12) {
        Some(&ETHERTYPE_IPV4) => tc_ipv4(&mut skb) as i32,
        Some(&ETHERTYPE_IPV6) => tc_ipv6(&mut skb) as i32,
        _ => TC_ACT_OK,
    }
}

/// Replies of servers that live on this node.
#[classifier]
pub fn sluice_egress(context: TcContext) -> i32 {
    let mut skb = Skb::new(context);
    match skb.get::<2>(12) {
        Some(&ETHERTYPE_IPV4) => egress_ipv4(&mut skb) as i32,
        Some(&ETHERTYPE_IPV6) => egress_ipv6(&mut skb) as i32,
        _ => TC_ACT_OK,
    }
}

#[inline(never)]
fn egress_ipv4(skb: &mut Skb) -> u32 {
    let decided = egress_family::<4, _, _>(skb, &Maps::new(skb.context()));
    tc_action(decided, skb.unknown_zero())
}

#[inline(never)]
fn egress_ipv6(skb: &mut Skb) -> u32 {
    let decided = egress_family::<16, _, _>(skb, &Maps::new(skb.context()));
    tc_action(decided, skb.unknown_zero())
}

const TX: u32 = Action::Tx as u32;
const REDIRECT: u32 = Action::Redirect as u32;
const NEIGH: u32 = Action::Neigh as u32;
const TO_UNWRAP: u32 = Action::Unwrap as u32;
const TO_REPLY: u32 = Action::Reply as u32;

/// `unknown` is 0 and hides the action from the verifier: that of Linux 6.1 loses track of constants that live across a
/// call, and hard-wires branches on them as dead.
#[inline(always)]
fn xdp_action(decided: Result<Outcome, DropReason>, unknown: u32) -> u32 {
    match decided {
        Ok(outcome) => match outcome.action as u32 + unknown {
            TX => xdp_action::XDP_TX,
            // SAFETY: a helper call without pointers.
            REDIRECT => unsafe { bpf_redirect(outcome.ifindex, 0) as u32 },
            TO_UNWRAP => UNWRAP,
            TO_REPLY => REPLY,
            _ => xdp_action::XDP_PASS,
        },
        Err(reason) => {
            count_drop(reason);
            xdp_action::XDP_DROP
        }
    }
}

/// As [`xdp_action()`].
#[inline(always)]
fn tc_action(decided: Result<Outcome, DropReason>, unknown: u32) -> u32 {
    match decided {
        Ok(outcome) => match outcome.action as u32 + unknown {
            // SAFETY: a helper call without pointers.
            REDIRECT => unsafe { bpf_redirect(outcome.ifindex, 0) as u32 },
            // SAFETY: without parameters the helper takes the destination from the packet.
            NEIGH => unsafe {
                bpf_redirect_neigh(outcome.ifindex, core::ptr::null_mut(), 0, 0) as u32
            },
            TO_UNWRAP => UNWRAP,
            TO_REPLY => REPLY,
            _ => TC_ACT_OK as u32,
        },
        Err(reason) => {
            count_drop(reason);
            TC_ACT_SHOT as u32
        }
    }
}

#[inline(always)]
fn count_drop(reason: DropReason) {
    if let Some(counter) = maps::DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU value; programs are not preempted by one of the same kind.
        unsafe { *counter += 1 }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
