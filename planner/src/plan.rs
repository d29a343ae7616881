//! From what VIP ports shall be to what their part of the maps shall hold.
//!
//! The plan keeps every number that the maps use for the same thing already ([`crate::ids`]), and where something does
//! not fit it keeps the part concerned as it is: a pool whose new ring has no room goes on with the old ring, and the
//! servers of that ring stay.

mod identity;
mod place;
mod quota;
mod sources;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use identity::Identities;
use quota::Shares;
use sluice_abi::{
    EVERYBODY, FIRST_REPLY_INDEX, Head, HeadPool, MapName, RingWord, ServerRecord, ServerWord,
    VipWord,
};
use sluice_api::{DecidedPool, ForwardingMode, ObjectKey, VipPort};

use crate::config::{PoolConfig, Reach, ServerConfig, VipPortConfig};
use crate::head::{self, head};
use crate::ids::{Room, Side};
use crate::members::{Members, RingLayout};
use crate::problem::{ObjectKind, Problem, Reason};
use crate::ring::RingKey;
use crate::tables::{Keyed, Planned, Tables};
use crate::{Blocks, Image, Limits, Local, Ring, RingContent, Socket, share};

/// Plans the VIP ports together; `None`: it shall not be served. What they give up is free for the plan after this one.
pub(crate) fn plan(
    tables: &mut Tables,
    wanted: &BTreeMap<VipPort, Option<VipPortConfig>>,
) -> Planned {
    let part = tables.part(wanted.keys().copied());
    // Entries of VIPS that go are removed before others are added; those of the other maps afterwards.
    let mut vip_room = tables.room(Keyed::Vips);
    for (vip_port, config) in wanted {
        if config.is_none() && part.vips.contains_key(&(*vip_port).into()) {
            vip_room.add(vip_port.address);
        }
    }
    let mut planner = Planner {
        limits: tables.limits,
        vip_room,
        reply_room: tables.room(Keyed::Replies),
        local_room: tables.room(Keyed::Locals),
        source_room: tables.room(Keyed::Sources),
        tables,
        part,
        kept_rings: BTreeSet::new(),
        layouts: BTreeMap::new(),
        new_sets: BTreeMap::new(),
        desired: Image::default(),
        identities: Identities::default(),
        shares: BTreeMap::new(),
        full: BTreeSet::new(),
    };
    let mut full = BTreeMap::new();
    for (&vip_port, config) in wanted {
        if let Some(config) = config {
            planner.vip_port(vip_port, config);
            let problems = std::mem::take(&mut planner.full);
            if !problems.is_empty() {
                full.insert(vip_port, problems);
            }
        }
    }
    planner.keep_what_is_referred_to();
    planner.retire();
    let (part, desired) = (&mut planner.part, &mut planner.desired);
    planner.tables.share(part, desired);
    Planned {
        part: planner.part,
        desired: planner.desired,
        layouts: planner.layouts,
        full,
    }
}

struct Planner<'a> {
    tables: &'a mut Tables,
    limits: Limits,
    /// The VIP ports' part of the maps as it is.
    part: Image,
    vip_room: Room,
    reply_room: Room,
    local_room: Room,
    source_room: Room,
    /// Rings that stay as they are whatever is wanted.
    kept_rings: BTreeSet<u32>,
    layouts: BTreeMap<u32, Arc<RingLayout>>,
    /// Source sets that are not in the maps yet.
    new_sets: BTreeMap<Blocks, u32>,
    desired: Image,
    /// The servers of the VIP port being planned.
    identities: Identities<'a>,
    /// What the virtual servers have of the maps that have quotas.
    shares: BTreeMap<&'a ObjectKey, Shares>,
    /// Problems for lack of room with the VIP port being planned.
    full: BTreeSet<Problem>,
}

/// The VIP port being planned.
#[derive(Clone, Copy)]
struct Scope<'a> {
    vip_port: VipPort,
    config: &'a VipPortConfig,
    index: u32,
}

/// A pool whose servers have their places in the maps.
struct PlacedPool<'a> {
    decided: &'a DecidedPool,
    config: &'a PoolConfig,
    servers: Vec<Placed<'a>>,
}

/// A server that has its place in the maps.
struct Placed<'a> {
    config: &'a ServerConfig,
    /// 0: none, since it gives its flows up.
    id: u32,
}

/// What the maps have of a server id.
#[derive(Clone, Copy)]
struct Before {
    id: u32,
    word: ServerWord,
    record: ServerRecord,
}

impl<'a> Planner<'a> {
    fn full(&mut self, config: &VipPortConfig, map: MapName, limit: u32, consequence: &str) {
        self.full.insert(Problem {
            kind: ObjectKind::VirtualServer,
            object: config.virtual_server.clone(),
            reason: Reason::LimitExceeded,
            message: format!(
                "{} is full ({limit} entries), so {consequence}: remove virtual servers, servers or sources, or give the \
                 agent larger maps",
                map.as_str()
            ),
            exception: true,
        });
    }

    fn vip_port(&mut self, vip_port: VipPort, config: &'a VipPortConfig) {
        let before = self.part.vips.get(&vip_port.into()).copied();
        let on_this_node = |s: &ServerConfig| s.reach == Reach::Local;
        let rs_side = config.decided.mode == ForwardingMode::Dr
            && config
                .pools
                .iter()
                .any(|pool| pool.servers.iter().any(on_this_node));

        let (index, mut spare_heads) = match before {
            Some(word) => (word.index(), Vec::new()),
            None => match self.new_vip_port(vip_port, config, rs_side) {
                Some(new) => new,
                None => return,
            },
        };
        let is_marked = before.is_none() || self.mark(vip_port, config);
        let scope = Scope {
            vip_port,
            config,
            index,
        };
        self.identities = Identities::new(scope, self.tables.with_index(index));
        self.give_up(scope);
        let placed = config.pools().map(|(decided, pool)| PlacedPool {
            decided,
            config: pool,
            servers: self.place_pool(scope, pool),
        });
        let pools: Vec<PlacedPool<'_>> = placed.collect();
        self.keep_spares(scope);

        let mut word = before.unwrap_or_default();
        let (mut head, mut rs_head) = (0, 0);
        let sources = if config.director || rs_side {
            self.source_set(scope)
        } else {
            EVERYBODY
        };
        if config.director {
            let wanted = self.director_head(scope, sources, &pools);
            head = self.head(scope, wanted, word.head(), &mut spare_heads);
        }
        if rs_side {
            let wanted = self.rs_head(scope, sources, &pools);
            rs_head = self.head(scope, wanted, word.rs_head(), &mut spare_heads);
        }
        word = VipWord::new(index, head, rs_head);
        if config.decided.mode == ForwardingMode::Tun {
            self.locals(scope, &pools);
        }
        let vips = &mut self.desired.vips;
        vips.insert(vip_port.into(), word);
        if is_marked {
            vips.insert(Socket::marker(vip_port.address), VipWord(0));
        }
    }

    fn has_marker(&self, address: IpAddr) -> bool {
        let marker = Socket::marker(address);
        self.tables.image.vips.contains_key(&marker) || self.desired.vips.contains_key(&marker)
    }

    /// Whether there is room for the marker of an address whose VIP port is in the maps already: the agent may have been
    /// stopped between the two.
    fn mark(&mut self, vip_port: VipPort, config: &VipPortConfig) -> bool {
        let address = vip_port.address;
        if self.has_marker(address) || self.vip_room.take(address, 1) {
            return true;
        }
        let consequence = format!("{address} is not marked as a VIP for its other ports");
        self.vips_full(vip_port, config, &consequence);
        false
    }

    fn vips_full(&mut self, vip_port: VipPort, config: &VipPortConfig, consequence: &str) {
        let map = if vip_port.address.is_ipv4() {
            MapName::Vips4
        } else {
            MapName::Vips6
        };
        self.full(config, map, self.limits.vips, consequence);
    }

    /// The head by which a director balances.
    fn director_head(&mut self, scope: Scope<'_>, sources: u32, pools: &[PlacedPool<'_>]) -> Head {
        let thresholds = share::thresholds(&scope.config.weights());
        let rings = pools.iter().map(|pool| self.director_ring(scope, pool));
        let rings: Vec<u32> = rings.collect();
        let entries = scope.config.takers().zip(thresholds);
        let entries = entries.map(|(taker, threshold)| HeadPool {
            threshold,
            ring: rings[taker],
            tag: pools[taker].config.tag,
        });
        head(scope.config, (scope.index, sources), entries)
    }

    /// The head for packets that a director sent here: over the pools that have servers of this node.
    fn rs_head(&mut self, scope: Scope<'_>, sources: u32, pools: &[PlacedPool<'_>]) -> Head {
        let own: Vec<Option<u32>> = pools.iter().map(|pool| self.rs_ring(scope, pool)).collect();
        // A director that still takes the pool itself sends packets to servers that may be here, too.
        let takers = scope.config.takers().enumerate();
        let takers = takers.map(|(pool, taker)| if own[taker].is_some() { taker } else { pool });
        let takers: Vec<usize> = takers.collect();
        let here: Vec<bool> = takers.iter().map(|&taker| own[taker].is_some()).collect();
        let thresholds = share::local_thresholds(&scope.config.weights(), &here);
        let rings = takers.into_iter();
        let rings = rings.filter_map(|taker| Some((pools[taker].config.tag, own[taker]?)));
        let entries = rings
            .zip(thresholds)
            .map(|((tag, ring), threshold)| HeadPool {
                threshold,
                ring,
                tag,
            });
        head(scope.config, (scope.index, sources), entries)
    }

    /// An index and head slots for a VIP port that is not in the maps: all of it or nothing.
    fn new_vip_port(
        &mut self,
        vip_port: VipPort,
        config: &VipPortConfig,
        rs_side: bool,
    ) -> Option<(u32, Vec<u32>)> {
        // The first VIP port of an address brings the address marker.
        let address = vip_port.address;
        let entries = if self.has_marker(address) { 1 } else { 2 };
        let consequence = format!("{vip_port} is not served");
        if !self.vip_room.take(address, entries) {
            self.vips_full(vip_port, config, &consequence);
            return None;
        }
        let wanted = usize::from(config.director) + usize::from(rs_side);
        let heads: Vec<u32> = std::iter::from_fn(|| self.tables.free.heads.take())
            .take(wanted)
            .collect();
        if heads.len() < wanted {
            self.full(config, MapName::Heads, self.limits.heads, &consequence);
            return None;
        }
        let Some(index) = self.tables.free.indices.take() else {
            self.full(config, MapName::Vips4, FIRST_REPLY_INDEX, &consequence);
            return None;
        };
        Some((index, heads))
    }

    /// The ring by which a director balances: over every server of the pool.
    fn director_ring(&mut self, scope: Scope<'_>, pool: &PlacedPool<'_>) -> u32 {
        if pool.config.is_down {
            return 0;
        }
        let mut members = Members::default();
        // Who has no id cannot have its slots where the others found no room.
        let can_lend = pool
            .servers
            .iter()
            .any(|Placed { config, id }| *id != 0 && config.takes_flows());
        let in_ring = pool.servers.iter().filter(|it| it.id != 0 || can_lend);
        for Placed { config, id } in in_ring {
            let port = if scope.config.by_address() {
                0
            } else {
                config.port
            };
            members.add(
                RingKey {
                    address: config.address,
                    port,
                },
                *id,
                config.weight,
                config.tenths,
            );
        }
        self.ring(scope, Side::Director, pool, members)
    }

    /// The ring over this node's own servers of a pool; `None` if it has none.
    ///
    /// The director has chosen this node, so some server has to take the packet: where all are drained the weights are
    /// taken as equal.
    fn rs_ring(&mut self, scope: Scope<'_>, pool: &PlacedPool<'_>) -> Option<u32> {
        let own = || {
            pool.servers
                .iter()
                .filter(|placed| placed.config.reach == Reach::Local)
        };
        let drained = own().all(|placed| placed.config.weight == 0);
        let mut members = Members::default();
        for Placed { config, id } in own() {
            let key = RingKey {
                address: config.address,
                port: config.port,
            };
            let weight = if drained { 1 } else { config.weight };
            members.add(key, *id, weight, config.tenths);
        }
        if members.is_empty() {
            return None;
        }
        Some(self.ring(scope, Side::RealServer, pool, members))
    }

    fn ring(
        &mut self,
        scope: Scope<'_>,
        side: Side,
        pool: &PlacedPool<'_>,
        members: Members,
    ) -> u32 {
        if members.is_empty() {
            return 0;
        }
        let owner = (scope.index, side, pool.config.tag);
        let known = self.tables.rings.get(&owner).copied();
        let size_of = |id| Some(self.part.rings.get(&id)?.word.log2_slots());
        let size_before = known.and_then(size_of);
        let Some(log2_slots) = self.ring_size(scope, pool, size_before, members.log2_slots())
        else {
            return 0;
        };
        let layout = RingLayout::new(pool.config.tag, members, log2_slots);
        let old = known.and_then(|id| self.part.rings.get(&id));
        if let (Some(id), Some(old)) = (known, old)
            && self
                .tables
                .layouts
                .get(&id)
                .is_some_and(|old| **old == layout)
        {
            self.desired.rings.insert(id, old.clone());
            return id;
        }
        let content = RingContent::of(&layout.slots());
        if let (Some(id), Some(old)) = (known, old)
            && *old.content == content
        {
            self.desired.rings.insert(id, old.clone());
            self.layouts.insert(id, Arc::new(layout));
            return id;
        }
        let Some(id) = known.or_else(|| self.tables.free.rings.take()) else {
            let consequence = format!("pool {} takes no flows", pool.decided.name);
            self.full(
                scope.config,
                MapName::Rings,
                self.limits.rings,
                &consequence,
            );
            return 0;
        };
        let Some(offset) = self.tables.free.arena.take(1 << log2_slots) else {
            let consequence = format!("the ring of pool {} stays as it was", pool.decided.name);
            self.full(
                scope.config,
                MapName::RingSlots,
                self.limits.ring_slots,
                &consequence,
            );
            if let Some(old) = self.part.rings.get(&id) {
                self.desired.rings.insert(id, old.clone());
                self.kept_rings.insert(id);
                return id;
            }
            return 0;
        };
        let word = RingWord::new(offset, log2_slots);
        let content = Arc::new(content);
        self.desired.rings.insert(id, Ring { word, content });
        self.layouts.insert(id, Arc::new(layout));
        id
    }

    /// The slot of a head: the old one if it holds the same, else a new one, else the old one as it is.
    fn head(&mut self, scope: Scope<'_>, wanted: Head, old: u32, spare: &mut Vec<u32>) -> u32 {
        if old != 0 && self.part.heads.get(&old) == Some(&wanted) {
            self.desired.heads.insert(old, wanted);
            return old;
        }
        if let Some(slot) = spare.pop().or_else(|| self.tables.free.heads.take()) {
            self.desired.heads.insert(slot, wanted);
            return slot;
        }
        let consequence = format!(
            "the shares and pools of {} stay as they were",
            scope.vip_port
        );
        self.full(
            scope.config,
            MapName::Heads,
            self.limits.heads,
            &consequence,
        );
        old
    }

    /// The node's own servers by the outer destination of a tunnel. An address in two pools leads to the first one's
    /// server.
    fn locals(&mut self, scope: Scope<'_>, pools: &[PlacedPool<'_>]) {
        let placed = pools.iter().flat_map(|pool| &pool.servers);
        for Placed { config, id } in placed.filter(|p| p.config.reach == Reach::Local) {
            let local = Local {
                address: config.address,
                index: scope.index,
            };
            if self.desired.locals.contains_key(&local) {
                continue;
            }
            if self.part.locals.contains_key(&local) || self.local_room.take(local.address, 1) {
                self.desired.locals.insert(local, *id);
                continue;
            }
            let v4 = local.address.is_ipv4();
            let map = if v4 {
                MapName::Locals4
            } else {
                MapName::Locals6
            };
            let consequence = format!("tunnelled packets to {} are dropped", local.address);
            self.full(scope.config, map, self.limits.locals, &consequence);
        }
    }

    /// Adds to the plan, as it is in the maps, what kept parts refer to; and leaves out rings that no head came to name.
    fn keep_what_is_referred_to(&mut self) {
        let (actual, desired) = (&self.part, &mut self.desired);
        for slot in desired
            .vips
            .values()
            .flat_map(|word| [word.head(), word.rs_head()])
        {
            if let Some(head) = actual.heads.get(&slot) {
                desired.heads.entry(slot).or_insert(*head);
            }
        }
        let heads = desired.heads.values();
        let named: BTreeSet<u32> = heads.flat_map(head::pools).map(|pool| pool.ring).collect();
        desired.rings.retain(|ring, _| named.contains(ring));
        for id in named {
            if let (Entry::Vacant(place), Some(ring)) =
                (desired.rings.entry(id), actual.rings.get(&id))
            {
                place.insert(ring.clone());
                self.kept_rings.insert(id);
            }
        }
        let rings = self
            .kept_rings
            .iter()
            .filter_map(|id| desired.rings.get(id));
        let in_rings = rings.flat_map(|ring| ring.content.parts());
        let in_rings: BTreeSet<u32> = in_rings.map(|&(id, _)| id).collect();
        let replies = actual.replies.iter();
        let replies: BTreeMap<u32, Socket> = replies.map(|(&e, &i)| (i, e)).collect();
        for id in in_rings {
            if desired.servers.contains_key(&id) {
                continue;
            }
            let Some(word) = actual.servers.get(&id).filter(|word| word.present()) else {
                continue;
            };
            let Some(record) = actual.records.get(&word.slot()) else {
                continue;
            };
            desired.servers.insert(id, *word);
            desired.records.insert(word.slot(), *record);
            if let Some(socket) = replies.get(&record.facts.reply_index()) {
                desired.replies.insert(*socket, record.facts.reply_index());
            }
        }
    }

    /// Leaves the epochs of server ids that are not in use any more.
    fn retire(&mut self) {
        for (&id, word) in &self.part.servers {
            let absent = ServerWord::absent(word.epoch());
            if absent != ServerWord(0) {
                self.desired.servers.entry(id).or_insert(absent);
            }
        }
    }
}
