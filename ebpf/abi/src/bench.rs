//! The map that the benchmark's wrapper program shares with the benchmark. No part of the data plane.
//!
//! The wrapper writes each frame anew before it comes to the measured program: the words of a template, with the flow's
//! number in the client's address and port. Fields that no one reads take the complement of what varies, so that every
//! frame has valid checksums at no cost.

/// Bytes before the frame in [`BenchControl::frame`]: they align the IP header to a word.
pub const BENCH_PAD: usize = 2;

/// Words of [`BenchControl::frame`].
pub const BENCH_WORDS: usize = 10;

/// Bytes of a frame: the shortest that Ethernet allows for IPv4; for IPv6 a TCP segment with 4 bytes of data.
pub const fn bench_frame_len<const A: usize>() -> usize {
    if A == 4 { 60 } else { 78 }
}

/// The only value of the wrapper's map `CONTROL`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BenchControl {
    /// [`BENCH_PAD`] bytes, then the template of the frame. The bytes that [`Self::render`] fills in are zero.
    pub frame: [u64; BENCH_WORDS],
    /// Number of the packet that is written next.
    pub packet: u64,
    /// Number of flows less one; the number of flows is a power of two.
    pub mask: u32,
    /// Number of the first flow.
    pub base: u32,
    /// Without `random`: log2 of the packets that a flow has in a row.
    pub shift: u32,
    /// 1: each packet's flow is chosen at random; 0: one flow after the other.
    pub random: u32,
    /// TCP flags of even and of odd packets.
    pub flags: [u8; 2],
    /// Zero.
    pub pad: [u8; 6],
    /// Verdicts of the measured program by `xdp_action`; the last one counts all others, such as a failed tail call.
    pub verdicts: [u64; 8],
}
const _: () = assert!(size_of::<BenchControl>() == 176);

impl BenchControl {
    /// The frame of packet `packet`, in words from [`BENCH_PAD`] bytes before it. `A` is the length of an address.
    #[inline(always)]
    pub fn render<const A: usize, const UDP: bool>(&self, packet: u64) -> [u64; BENCH_WORDS] {
        let chosen = if self.random != 0 {
            mix(packet as u32)
        } else {
            (packet >> (self.shift & 63)) as u32
        };
        let flow = self.base.wrapping_add(chosen & self.mask);
        let host = flow as u16;
        let port = 0x0080 | (flow >> 16) as u16;
        let flags = self.flags[packet as usize & 1];
        let mut words = self.frame;
        let (address, ports, balance) = if A == 4 {
            words[2] |= at(!host, 32);
            (3, 4, if UDP { (5, 32) } else { (5, 0) })
        } else {
            (4, 7, if UDP { (8, 0) } else { (7, 32) })
        };
        words[address] |= at(host, 48);
        words[ports] |= at(port, if A == 4 { 32 } else { 0 });
        words[balance.0] |= at(!port, balance.1) | at(!host, balance.1 + 16);
        if !UDP {
            let flags = u64::from(flags);
            if A == 4 {
                words[6] |= flags << 8 | (flags ^ 0xff) << 56;
            } else {
                words[8] |= flags << 40;
                words[9] |= (flags ^ 0xff) << 24;
            }
        }
        words
    }
}

#[inline(always)]
const fn at(value: u16, shift: u32) -> u64 {
    (value as u64) << shift
}

/// A bijection of 32-bit numbers that looks random.
#[inline(always)]
const fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}
