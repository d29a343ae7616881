//! `kubectl sluice rollout`.

mod follow;
mod followed;
mod order;

use sluice_api::jiff::Timestamp;
use sluice_api::{LoadBalancerNode, RolloutPolicy, Time, VirtualServer};
use sluice_rollout::CommandVerb;

use crate::args::{Connection, Output, Rollout, Target};
use crate::connect::{self, Cluster};
use crate::text::Paint;
use crate::view::{self, Nodes, RolloutView};
use crate::{EXIT_DONE, document, fetch, put, text};

/// Shows a run or gives it a command.
pub async fn run(connection: &Connection, verb: Rollout) -> anyhow::Result<u8> {
    let cluster = connect::connect(connection).await?;
    let (verb, order) = match verb {
        Rollout::Get { target, output } => return get(&cluster, &target, output).await,
        Rollout::Promote { full: true, order } => (CommandVerb::PromoteFull, order),
        Rollout::Promote { full: false, order } => (CommandVerb::Promote, order),
        Rollout::Abort { force: true, order } => (CommandVerb::AbortForce, order),
        Rollout::Abort {
            force: false,
            order,
        } => (CommandVerb::Abort, order),
        Rollout::Pause(order) => (CommandVerb::Pause, order),
        Rollout::Resume(order) => (CommandVerb::Resume, order),
        Rollout::Retry(order) => (CommandVerb::Retry, order),
    };
    order::give(&cluster, verb, &order).await
}

async fn get(cluster: &Cluster, target: &Target, output: Output) -> anyhow::Result<u8> {
    let (policy, virtual_server) = fetch::policy(cluster, &target.name).await?;
    if target.watch {
        return follow::follow(cluster, &policy, output, None).await;
    }
    let nodes = fetch::nodes_if_allowed(cluster).await?;
    let view = now(&policy, virtual_server.as_ref(), nodes.as_deref());
    match document(output, &view)? {
        Some(document) => put(&document)?,
        None => put(&text::rollout(&view, Paint::for_stdout()))?,
    }
    Ok(EXIT_DONE)
}

/// The view at this moment.
fn now(
    policy: &RolloutPolicy,
    virtual_server: Option<&VirtualServer>,
    nodes: Option<&[LoadBalancerNode]>,
) -> RolloutView {
    let nodes = nodes.map(|objects| Nodes {
        objects,
        leases: None,
    });
    view::rollout(policy, virtual_server, nodes, &Time(Timestamp::now()))
}
