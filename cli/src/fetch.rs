//! Reading objects.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use futures::future::{try_join, try_join3, try_join5};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use sluice_api::{
    EndpointSource, GROUP_LABEL, LoadBalancerNode, NODE_LABEL, ObjectKey, POOL_LABEL,
    RealServerPool, RolloutPolicy, SERVICE_LABEL, VirtualServer,
};
use sluice_kube::clock;

use crate::connect::Cluster;
use crate::problem::{Access, Problem, not_found};
use crate::view::{GroupLeases, Leases, Objects, driver};

const LIST_LEASES: Access = Access {
    verb: "list",
    resource: "leases",
    group: "coordination.k8s.io",
};
const LIST_SLICES: Access = Access {
    verb: "list",
    resource: "endpointslices",
    group: "discovery.k8s.io",
};

/// Everything that `status` needs, from the connection's namespace or all of them. What the user may not list besides the
/// kinds in namespaces is left out; the second value says so.
pub async fn objects(
    cluster: &Cluster,
    all_namespaces: bool,
) -> Result<(Objects, Vec<String>), Problem> {
    let all = ListParams::default();
    let (virtual_servers, pools, policies, nodes, leases) = try_join5(
        list::<VirtualServer>(cluster, all_namespaces, &all, "virtualservers"),
        list::<RealServerPool>(cluster, all_namespaces, &all, "realserverpools"),
        list::<RolloutPolicy>(cluster, all_namespaces, &all, "rolloutpolicies"),
        async { unless_forbidden(nodes(cluster).await) },
        Box::pin(async { unless_forbidden(leases(cluster).await) }),
    )
    .await?;
    let slices = unless_forbidden(slices(cluster, all_namespaces, &pools).await)?;
    let mut left_out = Vec::new();
    let (leases, group_leases) = leases.ok().unzip();
    let objects = Objects {
        virtual_servers,
        pools,
        policies,
        nodes: noted(nodes, "nodes", &mut left_out),
        // Whether nodes live stands in their own status, too, as far as the operator knows.
        leases,
        group_leases,
        slices: noted(slices, "servers from EndpointSlices", &mut left_out),
    };
    Ok((objects, left_out))
}

/// Everything that `vips` needs, from the connection's namespace or all of them. What the user may not list besides virtual
/// servers is left out; the second value says so.
pub async fn vips(
    cluster: &Cluster,
    all_namespaces: bool,
) -> Result<(Objects, Vec<String>), Problem> {
    let all = ListParams::default();
    let (virtual_servers, nodes, leases) = try_join3(
        list::<VirtualServer>(cluster, all_namespaces, &all, "virtualservers"),
        async { unless_forbidden(nodes(cluster).await) },
        async { unless_forbidden(leases(cluster).await) },
    )
    .await?;
    let mut left_out = Vec::new();
    let leases = noted(leases, "the VIP groups' Leases", &mut left_out);
    let (leases, group_leases) = leases.unzip();
    let objects = Objects {
        virtual_servers,
        nodes: noted(nodes, "the nodes' own reports", &mut left_out),
        leases,
        group_leases,
        ..Objects::default()
    };
    Ok((objects, left_out))
}

/// A rollout policy by its own name, else the one that drives the virtual server of this name; and that virtual server.
/// The error lists what there is.
pub async fn policy(
    cluster: &Cluster,
    name: &str,
) -> anyhow::Result<(RolloutPolicy, Option<VirtualServer>)> {
    let get = Access::sluice("get", "rolloutpolicies");
    let found = match cluster.request(get, cluster.policies().get(name)).await {
        Ok(policy) => policy,
        Err(problem) if problem.is_not_found() => by_virtual_server(cluster, name).await?,
        Err(problem) => return Err(problem.into()),
    };
    let target = match found.status.as_ref().and_then(|status| status.run.as_ref()) {
        Some(run) => run.virtual_server_name.clone(),
        None => found.spec.virtual_server_name.clone(),
    };
    let virtual_server = virtual_server(cluster, &target).await?;
    Ok((found, virtual_server))
}

/// The pools of the namespace, or the one of this name, and the EndpointSlices that their servers come from.
pub async fn pools(
    cluster: &Cluster,
    name: Option<&str>,
) -> anyhow::Result<(Vec<RealServerPool>, Vec<EndpointSlice>)> {
    let all = ListParams::default();
    let mut pools = list::<RealServerPool>(cluster, false, &all, "realserverpools").await?;
    if let Some(name) = name {
        let names: Vec<String> = pools.iter().map(|pool| ObjectKey::of(pool).name).collect();
        pools.retain(|pool| ObjectKey::of(pool).name == name);
        if pools.is_empty() {
            bail!(not_found(
                "RealServerPool",
                name,
                &cluster.namespace,
                &names
            ))
        }
    }
    let slices = slices(cluster, false, &pools).await?;
    Ok((pools, slices))
}

/// A virtual server, if there is one.
pub async fn virtual_server(
    cluster: &Cluster,
    name: &str,
) -> Result<Option<VirtualServer>, Problem> {
    let get = Access::sluice("get", "virtualservers");
    let api = cluster.virtual_servers();
    match cluster.request(get, api.get(name)).await {
        Ok(found) => Ok(Some(found)),
        Err(problem) if problem.is_not_found() => Ok(None),
        Err(problem) => Err(problem),
    }
}

async fn by_virtual_server(cluster: &Cluster, name: &str) -> anyhow::Result<RolloutPolicy> {
    let all = ListParams::default();
    let policies = list::<RolloutPolicy>(cluster, false, &all, "rolloutpolicies").await?;
    let key = ObjectKey::new(cluster.namespace.clone(), name);
    if let Some(policy) = driver(&policies, &key) {
        return Ok(policy.clone());
    }
    let names: Vec<String> = policies
        .iter()
        .map(|policy| ObjectKey::of(policy).name)
        .collect();
    if virtual_server(cluster, name).await?.is_some() {
        bail!(
            "no RolloutPolicy drives VirtualServer {key}: create one; there are: {}",
            crate::problem::names(&names)
        );
    }
    bail!(not_found("RolloutPolicy", name, &cluster.namespace, &names))
}

async fn list<K>(
    cluster: &Cluster,
    all_namespaces: bool,
    params: &ListParams,
    resource: &'static str,
) -> Result<Vec<K>, Problem>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = if all_namespaces {
        Api::all(cluster.client.clone())
    } else {
        Api::namespaced(cluster.client.clone(), &cluster.namespace)
    };
    let access = Access::sluice("list", resource);
    Ok(cluster.request(access, api.list(params)).await?.items)
}

async fn nodes(cluster: &Cluster) -> Result<Vec<LoadBalancerNode>, Problem> {
    let api: Api<LoadBalancerNode> = Api::all(cluster.client.clone());
    let access = Access::sluice("list", "loadbalancernodes");
    let all = ListParams::default();
    Ok(cluster.request(access, api.list(&all)).await?.items)
}

/// The nodes, as far as they may be listed.
pub async fn nodes_if_allowed(cluster: &Cluster) -> Result<Option<Vec<LoadBalancerNode>>, Problem> {
    Ok(unless_forbidden(nodes(cluster).await)?.ok())
}

/// The Leases of nodes and of VIP groups, wherever Sluice runs.
async fn leases(cluster: &Cluster) -> Result<(Leases, GroupLeases), Problem> {
    let api: Api<Lease> = Api::all(cluster.client.clone());
    // Before the Leases are read: those of groups count for a few seconds, and a slow answer must not make them look older.
    let now = cluster
        .request(LIST_LEASES, clock::seconds(&cluster.client))
        .await?;
    let of_nodes = ListParams::default().labels(NODE_LABEL);
    let of_groups = ListParams::default().labels(GROUP_LABEL);
    let (nodes, groups) = try_join(
        cluster.request(LIST_LEASES, api.list(&of_nodes)),
        cluster.request(LIST_LEASES, api.list(&of_groups)),
    )
    .await?;
    Ok((
        Leases::new(nodes.items, now),
        GroupLeases::new(groups.items, now),
    ))
}

/// Only the slices that decisions name, as far as a selector of reasonable length can tell.
async fn slices(
    cluster: &Cluster,
    all_namespaces: bool,
    pools: &[RealServerPool],
) -> Result<Vec<EndpointSlice>, Problem> {
    const MAX_NAMED: usize = 50;
    let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for pool in pools {
        let decision = pool.status.as_ref().and_then(|s| s.decision.as_ref());
        if let Some(endpoints) = decision.and_then(|decision| decision.content.endpoints.as_ref()) {
            let label = match endpoints.source {
                EndpointSource::Pods => POOL_LABEL,
                EndpointSource::Service => SERVICE_LABEL,
            };
            names.entry(label).or_default().insert(&endpoints.name);
        }
    }
    let api: Api<EndpointSlice> = if all_namespaces {
        Api::all(cluster.client.clone())
    } else {
        Api::namespaced(cluster.client.clone(), &cluster.namespace)
    };
    let mut found = Vec::new();
    for (label, names) in names {
        let selector = if names.len() > MAX_NAMED {
            label.to_owned()
        } else {
            let names: Vec<&str> = names.into_iter().collect();
            format!("{label} in ({})", names.join(","))
        };
        let params = ListParams::default().labels(&selector);
        let list = cluster.request(LIST_SLICES, api.list(&params)).await?;
        found.extend(list.items);
    }
    Ok(found)
}

/// Lets a refusal pass as a value.
fn unless_forbidden<T>(result: Result<T, Problem>) -> Result<Result<T, Problem>, Problem> {
    match result {
        Err(problem @ Problem::Forbidden { .. }) => Ok(Err(problem)),
        Err(problem) => Err(problem),
        Ok(value) => Ok(Ok(value)),
    }
}

fn noted<T>(result: Result<T, Problem>, what: &str, left_out: &mut Vec<String>) -> Option<T> {
    result
        .map_err(|problem| left_out.push(format!("{what} are not shown: {problem}")))
        .ok()
}
