//! Where a member of a kernel's structure lies, by the kernel's own type information: the BPF Type Format of
//! `/sys/kernel/btf/vmlinux` (Documentation/bpf/btf.rst of Linux). aya keeps what it reads of it to itself.

/// Where the running kernel tells its types.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
/// Bytes of a type before what its kind adds.
const TYPE: usize = 12;
/// Bytes of a structure's member.
const MEMBER: usize = 12;

/// Offset in bytes of a direct member of a structure; `None` if there is none, if it is a bit field, or if these bytes are no types
/// of this machine's byte order.
pub(super) fn member_offset(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    let (types, strings) = sections(btf)?;
    let is_called = |name: u32, expected: &str| {
        let name = strings.get(name as usize..)?;
        name.strip_prefix(expected.as_bytes())?
            .first()
            .filter(|end| **end == 0)
    };
    let mut rest = types;
    while !rest.is_empty() {
        let (name, info) = (word(rest, 0)?, word(rest, 4)?);
        let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
        let added = rest.get(TYPE..TYPE + added_bytes(kind, count)?)?;
        if kind == STRUCT && is_called(name, structure).is_some() {
            let mut members = added.chunks_exact(MEMBER);
            let found = members.find(|found| {
                word(found, 0).is_some_and(|name| is_called(name, member).is_some())
            })?;
            // With this flag the upper byte is the size of a bit field, 0 for others.
            let has_bit_fields = info >> 31 == 1;
            let bits = word(found, 8)?;
            let is_bit_field = has_bit_fields && bits >> 24 != 0 || bits % 8 != 0;
            return (!is_bit_field).then_some(bits / 8);
        }
        rest = rest.get(TYPE + added.len()..)?;
    }
    None
}

/// The types, and the strings that they name.
fn sections(btf: &[u8]) -> Option<(&[u8], &[u8])> {
    let magic = u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?);
    if magic != MAGIC {
        return None;
    }
    let header = word(btf, 4)? as usize;
    let section = |at: usize| {
        let start = header.checked_add(word(btf, at)? as usize)?;
        let end = start.checked_add(word(btf, at + 4)? as usize)?;
        btf.get(start..end)
    };
    Some((section(8)?, section(16)?))
}

/// Bytes that a kind of type adds; `None` for kinds that are not known.
fn added_bytes(kind: u32, count: usize) -> Option<usize> {
    match kind {
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => Some(0),
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => Some(4),
        // ARRAY
        3 => Some(12),
        // ENUM, FUNC_PROTO
        6 | 13 => Some(8 * count),
        // STRUCT, UNION, DATASEC, ENUM64
        STRUCT | 5 | 15 | 19 => Some(12 * count),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types: an INT, then `struct a { u32 x; u32 y: 3; u32 y_behind; }`, the latter with the flag of bit fields.
    fn example() -> Vec<u8> {
        let strings = b"\0int\0a\0x\0y\0y_behind\0";
        let words: Vec<u32> = [
            vec![1, 1 << 24, 4, 32],
            vec![5, 1 << 31 | STRUCT << 24 | 3, 12],
            vec![7, 1, 0],
            vec![9, 1, 3 << 24 | 32],
            vec![11, 1, 64],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let lengths = [24, 0, types.len(), types.len(), strings.len()];
        let mut btf = MAGIC.to_ne_bytes().to_vec();
        btf.extend([1, 0]);
        for length in lengths {
            btf.extend(u32::try_from(length).unwrap().to_ne_bytes());
        }
        btf.extend(types);
        btf.extend(strings);
        btf
    }

    #[test]
    fn a_member_is_found_by_its_whole_name() {
        let btf = example();
        assert_eq!(member_offset(&btf, "a", "x"), Some(0));
        assert_eq!(member_offset(&btf, "a", "y_behind"), Some(8));
        assert_eq!(member_offset(&btf, "a", "y"), None, "a bit field");
        assert_eq!(member_offset(&btf, "a", "z"), None);
        assert_eq!(member_offset(&btf, "int", "x"), None);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let btf = example();
        for length in 0..btf.len() {
            assert_eq!(member_offset(&btf[..length], "a", "nothing"), None);
        }
        for at in 0..btf.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = btf.clone();
                damaged[at] = value;
                let _ = member_offset(&damaged, "a", "y_behind");
            }
        }
    }

    #[test]
    fn the_running_kernel_is_understood() {
        let btf = std::fs::read(VMLINUX).unwrap();
        let aux = member_offset(&btf, "bpf_prog", "aux").unwrap();
        let id = member_offset(&btf, "bpf_prog_aux", "id").unwrap();
        assert!(aux.is_multiple_of(8) && id.is_multiple_of(4), "{aux} {id}");
    }
}
