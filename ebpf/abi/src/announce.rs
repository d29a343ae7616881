//! `ANNOUNCED*` and `GROUPS`: which addresses a node answers for, and until when.
//!
//! ```text
//! ANNOUNCED* (address, interface) ─► AnnouncedWord: MAC address, group ─► GROUPS[group]: deadline
//! ```
//!
//! The addresses of a VIP group move between nodes together. An entry says that the node may answer for an address on an interface;
//! whether it does now, the deadline of its group says. The agent extends the deadline as long as the node holds the
//! group, so a node whose agent is stopped or hangs falls silent by itself.

/// Entries of `GROUPS`: indices of VIP groups are below this.
pub const MAX_GROUPS: u32 = 1024;

/// Words of an entry of `GROUPS`.
pub const GROUP_WORDS: usize = 2;
/// Word of an entry of `GROUPS`: until when the node answers for the group, in nanoseconds of the monotonic clock
/// (`bpf_ktime_get_ns`); 0 = it does not.
pub const GROUP_DEADLINE: usize = 0;
/// Word of an entry of `GROUPS`: [`group_hash`] of the group's name, by which an agent that starts anew finds the group's index again;
/// 0 = no group. Packets do not read it.
pub const GROUP_NAME: usize = 1;

/// Key of `ANNOUNCED*`: an address and where it is asked for. Requests that come by another interface are none of Sluice's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AnnouncedKey<const A: usize> {
    /// Network byte order.
    pub addr: [u8; A],
    /// Index of the interface.
    pub ifindex: u32,
}
const _: () = assert!(AnnouncedWord::NO_GROUP as u32 >= MAX_GROUPS);
const _: () = assert!(size_of::<AnnouncedKey<4>>() == 8 && size_of::<AnnouncedKey<16>>() == 20);

/// Value of `ANNOUNCED*`: `MAC address:48 | group:15 | router:1`, low bits first.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AnnouncedWord(pub u64);

impl AnnouncedWord {
    const GROUP: u64 = (1 << 15) - 1;
    /// Stands for a group in the word of an address for which the node answers nobody yet: it has no entry in `GROUPS`, so
    /// requests are dropped as those for a group are that another node holds.
    pub const NO_GROUP: u16 = Self::GROUP as u16;

    /// The interface's Ethernet address, which answers name; the index of the VIP group, below [`MAX_GROUPS`], or
    /// [`Self::NO_GROUP`]; whether
    /// advertisements say that a router has the address (RFC 4861, section 4.4).
    pub const fn new(mac: [u8; 6], group: u16, router: bool) -> Self {
        Self(crate::mac_number(&mac) | (group as u64 & Self::GROUP) << 48 | (router as u64) << 63)
    }
    /// The Ethernet address.
    pub const fn mac(self) -> [u8; 6] {
        let [mac @ .., _, _] = self.0.to_le_bytes();
        mac
    }
    /// Index of the group.
    pub const fn group(self) -> u32 {
        (self.0 >> 48 & Self::GROUP) as u32
    }
    /// Whether a router has the address.
    pub const fn is_router(self) -> bool {
        self.0 >> 63 == 1
    }
}

/// FNV-1a of 64 bits of a VIP group's name; never 0.
pub const fn group_hash(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    if hash == 0 { 1 } else { hash }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_parts() {
        let mac = [2, 0xff, 3, 4, 5, 0xfe];
        for (group, router) in [(0, false), (1023, true), (32_767, false), (32_767, true)] {
            let word = AnnouncedWord::new(mac, group, router);
            assert_eq!(word.mac(), mac);
            assert_eq!(word.group(), u32::from(group));
            assert_eq!(word.is_router(), router);
        }
    }

    /// From the list of test vectors of FNV's authors.
    #[test]
    fn names_hash_as_fnv_1a() {
        assert_eq!(group_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(group_hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(group_hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
