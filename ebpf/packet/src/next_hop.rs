//! Keeping the next hops of replies in the kernel's neighbour table.
//!
//! The kernel finds out that a neighbour is gone or has another address when the stack sends packets to it, and XDP bypasses
//! the stack. So every second one reply to each next hop leaves by way of tc and the neighbour table.

use crate::Tables;
use sluice_abi::{ConfigWord, NEXT_HOP_BUCKET, NextHopWord};

/// Whether the stack shall send the reply in hand to this next hop. Next hops that find no place among those that are
/// refreshed stay as they are. A function of its own, as the steps of [`crate::balance`].
#[inline(never)]
#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "six bytes by value are copied as a misaligned word of the stack"
)]
pub(crate) fn is_due<T: Tables>(tables: &T, mac: &[u8; 6]) -> bool {
    let refresh = tables.config(ConfigWord::NextHopRefresh) as u16;
    if refresh == 0 {
        return false;
    }
    let now = NextHopWord::new(tables.mac_number(mac), tables.now_ns());
    let first = now.bucket();
    let (mut oldest, mut old_word, mut at) = (0, NextHopWord(0), first);
    let mut place = 0;
    while place < NEXT_HOP_BUCKET {
        let word = tables.next_hop(first + place);
        let age = word.age(now);
        if word.0 != 0 && word.is_of(now) {
            // Of several processors one sends it.
            return age >= refresh && tables.change_next_hop(first + place, word, now);
        }
        if age > oldest {
            (oldest, old_word, at) = (age, word, first + place);
        }
        place += 1;
    }
    oldest >= refresh && tables.change_next_hop(at, old_word, now)
}
