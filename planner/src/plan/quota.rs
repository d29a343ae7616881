//! How much of the maps one virtual server gets, so that there is room left for others.
//!
//! It keeps what it has, beyond its quota too (the maps may have become smaller, or an earlier agent had no quotas), and
//! may replace it: servers and rings that it gives up make room for others of its own in the same plan.

use sluice_abi::MapName;

use super::{PlacedPool, Planner, Scope};
use crate::config::VipPortConfig;
use crate::problem::{ObjectKind, Problem, Reason};
use crate::tables::Tables;

/// What a virtual server has of one map, all its VIP ports together.
#[derive(Clone, Copy)]
struct Share {
    has: u32,
    /// Its quota, or what it had before.
    most: u32,
}

impl Share {
    fn new(has: u32, quota: u32) -> Self {
        let most = has.max(quota);
        Self { has, most }
    }

    fn give_up(&mut self, amount: u32) {
        self.has = self.has.saturating_sub(amount);
    }

    /// Takes so much if there is room for all of it.
    fn take(&mut self, amount: u32) -> bool {
        let fits = self.has + amount <= self.most;
        if fits {
            self.has += amount;
        }
        fits
    }
}

/// What a virtual server has of the maps that have quotas.
pub(super) struct Shares {
    servers: Share,
    ring_slots: Share,
}

impl Shares {
    /// Of the virtual server that has this VIP port among others.
    fn of(config: &VipPortConfig, tables: &Tables) -> Self {
        let (mut servers, mut ring_slots) = (0, 0);
        for vip_port in config.decided.vip_ports() {
            if let Some(word) = tables.image.vips.get(&vip_port.into()) {
                servers += tables.with_index(word.index()).map(|_| 1).sum::<u32>();
                let rings = tables.rings_of(word.index());
                ring_slots += rings.map(|(_, id)| tables.slots_of(id)).sum::<u32>();
            }
        }
        Self {
            servers: Share::new(servers, tables.limits.servers_each),
            ring_slots: Share::new(ring_slots, tables.limits.ring_slots_each),
        }
    }
}

impl<'a> Planner<'a> {
    /// Takes in what the VIP port being planned gives up.
    pub(super) fn give_up(&mut self, scope: Scope<'a>) {
        let (config, tables) = (scope.config, &*self.tables);
        let shares = self.shares.entry(&config.virtual_server);
        let shares = shares.or_insert_with(|| Shares::of(config, tables));
        shares.servers.give_up(self.identities.leaving);
        let rings = tables.rings_of(scope.index);
        let leaving = rings.filter(|((.., tag), _)| config.pools.iter().all(|p| p.tag != *tag));
        let slots = leaving.map(|(_, id)| tables.slots_of(id)).sum();
        shares.ring_slots.give_up(slots);
    }

    /// Whether the quota has room for another server.
    pub(super) fn takes_server(&mut self, scope: Scope<'_>) -> bool {
        let shares = self.shares.get_mut(&scope.config.virtual_server);
        if shares.is_none_or(|shares| shares.servers.take(1)) {
            return true;
        }
        let quota = self.limits.servers_each;
        let consequence = "some of its servers take no flows";
        self.over_quota(scope.config, MapName::Servers, quota, consequence);
        false
    }

    /// The size of a pool's ring, as log2 of its slots: as wanted, or as it was where the quota has no room for more.
    pub(super) fn ring_size(
        &mut self,
        scope: Scope<'_>,
        pool: &PlacedPool<'_>,
        before: Option<u8>,
        wanted: u8,
    ) -> Option<u8> {
        let Some(shares) = self.shares.get_mut(&scope.config.virtual_server) else {
            return Some(wanted);
        };
        let share = &mut shares.ring_slots;
        let slots_before = before.map_or(0, |size| 1 << size);
        let slots: u32 = 1 << wanted;
        if slots <= slots_before || share.take(slots - slots_before) {
            share.give_up(slots_before.saturating_sub(slots));
            return Some(wanted);
        }
        let name = &pool.decided.name;
        let consequence = if before.is_some() {
            format!("the ring of pool {name} has fewer slots than its servers need")
        } else {
            format!("pool {name} takes no flows")
        };
        let quota = self.limits.ring_slots_each;
        self.over_quota(scope.config, MapName::RingSlots, quota, &consequence);
        before
    }

    pub(super) fn over_quota(
        &mut self,
        config: &VipPortConfig,
        map: MapName,
        quota: u32,
        consequence: &str,
    ) {
        self.full.insert(Problem {
            kind: ObjectKind::VirtualServer,
            object: config.virtual_server.clone(),
            reason: Reason::QuotaExceeded,
            message: format!(
                "it has all that one virtual server gets of {} ({quota} entries, a quarter), so {consequence}: give it fewer \
                 ports, pools, servers or sources, or the agent larger maps",
                map.as_str()
            ),
            exception: true,
        });
    }
}
