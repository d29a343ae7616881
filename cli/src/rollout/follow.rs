//! `--watch`: the policy, its virtual server and, where that is allowed, the nodes are watched, and what changes is told.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use sluice_api::{ObjectKey, RolloutPolicy};
use sluice_kube::error::RequestError;
use sluice_rollout::CommandVerb;

use crate::args::Output;
use crate::connect::Cluster;
use crate::problem::{Access, Problem};
use crate::view::RolloutView;
use crate::watch::{End, diff, end};
use crate::{EXIT_DONE, EXIT_INTERRUPTED, EXIT_NOT_COMPLETED, fetch};

use super::followed::{Followed, Lost, Seen};
use super::now;

/// Failures in a row of both watches together, with the pauses between them: about a minute.
const MAX_FAILURES: u32 = 40;

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
    let mut nodes = fetch::nodes_if_allowed(cluster).await?;
    let mut watched = Followed::watch(cluster, &key.name, &target);
    let mut shown: Option<RolloutView> = None;
    let mut failures = 0;
    loop {
        let view = now(&policy, virtual_server.as_ref(), nodes.as_deref());
        let lines = diff(shown.as_ref(), &view);
        if !lines.is_empty() {
            show(output, &lines, &view)?;
        }
        if let Some(end) = end(&view) {
            return Ok(exit_code(end, verb));
        }
        shown = Some(view);
        match watched.next().await.context("the watch has ended")? {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                lost(error, failures)?;
            }
        }
        match watched.policy() {
            Seen::There(new) => policy = new.clone(),
            Seen::Gone => bail!("RolloutPolicy {key} is gone"),
            Seen::NotYet => {}
        }
        match watched.virtual_server() {
            Seen::There(new) => virtual_server = Some(new.clone()),
            Seen::Gone => virtual_server = None,
            Seen::NotYet => {}
        }
        nodes = watched.nodes().or(nodes);
        let new_target = self::target(&policy);
        if new_target != target {
            target = new_target;
            virtual_server = fetch::virtual_server(cluster, &target).await?;
            watched = Followed::watch(cluster, &key.name, &target);
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

/// A lost connection is taken up again; what the user may not do will not get better.
fn lost(lost: Lost, failures: u32) -> anyhow::Result<()> {
    let error = match lost {
        Lost::Unreadable(text) => bail!("{text}; is this program older than the operator?"),
        Lost::Request(error) => error,
    };
    let access = Access::sluice("watch", "rolloutpolicies and virtualservers");
    match (error, failures) {
        (RequestError::Api(error), _) if is_final(&error) => Err(Problem::of(access, error).into()),
        (error, MAX_FAILURES..) => Err(error).context("the API server does not answer any more"),
        (error, failures) => {
            if failures == 1 {
                eprintln!("note: the watch is cut ({error}); trying again");
            }
            Ok(())
        }
    }
}

fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404))
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
        (End::Completed, _)
        | (End::Aborted, Some(CommandVerb::Abort | CommandVerb::AbortForce)) => EXIT_DONE,
        (End::Aborted | End::Stalled, _) => EXIT_NOT_COMPLETED,
    }
}
