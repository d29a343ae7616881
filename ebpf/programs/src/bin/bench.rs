//! The benchmark's wrapper and its floors.
//!
//! BPF_PROG_TEST_RUN with a repeat count does not restore the frame that the measured program has changed. So the program
//! that runs is a wrapper: it calls the measured program, which stays as it is, counts its verdict, undoes the change of
//! length and writes the next frame. The call is a tail call out of a subprogram: the measured program's end returns to
//! the subprogram's caller (x86 since 5.10, arm64 since 6.0).
//!
//! One wrapper for each frame layout, so that every offset is a constant: the wrapper's own time must stay below that of
//! an encapsulation, or it would hide the differences between programs.
#![feature(asm_experimental_arch)]
#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use core::{arch::asm, ptr};
use sluice_abi::bench::{BENCH_PAD, BenchControl, bench_frame_len};

#[btf_map]
static CONTROL: Array<BenchControl, 1> = Array::new();

/// The measured program, in the only slot: a tail call with a constant index is patched into a direct jump (Linux 5.5),
/// which costs a fraction of an indirect one where branches are hardened against speculation.
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();

/// Returned when the tail call fails: no `xdp_action`, and the last of `verdicts`.
const NOT_CALLED: u32 = 7;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

#[xdp]
pub fn bench_tcp4(ctx: XdpContext) -> u32 {
    wrap::<4, false>(&ctx)
}

#[xdp]
pub fn bench_udp4(ctx: XdpContext) -> u32 {
    wrap::<4, true>(&ctx)
}

#[xdp]
pub fn bench_tcp6(ctx: XdpContext) -> u32 {
    wrap::<16, false>(&ctx)
}

#[xdp]
pub fn bench_udp6(ctx: XdpContext) -> u32 {
    wrap::<16, true>(&ctx)
}

#[inline(always)]
fn wrap<const A: usize, const UDP: bool>(ctx: &XdpContext) -> u32 {
    let Some(control) = CONTROL.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the map's value outlives the program; one benchmark runs at a time.
    let control = unsafe { &mut *control };
    let verdict = call(ctx);
    control.verdicts[verdict as usize & 7] += 1;

    let grown = opaque((ctx.data_end() - ctx.data()) as u64) as i32 - bench_frame_len::<A>() as i32;
    // SAFETY: the context is the kernel's.
    if grown != 0 && unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), grown) } != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let packet = control.packet;
    control.packet = packet.wrapping_add(1);
    let words = control.render::<A, UDP>(packet);
    let data = ctx.data();
    if data + bench_frame_len::<A>() > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // The bytes after the transport header stay as they are.
    let last = match (A, UDP) {
        (4, false) => 6,
        (4, true) => 5,
        (_, false) => 9,
        (_, true) => 8,
    };
    // SAFETY: the frame's length was compared, and the last word ends within it.
    unsafe {
        ptr::write_unaligned(data as *mut u32, (words[0] >> (8 * BENCH_PAD)) as u32);
        ptr::write_unaligned((data + 4) as *mut u16, (words[0] >> 48) as u16);
        let mut i = 1;
        while i <= last {
            ptr::write_unaligned((data + 8 * i - BENCH_PAD) as *mut u64, words[i]);
            i += 1;
        }
    }
    verdict
}

/// Runs the measured program and returns its verdict.
#[inline(never)]
fn call(ctx: &XdpContext) -> u32 {
    // SAFETY: nothing here has a destructor to be skipped.
    unsafe { TARGET.tail_call(ctx, 0) };
    // Known to be a constant, the value would be propagated to the caller in place of the verdict.
    opaque(u64::from(NOT_CALLED)) as u32
}

/// The value, of which the compiler knows nothing any more.
#[inline(always)]
fn opaque(mut value: u64) -> u64 {
    // SAFETY: a move of a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) value) };
    value
}

/// Floor: sends the frame back as it is.
#[xdp]
pub fn floor_tx(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Floor: wraps the packet in IPv4, everything constant but the length (RFC 2003).
#[xdp]
pub fn floor_encap4(ctx: XdpContext) -> u32 {
    const HEADER: usize = 20;
    let Some(data) = grow::<{ ETHERNET + 2 * HEADER }>(&ctx, HEADER) else {
        return xdp_action::XDP_DROP;
    };
    // SAFETY: `grow` has compared the frame's length.
    unsafe {
        let inner: [u8; 2] = *((data + ETHERNET + HEADER + 2) as *const [u8; 2]);
        let length = u16::from_be_bytes(inner).wrapping_add(HEADER as u16);
        let mut header = OUTER4;
        [header[2], header[3]] = length.to_be_bytes();
        let sum = OUTER4_SUM + u32::from(length);
        [header[10], header[11]] = (!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes();
        *(data as *mut [u8; ETHERNET]) = ETHERNET4;
        *((data + ETHERNET) as *mut [u8; HEADER]) = header;
    }
    xdp_action::XDP_TX
}

/// Floor: wraps the packet in IPv6, everything constant but the length (RFC 2473).
#[xdp]
pub fn floor_encap6(ctx: XdpContext) -> u32 {
    const HEADER: usize = 40;
    let Some(data) = grow::<{ ETHERNET + 2 * HEADER }>(&ctx, HEADER) else {
        return xdp_action::XDP_DROP;
    };
    // SAFETY: `grow` has compared the frame's length.
    unsafe {
        let inner: [u8; 2] = *((data + ETHERNET + HEADER + 4) as *const [u8; 2]);
        let length = u16::from_be_bytes(inner).wrapping_add(HEADER as u16);
        let mut header = OUTER6;
        [header[4], header[5]] = length.to_be_bytes();
        *(data as *mut [u8; ETHERNET]) = ETHERNET6;
        *((data + ETHERNET) as *mut [u8; HEADER]) = header;
    }
    xdp_action::XDP_TX
}

/// Makes room for `header` bytes before the frame; the new start of the frame, if it has `N` bytes.
#[inline(always)]
fn grow<const N: usize>(ctx: &XdpContext, header: usize) -> Option<usize> {
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(header as i32)) } != 0 {
        return None;
    }
    let data = ctx.data();
    (data + N <= ctx.data_end()).then_some(data)
}

const ETHERNET4: [u8; ETHERNET] = [2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1, 0x08, 0x00];
const ETHERNET6: [u8; ETHERNET] = [2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1, 0x86, 0xdd];

/// From 10.1.0.1 to 10.1.0.2, protocol 4, TTL 64; length and checksum are zero.
const OUTER4: [u8; 20] = [
    0x45, 0, 0, 0, 0, 0, 0, 0, 64, 4, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2,
];
/// Sum of the words of [`OUTER4`].
const OUTER4_SUM: u32 = 0x4500 + 0x4004 + 0x0a01 + 0x0001 + 0x0a01 + 0x0002;

/// From fd00::1 to fd00::2, next header 41, hop limit 64; the length is zero.
const OUTER6: [u8; 40] = {
    let mut header = [0; 40];
    header[0] = 0x60;
    header[6] = 41;
    header[7] = 64;
    header[8] = 0xfd;
    header[23] = 1;
    header[24] = 0xfd;
    header[39] = 2;
    header
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
