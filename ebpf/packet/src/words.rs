//! Copying and reading bytes by words: the compiler goes byte by byte where a size is none of 1, 2, 4 and 8.

/// Copies by words of 8 bytes, and what is left by smaller ones.
#[inline(always)]
pub fn copy<const N: usize>(to: &mut [u8; N], from: &[u8; N]) {
    let mut at = 0;
    while at + 8 <= N {
        copy_word::<8>(to, from, at);
        at += 8;
    }
    if at + 4 <= N {
        copy_word::<4>(to, from, at);
        at += 4;
    }
    if at + 2 <= N {
        copy_word::<2>(to, from, at);
        at += 2;
    }
    if at < N {
        copy_word::<1>(to, from, at);
    }
}

/// The same bytes, read by words.
#[inline(always)]
pub(crate) fn read<const N: usize>(from: &[u8; N]) -> [u8; N] {
    let mut bytes = [0; N];
    copy(&mut bytes, from);
    bytes
}

/// `W` bytes at `at`, which lie within `bytes`.
#[inline(always)]
pub(crate) fn word<const W: usize>(bytes: &[u8], at: usize) -> [u8; W] {
    let word = bytes.get(at..at + W).and_then(|word| word.first_chunk());
    word.copied().unwrap_or([0; W])
}

#[inline(always)]
fn copy_word<const W: usize>(to: &mut [u8], from: &[u8], at: usize) {
    let to = to.get_mut(at..at + W).and_then(|to| to.first_chunk_mut());
    if let Some(to) = to {
        *to = word::<W>(from, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_every_byte() {
        fn check<const N: usize>() {
            let from: [u8; N] = core::array::from_fn(|at| at as u8 + 1);
            assert_eq!(read(&from), from);
        }
        check::<1>();
        check::<2>();
        check::<3>();
        check::<6>();
        check::<7>();
        check::<14>();
        check::<16>();
        check::<31>();
    }
}
