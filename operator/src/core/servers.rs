//! Which pools have servers that take new flows: the same on every node, so the operator tells it once.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_api::{DecidedPool, DecidedRealServerPool, DecidedVirtualServer, ObjectKey};
use sluice_planner::Slices;

/// The content of pools, and the endpoints that there are.
#[derive(Clone, Copy)]
pub(super) struct Servers<'a> {
    pub(super) contents: &'a BTreeMap<ObjectKey, DecidedRealServerPool>,
    pub(super) slices: &'a Slices<'a>,
}

/// A pool without a server that takes new flows to a VIP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lacking {
    pub(super) pool: String,
    pub(super) vip: IpAddr,
}

impl Servers<'_> {
    /// The first VIP for which a pool has no server that takes new flows.
    pub(super) fn unserved(
        &self,
        pool: &ObjectKey,
        virtual_server: &DecidedVirtualServer,
    ) -> Option<IpAddr> {
        self.unserved_of(pool, &virtual_server.addresses).next()
    }

    /// The first VIP for which neither a pool nor the fallback pool has a server that takes new flows.
    pub(super) fn dropped(
        &self,
        key: &ObjectKey,
        pool: &str,
        virtual_server: &DecidedVirtualServer,
    ) -> Option<IpAddr> {
        let fallback = virtual_server.fallback.as_ref();
        let fallback = fallback.map(|fallback| key.sibling(&fallback.pool_name));
        let mut unserved = self.unserved_of(&key.sibling(pool), &virtual_server.addresses);
        let is_dropped = |vip: &IpAddr| {
            let fallback = fallback.as_ref();
            fallback.is_none_or(|pool| self.unserved_of(pool, &[*vip]).next().is_some())
        };
        unserved.find(is_dropped)
    }

    /// Whether a fallback pool takes what a pool's own servers do not take, so that it is not dropped.
    pub(super) fn is_covered(
        &self,
        key: &ObjectKey,
        pool: &str,
        virtual_server: &DecidedVirtualServer,
    ) -> bool {
        virtual_server.fallback.is_some()
            && self.unserved(&key.sibling(pool), virtual_server).is_some()
            && self.dropped(key, pool, virtual_server).is_none()
    }

    /// The pool that other weights give a greater share, and that would drop what other pools serve now.
    pub(super) fn lacking(
        &self,
        virtual_server: &ObjectKey,
        vips: &[IpAddr],
        before: &[DecidedPool],
        wanted: &[DecidedPool],
    ) -> Option<Lacking> {
        if before == wanted {
            return None;
        }
        let unserved = |pool: &DecidedPool| -> Vec<IpAddr> {
            let pool = virtual_server.sibling(&pool.name);
            self.unserved_of(&pool, vips).collect()
        };
        let with_share = before.iter().filter(|pool| pool.weight > 0);
        let unserved_before: Vec<Vec<IpAddr>> = with_share.map(unserved).collect();
        let is_served = |vip: &IpAddr| unserved_before.iter().any(|pool| !pool.contains(vip));
        let mut gaining = wanted.iter().filter(|pool| gains(pool, before, wanted));
        gaining.find_map(|pool| {
            let vip = unserved(pool).into_iter().find(is_served)?;
            Some(Lacking {
                pool: pool.name.clone(),
                vip,
            })
        })
    }

    fn unserved_of<'v>(
        &self,
        pool: &ObjectKey,
        vips: &'v [IpAddr],
    ) -> impl Iterator<Item = IpAddr> + use<'v> {
        let content = self.contents.get(pool);
        let servers = content.map(|content| self.slices.servers(&pool.namespace, content));
        let servers = servers.unwrap_or_default();
        let takes = |ipv6: bool| {
            let mut taking = servers.iter().filter(|server| server.weight > 0);
            taking.any(|server| server.address.is_ipv6() == ipv6)
        };
        let (ipv4, ipv6) = (takes(false), takes(true));
        let is_served = move |vip: &IpAddr| if vip.is_ipv6() { ipv6 } else { ipv4 };
        vips.iter().filter(move |vip| !is_served(vip)).copied()
    }
}

/// Whether a pool's part of the new flows is greater with the wanted weights.
fn gains(pool: &DecidedPool, before: &[DecidedPool], wanted: &[DecidedPool]) -> bool {
    let sum =
        |pools: &[DecidedPool]| -> u64 { pools.iter().map(|pool| u64::from(pool.weight)).sum() };
    let same = before.iter().find(|other| other.name == pool.name);
    let weight = same.map_or(0, |other| u64::from(other.weight));
    u64::from(pool.weight) * sum(before) > weight * sum(wanted)
}
