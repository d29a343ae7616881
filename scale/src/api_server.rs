//! The operator's process before a real API server, with a node whose agent is played.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::ListParams;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_api::{RealServerPool, VirtualServer};
use sluice_tests::kube::{Account, Operated};

use crate::figure::{Figure, Figures, memory_mb};

/// Time between two looks at what is decided.
const LOOK: Duration = Duration::from_millis(250);
/// Much longer than it takes.
const LIMIT: Duration = Duration::from_mins(10);
const OPERATOR: &str = "operator";

/// Measures until when so many virtual servers are decided.
pub(crate) fn figures(count: u32) -> Result<Vec<Figure>> {
    let mut figures = Figures::among(count);
    let mut stage = Operated::start()?;
    stage.start_operator(OPERATOR)?;
    let admin = stage.admin().clone();

    let pools: Vec<Value> = (0..count).map(pool).collect();
    admin.apply_many::<RealServerPool>(&pools)?;
    await_decided(&admin, count, |pool: &RealServerPool| {
        let status = pool.status.as_ref();
        status.is_some_and(|status| status.decision.is_some())
    })?;
    // Applying takes the API server as long as deciding does; the operator is to have it for itself.
    let servers: Vec<Value> = (0..count).map(virtual_server).collect();
    stage.signal_operator(OPERATOR, Signal::SIGSTOP)?;
    let start = Instant::now();
    admin.apply_many::<VirtualServer>(&servers)?;
    let applied = start.elapsed().as_secs_f64();
    figures.add("API server: virtual servers applied", applied, "s");
    stage.signal_operator(OPERATOR, Signal::SIGCONT)?;
    let start = Instant::now();
    await_decided(&admin, count, |server: &VirtualServer| {
        let status = server.status.as_ref();
        status.is_some_and(|status| status.decision.is_some())
    })?;
    let decided = start.elapsed().as_secs_f64();
    figures.add("API server: all decided", decided, "s");
    // Not before: a played agent lists everything ten times a second.
    let start = Instant::now();
    stage.play_agent("n1", &[[10, 1, 0, 11].into()])?;
    await_decided(&admin, count, |server: &VirtualServer| {
        let status = server.status.as_ref();
        let decision = status.and_then(|status| status.decision.as_ref());
        let acknowledged = status.and_then(|status| status.acknowledged.as_ref());
        decision.is_some()
            && decision.map(|d| d.revision) == acknowledged.map(|found| found.revision)
    })?;
    let acknowledged = start.elapsed().as_secs_f64();
    figures.add(
        "API server: all acknowledged by a new node",
        acknowledged,
        "s",
    );
    let process = stage.operator(OPERATOR)?.id();
    figures.add(
        "operator's process: most memory",
        memory_mb(process, "VmHWM"),
        "MB",
    );
    stage.stop_operator(OPERATOR)?;
    Ok(figures.list())
}

fn await_decided<K>(admin: &Account, count: u32, is_done: fn(&K) -> bool) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let start = Instant::now();
    let count = usize::try_from(count).context("too many")?;
    loop {
        let done = admin.with_client(async |client| {
            let api: Api<K> = Api::namespaced(client, "default");
            let list = api.list(&ListParams::default()).await?;
            Ok(list.items.iter().filter(|object| is_done(object)).count())
        })?;
        if done == count {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "{done} of {count} after {LIMIT:?}");
        thread::sleep(LOOK);
    }
}

fn pool(number: u32) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "RealServerPool",
        "metadata": {"name": format!("web-{number}"), "namespace": "default"},
        "spec": {"servers": {"static": [{"name": "a", "address": "10.0.0.1"}]}},
    })
}

fn virtual_server(number: u32) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "VirtualServer",
        "metadata": {"name": format!("web-{number}"), "namespace": "default"},
        "spec": {
            "addresses": [{"ip": "203.0.113.10"}],
            "ports": [{"name": "http", "protocol": "TCP", "port": 1000 + number}],
            "forwarding": {"mode": "FullNAT"},
            "pools": [{"name": format!("web-{number}"), "weight": 1}],
        },
    })
}
