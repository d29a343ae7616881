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
    helpers::{bpf_probe_read_kernel, bpf_redirect, bpf_redirect_neigh},
    macros::{classifier, raw_tracepoint, xdp},
    programs::{RawTracePointContext, TcContext, XdpContext},
};
use context::{Skb, XdpFrame};
use maps::constant;
use sluice_abi::{ConfigWord, DropReason};
use sluice_packet::{
    Action, Egress, Hook, Ingress, Outcome, Packet, Step, Tables, answer, dispatch_egress,
    dispatch_ingress, ethertype, forward, guard, local_reply, refuse, reply, unwrap,
};
use tables::Maps;

/// What a part of the decision answers that asks for another part is [`Action`]'s number and this; no action of XDP or tc.
const PARTS: u32 = 0x100;
/// Asks for the part of the decision that unwraps.
const UNWRAP: u32 = PARTS + Action::Unwrap as u32;
/// Asks for the part of the decision that tells a client that nobody serves it.
const REFUSE: u32 = PARTS + Action::Refuse as u32;
/// Asks for the part of the decision on replies.
const REPLY: u32 = PARTS + Action::Reply as u32;

/// The parts of the decision on a hook's packets of one family, each a function of its own: the verifier allows 512 bytes
/// of stack for a chain of calls.
macro_rules! ingress {
    (
        packet: $packet:ty,
        hook: $hook:expr,
        address: $a:literal,
        action: $action:ident,
        forward: $forward:ident,
        unwrap: $unwrap:ident,
        reply: $reply:ident,
        answer: $answer:ident,
        refuse: $refuse:ident $(,)?
    ) => {
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
        impl Ingress<$a> for $packet {
            type Done = u32;

            #[inline(always)]
            fn forward(&mut self) -> Step<u32> {
                match $forward(self) {
                    action if action < PARTS => Step::Done(action),
                    REPLY => Step::Reply,
                    UNWRAP => Step::Unwrap,
                    REFUSE => Step::Refuse,
                    _ => Step::Announce,
                }
            }
            #[inline(always)]
            fn unwrap(&mut self) -> u32 {
                $unwrap(self)
            }
            #[inline(always)]
            fn reply(&mut self) -> u32 {
                $reply(self)
            }
            #[inline(always)]
            fn answer(&mut self) -> u32 {
                $answer(self)
            }
            #[inline(always)]
            fn refuse(&mut self) -> u32 {
                $refuse(self)
            }
        }
    };
}
ingress! {
    packet: XdpFrame,
    hook: Hook::Xdp,
    address: 4,
    action: xdp_action,
    forward: xdp_forward4,
    unwrap: xdp_unwrap4,
    reply: xdp_reply4,
    answer: xdp_answer4,
    refuse: xdp_refuse4,
}
ingress! {
    packet: XdpFrame,
    hook: Hook::Xdp,
    address: 16,
    action: xdp_action,
    forward: xdp_forward6,
    unwrap: xdp_unwrap6,
    reply: xdp_reply6,
    answer: xdp_answer6,
    refuse: xdp_refuse6,
}
ingress! {
    packet: Skb,
    hook: Hook::Tc,
    address: 4,
    action: tc_action,
    forward: tc_forward4,
    unwrap: tc_unwrap4,
    reply: tc_reply4,
    answer: tc_answer,
    refuse: tc_refuse,
}
ingress! {
    packet: Skb,
    hook: Hook::Tc,
    address: 16,
    action: tc_action,
    forward: tc_forward6,
    unwrap: tc_unwrap6,
    reply: tc_reply6,
    answer: tc_answer,
    refuse: tc_refuse,
}

/// Parts of the decision that XDP alone runs: on who asks for an address, and telling a client that nobody serves it.
macro_rules! at_xdp {
    (address: $a:literal, $part:ident: $name:ident $(,)?) => {
        #[inline(never)]
        fn $name(frame: &mut XdpFrame) -> u32 {
            let decided = $part::<$a, _, _>(frame, &Maps::new(frame.context()));
            xdp_action(decided, frame.unknown_zero())
        }
    };
}
at_xdp! { address: 4, answer: xdp_answer4 }
at_xdp! { address: 16, answer: xdp_answer6 }
at_xdp! { address: 4, refuse: xdp_refuse4 }
at_xdp! { address: 16, refuse: xdp_refuse6 }

/// XDP has told the client: tc is not asked.
#[inline(always)]
fn tc_refuse(_: &mut Skb) -> u32 {
    TC_ACT_SHOT as u32
}

/// XDP has seen who asks.
#[inline(always)]
fn tc_answer(_: &mut Skb) -> u32 {
    TC_ACT_OK as u32
}

/// As `ingress`, for packets that this node's stack sends.
macro_rules! egress {
    (address: $a:literal, local_reply: $local_reply:ident, guard: $guard:ident $(,)?) => {
        #[inline(never)]
        fn $local_reply(skb: &mut Skb) -> u32 {
            let decided = local_reply::<$a, _, _>(skb, &Maps::new(skb.context()));
            tc_action(decided, skb.unknown_zero())
        }
        #[inline(never)]
        fn $guard(skb: &mut Skb) -> u32 {
            let decided = guard::<$a, _, _>(skb, &Maps::new(skb.context()));
            tc_action(decided, skb.unknown_zero())
        }
        impl Egress<$a> for Skb {
            type Done = u32;

            #[inline(always)]
            fn local_reply(&mut self) -> Step<u32> {
                match $local_reply(self) {
                    action if action < PARTS => Step::Done(action),
                    _ => Step::Announce,
                }
            }
            #[inline(always)]
            fn guard(&mut self) -> u32 {
                $guard(self)
            }
        }
    };
}
egress! { address: 4, local_reply: egress_ipv4, guard: egress_arp }
egress! { address: 16, local_reply: egress_ipv6, guard: egress_advertisement }

/// Balances packets to VIPs, unwraps tunnelled ones, returns replies to clients, and answers who asks for VIPs.
#[xdp]
pub fn sluice_xdp(context: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(context);
    let ethertype = ethertype(&frame);
    dispatch_ingress(&mut frame, ethertype).unwrap_or(xdp_action::XDP_PASS)
}

/// Takes packets that XDP cannot deliver: servers behind a bridge or overlay, and their replies.
#[classifier]
pub fn sluice_ingress(context: TcContext) -> i32 {
    let mut skb = Skb::new(context);
    let ethertype = ethertype(&skb);
    dispatch_ingress(&mut skb, ethertype).unwrap_or(TC_ACT_OK as u32) as i32
}

/// Replies of servers that live on this node, and what the stack says of VIPs.
#[classifier]
pub fn sluice_egress(context: TcContext) -> i32 {
    let mut skb = Skb::new(context);
    let ethertype = ethertype(&skb);
    dispatch_egress(&mut skb, ethertype).unwrap_or(TC_ACT_OK as u32) as i32
}

/// Counts the packets that XDP redirects and the device out refuses: the tracepoint `xdp_redirect_err`, at which all programs
/// of the machine are met.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub fn sluice_redirect_refused(context: RawTracePointContext) -> i32 {
    let own = Maps::new(core::ptr::null_mut()).config(ConfigWord::XdpProgram);
    if own != 0 && redirecting_program(&context) == own {
        count_drop(DropReason::RedirectRefused);
    }
    0
}

/// The kernel's id of the program that asked for the redirect; 0 if it cannot be read.
#[inline(always)]
fn redirecting_program(context: &RawTracePointContext) -> u64 {
    // The arguments are the device, the program, the target, the error and more.
    let program: *const u8 = context.arg(1);
    let aux = program.wrapping_add(constant(&maps::BPF_PROG_AUX) as usize);
    // SAFETY: the helper reads any address, and says whether it could.
    let Ok(aux) = (unsafe { bpf_probe_read_kernel(aux.cast::<*const u8>()) }) else {
        return 0;
    };
    let id = aux.wrapping_add(constant(&maps::BPF_PROG_AUX_ID) as usize);
    // SAFETY: as above.
    u64::from(unsafe { bpf_probe_read_kernel(id.cast::<u32>()) }.unwrap_or(0))
}

const TX: u32 = Action::Tx as u32;
const REDIRECT: u32 = Action::Redirect as u32;
const NEIGH: u32 = Action::Neigh as u32;
const FIRST_PART: u32 = Action::Unwrap as u32;

/// `unknown` is 0 and hides the action from the verifier: that of Linux 6.1 loses track of constants that live across a
/// call, and hard-wires branches on them as dead.
#[inline(always)]
fn xdp_action(decided: Result<Outcome, DropReason>, unknown: u32) -> u32 {
    match decided {
        Ok(outcome) => match outcome.action as u32 + unknown {
            TX => xdp_action::XDP_TX,
            // SAFETY: a helper call without pointers.
            REDIRECT => unsafe { bpf_redirect(outcome.ifindex, 0) as u32 },
            part if part >= FIRST_PART => PARTS + part,
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
            part if part >= FIRST_PART => PARTS + part,
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
