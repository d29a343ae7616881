//! The BPF objects that the machine's kernel holds, whoever loaded them.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};

/// Programs, maps and links of the whole machine at one moment, by id. The kernel gives an id again only after four
/// billion others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BpfObjects {
    /// Ids and names of programs.
    pub programs: BTreeSet<(u32, String)>,
    /// Ids and names of maps.
    pub maps: BTreeSet<(u32, String)>,
    /// Ids of links, and of the programs that they attach.
    pub links: BTreeSet<(u32, u32)>,
}

impl BpfObjects {
    /// Those that are there now.
    pub fn now() -> Result<Self> {
        let mut objects = Self {
            programs: BTreeSet::new(),
            maps: BTreeSet::new(),
            links: BTreeSet::new(),
        };
        for program in loaded_programs() {
            let program = program.context("list BPF programs")?;
            let name = program.name_as_str().unwrap_or_default().to_owned();
            objects.programs.insert((program.id(), name));
        }
        for map in loaded_maps() {
            let map = map.context("list BPF maps")?;
            let name = map.name_as_str().unwrap_or_default().to_owned();
            objects.maps.insert((map.id(), name));
        }
        for link in loaded_links() {
            let link = link.context("list BPF links")?;
            objects.links.insert((link.id(), link.program_id()));
        }
        Ok(objects)
    }

    /// Those of them that were not there `before`. Other test runs on the machine make some too: look for names.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            programs: &self.programs - &before.programs,
            maps: &self.maps - &before.maps,
            links: &self.links - &before.links,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }
}

impl fmt::Display for BpfObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            programs,
            maps,
            links,
        } = self;
        write!(f, "programs {programs:?}, maps {maps:?}, links {links:?}")
    }
}
