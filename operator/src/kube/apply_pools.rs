//! Applies the address pools that the chart's value `addressPools` names.
//!
//! Helm cannot make them itself: the definition of AddressPool is part of the same release, so the API server does not know the
//! kind yet when helm builds the release's objects; and what a hook makes is deleted at the next upgrade. A Job of the chart
//! runs this instead, after each installation and upgrade. It is helm's hand and not the operator's: it has an account and a
//! field manager of its own, and writes no pool but those that the values name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_api::{API_VERSION, AddressPool, Kind};
use sluice_kube::error::{RequestError, within};
use tokio::time::{Instant, sleep};
use tracing::{error, info};

/// Field manager of the pools' labels and specs.
pub const CHART_MANAGER: &str = "sluice-chart";
/// Label of the pools that the chart made (Kubernetes, "recommended labels").
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Its value: whoever takes it off a pool has taken over the pool.
pub const MANAGED_BY_CHART: &str = "sluice-chart";

/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// How long an answer of the API server is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A refusal counts after this time: until then the API server may judge by the definition before the upgrade.
const SETTLE: Duration = Duration::from_secs(5);

/// A pool as the values name it.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct WantedPool {
    name: String,
    /// Fields of the spec, as they are: the API server judges them.
    #[serde(flatten)]
    spec: BTreeMap<String, Value>,
}

/// The pools could not be applied.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The text says nothing of pools.
    #[error("is no list of address pools, each with a name: {0}")]
    BadText(#[from] serde_json::Error),
    /// The log says for each of these why.
    #[error("not applied: {}", .0.join(", "))]
    NotApplied(Vec<String>),
}

/// Why a pool was not applied.
#[derive(thiserror::Error, Debug)]
enum Failure {
    #[error(
        "there is an AddressPool of this name that the chart did not make: take the pool out of the value addressPools, or hand \
         it to the chart, which then writes its spec: kubectl label addresspool {0} {MANAGED_BY_LABEL}={MANAGED_BY_CHART}"
    )]
    Foreign(String),
    #[error("the API server refuses it, correct the value addressPools: {0}")]
    Refused(RequestError),
    #[error(
        "the API server does not serve AddressPools: is the chart installed without crds.enabled?"
    )]
    NotServed,
    #[error("{0}")]
    Request(RequestError),
}

impl Failure {
    fn of(error: RequestError) -> Self {
        match error.code() {
            Some(404) => Self::NotServed,
            Some(400 | 422) => Self::Refused(error),
            // A field that the schema does not have (Kubernetes 1.36).
            Some(500) if error.to_string().contains("field not declared in schema") => {
                Self::Refused(error)
            }
            _ => Self::Request(error),
        }
    }

    /// How long to try again, where `wait` is the longest. Fresh definitions and roles take a moment until they count.
    fn patience(&self, wait: Duration) -> Duration {
        match self {
            Self::Foreign(_) => Duration::ZERO,
            Self::Refused(_) => wait.min(SETTLE),
            Self::NotServed | Self::Request(_) => wait,
        }
    }
}

/// Reads the value `addressPools` as JSON: a list of pools, each with its name beside the fields of its spec.
pub fn read(text: &str) -> Result<Vec<WantedPool>, Error> {
    Ok(serde_json::from_str(text)?)
}

/// Applies the pools, each as often as it takes, but no longer than `wait`. One that fails keeps back no other. Pools that are
/// not named stay as they are.
pub async fn apply_all(
    client: Client,
    pools: Vec<WantedPool>,
    wait: Duration,
) -> Result<(), Error> {
    let api = Api::<AddressPool>::all(client);
    let began = Instant::now();
    let (mut waiting, mut failed) = (pools, Vec::new());
    let mut told = BTreeSet::new();
    loop {
        let mut again = Vec::new();
        for pool in waiting {
            let Err(failure) = apply(&api, &pool).await else {
                continue;
            };
            if began.elapsed() >= failure.patience(wait) {
                error!(pool = pool.name, "{failure}");
                failed.push(pool.name);
                continue;
            }
            if told.insert((pool.name.clone(), failure.to_string())) {
                info!(pool = pool.name, "{failure}; tries again");
            }
            again.push(pool);
        }
        if again.is_empty() {
            break;
        }
        waiting = again;
        sleep(PAUSE).await;
    }
    info!(
        "AddressPools that addressPools does not name stay as they are: virtual servers may use them. Those that it once named \
         are listed by: kubectl get addresspools --selector {MANAGED_BY_LABEL}={MANAGED_BY_CHART}"
    );
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Error::NotApplied(failed))
    }
}

/// Applies a pool if there is none of its name, or the chart's own.
async fn apply(api: &Api<AddressPool>, pool: &WantedPool) -> Result<(), Failure> {
    let name = &pool.name;
    let found = match within(ANSWER_TIMEOUT, api.get_metadata(name)).await {
        Ok(found) => Some(found),
        Err(error) if is_absent(&error, name) => None,
        Err(error) => return Err(Failure::of(error)),
    };
    let mut body = json!({
        "apiVersion": API_VERSION,
        "kind": Kind::AddressPool.name(),
        "metadata": {"name": name, "labels": {MANAGED_BY_LABEL: MANAGED_BY_CHART}},
        "spec": pool.spec,
    });
    if let Some(found) = &found {
        let label = found.labels().get(MANAGED_BY_LABEL);
        if label.is_none_or(|value| value != MANAGED_BY_CHART) {
            return Err(Failure::Foreign(name.clone()));
        }
        // As it was looked at: who takes the label off meanwhile, or makes another pool, keeps it.
        body["metadata"]["uid"] = json!(found.metadata.uid);
        body["metadata"]["resourceVersion"] = json!(found.metadata.resource_version);
    }
    // A label says that the pool is the chart's, so its values win over what somebody has edited.
    let parameters = PatchParams::apply(CHART_MANAGER).force();
    let patch = Patch::Apply(&body);
    let request = api.patch_metadata(name, &parameters, &patch);
    let written = within(ANSWER_TIMEOUT, request).await.map_err(Failure::of)?;
    let version = |metadata: &kube::api::ObjectMeta| metadata.resource_version.clone();
    match found {
        None => info!(pool = name, "made"),
        Some(found) if version(&found.metadata) == version(&written.metadata) => {
            info!(pool = name, "is as wanted");
        }
        Some(_) => info!(pool = name, "changed"),
    }
    Ok(())
}

/// Whether the API server knows the kind and has no object of this name.
fn is_absent(error: &RequestError, name: &str) -> bool {
    let status = error.status().filter(|status| status.code == 404);
    let details = status.and_then(|status| status.details.as_ref());
    details.is_some_and(|details| details.name == name)
}
