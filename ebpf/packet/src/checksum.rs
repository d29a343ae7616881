//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624), over big-endian 16-bit words.

/// A one's complement sum that is not yet folded, of words in memory order: the sum of swapped words is the swapped sum
/// (RFC 1071, section 2 (B)), so bytes are swapped once, at the end. `N` is 2 or a multiple of 4.
#[derive(Clone, Copy)]
pub(crate) struct Sum(u64);

impl Sum {
    pub(crate) const ZERO: Self = Self(0);

    /// Adds the words of `bytes`.
    #[inline(always)]
    pub(crate) fn add<const N: usize>(mut self, bytes: &[u8; N]) -> Self {
        let mut at = 0;
        while at < N {
            self.0 += word(bytes, at);
            at += 4;
        }
        self
    }

    /// Takes the words of `bytes` away: adds their complement.
    #[inline(always)]
    pub(crate) fn sub<const N: usize>(mut self, bytes: &[u8; N]) -> Self {
        let mut at = 0;
        while at < N {
            self.0 += word(bytes, at) ^ 0xffff_ffff;
            at += 4;
        }
        self
    }

    /// The sum as one big-endian 16-bit word.
    #[inline(always)]
    pub(crate) fn fold(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }
}

/// Four bytes at `at`, or the two that are left.
#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    if at + 3 < N {
        u64::from(u32::from_ne_bytes([
            bytes[at],
            bytes[at + 1],
            bytes[at + 2],
            bytes[at + 3],
        ]))
    } else if at + 1 < N {
        u64::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]))
    } else {
        0
    }
}

/// RFC 1624, equation 3: the checksum field after the words below it changed by `difference` (new − old).
#[inline(always)]
pub(crate) fn update(field: [u8; 2], difference: u16) -> [u8; 2] {
    let sum = u32::from(!u16::from_be_bytes(field)) + u32::from(difference);
    let folded = ((sum & 0xffff) + (sum >> 16)) as u16;
    (!folded).to_be_bytes()
}

/// A transport checksum after a change: [`update`] by both differences. With `zero_is_none` (UDP, RFC 768) an absent
/// checksum stays absent and a result of 0 is sent as all ones.
#[inline(always)]
pub fn update_transport(field: [u8; 2], addresses: u16, ports: u16, zero_is_none: bool) -> [u8; 2] {
    if zero_is_none && field == [0, 0] {
        return field;
    }
    let updated = update(update(field, addresses), ports);
    if zero_is_none && updated == [0, 0] {
        [0xff, 0xff]
    } else {
        updated
    }
}
