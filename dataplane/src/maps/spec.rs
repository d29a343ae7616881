//! The properties that each map must have, and a check whether a pinned one has them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use sluice_abi::{BUCKET_ENTRIES, MapName, entry_words};

use super::sys::MapInfo;
use super::{Error, Sizes};

/// The properties in which interchangeable maps agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spec {
    pub(super) map_type: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "type {}, key {} bytes, value {} bytes, {} entries, flags {:#x}",
            self.map_type, self.key_size, self.value_size, self.max_entries, self.flags
        )
    }
}

impl From<&MapInfo> for Spec {
    fn from(info: &MapInfo) -> Self {
        Self {
            map_type: info.map_type,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.map_flags,
        }
    }
}

/// Bytes of a bucket of IPv4 flows.
pub(super) const BUCKET4_SIZE: usize = BUCKET_ENTRIES * entry_words::<4>() * 8;
/// Bytes of a bucket of IPv6 flows.
pub(super) const BUCKET6_SIZE: usize = BUCKET_ENTRIES * entry_words::<16>() * 8;

/// The maps that the object declares, with the sizes that the options ask for.
pub(super) fn expected(
    object: &[u8],
    path: &Path,
    sizes: &Sizes,
) -> Result<BTreeMap<&'static str, Spec>, Error> {
    let parsed = aya_obj::Object::parse(object).map_err(|error| Error::Object {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    let mut specs = BTreeMap::new();
    for map in MapName::ALL {
        let name = map.as_str();
        let declared = parsed.maps.get(name).ok_or_else(|| Error::Object {
            path: path.to_owned(),
            message: format!("it declares no map {name}"),
        })?;
        let max_entries = sizes
            .max_entries(map)
            .unwrap_or_else(|| declared.max_entries());
        specs.insert(
            name,
            Spec {
                map_type: declared.map_type(),
                key_size: declared.key_size(),
                value_size: declared.value_size(),
                max_entries,
                flags: declared.map_flags(),
            },
        );
    }
    Ok(specs)
}

/// Compares a pinned map with what it must be like.
pub(super) fn check(name: &str, pin: PathBuf, expected: &Spec, found: &Spec) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    let remedy = if (Spec {
        max_entries: found.max_entries,
        ..*expected
    }) == *found
    {
        "start the agent with the sizes it had, or run `sluice-agent detach`, which ends established flows, and start it again"
    } else {
        "run the agent's earlier version, or run `sluice-agent detach`, which ends established flows, and start this one again"
    };
    Err(Error::PinnedMapDiffers {
        name: name.to_owned(),
        pin,
        expected: expected.to_string(),
        found: found.to_string(),
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOWS: Spec = Spec {
        map_type: 2,
        key_size: 4,
        value_size: 64,
        max_entries: 65_536,
        flags: 1024,
    };

    #[test]
    fn equal_maps_are_adopted() {
        assert!(check("FLOWS4", "/pin/FLOWS4".into(), &FLOWS, &FLOWS).is_ok());
    }

    #[test]
    fn other_sizes_name_map_numbers_and_remedy() {
        let found = Spec {
            max_entries: 1024,
            ..FLOWS
        };
        let error = check("FLOWS4", "/pin/FLOWS4".into(), &FLOWS, &found).unwrap_err();
        let text = error.to_string();
        for part in [
            "FLOWS4",
            "65536 entries",
            "1024 entries",
            "sizes it had",
            "detach",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn another_layout_asks_for_the_earlier_version() {
        for found in [
            Spec {
                map_type: 1,
                ..FLOWS
            },
            Spec {
                key_size: 8,
                ..FLOWS
            },
            Spec {
                value_size: 128,
                ..FLOWS
            },
            Spec { flags: 0, ..FLOWS },
        ] {
            let error = check("FLOWS4", "/pin/FLOWS4".into(), &FLOWS, &found).unwrap_err();
            assert!(error.to_string().contains("earlier version"), "{error}");
        }
    }
}
