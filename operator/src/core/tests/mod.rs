//! The core as users see it: manifests in, decisions and conditions out.

mod admission;
mod claims;
mod cluster;
mod decisions;
mod drained;
mod joining;
mod parts;
mod properties;
mod rollouts;
mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_api::jiff::Timestamp;
use sluice_api::{
    AddressPool, Condition, ConditionType, DRAINED_SERVERS_ANNOTATION, ExceptionKind,
    LoadBalancerNodeStatus, NodeException, ObjectKey, ROLLOUT_COMMAND_ANNOTATION, Reason,
    RolloutPhase, Time, find_condition, set_condition,
};
use sluice_directory::manifest::{self, Object};

use super::*;

const MANIFESTS: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: VirtualServer
metadata: {name: web}
spec:
  addresses: [{ip: 203.0.113.10}]
  ports: [{name: http, protocol: TCP, port: 80}]
  forwarding: {mode: NAT}
  pools: [{name: v1, weight: 100}, {name: v2, weight: 0}]
---
apiVersion: sluice.dev/v1alpha1
kind: RealServerPool
metadata: {name: v1}
spec: {servers: {static: [{name: a, address: 10.0.0.1}]}, targetPorts: [{name: http, port: 8080}]}
---
apiVersion: sluice.dev/v1alpha1
kind: RealServerPool
metadata: {name: v2}
spec: {servers: {static: [{name: b, address: 10.0.0.2, weight: 3}]}}
";

const POLICY: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: RolloutPolicy
metadata: {name: roll}
spec:
  virtualServerName: web
  stablePoolName: v1
  candidatePoolName: v2
  strategy: {canary: {steps: [{weight: 10}, {weight: 50, gate: Manual}]}}
";

/// A world and the clock that drives it.
struct Sim {
    world: World,
    /// Who has which addresses, beside the nodes' reports.
    held: BTreeMap<(HolderKind, String), BTreeSet<IpNet>>,
    timers: Timers,
    address_pools: BTreeMap<String, AddressPool>,
    ledger: Ledger,
    /// On the monotonic clock.
    seconds: i64,
    /// By how much the clock that shows the time is ahead of it.
    clock_offset: i64,
}

impl Sim {
    fn new(manifests: &str) -> Self {
        let mut sim = Self {
            world: World::default(),
            held: BTreeMap::new(),
            timers: Timers::default(),
            address_pools: BTreeMap::new(),
            ledger: Ledger::default(),
            seconds: 0,
            clock_offset: 0,
        };
        sim.apply(manifests);
        sim.node("d1", &["10.0.0.250"]);
        sim
    }

    fn node(&mut self, name: &str, addresses: &[&str]) {
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .map(|a| a.parse().expect("address"))
            .collect();
        let status = LoadBalancerNodeStatus {
            addresses,
            ..LoadBalancerNodeStatus::default()
        };
        let node = Node {
            status,
            live: true,
            wanted: true,
            starting: false,
            standing: Standing::Joined,
            trust: Trust::Believed,
        };
        self.world.nodes.insert(name.to_owned(), node);
    }

    /// A node reports which of its uplinks the programs are not on, or, by an empty text, that they are on all.
    fn miss(&mut self, name: &str, uplinks: &str) {
        let node = self.world.nodes.get_mut(name).expect("a node");
        let (kind, reason) = (ConditionType::NotAttached, Reason::AttachFailed);
        let (conditions, now) = (&mut node.status.conditions, &Time(Timestamp::UNIX_EPOCH));
        set_condition(
            conditions,
            kind,
            !uplinks.is_empty(),
            reason,
            uplinks,
            1,
            now,
        );
    }

    /// Somebody has these blocks of addresses, and no others any more.
    fn hold(&mut self, kind: HolderKind, name: &str, blocks: &[&str]) {
        let now: BTreeSet<IpNet> = blocks
            .iter()
            .map(|block| block.parse().expect("a block"))
            .collect();
        let place = (kind, name.to_owned());
        let before = self.held.insert(place, now.clone()).unwrap_or_default();
        let holder = Holder::new(kind, key(name));
        self.world.addresses.put(&holder, &before, &now);
    }

    /// Replaces objects by those of a manifest, as a user does.
    fn apply(&mut self, text: &str) {
        for object in manifest::parse(text).expect("valid manifest") {
            let key = object.key();
            match object {
                Object::VirtualServer(mut new) => {
                    let old = self.world.virtual_servers.remove(&key);
                    let before = old
                        .as_ref()
                        .map(|old| (old.metadata.generation, old.spec == new.spec));
                    new.metadata.generation = next_generation(before);
                    new.status = old.and_then(|old| old.status);
                    self.world.virtual_servers.insert(key, new);
                }
                Object::RealServerPool(mut new) => {
                    let old = self.world.pools.remove(&key);
                    let before = old
                        .as_ref()
                        .map(|old| (old.metadata.generation, old.spec == new.spec));
                    new.metadata.generation = next_generation(before);
                    new.status = old.and_then(|old| old.status);
                    self.world.pools.insert(key, new);
                }
                Object::RolloutPolicy(mut new) => {
                    let old = self.world.policies.remove(&key);
                    let before = old
                        .as_ref()
                        .map(|old| (old.metadata.generation, old.spec == new.spec));
                    new.metadata.generation = next_generation(before);
                    new.status = old.and_then(|old| old.status);
                    self.world.policies.insert(key, new);
                }
                Object::LoadBalancerNode(_) => {}
                Object::AddressPool(new) => {
                    self.address_pools.insert(key.name, new);
                }
            }
        }
    }

    /// Applies the manifests with `from` replaced by `to`.
    fn edit(&mut self, from: &str, to: &str) {
        assert!(MANIFESTS.contains(from), "{from}");
        self.apply(&MANIFESTS.replace(from, to));
    }

    fn tick(&mut self) {
        self.seconds += 1;
        let shown = 1_700_000_000 + self.seconds + self.clock_offset;
        let now = Time(Timestamp::from_second(shown).expect("time"));
        self.look_at_timers();
        self.world.revision_floor = self.world.highest_revision();
        let pools = self.address_pools.iter();
        let pools = pools.map(|(name, pool)| (name.as_str(), pool));
        self.ledger.set_pools(pools, &mut self.world.addresses);
        self.ledger.assign(&mut self.world);
        let outcome = reconcile(&self.world, &now);
        for (key, status) in outcome.virtual_servers {
            self.world
                .virtual_servers
                .get_mut(&key)
                .expect("known")
                .status = Some(status);
        }
        self.world.orphans.clear();
        for (key, status) in outcome.pools {
            match self.world.pools.get_mut(&key) {
                Some(pool) => pool.status = Some(status),
                None => {
                    self.world.orphans.insert(key, status);
                }
            }
        }
        for (key, status) in outcome.policies {
            self.world.policies.get_mut(&key).expect("known").status = Some(status);
        }
    }

    fn look_at_timers(&mut self) {
        let now_ms = u64::try_from(self.seconds * 1000).expect("after the start");
        let policies = self.world.policies.iter();
        let stood = policies.map(|(key, policy)| {
            let status = policy.status.as_ref();
            (key.clone(), self.timers.look(key, status, now_ms))
        });
        self.world.stood = stood.collect();
    }

    /// Ticks with all nodes acknowledging what there is.
    fn settle(&mut self) {
        for _ in 0..12 {
            self.tick();
            self.acknowledge();
        }
    }

    fn acknowledge(&mut self) {
        let servers = self
            .world
            .virtual_servers
            .keys()
            .filter_map(|key| Some(self.world.decision(key)?.revision));
        let pools = self
            .world
            .pools
            .keys()
            .filter_map(|key| Some(self.world.pool_decision(key)?.revision));
        let revision = servers.chain(pools).max().unwrap_or_default();
        for node in self.world.nodes.values_mut().filter(|node| node.live) {
            node.status.acknowledged_revision = revision;
            node.status.acknowledged_pool_revision = revision;
            node.standing = Standing::Joined;
        }
    }

    fn ready(&self, name: &str) -> (String, String, String) {
        let status = self.world.virtual_servers[&key(name)]
            .status
            .as_ref()
            .expect("status");
        ready(&status.conditions)
    }

    fn pool_ready(&self, name: &str) -> (String, String, String) {
        let status = self.world.pools[&key(name)]
            .status
            .as_ref()
            .expect("status");
        ready(&status.conditions)
    }

    fn policy_ready(&self, name: &str) -> (String, String, String) {
        let status = self.world.policies[&key(name)]
            .status
            .as_ref()
            .expect("status");
        ready(&status.conditions)
    }

    fn weights(&self, name: &str) -> Vec<u32> {
        let decision = self.world.decision(&key(name)).expect("decision");
        decision
            .content
            .pools
            .iter()
            .map(|pool| pool.weight)
            .collect()
    }

    fn revision(&self, name: &str) -> u64 {
        self.world.decision(&key(name)).expect("decision").revision
    }

    /// The newest spec of `web` is refused, and what was decided stays.
    fn assert_refused(&mut self, reason: &str, parts: &[&str]) {
        let before = self.world.decision(&key("web")).cloned();
        self.settle();
        let (status, found, message) = self.ready("web");
        assert_eq!(
            (status.as_str(), found.as_str()),
            ("False", reason),
            "{message}"
        );
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        let stalled = &self.world.virtual_servers[&key("web")]
            .status
            .as_ref()
            .expect("status")
            .conditions;
        assert_eq!(
            find_condition(stalled, ConditionType::Stalled)
                .expect("told")
                .status,
            "True"
        );
        assert_eq!(self.world.decision(&key("web")).cloned(), before);
    }
}

/// From the last generation, and whether the spec is still the same.
fn next_generation(before: Option<(Option<i64>, bool)>) -> Option<i64> {
    match before {
        Some((generation, true)) => generation,
        Some((generation, false)) => generation.map(|generation| generation + 1),
        None => Some(1),
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn ready(conditions: &[Condition]) -> (String, String, String) {
    let ready = find_condition(conditions, ConditionType::Ready).expect("told at the first visit");
    (
        ready.status.clone(),
        ready.reason.clone(),
        ready.message.clone(),
    )
}

/// Status and message of a condition of `web`.
fn condition(sim: &Sim, kind: ConditionType) -> (String, String) {
    condition_of(sim, "web", kind)
}

/// Status and message of a condition of a virtual server.
fn condition_of(sim: &Sim, name: &str, kind: ConditionType) -> (String, String) {
    let status = sim.world.virtual_servers[&key(name)].status.as_ref();
    let conditions = &status.expect("status").conditions;
    let found = find_condition(conditions, kind).expect("told");
    (found.status.clone(), found.message.clone())
}

fn served() -> Sim {
    let mut sim = Sim::new(MANIFESTS);
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    sim
}
