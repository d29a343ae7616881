//! The Internet checksum, computed over the whole data as RFC 1071 puts it: what incremental updates must agree with.

/// The one's complement sum of the big-endian 16-bit words of `data`, padded with a zero byte.
pub fn sum(data: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in data.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The checksum of `data` whose checksum field is zero.
pub fn checksum(data: &[u8]) -> u16 {
    !sum(data)
}

/// Whether `data`, its checksum included, is intact.
pub fn is_valid(data: &[u8]) -> bool {
    sum(data) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, section 3.
    #[test]
    fn numerical_example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&data), 0xddf2);
        assert_eq!(checksum(&data), 0x220d);
    }

    /// RFC 1071, section 2 (B): the sum of swapped bytes is the swapped sum.
    #[test]
    fn byte_order_independence() {
        let data = [0x01, 0x00, 0x03, 0xf2, 0xf5, 0xf4, 0xf7, 0xf6];
        assert_eq!(sum(&data), 0xddf2_u16.swap_bytes());
    }

    #[test]
    fn odd_length_is_padded_with_zero() {
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
    }

    /// RFC 1624, section 4: changing 0x5555 to 0x3285 takes the checksum from 0xdd2f to 0x0000, the rest being 0xcd7a.
    #[test]
    fn example_of_rfc_1624() {
        assert_eq!(checksum(&[0x55, 0x55, 0xcd, 0x7a]), 0xdd2f);
        assert_eq!(checksum(&[0x32, 0x85, 0xcd, 0x7a]), 0x0000);
    }
}
