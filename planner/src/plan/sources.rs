//! Source sets of VIP ports.

use std::sync::Arc;

use sluice_abi::{EVERYBODY, MapName, NOBODY};

use super::{Planner, Scope};
use crate::sources::{Blocks, set_of};

/// Where its list finds no room, nobody may begin a flow rather than everybody.
const CONSEQUENCE: &str = "it takes no new flows";

impl Planner<'_> {
    /// The source set that the heads of a VIP port name.
    pub(super) fn source_set(&mut self, scope: Scope<'_>) -> u32 {
        let Some(blocks) = &scope.config.sources else {
            return EVERYBODY;
        };
        if blocks.is_empty() {
            return NOBODY;
        }
        let known = self.tables.sets.find(blocks);
        let known = known.or_else(|| self.new_sets.get(blocks).copied());
        let Some(set) = known.or_else(|| self.new_set(scope, blocks)) else {
            return NOBODY;
        };
        self.desired.sources.insert(set, Arc::clone(blocks));
        set
    }

    fn new_set(&mut self, scope: Scope<'_>, blocks: &Blocks) -> Option<u32> {
        let address = scope.vip_port.address;
        let map = if address.is_ipv4() {
            MapName::Sources4
        } else {
            MapName::Sources6
        };
        let entries = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        let quota = self.limits.sources_each;
        if entries > quota.max(self.blocks_before(scope)) {
            self.over_quota(scope.config, map, quota, CONSEQUENCE);
            return None;
        }
        if !self.source_room.take(address, entries) {
            self.full(scope.config, map, self.limits.sources, CONSEQUENCE);
            return None;
        }
        // Each set in use has a head, and there are as many ids.
        let Some(set) = self.tables.free.sets.take() else {
            self.full(scope.config, MapName::Heads, self.limits.heads, CONSEQUENCE);
            return None;
        };
        self.new_sets.insert(Arc::clone(blocks), set);
        Some(set)
    }

    /// How many blocks the VIP port's sets have in the maps: it keeps as many, beyond its quota too.
    fn blocks_before(&self, scope: Scope<'_>) -> u32 {
        let word = self.part.vips.get(&scope.vip_port.into()).copied();
        let slots = word.map(|word| [word.head(), word.rs_head()]);
        let heads = slots.into_iter().flatten();
        let heads = heads.filter_map(|slot| self.part.heads.get(&slot));
        let sets = heads
            .filter_map(set_of)
            .filter_map(|set| self.part.sources.get(&set));
        let most = sets.map(|blocks| blocks.len()).max();
        u32::try_from(most.unwrap_or(0)).unwrap_or(u32::MAX)
    }
}
