//! `kubectl sluice drain server` and `undrain server`: who takes no new flows, in an annotation of each pool.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use kube::api::Patch;
use serde_json::{Value, json};
use sluice_api::jiff::{SignedDuration, Timestamp};
use sluice_api::{
    Condition, ConditionType, DRAINED_SERVERS_ANNOTATION, DrainedServer, MAX_DRAINED_SERVERS,
    ObjectKey, PoolDecision, RealServerPool, Reason, Time, drained_servers, find_condition,
    parse_ip,
};
use sluice_kube::clock;
use sluice_planner::{Slice, Slices};
use tokio::time::{Instant, sleep};

use crate::args::{Connection, DrainServer, ServerTarget};
use crate::connect::{self, Cluster};
use crate::problem::{Access, Problem, names, not_found};
use crate::{EXIT_DONE, fetch, put};

const GET: Access = Access::sluice("get", "realserverpools");
const PATCH: Access = Access::sluice("patch", "realserverpools");
/// Shortest time of a drain: longer than nodes take to begin it.
const SHORTEST: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Each conflict means that somebody has just written: more in a row are not to be expected.
const MAX_CONFLICTS: u32 = 10;

/// Has a server take no new flows, and waits until it takes none.
pub async fn drain(connection: &Connection, args: &DrainServer) -> anyhow::Result<u8> {
    let target = &args.target;
    let cluster = connect::connect(connection).await?;
    let pools = pools(&cluster, target).await?;
    let request = clock::seconds(&cluster.client);
    let now = cluster.request(GET, request).await?;
    let now = now.and_then(|seconds| Timestamp::from_second(seconds).ok());
    let now = now.unwrap_or_else(Timestamp::now);
    let until = args.time.map(|time| end(now, time)).transpose()?;
    let meant: Vec<&Pool> = pools
        .iter()
        .filter(|pool| pool.meant().next().is_some())
        .collect();
    if meant.is_empty() {
        let known: BTreeSet<String> = pools.iter().flat_map(Pool::names).collect();
        let known: Vec<String> = known.into_iter().collect();
        bail!(not_found(
            "server",
            &target.name,
            &cluster.namespace,
            &known
        ));
    }
    if let Some(last) = meant
        .iter()
        .find(|pool| pool.meant_are_last())
        .filter(|_| !args.force)
    {
        bail!(
            "RealServerPool {} has no other server that takes new flows, and would drop them: give it more servers, or drain \
             this one all the same with --force",
            last.key
        );
    }
    for pool in &meant {
        let change = |entries: Vec<DrainedServer>| pool.drained(entries, until.as_ref(), now);
        write(&cluster, &pool.key, change).await?;
    }
    let deadline = Instant::now() + target.timeout;
    for pool in &meant {
        let end = until
            .as_ref()
            .map_or_else(String::new, |until| format!(" until {}", until.0));
        let decision = pool.wait(&cluster, true, deadline).await.map_err(|error| {
            anyhow!(
                "{error}. It stays drained; this ends that: kubectl sluice undrain server {} -n {}",
                target.name,
                cluster.namespace
            )
        })?;
        let time = decision.content.drain.map_or_else(
            || "until they end".to_owned(),
            |drain| format!("for up to {} s", drain.timeout_seconds),
        );
        for server in pool.meant() {
            put(&format!(
                "{} ({}) of RealServerPool {} takes no new flows{end}; it keeps those that it has {time}\n",
                server.name, server.address, pool.key
            ))?;
        }
    }
    Ok(EXIT_DONE)
}

/// Lets a drained server take new flows again, and waits until it does.
pub async fn undrain(connection: &Connection, target: &ServerTarget) -> anyhow::Result<u8> {
    let cluster = connect::connect(connection).await?;
    let mut pools = pools(&cluster, target).await?;
    let mut known = Vec::new();
    for pool in &mut pools {
        let drained = entries(&pool.object)?;
        known.extend(drained.iter().map(|entry| entry.address.to_string()));
        let asked = parse_ip(&target.name);
        let is_meant = |entry: &DrainedServer| {
            let is_server = |server: &Server| server.is_meant && server.address == entry.address;
            asked == Some(entry.address) || pool.servers.iter().any(is_server)
        };
        pool.listed = drained
            .into_iter()
            .filter(is_meant)
            .map(|entry| entry.address)
            .collect();
    }
    pools.retain(|pool| !pool.listed.is_empty());
    if pools.is_empty() {
        bail!(
            "{} is drained in no pool of namespace {}; drained are: {}",
            target.name,
            cluster.namespace,
            names(&known)
        );
    }
    for pool in &pools {
        let change = |mut entries: Vec<DrainedServer>| {
            entries.retain(|entry| !pool.listed.contains(&entry.address));
            Ok(entries)
        };
        write(&cluster, &pool.key, change).await?;
    }
    let deadline = Instant::now() + target.timeout;
    for pool in &pools {
        pool.wait(&cluster, false, deadline).await?;
        for address in &pool.listed {
            put(&format!(
                "{address} of RealServerPool {} is not drained any more\n",
                pool.key
            ))?;
        }
    }
    Ok(EXIT_DONE)
}

fn end(now: Timestamp, time: Duration) -> anyhow::Result<Time> {
    if time < SHORTEST {
        bail!("--for is too short: give {SHORTEST:?} or more");
    }
    let time = SignedDuration::try_from(time).ok();
    let end = time.and_then(|time| now.checked_add(time).ok());
    Ok(Time(
        end.context("--for is too long: leave it out for no end")?,
    ))
}

/// A pool with its servers.
#[derive(Debug)]
struct Pool {
    key: ObjectKey,
    object: RealServerPool,
    servers: Vec<Server>,
    /// Addresses in its annotation that are meant.
    listed: BTreeSet<IpAddr>,
}

/// A server of a pool.
#[derive(Debug)]
struct Server {
    name: String,
    address: IpAddr,
    pod_uid: Option<String>,
    takes_flows: bool,
    is_meant: bool,
}

/// The pools that may be meant.
async fn pools(cluster: &Cluster, target: &ServerTarget) -> anyhow::Result<Vec<Pool>> {
    let (pools, slices) = fetch::pools(cluster, target.pool.as_deref()).await?;
    let slices: Vec<Slice> = slices.iter().filter_map(Slice::read).collect();
    let pools = pools
        .into_iter()
        .map(|pool| Pool::new(pool, &slices, &target.name));
    Ok(pools.collect())
}

impl Pool {
    fn new(object: RealServerPool, slices: &[Slice], meant: &str) -> Self {
        let key = ObjectKey::of(&object);
        let mut servers = Vec::new();
        if let Some(decision) = decision(&object) {
            let content = &decision.content;
            let slices = Slices::new(slices);
            let planned = slices.servers(&key.namespace, content);
            let taking = planned.iter().filter(|server| server.weight > 0);
            let taking: BTreeSet<IpAddr> = taking.map(|server| server.address).collect();
            let address = parse_ip(meant);
            let server = |name: &str, at: IpAddr, pod_uid: Option<&str>| Server {
                name: name.to_owned(),
                address: at,
                pod_uid: pod_uid.map(str::to_owned),
                takes_flows: taking.contains(&at),
                is_meant: name == meant || address == Some(at),
            };
            match &content.endpoints {
                None => {
                    let all = content.servers.iter();
                    servers.extend(all.map(|it| server(&it.name, it.address, None)));
                }
                Some(endpoints) => {
                    let all = slices.listed(&key.namespace, endpoints);
                    servers
                        .extend(all.map(|it| server(&it.name, it.address, it.pod_uid.as_deref())));
                }
            }
        }
        Self {
            key,
            object,
            servers,
            listed: BTreeSet::new(),
        }
    }

    fn names(&self) -> impl Iterator<Item = String> {
        self.servers.iter().map(|server| server.name.clone())
    }

    fn meant(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(|server| server.is_meant)
    }

    /// Whether without the servers that are meant nobody takes new flows any more, in a family where they do.
    fn meant_are_last(&self) -> bool {
        self.meant()
            .filter(|server| server.takes_flows)
            .any(|server| {
                !self.servers.iter().any(|other| {
                    let same_family = other.address.is_ipv4() == server.address.is_ipv4();
                    other.takes_flows && !other.is_meant && same_family
                })
            })
    }

    /// The pool's entries, those of servers included that are meant, without those whose time is over or whose pod is gone.
    fn drained(
        &self,
        mut entries: Vec<DrainedServer>,
        until: Option<&Time>,
        now: Timestamp,
    ) -> anyhow::Result<Vec<DrainedServer>> {
        let is_there = |uid: &String| {
            self.servers
                .iter()
                .any(|server| server.pod_uid.as_ref() == Some(uid))
        };
        entries.retain(|entry| {
            let is_new = self.meant().any(|server| server.address == entry.address);
            !is_new && !entry.is_over(now) && entry.pod_uid.as_ref().is_none_or(is_there)
        });
        let mut added = BTreeSet::new();
        let servers = self.meant().filter(|server| added.insert(server.address));
        entries.extend(servers.map(|server| DrainedServer {
            address: server.address,
            pod_uid: server.pod_uid.clone(),
            until: until.cloned(),
        }));
        if entries.len() > MAX_DRAINED_SERVERS {
            bail!(
                "RealServerPool {} would have {} drained servers, and may have {MAX_DRAINED_SERVERS}: undrain some, or set their \
                 weights to 0",
                self.key,
                entries.len()
            );
        }
        Ok(entries)
    }

    /// Whether the servers that are meant are drained by this decision.
    fn is_decided(&self, decision: &PoolDecision, drained: bool) -> bool {
        let content = &decision.content;
        if !drained {
            return !content
                .drained
                .iter()
                .any(|entry| self.listed.contains(&entry.address));
        }
        self.meant()
            .all(|server| content.drains(server.address, server.pod_uid.as_deref()))
    }

    /// Waits until the servers that are meant are drained, or not, on all live nodes.
    async fn wait(
        &self,
        cluster: &Cluster,
        drained: bool,
        deadline: Instant,
    ) -> anyhow::Result<PoolDecision> {
        loop {
            let api = cluster.pools();
            let pool = cluster.request(GET, api.get(&self.key.name)).await?;
            let decision = decision(&pool).filter(|it| self.is_decided(it, drained));
            let ready = ready(&pool);
            let waits = ready.is_some_and(|it| it.reason == Reason::AwaitingNodes.to_string());
            if let Some(decision) = decision.filter(|_| !waits) {
                return Ok(decision.clone());
            }
            if Instant::now() >= deadline {
                return Err(late(&self.key, decision.is_some(), ready));
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

fn decision(pool: &RealServerPool) -> Option<&PoolDecision> {
    pool.status.as_ref()?.decision.as_ref()
}

fn ready(pool: &RealServerPool) -> Option<&Condition> {
    let status = pool.status.as_ref()?;
    find_condition(&status.conditions, ConditionType::Ready)
}

fn late(key: &ObjectKey, is_decided: bool, ready: Option<&Condition>) -> anyhow::Error {
    let what = if is_decided {
        "is not in force on every live node"
    } else {
        "was not taken in by the operator: is it running? (kubectl get deployments -A -l app.kubernetes.io/part-of=sluice)"
    };
    let said = ready.map_or_else(String::new, |ready| {
        format!(
            "; its condition Ready is {} ({}) {}",
            ready.status, ready.reason, ready.message
        )
    });
    anyhow!("the change of RealServerPool {key} {what}{said}")
}

fn entries(pool: &RealServerPool) -> anyhow::Result<Vec<DrainedServer>> {
    let key = ObjectKey::of(pool);
    drained_servers(pool).map_err(|error| anyhow!("RealServerPool {key}: {error}"))
}

/// Writes the annotation and nothing else. Somebody else's change is taken in first.
async fn write(
    cluster: &Cluster,
    key: &ObjectKey,
    change: impl Fn(Vec<DrainedServer>) -> anyhow::Result<Vec<DrainedServer>>,
) -> anyhow::Result<()> {
    let api = cluster.pools();
    let params = connect::merge_params();
    for _ in 0..MAX_CONFLICTS {
        let pool = cluster.request(GET, api.get(&key.name)).await?;
        let before = entries(&pool)?;
        let after = change(before)?;
        let text = match after.as_slice() {
            [] => Value::Null,
            entries => Value::String(serde_json::to_string(entries)?),
        };
        let body = json!({"metadata": {
            "resourceVersion": pool.metadata.resource_version,
            "annotations": {DRAINED_SERVERS_ANNOTATION: text},
        }});
        let patch = Patch::Merge(&body);
        match cluster
            .request(PATCH, api.patch(&key.name, &params, &patch))
            .await
        {
            Ok(_) => return Ok(()),
            Err(Problem::Conflict { .. }) => {}
            Err(problem) => return Err(problem.into()),
        }
    }
    bail!("RealServerPool {key} changes all the time, so nothing was written: try again")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::EndpointSlice;

    use super::*;

    fn pool(meant: &str) -> Pool {
        let object = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"servers": {"serviceName": "web"}},
            "status": {"decision": {
                "revision": 1, "generation": 1,
                "endpoints": {"source": "Service", "name": "web"},
            }},
        }))
        .expect("a pool");
        let endpoint = |name: &str, address: &str, ready: bool| {
            json!({
                "addresses": [address],
                "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": name, "uid": format!("uid-{name}")},
            })
        };
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [
                endpoint("a", "10.0.0.1", true),
                endpoint("b", "10.0.0.2", true),
                endpoint("c", "10.0.0.3", false),
            ],
            "ports": [{"name": "http", "port": 80}],
        }))
        .expect("a slice");
        Pool::new(object, &[Slice::read(&slice).expect("a Service's")], meant)
    }

    fn entry(address: &str, uid: Option<&str>, until: Option<&str>) -> DrainedServer {
        let object = json!({"address": address, "podUid": uid, "until": until});
        serde_json::from_value(object).expect("an entry")
    }

    #[test]
    fn a_server_is_meant_by_its_name_or_address() {
        for meant in ["b", "10.0.0.2"] {
            let pool = pool(meant);
            let found: Vec<&str> = pool.meant().map(|server| server.name.as_str()).collect();
            assert_eq!(found, ["b"], "{meant}");
        }
        assert_eq!(pool("10.0.0.22").meant().count(), 0);
    }

    #[test]
    fn the_last_one_that_takes_flows_is_told_from_others() {
        assert!(!pool("b").meant_are_last(), "a takes flows");
        assert!(!pool("c").meant_are_last(), "c takes none as it is");
        let mut pool = pool("b");
        pool.servers.retain(|server| server.name != "a");
        assert!(pool.meant_are_last(), "c takes none");
    }

    #[test]
    fn entries_replace_those_of_the_server_and_drop_what_is_over() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let until = end(now, Duration::from_hours(1)).expect("an end");
        let before = vec![
            entry("10.0.0.1", Some("uid-a"), None),
            entry("10.0.0.2", Some("older"), None),
            entry("10.0.0.3", Some("gone"), None),
            entry("10.0.0.9", None, Some("2025-12-31T00:00:00Z")),
            entry("10.0.0.8", None, None),
        ];
        let after = pool("b").drained(before, Some(&until), now).expect("few");
        let expected = [
            entry("10.0.0.1", Some("uid-a"), None),
            entry("10.0.0.8", None, None),
            entry("10.0.0.2", Some("uid-b"), Some("2026-01-01T01:00:00Z")),
        ];
        assert_eq!(after, expected);
        assert!(end(now, Duration::MAX).is_err());
        assert!(end(now, Duration::from_secs(9)).is_err());
    }

    #[test]
    fn there_is_a_limit() {
        let addresses = (1..=MAX_DRAINED_SERVERS).map(|last| format!("10.9.0.{last}"));
        let before = addresses
            .map(|address| entry(&address, None, None))
            .collect();
        let error = pool("b")
            .drained(before, None, Timestamp::now())
            .expect_err("too many");
        assert!(error.to_string().contains("may have 64"), "{error}");
    }

    #[test]
    fn a_decision_is_waited_for() {
        let mut pool = pool("b");
        let mut decision = decision(&pool.object).cloned().expect("a decision");
        assert!(!pool.is_decided(&decision, true));
        decision.content.drained = vec![entry("10.0.0.2", Some("uid-b"), None)];
        assert!(pool.is_decided(&decision, true));
        pool.listed.insert(decision.content.drained[0].address);
        assert!(!pool.is_decided(&decision, false));
        decision.content.drained.clear();
        assert!(pool.is_decided(&decision, false));
    }
}
