//! How many writes the API server gets, by its audit log: at rest, when a node joins or leaves, when an endpoint changes, and
//! for one decision. A thousand virtual servers and twenty agents, which are played; nothing here looks at packets.
//!
//! Leases are not counted, nor what the test writes itself.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use sluice_api::{LoadBalancerNode, RealServerPool, VirtualServer, find_condition, read_peers};
use sluice_tests::kube::{Account, Operated, PlayedFleet, condition};
use sluice_tests::net::manifest::{WEB, object, virtual_server_at};
use sluice_tests::net::suite::{Stage, Suite};
use sluice_tests::net::until;

const OPERATOR: &str = "one";
/// Virtual servers.
const SERVERS: u16 = 1_000;
/// Pools, each of which serves as many of them as the others.
const POOLS: u16 = 250;
/// Agents.
const NODES: u8 = 20;
/// The node that comes and goes.
const GUEST: &str = "guest";

/// Longest time until everything is decided and acknowledged.
const ALL_LIVE: Duration = Duration::from_mins(3);
/// Longest time until one change has had its effect.
const SOON: Duration = Duration::from_mins(1);
/// Nothing more comes of a change when there was no write for so long.
const CALM: Duration = Duration::from_secs(3);
/// At rest is measured for so long.
const REST: Duration = Duration::from_mins(1);

/// Most writes at rest, in a second.
const AT_REST: f64 = 1.0;
const JOINING: usize = 20;
const LEAVING: usize = 20;
const ENDPOINT: usize = 3;
/// Beside one a node.
const DECISION: usize = 3;
/// A virtual server whose pool is decided anew is ready again once that is in force: it says both, and that by an Event.
const SERVED: usize = 3;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("everything comes into force and rests", all);
    suite.check("at rest", rest);
    suite.check("one endpoint of a pool of pods", endpoint);
    suite.check("one decision", decision);
    suite.check("one decision about a pool", pool_decision);
    suite.check("a node joins", joins);
    suite.check("a decision with the new node", decision_with_guest);
    suite.check("a node leaves", leaves);
    suite.main(|| {
        let mut operated = Operated::audited()?;
        // As long as kinds are new to it, a busy API server ends their watches.
        operated.expect_complaint("ends watches at once");
        let operator = operated.control.user("operator", Some("system:masters"))?;
        let agents = operated.control.user("agents", Some("system:masters"))?;
        let fleet = PlayedFleet::start(&agents, "default")?;
        for number in 1..=NODES {
            fleet.add(&format!("n{number:02}"), number);
        }
        operated.start_operator_as(OPERATOR, &operator, "default")?;
        operated.await_operator(OPERATOR)?;
        Ok(Quiet { fleet, operated })
    })
}

struct Quiet {
    /// Goes first.
    fleet: PlayedFleet,
    operated: Operated,
}

impl Stage for Quiet {
    fn after_check(&mut self) -> Result<()> {
        self.operated.after_check()
    }

    fn evidence(&mut self) -> String {
        self.operated.evidence()
    }

    fn run_name(&self) -> String {
        self.operated.run_name()
    }
}

/// Writes by who, verb and resource.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Writes(BTreeMap<String, usize>);

impl Writes {
    fn total(&self) -> usize {
        self.0.values().sum()
    }

    fn since(&self, before: &Self) -> Self {
        let more = self.0.iter().map(|(what, count)| {
            let before = before.0.get(what).copied().unwrap_or_default();
            (what.clone(), count - before)
        });
        Self(more.filter(|(_, count)| *count > 0).collect())
    }
}

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} writes", self.total())?;
        for (what, count) in &self.0 {
            write!(f, "; {count} {what}")?;
        }
        Ok(())
    }
}

impl Quiet {
    fn admin(&self) -> &Account {
        self.operated.admin()
    }

    /// All writes so far.
    fn writes(&self) -> Result<Writes> {
        let mut writes = Writes::default();
        for event in self.operated.control.audit_events()? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (user, verb) = (text(&event["user"]["username"]), text(&event["verb"]));
            let target = &event["objectRef"];
            let is_write = ["create", "update", "patch", "delete"].contains(&verb.as_str());
            if !is_write || user == "admin" || target["resource"] == "leases" {
                continue;
            }
            let mut resource = text(&target["resource"]);
            if target["subresource"].is_string() {
                resource = format!("{resource}/{}", text(&target["subresource"]));
            }
            let what = format!("{user}: {verb} {resource}");
            *writes.0.entry(what).or_default() += 1;
        }
        Ok(writes)
    }

    /// Waits until nothing is written any more.
    fn calm(&self, limit: Duration) -> Result<Writes> {
        let mut last = (self.writes()?, Instant::now());
        until("nothing to be written", limit, || {
            let Ok(now) = self.writes() else { return false };
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() >= CALM
        })?;
        Ok(last.0)
    }

    /// The writes that follow from what `act` does, once `is_done`. Fails if there are more than `most`.
    fn measure(
        &self,
        what: &str,
        most: usize,
        act: impl FnOnce() -> Result<()>,
        is_done: impl FnMut() -> bool,
    ) -> Result<()> {
        let before = self.calm(SOON)?;
        act()?;
        until(what, SOON, is_done)?;
        let writes = self.calm(SOON)?.since(&before);
        println!("{what}: {writes} (at most {most})");
        ensure!(writes.total() <= most, "{what}: {writes}");
        Ok(())
    }

    fn decision(&self, number: u16, weight: u32, nodes: usize) -> Result<()> {
        let wanted = server(number, weight);
        let name = name(number);
        let what = format!("one decision with {nodes} nodes");
        self.measure(
            &what,
            nodes + DECISION,
            || self.admin().apply_many::<VirtualServer>(&[wanted]),
            || {
                let found = self.operated.get("virtualserver", &name);
                found.is_ok_and(|found| {
                    let acknowledged = &found["status"]["acknowledged"]["pools"][0]["weight"];
                    *acknowledged == weight && condition(&found, "Ready")["status"] == "True"
                })
            },
        )
    }
}

fn name(number: u16) -> String {
    format!("web-{number:04}")
}

fn pool_name(number: u16) -> String {
    format!("pool-{number:03}")
}

fn server(number: u16, weight: u32) -> Value {
    let [high, low] = number.to_be_bytes();
    let vip = IpAddr::from([203, 0, high, low]);
    let pool = pool_name(number % POOLS);
    virtual_server_at(&name(number), "FullNAT", &[vip], &[WEB], &[(&pool, weight)])
}

fn static_pool(number: u16, server: &str) -> Value {
    let servers = json!({"static": [{"name": "s", "address": server}]});
    object(
        "RealServerPool",
        &pool_name(number),
        &json!({"servers": servers}),
    )
}

/// How many virtual servers are ready.
fn ready(admin: &Account) -> Result<usize> {
    admin.with_client(async |client| {
        let api: Api<VirtualServer> = Api::namespaced(client, "default");
        let servers = api.list(&ListParams::default()).await?.items.into_iter();
        let is_ready = |server: &VirtualServer| {
            let status = server.status.as_ref();
            let conditions = status.map(|status| status.conditions.as_slice());
            let kind = sluice_api::ConditionType::Ready;
            let ready = find_condition(conditions.unwrap_or_default(), kind);
            ready.is_some_and(|ready| ready.status == "True")
        };
        Ok(servers.filter(is_ready).count())
    })
}

fn all(stage: &mut Quiet) -> Result<()> {
    let start = Instant::now();
    let admin = stage.admin();
    let mut pools: Vec<Value> = (0..POOLS)
        .map(|number| static_pool(number, "10.8.0.1"))
        .collect();
    let selector = json!({"selector": {"matchLabels": {"app": "pods"}}});
    pools.push(object(
        "RealServerPool",
        "pods",
        &json!({"servers": selector}),
    ));
    admin.apply_many::<RealServerPool>(&pools)?;
    // Without a server that takes flows its virtual server would not become ready.
    make_pod(stage, "first")?;
    start_pod(stage, "first", "10.7.0.1")?;
    let mut servers: Vec<Value> = (0..SERVERS - 1).map(|number| server(number, 1)).collect();
    let vip = IpAddr::from([203, 0, 113, 250]);
    let pods = virtual_server_at("pods", "FullNAT", &[vip], &[WEB], &[("pods", 1)]);
    servers.push(pods);
    admin.apply_many::<VirtualServer>(&servers)?;
    println!("applied after {:.1} s", start.elapsed().as_secs_f64());
    until("all virtual servers to be ready", ALL_LIVE, || {
        // A look costs the API server more than a decision does.
        thread::sleep(Duration::from_secs(1));
        ready(admin).is_ok_and(|ready| ready == usize::from(SERVERS))
    })?;
    println!("ready after {:.1} s", start.elapsed().as_secs_f64());
    println!("until then: {}", stage.calm(ALL_LIVE)?);
    Ok(())
}

fn rest(stage: &mut Quiet) -> Result<()> {
    let before = stage.calm(SOON)?;
    thread::sleep(REST);
    let writes = stage.writes()?.since(&before);
    println!("{} s at rest: {writes}", REST.as_secs());
    let most = AT_REST * REST.as_secs_f64();
    ensure!(
        f64::from(u32::try_from(writes.total())?) <= most,
        "{writes}"
    );
    Ok(())
}

fn endpoint(stage: &mut Quiet) -> Result<()> {
    make_pod(stage, "second")?;
    stage.measure(
        "one endpoint",
        ENDPOINT,
        || start_pod(stage, "second", "10.7.0.2"),
        || {
            let pool = stage.operated.get("realserverpool", "pods");
            pool.is_ok_and(|pool| pool["status"]["readyServers"] == 2)
        },
    )
}

fn make_pod(stage: &Quiet, name: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "pods"}},
        "spec": {
            "nodeName": "n01",
            "containers": [{"name": "web", "image": "web"}],
        },
    });
    stage.operated.apply(&[pod]).map(drop)
}

/// Makes a pod ready at this address, as its kubelet would.
fn start_pod(stage: &Quiet, name: &str, address: &str) -> Result<()> {
    let status = json!({"status": {
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }})
    .to_string();
    let patch = ["--subresource=status", "--type=merge", "--patch", &status];
    let patch = [&["patch", "pod", name][..], &patch].concat();
    stage.admin().kubectl(patch).map(drop)
}

fn decision(stage: &mut Quiet) -> Result<()> {
    stage.decision(7, 2, NODES.into())
}

fn pool_decision(stage: &mut Quiet) -> Result<()> {
    let number = 9;
    let name = pool_name(number);
    let served = (0..SERVERS - 1).filter(|server| server % POOLS == number);
    let most = usize::from(NODES) + DECISION + SERVED * served.count();
    stage.measure(
        "one decision about a pool",
        most,
        || {
            let pool = static_pool(number, "10.8.0.2");
            stage.admin().apply_many::<RealServerPool>(&[pool])
        },
        || {
            let pool = stage.operated.get("realserverpool", &name);
            pool.is_ok_and(|pool| {
                pool["status"]["observedGeneration"] == pool["metadata"]["generation"]
                    && condition(&pool, "Ready")["status"] == "True"
            })
        },
    )
}

fn joins(stage: &mut Quiet) -> Result<()> {
    let admin = stage.admin();
    stage.measure(
        "a node joins",
        JOINING,
        || {
            stage.fleet.add(GUEST, 200);
            Ok(())
        },
        || node(admin).is_ok_and(|node| node["status"]["acknowledgedRevision"] != 0),
    )?;
    ensure!(ready(admin)? == usize::from(SERVERS), "not all are ready");
    let peers = admin.json(["get", "configmap", "sluice-peers"])?;
    let peers = peers["data"]["peers.json"].as_str().context("no list")?;
    let peers = read_peers(peers).map_err(anyhow::Error::msg)?;
    ensure!(peers.len() == usize::from(NODES) + 1, "{peers:?}");
    let addresses = &peers[GUEST].addresses;
    ensure!(
        *addresses == [IpAddr::from([10, 9, 0, 200])].into(),
        "{peers:?}"
    );
    Ok(())
}

fn node(admin: &Account) -> Result<Value> {
    let node = admin.with_client(async |client| {
        let api: Api<LoadBalancerNode> = Api::all(client);
        Ok(api.get(GUEST).await?)
    })?;
    Ok(serde_json::to_value(node)?)
}

fn decision_with_guest(stage: &mut Quiet) -> Result<()> {
    stage.decision(8, 3, usize::from(NODES) + 1)
}

/// Silently, and then for good.
fn leaves(stage: &mut Quiet) -> Result<()> {
    stage
        .operated
        .expect_complaint("is silent and no longer waited for");
    let admin = stage.admin();
    stage.measure(
        "a node leaves",
        LEAVING,
        || {
            stage.fleet.remove(GUEST);
            Ok(())
        },
        || node(admin).is_ok_and(|node| condition(&node, "Silent")["status"] == "True"),
    )?;
    ensure!(ready(admin)? == usize::from(SERVERS), "not all are ready");
    let gone = ["delete", "loadbalancernode", GUEST];
    stage.measure(
        "its object goes",
        LEAVING,
        || admin.kubectl(gone).map(drop),
        || {
            let peers = admin.json(["get", "configmap", "sluice-peers"]);
            peers.is_ok_and(|peers| !peers.to_string().contains(GUEST))
        },
    )
}
