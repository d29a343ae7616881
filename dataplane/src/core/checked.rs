//! Which servers are to be checked, kept up by changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_api::{
    DecidedPort, DecidedRealServerPool, DecidedVirtualServer, HealthCheck, ObjectKey,
};
use sluice_planner::Server;

use crate::health::PoolChecks;

/// Pools whose servers are watched, and who forwards to which of their ports.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pools: BTreeMap<ObjectKey, Pool>,
    /// Pools, the virtual servers that name them, and the ports of these.
    users: BTreeMap<(ObjectKey, ObjectKey), Vec<DecidedPort>>,
    /// The pools that virtual servers name.
    pools_of: BTreeMap<ObjectKey, Vec<ObjectKey>>,
    changed: BTreeSet<ObjectKey>,
}

/// A pool with a check or a warm-up.
#[derive(PartialEq, Debug)]
struct Pool {
    check: Option<Arc<HealthCheck>>,
    warmup: Option<Duration>,
    servers: Arc<[Server]>,
}

impl Checked {
    /// Takes in what was decided of a virtual server.
    pub(super) fn set_virtual_server(
        &mut self,
        key: &ObjectKey,
        decided: Option<&DecidedVirtualServer>,
    ) {
        for pool in self.pools_of.remove(key).into_iter().flatten() {
            self.users.remove(&(pool.clone(), key.clone()));
            self.touch(pool);
        }
        let Some(decided) = decided else {
            return;
        };
        let pools = decided.pools.iter();
        let pools: Vec<ObjectKey> = pools.map(|pool| key.sibling(&pool.name)).collect();
        for pool in &pools {
            let user = (pool.clone(), key.clone());
            self.users.insert(user, decided.ports.clone());
            self.touch(pool.clone());
        }
        self.pools_of.insert(key.clone(), pools);
    }

    /// Takes in what was decided of a pool, and its servers.
    pub(super) fn set_pool(
        &mut self,
        key: &ObjectKey,
        pool: Option<(&DecidedRealServerPool, &Arc<[Server]>)>,
    ) {
        let before = self.pools.remove(key);
        let watched =
            pool.filter(|(decided, _)| decided.health_check.is_some() || decided.warmup.is_some());
        let after = watched.map(|(decided, servers)| {
            // The same check is the same allocation: whoever compares looks at less.
            let known = before.as_ref().and_then(|before| before.check.clone());
            let known = known.filter(|known| Some(&**known) == decided.health_check.as_deref());
            Pool {
                check: known.or_else(|| decided.health_check.clone().map(Arc::from)),
                warmup: decided
                    .warmup
                    .map(|it| Duration::from_secs(it.seconds.into())),
                servers: Arc::clone(servers),
            }
        });
        if before != after {
            self.changed.insert(key.clone());
        }
        self.pools.extend(after.map(|pool| (key.clone(), pool)));
    }

    fn touch(&mut self, pool: ObjectKey) {
        if self.pools.contains_key(&pool) {
            self.changed.insert(pool);
        }
    }

    /// All pools may be checked otherwise.
    pub(super) fn touch_all(&mut self) {
        self.changed.extend(self.pools.keys().cloned());
    }

    /// The pools that may be checked otherwise than when this was last called; `None`: it is not checked.
    pub(super) fn take_changed(&mut self) -> Vec<(ObjectKey, Option<PoolChecks>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        let checks = changed.map(|key| {
            let checks = self.checks(&key);
            (key, checks)
        });
        checks.collect()
    }

    /// A pool that no virtual server names is not checked, nor is a server that takes no flows.
    fn checks(&self, key: &ObjectKey) -> Option<PoolChecks> {
        let pool = self.pools.get(key)?;
        let first = (key.clone(), ObjectKey::new("", ""));
        let users = self.users.range(first..);
        let users = users.take_while(|((pool, _), _)| pool == key);
        let ports: BTreeSet<&DecidedPort> = users.flat_map(|(_, ports)| ports).collect();
        if ports.is_empty() {
            return None;
        }
        let is_asked = |port: &&DecidedPort| {
            let check = pool.check.as_deref();
            check.is_none_or(|check| check.protocol() == port.protocol)
        };
        let ports: Vec<&DecidedPort> = ports.into_iter().filter(is_asked).collect();
        let by_port = pool
            .check
            .as_ref()
            .is_some_and(|check| !check.is_by_address());
        let taking = pool.servers.iter().filter(|server| server.weight > 0);
        let servers = taking.flat_map(|server| {
            let forwarded = ports.iter().filter_map(|port| server.ports.behind(port));
            let checked: BTreeSet<u16> = match &pool.check {
                Some(check) if check.is_by_address() => [check.port.unwrap_or(0)].into(),
                Some(_) => forwarded.collect(),
                None => [0].into(),
            };
            let checked = checked.into_iter();
            checked.map(|port| SocketAddr::new(server.address, port))
        });
        Some(PoolChecks {
            check: pool.check.clone(),
            warmup: pool.warmup,
            servers: servers.collect(),
            lacks_port: by_port && ports.is_empty(),
        })
    }
}
