//! `kubectl sluice node`: takes VIP groups off a node, and lets it have them again.

use std::time::Duration;

use anyhow::{anyhow, bail};
use kube::Api;
use kube::api::Patch;
use serde_json::{Value, json};
use sluice_api::{ConditionType, GroupRole, LoadBalancerNode, ObjectKey, is_true};
use tokio::time::{Instant, sleep};

use crate::args::{Connection, Drain, Node};
use crate::connect::{self, Cluster};
use crate::problem::{Access, Problem, names, no_such_node};
use crate::{EXIT_DONE, fetch, put};

const GET: Access = Access::sluice("get", "loadbalancernodes");
const PATCH: Access = Access::sluice("patch", "loadbalancernodes");
/// A handover takes a second or two for each group.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Drains a node, or ends that.
pub async fn run(connection: &Connection, verb: Node) -> anyhow::Result<u8> {
    let cluster = connect::connect(connection).await?;
    match verb {
        Node::Drain(args) => drain(&cluster, &args, |line| put(&format!("{line}\n"))).await?,
        Node::Undrain { name } => {
            set_drain(&cluster, &name, false).await?;
            put(&format!(
                "{name} may hold VIP groups again; its agent takes them back once its path has been whole for long enough\n"
            ))?;
        }
    }
    Ok(EXIT_DONE)
}

/// Has a node hand over its VIP groups, and waits until it holds none. Each line of progress is told.
async fn drain(
    cluster: &Cluster,
    args: &Drain,
    mut tell: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let name = &args.name;
    let deadline = Instant::now() + args.timeout;
    let mut node = set_drain(cluster, name, true).await?;
    let wanted = node.metadata.generation.unwrap_or_default();
    let mut held = held(&node);
    if held.is_empty() && !is_reporting(&node) {
        return tell(&format!(
            "{name} holds no VIP group and takes none; its agent does not report"
        ));
    }
    match held.as_slice() {
        [] => {}
        held => tell(&format!("{name} hands over {}", names(held)))?,
    }
    let held_any = !held.is_empty();
    loop {
        let now = self::held(&node);
        let gone: Vec<String> = held.into_iter().filter(|it| !now.contains(it)).collect();
        if !gone.is_empty() && !now.is_empty() {
            let (gone, now) = (names(&gone), names(&now));
            tell(&format!("{name} handed over {gone}; it still holds {now}"))?;
        }
        held = now;
        let has_seen = observed(&node) >= wanted;
        if held.is_empty() && has_seen {
            let before = if held_any {
                "any more"
            } else {
                "and takes none"
            };
            return tell(&format!("{name} holds no VIP group {before}"));
        }
        if Instant::now() >= deadline {
            bail!(late(name, args.timeout, &held, has_seen));
        }
        sleep(LOOK_EVERY).await;
        node = cluster.request(GET, nodes(cluster).get(name)).await?;
    }
}

fn late(name: &str, timeout: Duration, held: &[String], has_seen: bool) -> String {
    let what = match held {
        [] => "does not confirm that it holds no VIP group".to_owned(),
        held => format!("still holds {}", names(held)),
    };
    let why = if has_seen {
        "is there another director that may hold them? (kubectl sluice status)"
    } else {
        "its agent has not seen the change: is it running? (kubectl get pods -A -o wide -l app.kubernetes.io/part-of=sluice)"
    };
    format!(
        "after {timeout:?} {name} {what}: {why} It stays drained; this ends that: kubectl sluice node undrain {name}"
    )
}

fn nodes(cluster: &Cluster) -> Api<LoadBalancerNode> {
    Api::all(cluster.client.clone())
}

/// Writes `spec.drain` and nothing else. `false` is the default: the field goes, whoever wrote it.
async fn set_drain(
    cluster: &Cluster,
    name: &str,
    is_drained: bool,
) -> anyhow::Result<LoadBalancerNode> {
    let value = if is_drained { json!(true) } else { Value::Null };
    let body = json!({"spec": {"drain": value}});
    let params = connect::merge_params();
    let patch = Patch::Merge(&body);
    let api = nodes(cluster);
    match cluster
        .request(PATCH, api.patch(name, &params, &patch))
        .await
    {
        Ok(node) => Ok(node),
        Err(problem) if problem.is_not_found() => {
            let known = fetch::nodes_if_allowed(cluster).await?;
            let known = known.into_iter().flatten();
            let known: Vec<String> = known.map(|node| ObjectKey::of(&node).name).collect();
            Err(anyhow!(no_such_node(name, &known)))
        }
        Err(problem @ Problem::Forbidden { .. }) => Err(anyhow!(
            "{problem}; nodes are in no namespace, so it takes a ClusterRole that is bound by a ClusterRoleBinding"
        )),
        Err(problem) => Err(problem.into()),
    }
}

/// The groups that a node says it holds, by name.
fn held(node: &LoadBalancerNode) -> Vec<String> {
    let groups = node.status.iter().flat_map(|status| &status.groups);
    let held = groups.filter(|group| group.role == GroupRole::Holder);
    let mut held: Vec<String> = held.map(|group| group.name.clone()).collect();
    held.sort();
    held
}

/// The generation that the node's agent runs.
fn observed(node: &LoadBalancerNode) -> i64 {
    let status = node.status.as_ref();
    status.map_or(0, |status| status.observed_generation)
}

/// Whether an agent is there to be waited for, as far as the node's conditions tell.
fn is_reporting(node: &LoadBalancerNode) -> bool {
    let Some(status) = &node.status else {
        return false;
    };
    status.observed_generation > 0
        && !is_true(&status.conditions, ConditionType::Silent)
        && !is_true(&status.conditions, ConditionType::Detached)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http::{Method, Request, Response, StatusCode};
    use kube::Client;
    use kube::client::Body;

    use super::*;

    /// Generation 2 is the drained one. Groups whose names begin with `-` are held.
    fn node(observed: i64, groups: &[&str]) -> Value {
        let groups = groups.iter().map(|group| match group.strip_prefix('-') {
            Some(held) => json!({"name": held, "role": "Holder", "authority": "Lease"}),
            None => json!({"name": group, "role": "Candidate"}),
        });
        json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "LoadBalancerNode",
            "metadata": {"name": "node-1", "generation": 2},
            "spec": {"interfaces": ["eth0"], "drain": true},
            "status": {"observedGeneration": observed, "groups": groups.collect::<Vec<Value>>()},
        })
    }

    fn refusal(code: u16, name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": "", "message": "said",
               "details": {"name": name}})
    }

    /// What was written, as URI and body.
    type Written = Arc<Mutex<Vec<(String, Value)>>>;

    /// An API server that gives each of the answers once, the last for ever.
    fn cluster(answers: Vec<Value>) -> (Cluster, Written) {
        let written = Written::default();
        let noted = Arc::clone(&written);
        let rest = Arc::new(Mutex::new(answers));
        let service = tower::service_fn(move |request: Request<Body>| {
            let mut rest = rest.lock().expect("no panic");
            let answer = match rest.as_slice() {
                [last] => last.clone(),
                _ => rest.remove(0),
            };
            let noted = Arc::clone(&noted);
            async move {
                let is_write = request.method() == Method::PATCH;
                let uri = request.uri().to_string();
                let body = request.into_body().collect_bytes().await;
                if is_write {
                    let body = serde_json::from_slice(&body.expect("a body")).expect("JSON");
                    noted.lock().expect("no panic").push((uri, body));
                }
                let code = answer["code"].as_u64().unwrap_or(200);
                let code = u16::try_from(code).expect("a code");
                let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
                *response.status_mut() = StatusCode::from_u16(code).expect("a code");
                Ok::<_, Infallible>(response)
            }
        });
        (
            Cluster::new(Client::new(service, "default"), "default"),
            written,
        )
    }

    /// The lines of progress, and the error.
    async fn drained(answers: Vec<Value>, timeout_ms: u64) -> (Vec<String>, Option<String>) {
        let (cluster, written) = cluster(answers);
        let args = Drain {
            name: "node-1".to_owned(),
            timeout: Duration::from_millis(timeout_ms),
        };
        let mut lines = Vec::new();
        let told = drain(&cluster, &args, |line| {
            lines.push(line.to_owned());
            Ok(())
        });
        let error = told.await.err().map(|error| error.to_string());
        let written = written.lock().expect("no panic").clone();
        let uri = "/apis/sluice.dev/v1alpha1/loadbalancernodes/node-1?&fieldManager=sluice-cli";
        assert_eq!(
            written,
            [(uri.to_owned(), json!({"spec": {"drain": true}}))]
        );
        (lines, error)
    }

    #[tokio::test]
    async fn handovers_are_told_until_nothing_is_held() {
        let answers = vec![
            node(1, &["-public-0", "-public-2", "public-1"]),
            node(2, &["-public-0", "-public-2", "public-1"]),
            node(2, &["public-0", "-public-2", "public-1"]),
            node(2, &[]),
        ];
        let (lines, error) = drained(answers, 60_000).await;
        assert_eq!(error, None);
        assert_eq!(
            lines,
            [
                "node-1 hands over public-0, public-2",
                "node-1 handed over public-0; it still holds public-2",
                "node-1 holds no VIP group any more",
            ]
        );
    }

    /// What it says from before it has seen the change may be outdated.
    #[tokio::test]
    async fn a_node_without_groups_has_to_see_it_too() {
        let answers = vec![node(1, &["public-0"]), node(2, &["public-0"])];
        let (lines, error) = drained(answers, 60_000).await;
        assert_eq!(error, None);
        assert_eq!(lines, ["node-1 holds no VIP group and takes none"]);
        let (lines, error) = drained(vec![node(1, &["public-0"])], 0).await;
        assert_eq!(lines, [""; 0]);
        let error = error.expect("it is late");
        assert!(
            error.contains("its agent has not seen the change"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn nobody_waits_for_an_agent_that_is_gone() {
        let mut silent = node(1, &[]);
        silent["status"]["conditions"] = json!([{"type": "Silent", "status": "True", "reason": "NodeSilent", "message": "",
                                                 "lastTransitionTime": "2026-03-01T10:00:00Z"}]);
        let mut new = node(1, &[]);
        new["status"] = Value::Null;
        for node in [silent, new] {
            let (lines, error) = drained(vec![node], 60_000).await;
            assert_eq!(error, None);
            assert_eq!(
                lines,
                ["node-1 holds no VIP group and takes none; its agent does not report"]
            );
        }
    }

    #[tokio::test]
    async fn who_holds_for_too_long_is_named() {
        let (_, error) = drained(vec![node(2, &["-public-0", "public-1"])], 0).await;
        let error = error.expect("it is late");
        assert!(error.contains("node-1 still holds public-0: "), "{error}");
        assert!(error.contains("another director"), "{error}");
        assert!(
            error.ends_with("kubectl sluice node undrain node-1"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn refusals_say_what_is_amiss() {
        let list =
            json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [node(1, &[])]});
        let (cluster, _) = cluster(vec![refusal(404, "node-2"), list]);
        let error = set_drain(&cluster, "node-2", true).await.expect_err("404");
        assert_eq!(
            error.to_string(),
            "no LoadBalancerNode node-2: did you mean node-1? There are: node-1"
        );
        let (cluster, _) = self::cluster(vec![refusal(403, "node-1")]);
        let error = set_drain(&cluster, "node-1", true).await.expect_err("403");
        let error = error.to_string();
        assert!(
            error.contains("not allowed to patch loadbalancernodes.sluice.dev"),
            "{error}"
        );
        assert!(error.contains("ClusterRoleBinding"), "{error}");
    }

    #[tokio::test]
    async fn to_undrain_takes_the_field_away() {
        let (cluster, written) = cluster(vec![node(2, &[])]);
        set_drain(&cluster, "node-1", false).await.expect("written");
        let written = written.lock().expect("no panic");
        assert_eq!(written[0].1, json!({"spec": {"drain": null}}));
    }
}
