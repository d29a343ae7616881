//! Two operators at a time, which nobody wants and which happens: neither overwrites what the other decided later.
//!
//! The agent is played: nothing here looks at packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_api::{Decision, VirtualServer};
use sluice_tests::kube::{Account, CHANGE_TIMEOUT, Operated};
use sluice_tests::net::manifest::{WEB, virtual_server_at};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::until;
use tokio::sync::oneshot;

const ONE: &str = "one";
const TWO: &str = "two";
/// Virtual servers that are decided at once, which takes an operator a good part of a second.
const MANY: u8 = 120;
/// Those whose weights change while two operators run.
const CHANGED: u8 = 12;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check(
        "an operator that was paused within a change decides anew",
        paused,
    );
    suite.check(
        "two operators at a time do not undo each other's decisions",
        both,
    );
    suite.main(|| {
        let mut stage = Operated::start()?;
        stage.play_agent("n1", &[IpAddr::from([10, 1, 0, 11])])?;
        stage.start_operator(ONE)?;
        Ok(stage)
    })
}

fn name(number: u8) -> String {
    format!("web-{number:03}")
}

/// Virtual servers of these numbers with these weights.
fn servers(numbers: RangeInclusive<u8>, weights: [u32; 2]) -> Vec<Value> {
    numbers.map(|number| server(number, weights)).collect()
}

fn server(number: u8, weights: [u32; 2]) -> Value {
    let vip = IpAddr::from([203, 0, 113, number]);
    let pools = [("v1", weights[0]), ("v2", weights[1])];
    virtual_server_at(&name(number), "FullNAT", &[vip], &[WEB], &pools)
}

fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "RealServerPool",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"servers": {"static": [{"name": "s", "address": "10.0.0.1"}]}},
    })
}

fn decisions(admin: &Account) -> Result<BTreeMap<String, Decision>> {
    admin.with_client(async |client| {
        let api: Api<VirtualServer> = Api::namespaced(client, "default");
        let list = api.list(&ListParams::default()).await?;
        let decided = list
            .items
            .into_iter()
            .filter_map(|server| Some((server.metadata.name?, server.status?.decision?)));
        Ok(decided.collect())
    })
}

/// Every decision that was ever in force, in order, by object.
type History = BTreeMap<String, Vec<Decision>>;

/// Notes all decisions until it is told to end.
struct Recorder {
    end: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Result<History>>,
}

impl Recorder {
    fn start(admin: &Account) -> Result<Self> {
        let (end, ended) = oneshot::channel();
        let thread = admin.spawn_client("recorder", async move |client| {
            let api: Api<VirtualServer> = Api::namespaced(client, "default");
            let mut history = History::new();
            let stream = watcher(api, watcher::Config::default()).applied_objects();
            let record = stream.try_for_each(|server| {
                let (name, status) = (server.metadata.name, server.status);
                if let (Some(name), Some(decision)) = (name, status.and_then(|s| s.decision)) {
                    let known = history.entry(name).or_default();
                    if known.last() != Some(&decision) {
                        known.push(decision);
                    }
                }
                futures::future::ready(Ok(()))
            });
            tokio::select! {
                result = record => result?,
                _ = ended => {}
            }
            Ok(history)
        })?;
        Ok(Self { end, thread })
    }

    fn finish(self) -> Result<History> {
        // It has ended only if it failed, which the join tells.
        let _ = self.end.send(());
        self.thread.join().ok().context("the recorder panicked")?
    }
}

/// Revisions and generations of an object's decisions rise; the same decision may come again with a higher complete
/// revision.
fn expect_rising(history: &History) -> Result<()> {
    for (name, decisions) in history {
        for pair in decisions.windows(2) {
            let [last, next] = pair else { continue };
            let is_newer = next.revision > last.revision && next.generation >= last.generation;
            let is_same = next.complete_revision > last.complete_revision
                && (next.revision, next.generation) == (last.revision, last.generation)
                && next.content == last.content;
            ensure!(is_newer || is_same, "{name} went from {last:?} to {next:?}");
        }
    }
    Ok(())
}

fn paused(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin().clone();
    admin.apply_many::<VirtualServer>(&servers(1..=MANY, [1, 0]))?;
    let recorder = Recorder::start(&admin)?;
    until("all to wait for their pools", CHANGE_TIMEOUT, || {
        let known = stage.metrics(ONE).unwrap_or_default();
        known.get("sluice_operator_objects{kind=\"VirtualServer\"}") == Some(&f64::from(MANY))
    })?;
    // All of them can be decided now, one after the other.
    stage.apply(&[pool("v1"), pool("v2")])?;
    until("the first decisions", CHANGE_TIMEOUT, || {
        decisions(&admin).is_ok_and(|decided| decided.len() > 2)
    })?;
    stage.signal_operator(ONE, Signal::SIGSTOP)?;
    let cut = decisions(&admin)?.len();
    ensure!(
        cut < usize::from(MANY),
        "it was done already: {cut} decisions"
    );
    println!("paused after {cut} of {MANY} decisions");

    // Another one finishes it, and goes on.
    stage.start_operator(TWO)?;
    await_weights(stage, 1..=MANY, [1, 0])?;
    let changed = MANY - CHANGED..=MANY;
    admin.apply_many::<VirtualServer>(&servers(changed.clone(), [1, 3]))?;
    await_weights(stage, changed.clone(), [1, 3])?;
    let before = decisions(&admin)?;

    // If the pause was longer than it waits for an answer, it takes the API server for away.
    for complaint in [
        "cannot be written now; tries again",
        "the watch is lost; tries again",
        "an event could not be written",
    ] {
        stage.expect_complaint(complaint);
    }
    stage.signal_operator(ONE, Signal::SIGCONT)?;
    // It has understood when it knows the newest revision, and nothing of it waits.
    let highest = before.values().map(|decision| decision.revision).max();
    let highest = highest.context("no decision")?;
    until(
        "the paused operator to know the newest",
        CHANGE_TIMEOUT,
        || {
            let known = stage.metrics(ONE).unwrap_or_default();
            #[expect(clippy::cast_precision_loss, reason = "revisions are far below 2^52")]
            let newest = known.get("sluice_operator_highest_revision") >= Some(&(highest as f64));
            newest && known.get("sluice_operator_waiting_objects") == Some(&0.0)
        },
    )
    .with_context(|| format!("{highest}: {:#?}", stage.metrics(ONE)))?;
    // Both decide what comes next.
    admin.apply_many::<VirtualServer>(&servers(1..=1, [5, 1]))?;
    await_weights(stage, 1..=1, [5, 1])?;
    let mut after = decisions(&admin)?;
    let mut before = before;
    for decisions in [&mut before, &mut after] {
        decisions.remove(&name(1));
    }
    ensure!(before == after, "{before:#?} became {after:#?}");
    let history = recorder.finish()?;
    ensure!(history.len() == usize::from(MANY), "not all was seen");
    expect_rising(&history)?;
    // How many of its writes were under way depends on when it was paused.
    println!(
        "the paused operator was refused {} times",
        stage.writes(ONE, "stale")?
    );
    Ok(())
}

/// Waits until these are decided with these weights and every node has them.
fn await_weights(stage: &Operated, numbers: RangeInclusive<u8>, weights: [u32; 2]) -> Result<()> {
    let limit = Duration::from_mins(1);
    until("decisions and acknowledgements", limit, || {
        let servers = stage.admin().with_client(async |client| {
            let api: Api<VirtualServer> = Api::namespaced(client, "default");
            Ok(api.list(&ListParams::default()).await?.items)
        });
        let Ok(servers) = servers else { return false };
        let live = servers.iter().filter(|server| {
            let status = server.status.as_ref();
            let decision = status.and_then(|status| status.decision.as_ref());
            let acknowledged = status.and_then(|status| status.acknowledged.as_ref());
            let wanted = decision.is_some_and(|decision| {
                let found = decision.content.pools.iter().map(|pool| pool.spec_weight);
                found.eq(weights)
            });
            let mine = numbers
                .clone()
                .any(|number| server.metadata.name == Some(name(number)));
            mine && wanted
                && acknowledged.map(|found| found.revision) == decision.map(|d| d.revision)
        });
        live.count() == numbers.clone().count()
    })
}

fn both(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin().clone();
    let recorder = Recorder::start(&admin)?;
    let late = |stage: &Operated| -> Result<f64> {
        Ok(stage.writes(ONE, "stale")? + stage.writes(TWO, "stale")?)
    };
    let before = late(stage)?;
    for round in 1..=8 {
        let weights = [round, round % 3 + 1];
        admin.apply_many::<VirtualServer>(&servers(1..=CHANGED, weights))?;
        await_weights(stage, 1..=CHANGED, weights)?;
    }
    let refused = late(stage)? - before;
    println!("writes that came too late: {refused}");
    ensure!(refused > 0.0, "neither operator ever came too late");
    let history = recorder.finish()?;
    expect_rising(&history)?;
    let mut given: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for (name, decisions) in &history {
        for decision in decisions {
            given.entry(decision.revision).or_default().insert(name);
        }
    }
    let twice = given.values().filter(|names| names.len() > 1).count();
    println!("revisions that both gave: {twice} of {}", given.len());
    Ok(())
}
