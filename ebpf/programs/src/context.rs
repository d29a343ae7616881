//! Packets as the kernel hands them over.

use crate::tables::Maps;
use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_md},
    cty::c_void,
    helpers::{bpf_l4_csum_replace, bpf_skb_pull_data, bpf_skb_store_bytes, bpf_xdp_adjust_head},
    programs::{TcContext, XdpContext},
};
use sluice_abi::ConfigWord;
use sluice_packet::{Packet, Tables, copy, update_transport};

/// No header lies further in; the verifier wants to see a bound.
const LARGEST_OFFSET: usize = 512;
/// Bytes from the front that the longest headers read here take.
const HEADERS: u32 = 160;

/// A frame at XDP.
pub struct XdpFrame {
    context: *mut xdp_md,
}

impl XdpFrame {
    #[inline(always)]
    pub fn new(context: XdpContext) -> Self {
        Self {
            context: context.as_ptr().cast(),
        }
    }

    /// The kernel's context.
    #[inline(always)]
    pub fn context(&self) -> *mut c_void {
        self.context.cast()
    }

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: the kernel's context.
        unsafe { (*self.context).data as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: the kernel's context.
        unsafe { (*self.context).data_end as usize }
    }

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        window(self.data(), self.data_end(), offset)
    }
}

/// The only way to packet bytes: `N` of them at `offset`, if the packet reaches that far.
#[inline(always)]
fn window<const N: usize>(data: usize, end: usize, offset: usize) -> Option<*mut [u8; N]> {
    let mut offset = offset;
    if !core::intrinsics::is_val_statically_known(offset) {
        // Keeps the compiler from adding the parts of the offset to the pointer one by one: past a negative part the
        // verifier learns nothing from a check of the bounds.
        // SAFETY: changes nothing.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) offset) };
    }
    if offset > LARGEST_OFFSET {
        return None;
    }
    let start = data + offset;
    if start + N > end {
        return None;
    }
    Some(start as *mut [u8; N])
}

impl Packet for XdpFrame {
    #[inline(always)]
    fn hold(&mut self) {
        let mut number = 0_u64;
        // SAFETY: changes nothing. To the compiler it may write memory.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) number) };
        let _ = number;
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.data_end() - self.data()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context.
        unsafe { (*self.context).ingress_ifindex }
    }

    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        // SAFETY: inside the packet, by `window`; the borrow ends before anything moves the packet's ends.
        self.at(offset).map(|bytes| unsafe { &*bytes })
    }

    #[inline(always)]
    fn set<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        // SAFETY: inside the packet, by `window`.
        let target = unsafe { &mut *self.at(offset)? };
        copy(target, bytes);
        Some(())
    }

    #[inline(always)]
    fn grow_front(&mut self, n: usize) -> Option<()> {
        // SAFETY: the kernel's context; no borrow of the packet lives here.
        (unsafe { bpf_xdp_adjust_head(self.context, -(n as i32)) } == 0).then_some(())
    }

    #[inline(always)]
    fn shrink_front(&mut self, n: usize) -> Option<()> {
        // SAFETY: as above.
        (unsafe { bpf_xdp_adjust_head(self.context, n as i32) } == 0).then_some(())
    }

    #[inline(always)]
    fn fix_checksum(
        &mut self,
        offset: usize,
        addresses: u16,
        ports: u16,
        zero_is_none: bool,
    ) -> Option<()> {
        let field = *self.get::<2>(offset)?;
        self.set(
            offset,
            &update_transport(field, addresses, ports, zero_is_none),
        )
    }

    /// Frames are shorter than 4 GiB.
    #[inline(always)]
    fn unknown_zero(&self) -> u32 {
        (self.length() >> 32) as u32
    }
}

/// A packet at tc.
pub struct Skb {
    context: TcContext,
}

impl Skb {
    /// Takes the context and sees to it that the headers can be read.
    #[inline(always)]
    pub fn new(context: TcContext) -> Self {
        let wanted = context.len().min(HEADERS);
        if context.data_end() - context.data() < wanted as usize {
            // SAFETY: the kernel's context. On failure the headers stay out of reach and reading them says so.
            unsafe { bpf_skb_pull_data(context.skb.skb, wanted) };
        }
        Self { context }
    }

    /// The kernel's context.
    #[inline(always)]
    pub fn context(&self) -> *mut c_void {
        self.context.as_ptr()
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn hold(&mut self) {
        let mut number = 0_u64;
        // SAFETY: changes nothing. To the compiler it may write memory.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) number) };
        let _ = number;
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.context.len() as usize
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context.
        unsafe { (*self.context.skb.skb).ifindex }
    }

    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        // SAFETY: inside the linear part, by `window`; helpers that move it come after the borrow.
        window(self.context.data(), self.context.data_end(), offset).map(|bytes| unsafe { &*bytes })
    }

    /// By helper: it copies a shared packet first, which a direct write would do at the start for every packet.
    #[inline(always)]
    fn set<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        // SAFETY: the kernel's context, and `N` readable bytes.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.context.skb.skb,
                offset as u32,
                bytes.as_ptr().cast(),
                N as u32,
                0,
            )
        };
        (result == 0).then_some(())
    }

    /// Packets are wrapped at XDP only.
    #[inline(always)]
    fn grow_front(&mut self, _n: usize) -> Option<()> {
        None
    }

    /// Packets are unwrapped at XDP only.
    #[inline(always)]
    fn shrink_front(&mut self, _n: usize) -> Option<()> {
        None
    }

    /// The helper knows packets whose checksum the device completes: there only the addresses count.
    #[inline(always)]
    fn fix_checksum(
        &mut self,
        offset: usize,
        addresses: u16,
        ports: u16,
        zero_is_none: bool,
    ) -> Option<()> {
        let skb = self.context.skb.skb;
        let mangled = if zero_is_none {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        let pseudo = mangled | u64::from(BPF_F_PSEUDO_HDR);
        let (addresses, ports) = (u64::from(addresses.to_be()), u64::from(ports.to_be()));
        // SAFETY: the kernel's context.
        let results = unsafe {
            [
                bpf_l4_csum_replace(skb, offset as u32, 0, addresses, pseudo),
                bpf_l4_csum_replace(skb, offset as u32, 0, ports, mangled),
            ]
        };
        (results == [0, 0]).then_some(())
    }

    /// `PACKET_HOST`: the stack compares with the device that the packet came by, which may be a bridge or an overlay.
    #[inline(always)]
    fn is_for_device(&self) -> bool {
        // SAFETY: the kernel's context.
        unsafe { (*self.context.skb.skb).pkt_type == 0 }
    }

    /// A packet's length is too small a number to make it of.
    #[inline(always)]
    fn unknown_zero(&self) -> u32 {
        Maps::new(self.context()).config(ConfigWord::Zero) as u32
    }
}
