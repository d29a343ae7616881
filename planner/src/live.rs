//! Whether the maps hold what was decided.

use std::collections::{BTreeMap, BTreeSet};

use sluice_abi::{EVERYBODY, Head, HeadPool, VipWord};
use sluice_api::{DecidedPool, ForwardingMode, ObjectKey, VipPort};

use crate::config::{PoolConfig, Reach, ServerConfig, VipPortConfig};
use crate::problem::{ObjectKind, Problem, Reason};
use crate::ring::{self, RingKey, WHOLE};
use crate::{Image, Local, head, ids, share};

/// Problems because of which a VIP port is not live: packets meet something else than was decided and resolved.
pub(crate) fn of_vip_port(
    vip_port: &VipPort,
    config: &VipPortConfig,
    actual: &Image,
) -> BTreeSet<Problem> {
    let mut check = Check {
        actual,
        exceptions: BTreeSet::new(),
    };
    check.vip_port(vip_port, config);
    check.exceptions
}

struct Check<'a> {
    actual: &'a Image,
    exceptions: BTreeSet<Problem>,
}

impl Check<'_> {
    fn except(&mut self, kind: ObjectKind, object: ObjectKey, reason: Reason, message: String) {
        self.exceptions.insert(Problem {
            kind,
            object,
            reason,
            message,
            exception: true,
        });
    }

    fn not_in_place(&mut self, vip_port: &VipPort, config: &VipPortConfig, what: &str) {
        self.except(
            ObjectKind::VirtualServer,
            config.virtual_server.clone(),
            Reason::RingNotInPlace,
            format!("{what} of {vip_port} are not in this node's maps: see the agent's log and limits if this lasts"),
        );
    }

    fn vip_port(&mut self, vip_port: &VipPort, config: &VipPortConfig) {
        let Some(&word) = self.actual.vips.get(&(*vip_port).into()) else {
            self.not_in_place(vip_port, config, "the tables");
            return;
        };
        if config.director {
            match self.actual.heads.get(&word.head()) {
                Some(head) if has_shares(head, config, word.index()) => {
                    if !self.has_sources(head, config) {
                        self.not_in_place(vip_port, config, "the sources");
                    }
                    let pools: Vec<_> = config.pools().collect();
                    let entries = pools.iter().zip(config.takers()).zip(head::pools(head));
                    for (((share, _), taker), entry) in entries {
                        let (decided, pool) = pools[taker];
                        if share.weight > 0 && pool.known {
                            self.pool(config, decided, pool, entry.ring);
                        }
                    }
                }
                _ => self.not_in_place(vip_port, config, "the pools' shares"),
            }
        }
        if config.by_address() && !self.serves_own(config, word) {
            self.not_in_place(vip_port, config, "this node's servers");
        }
    }

    /// Whether the clients that a head admits are the decided ones.
    fn has_sources(&self, head: &Head, config: &VipPortConfig) -> bool {
        let Some(wanted) = &config.sources else {
            return head.source_set == EVERYBODY;
        };
        let blocks = self.actual.sources.get(&head.source_set);
        let blocks = blocks.map_or(&[][..], |blocks| blocks);
        head.source_set != EVERYBODY && *blocks == **wanted
    }

    fn pool(
        &mut self,
        config: &VipPortConfig,
        decided: &DecidedPool,
        pool: &PoolConfig,
        ring: u32,
    ) {
        let key = |server: &ServerConfig| RingKey {
            address: server.address,
            port: if config.by_address() { 0 } else { server.port },
        };
        let in_place = self.ring_parts(config, ring);
        let mut wanted: BTreeMap<RingKey, u64> = BTreeMap::new();
        let mut tenths: BTreeMap<RingKey, u8> = BTreeMap::new();
        let mut waiting = Vec::new();
        let taking = pool.servers.iter();
        let taking = taking.filter(|server| server.weight > 0 && !pool.is_down);
        for server in taking {
            let waits = server.reach == Reach::Pending && !server.gives_flows_up;
            if waits && !in_place.contains_key(&key(server)) {
                waiting.push(server.address.to_string());
            } else {
                *wanted.entry(key(server)).or_default() += server.weight;
                if server.tenths < WHOLE {
                    tenths.insert(key(server), server.tenths);
                }
            }
        }
        let object = config.virtual_server.sibling(&decided.name);
        if !waiting.is_empty() {
            let message = format!(
                "spec.servers: the next hop towards {} is being resolved: check the node's routes if this lasts",
                waiting.join(", ")
            );
            self.except(
                ObjectKind::RealServerPool,
                object.clone(),
                Reason::NextHopPending,
                message,
            );
        }
        if !within_a_slot(&in_place, &wanted, &ring::lenders(&wanted, &tenths)) {
            let message = format!(
                "the ring for virtual server {} is not the decided one: see the agent's log and limits if this lasts",
                config.virtual_server
            );
            self.except(
                ObjectKind::RealServerPool,
                object,
                Reason::RingNotInPlace,
                message,
            );
        }
    }

    /// How many slots of a ring each server has.
    fn ring_parts(&self, config: &VipPortConfig, ring: u32) -> BTreeMap<RingKey, u64> {
        let Some(ring) = self.actual.rings.get(&ring) else {
            return BTreeMap::new();
        };
        let mut parts = BTreeMap::new();
        for (id, slots) in ring.content.parts() {
            let word = self.actual.servers.get(id).filter(|word| word.present());
            if let Some(record) = word.and_then(|word| self.actual.records.get(&word.slot())) {
                let port = if config.by_address() {
                    0
                } else {
                    u16::from_be_bytes(record.port)
                };
                let address = ids::address_of(record);
                *parts.entry(RingKey { address, port }).or_default() += u64::from(*slots);
            }
        }
        parts
    }

    /// Whether packets that directors send to servers of this node find them.
    fn serves_own(&self, config: &VipPortConfig, word: VipWord) -> bool {
        let is_own = |server: &&ServerConfig| server.reach == Reach::Local;
        let has_own = |pool: &PoolConfig| pool.servers.iter().any(|server| is_own(&server));
        // Where a stand-in has servers here, these take what is for both.
        let is_replaced = |pool: &&PoolConfig| {
            let stand_in = pool.stand_in.map(|place| &config.pools[place]);
            config.decided.mode == ForwardingMode::Dr && stand_in.is_some_and(has_own)
        };
        let pools = config.pools.iter().filter(|pool| !is_replaced(pool));
        let mut own = pools.flat_map(|pool| &pool.servers).filter(is_own);
        if config.decided.mode == ForwardingMode::Tun {
            return own.all(|server| {
                let local = Local {
                    address: server.address,
                    index: word.index(),
                };
                self.actual.locals.contains_key(&local)
            });
        }
        let head = self.actual.heads.get(&word.rs_head());
        let rings = || head.into_iter().flat_map(head::pools).map(|pool| pool.ring);
        let reachable: BTreeSet<RingKey> = rings()
            .flat_map(|ring| self.ring_parts(config, ring).into_keys())
            .collect();
        own.filter(|server| server.takes_flows()).all(|server| {
            reachable.contains(&RingKey {
                address: server.address,
                port: 0,
            })
        })
    }
}

/// Whether a head is the decided one, whatever its rings and its source set.
fn has_shares(found: &Head, config: &VipPortConfig, index: u32) -> bool {
    let thresholds = share::thresholds(&config.weights());
    let pools = config.takers().zip(thresholds);
    let rings = head::pools(found).map(|pool| pool.ring);
    let rings = rings.chain(std::iter::repeat(0));
    let wanted = pools.zip(rings).map(|((taker, threshold), ring)| HeadPool {
        threshold,
        ring,
        tag: config.pools[taker].tag,
    });
    head::head(config, (index, found.source_set), wanted) == *found
}

/// Whether each server's part is its exact share to within one slot. Those that lend have no more than they keep, and the others have what
/// is lent besides.
fn within_a_slot(
    parts: &BTreeMap<RingKey, u64>,
    weights: &BTreeMap<RingKey, u64>,
    lenders: &BTreeMap<RingKey, u8>,
) -> bool {
    let slots: u128 = parts.values().copied().map(u128::from).sum();
    let sum: u128 = weights.values().copied().map(u128::from).sum();
    let whole = u128::from(WHOLE);
    let share = |(key, &weight): (&RingKey, &u64)| {
        let part = parts.get(key).copied().unwrap_or(0);
        let (exact, part) = (u128::from(weight) * slots, u128::from(part) * sum);
        match lenders.get(key) {
            None if lenders.is_empty() => exact.abs_diff(part) < sum,
            None => exact < part + sum,
            // What it keeps of a share that is rounded up is rounded up, too.
            Some(&kept) => (exact * u128::from(kept)).abs_diff(part * whole) < 2 * sum * whole,
        }
    };
    parts.keys().all(|key| weights.contains_key(key))
        && weights.iter().all(share)
        && (slots > 0) == (sum > 0)
}
