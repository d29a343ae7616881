//! `--watch`: the policy and its virtual server are watched, and what changes is told.

use std::io::Write as _;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::stream::{self, Stream, StreamExt as _};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, watch_object};
use sluice_api::{ObjectKey, RolloutPolicy, VirtualServer};
use sluice_rollout::CommandVerb;

use crate::args::Output;
use crate::connect::Cluster;
use crate::problem::{Access, Problem};
use crate::view::RolloutView;
use crate::watch::{End, diff, end};
use crate::{EXIT_DONE, EXIT_INTERRUPTED, EXIT_NOT_COMPLETED, fetch};

use super::now;

/// Errors in a row of both watches together, with the pauses of [`Retry`] between them: about a minute.
const MAX_ERRORS: u32 = 30;

/// Pauses between attempts: somebody is looking, so they stay short.
#[derive(Default)]
struct Retry {
    attempts: u32,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        const MAX_MS: u64 = 5_000;
        let ms = 500 << self.attempts.min(8);
        self.attempts += 1;
        Some(Duration::from_millis(MAX_MS.min(ms)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// An object as it is now; `None`: it is gone, also where that happened while the watch was cut.
enum Change {
    Policy(Option<RolloutPolicy>),
    VirtualServer(Option<VirtualServer>),
}

type Changes = Pin<Box<dyn Stream<Item = watcher::Result<Change>> + Send>>;

/// Tells changes until the run is over. `verb` is the command that was just given: after `abort` the way back is what is
/// asked for.
pub(super) async fn follow(
    cluster: &Cluster,
    policy: &RolloutPolicy,
    output: Output,
    verb: Option<CommandVerb>,
) -> anyhow::Result<u8> {
    let told = tell(cluster, policy.clone(), output, verb);
    tokio::select! {
        code = told => code,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot wait for Ctrl-C")?;
            Ok(EXIT_INTERRUPTED)
        }
    }
}

async fn tell(
    cluster: &Cluster,
    mut policy: RolloutPolicy,
    output: Output,
    verb: Option<CommandVerb>,
) -> anyhow::Result<u8> {
    let key = ObjectKey::of(&policy);
    let mut target = target(&policy);
    let mut virtual_server = fetch::virtual_server(cluster, &target).await?;
    let mut changes = changes(cluster, &key.name, &target);
    let mut shown: Option<RolloutView> = None;
    let mut errors = 0;
    loop {
        let view = now(&policy, virtual_server.as_ref());
        let lines = diff(shown.as_ref(), &view);
        if !lines.is_empty() {
            show(output, &lines, &view)?;
        }
        if let Some(end) = end(&view) {
            return Ok(exit_code(end, verb));
        }
        shown = Some(view);
        match changes.next().await.context("the watch has ended")? {
            Ok(change) => {
                errors = 0;
                match change {
                    Change::Policy(Some(new)) => policy = new,
                    Change::Policy(None) => bail!("RolloutPolicy {key} is gone"),
                    Change::VirtualServer(new) => virtual_server = new,
                }
            }
            Err(error) => {
                errors += 1;
                lost(error, errors)?;
            }
        }
        let new_target = self::target(&policy);
        if new_target != target {
            target = new_target;
            virtual_server = fetch::virtual_server(cluster, &target).await?;
            changes = self::changes(cluster, &key.name, &target);
        }
    }
}

/// The virtual server that the run is about.
fn target(policy: &RolloutPolicy) -> String {
    let run = policy.status.as_ref().and_then(|s| s.run.as_ref());
    run.map_or(&policy.spec.virtual_server_name, |run| {
        &run.virtual_server_name
    })
    .clone()
}

fn changes(cluster: &Cluster, policy: &str, virtual_server: &str) -> Changes {
    let policies = watch_object(cluster.policies(), policy)
        .backoff(Retry::default())
        .map(|policy| policy.map(Change::Policy));
    let servers = watch_object(cluster.virtual_servers(), virtual_server)
        .backoff(Retry::default())
        .map(|server| server.map(Change::VirtualServer));
    Box::pin(stream::select(policies, servers))
}

/// A lost connection is taken up again; what the user may not do will not get better.
fn lost(error: watcher::Error, errors: u32) -> anyhow::Result<()> {
    let access = Access::sluice("watch", "rolloutpolicies and virtualservers");
    let refused = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if status.code == 403 || status.code == 401 || status.code == 404 =>
        {
            Problem::of(access, kube::Error::Api(status))
        }
        error if errors >= MAX_ERRORS => {
            return Err(error).context("the API server does not answer any more");
        }
        error => {
            if errors == 1 {
                eprintln!("note: the watch is cut ({error}); trying again");
            }
            return Ok(());
        }
    };
    Err(refused.into())
}

fn show(output: Output, lines: &[String], view: &RolloutView) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table => {
            for line in lines {
                writeln!(out, "{line}").context("cannot write")?;
            }
        }
        Output::Json => {
            let text = serde_json::to_string(view).context("cannot write JSON")?;
            writeln!(out, "{text}").context("cannot write")?;
        }
        Output::Yaml => {
            let text = serde_saphyr::to_string(view).context("cannot write YAML")?;
            write!(out, "---\n{text}").context("cannot write")?;
        }
    }
    out.flush().context("cannot write")
}

fn exit_code(end: End, verb: Option<CommandVerb>) -> u8 {
    match (end, verb) {
        (End::Completed, _) | (End::Aborted, Some(CommandVerb::Abort)) => EXIT_DONE,
        (End::Aborted | End::Stalled, _) => EXIT_NOT_COMPLETED,
    }
}
