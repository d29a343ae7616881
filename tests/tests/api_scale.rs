//! A thousand virtual servers applied at once, each with a pool of its own: how long until all of them are decided,
//! acknowledged and live, and what the daemons need. The agent is real.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use sluice_api::{ConditionType, RealServerPool, VirtualServer, find_condition};
use sluice_tests::kube::Account;
use sluice_tests::net::fabric::{DIRECTORS, Fabric, ServerSpec, UPLINK, vip_of_one};
use sluice_tests::net::manifest::{self, Role, VirtualServerPort, virtual_server_at};
use sluice_tests::net::sluice::{Daemons, Sluice};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{Family, Process, Protocol, until};

const NODE: &str = DIRECTORS[0];
const SERVERS: [&str; 2] = ["s1", "s2"];
/// Virtual servers, and as many pools.
const COUNT: u16 = 1000;
/// Virtual servers at one address, each with a port of its own.
const AT_ONE_ADDRESS: u16 = 100;
const FIRST_PORT: u16 = 2000;
/// Much longer than it takes, also on a slow machine that runs other suites meanwhile.
const LIMIT: Duration = Duration::from_mins(6);
/// Between two looks at all of them.
const LOOK: Duration = Duration::from_secs(1);
/// In which a change among so many is to be in force.
const SOON: Duration = Duration::from_secs(5);

struct Scale {
    /// Daemons go first.
    sluice: Sluice,
    fabric: Fabric,
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("a thousand virtual servers come into force", all);
    suite.check("every hundredth answers", answers);
    suite.check("a change among them is in force soon", change);
    suite.check("an operator that starts over changes nothing", restart);
    suite.main(|| {
        let fabric = Fabric::build(&SERVERS.map(ServerSpec::new))?;
        let node = manifest::node(NODE, Role::Director, &[UPLINK]);
        let nodes = manifest::documents(&[node]);
        let sluice = Sluice::start_in_cluster(&fabric, &[NODE], &nodes)?;
        // Kinds are watched apart: a pool may be heard of after the virtual server that names it.
        sluice.expect_complaint("reason=\"PoolNotFound\"");
        Ok(Scale { sluice, fabric })
    })
}

fn name(number: u16) -> String {
    format!("web-{number:04}")
}

fn target(number: u16) -> SocketAddr {
    let host = u8::try_from(20 + number / AT_ONE_ADDRESS).unwrap_or(u8::MAX);
    vip_of_one(host).socket(Family::V4, FIRST_PORT + number % AT_ONE_ADDRESS)
}

fn pool(number: u16, server: IpAddr) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "RealServerPool",
        "metadata": {"name": name(number), "namespace": "default"},
        "spec": {
            "servers": {"static": [{"name": "s", "address": server}]},
            "targetPorts": [{"name": "web", "port": 8080}],
        },
    })
}

/// Sends everything to its own pool, or to that of the next one.
fn server(number: u16, weights: [u32; 2]) -> Value {
    let (own, next) = (name(number), name((number + 1) % COUNT));
    let pools = [(own.as_str(), weights[0]), (next.as_str(), weights[1])];
    let port = VirtualServerPort {
        name: "web",
        protocol: Protocol::Tcp,
        port: target(number).port(),
    };
    let address = target(number).ip();
    virtual_server_at(&name(number), "FullNAT", &[address], &[port], &pools)
}

/// How many are decided, acknowledged by the node, and ready.
#[derive(Default, Debug)]
struct Count {
    decided: usize,
    acknowledged: usize,
    ready: usize,
    ready_pools: usize,
}

fn count(admin: &Account) -> Result<Count> {
    admin.with_client(async |client| {
        let mut count = Count::default();
        let all = ListParams::default();
        let servers: Api<VirtualServer> = Api::namespaced(client.clone(), "default");
        for server in servers.list(&all).await? {
            let generation = server.metadata.generation;
            let status = server.status.unwrap_or_default();
            let Some(decision) = status.decision else {
                continue;
            };
            count.decided += usize::from(Some(decision.generation) == generation);
            let acknowledged = status
                .acknowledged
                .map(|acknowledged| acknowledged.revision);
            count.acknowledged += usize::from(acknowledged == Some(decision.revision));
            let ready = find_condition(&status.conditions, ConditionType::Ready);
            count.ready += usize::from(ready.is_some_and(|ready| ready.status == "True"));
        }
        let pools: Api<RealServerPool> = Api::namespaced(client, "default");
        for pool in pools.list(&all).await? {
            let conditions = pool.status.unwrap_or_default().conditions;
            let ready = find_condition(&conditions, ConditionType::Ready);
            count.ready_pools += usize::from(ready.is_some_and(|ready| ready.status == "True"));
        }
        Ok(count)
    })
}

impl Scale {
    fn admin(&self) -> Result<Account> {
        Ok(self.sluice.control_plane()?.admin().clone())
    }

    /// Prints the time when each number is complete, and returns when all are.
    fn await_all(&self, start: Instant) -> Result<()> {
        let admin = self.admin()?;
        let (mut told, mut last) = ([false; 4], Count::default());
        let whole = usize::from(COUNT);
        let found = until("all to be live", LIMIT, || {
            // A look costs the API server more than a decision does.
            thread::sleep(LOOK);
            let Ok(now) = count(&admin) else { return false };
            let numbers = [
                ("decided", now.decided),
                ("acknowledged", now.acknowledged),
                ("ready", now.ready),
                ("pools ready", now.ready_pools),
            ];
            for (told, (what, number)) in told.iter_mut().zip(numbers) {
                if !*told && number == whole {
                    *told = true;
                    println!("{what}: all after {:.1} s", start.elapsed().as_secs_f64());
                }
            }
            last = now;
            told == [true; 4]
        });
        found.with_context(|| format!("{last:?}"))
    }

    /// Waits until the operator has read what there is.
    fn await_operator(&self) -> Result<()> {
        let home = self.sluice.control_plane()?.namespace();
        let ask = "curl --silent --fail --max-time 5 http://127.0.0.1:9201/readyz";
        until("the operator to be ready", LIMIT, || home.run(ask).is_ok())
    }

    fn print_memory(&self) -> Result<()> {
        for process in [self.sluice.operator()?, self.sluice.agent_process(NODE)?] {
            println!("{}: {}", process.name(), memory(process)?);
        }
        Ok(())
    }
}

/// Resident memory now and at most.
fn memory(process: &Process) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let lines = status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    let words: Vec<String> = lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    Ok(words.join(", "))
}

impl Daemons for Scale {
    fn sluice(&mut self) -> &mut Sluice {
        &mut self.sluice
    }

    fn fabric(&self) -> &Fabric {
        &self.fabric
    }
}

fn all(stage: &mut Scale) -> Result<()> {
    let addresses = SERVERS.map(|server| stage.fabric.address(server));
    let [first, second] = addresses;
    let addresses = [first?.of(Family::V4), second?.of(Family::V4)];
    stage.await_operator()?;
    stage.print_memory()?;
    let start = Instant::now();
    let admin = stage.admin()?;
    let pools = (0..COUNT).map(|number| pool(number, addresses[usize::from(number % 2)]));
    admin.apply_many::<RealServerPool>(&pools.collect::<Vec<_>>())?;
    let servers = (0..COUNT).map(|number| server(number, [1, 0]));
    admin.apply_many::<VirtualServer>(&servers.collect::<Vec<_>>())?;
    println!(
        "applied: {COUNT} pools and virtual servers after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    stage.await_all(start)?;
    stage.sluice.await_ready()?;
    stage.print_memory()
}

fn answers(stage: &mut Scale) -> Result<()> {
    let client = stage.fabric.client();
    for number in (0..COUNT).step_by(99) {
        let answer = client.within(|| Protocol::Tcp.ask(None, target(number)))??;
        let expected = SERVERS[usize::from(number % 2)];
        ensure!(
            answer.server == expected,
            "{number} is served by {}",
            answer.server
        );
    }
    Ok(())
}

fn change(stage: &mut Scale) -> Result<()> {
    let admin = stage.admin()?;
    let client = stage.fabric.client();
    for number in [0, COUNT / 2, COUNT - 2] {
        let start = Instant::now();
        admin.apply_many::<VirtualServer>(&[server(number, [0, 1])])?;
        let expected = SERVERS[usize::from((number + 1) % 2)];
        until("the change to be in force", SOON, || {
            let answer = client.within(|| Protocol::Tcp.ask(None, target(number)));
            answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.server == expected))
        })?;
        println!(
            "a change is in force after {:.2} s",
            start.elapsed().as_secs_f64()
        );
    }
    stage.await_all(Instant::now())
}

fn revisions(admin: &Account) -> Result<Vec<(String, u64, String)>> {
    admin.with_client(async |client| {
        let servers: Api<VirtualServer> = Api::namespaced(client, "default");
        let list = servers
            .list(&ListParams::default())
            .await?
            .items
            .into_iter();
        Ok(list
            .map(|server| {
                let decision = server.status.and_then(|status| status.decision);
                let revision = decision.map_or(0, |decision| decision.revision);
                let meta = server.metadata;
                let version = meta.resource_version.unwrap_or_default();
                (meta.name.unwrap_or_default(), revision, version)
            })
            .collect())
    })
}

/// Not one object is written.
fn restart(stage: &mut Scale) -> Result<()> {
    let admin = stage.admin()?;
    let before = revisions(&admin)?;
    stage.sluice.kill_operator()?;
    stage.sluice.restart_operator()?;
    stage.await_operator()?;
    // One that it has to decide, after it has looked at all others.
    admin.apply_many::<VirtualServer>(&[server(1, [0, 1])])?;
    stage.await_all(Instant::now())?;
    let mut after = revisions(&admin)?;
    let mut before = before;
    for revisions in [&mut before, &mut after] {
        revisions.retain(|(found, ..)| *found != name(1));
    }
    let changed = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before != after);
    let changed: Vec<_> = changed.take(5).collect();
    ensure!(
        before.len() == after.len() && changed.is_empty(),
        "{changed:?}"
    );
    Ok(())
}
