//! The hash behind seeds and tags. Directors must agree on it, so it depends on nothing but its input.

/// Hash of a sequence of strings: FNV-1a, finished so that every bit of the result depends on every bit of the input.
pub(crate) fn of(parts: &[&[u8]]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |byte: u8| {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    };
    for part in parts {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        for byte in (part.len() as u64).to_le_bytes() {
            feed(byte);
        }
        for &byte in *part {
            feed(byte);
        }
    }
    mix(state)
}

/// Hash of a sequence of numbers.
pub(crate) fn of_words(words: &[u32]) -> u64 {
    let start = words.len() as u64;
    words
        .iter()
        .fold(start, |state, &word| mix(state ^ mix(u64::from(word) + 1)))
}

/// The low half of [`of`].
pub(crate) fn of32(parts: &[&[u8]]) -> u32 {
    low(of(parts))
}

/// A bijection in which each bit of the result depends on each bit of `x` (the finaliser of SplitMix64).
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The low 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the point of it")]
pub(crate) const fn low(x: u64) -> u32 {
    x as u32
}

/// The high 32 bits.
pub(crate) const fn high(x: u64) -> u32 {
    low(x >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A changed hash would make directors of two versions disagree during an upgrade.
    #[test]
    fn values_are_fixed() {
        assert_eq!(of(&[]), 0xf52a_15e9_a9b5_e89b);
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
    }
}
