//! An address pool for tests that are not about pools.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_api::API_VERSION;

use super::account::Account;
use super::chart::RELEASE_NAMESPACE;
use super::control::ControlPlane;
use crate::net::sluice::binary;

/// Its name.
pub const EVERY_ADDRESS: &str = "every-address";

/// The pool as the chart's value `addressPools` takes it: it lets everybody have any address, together with anybody else, and
/// gives none to whoever names none. Nobody announces them.
pub fn every_address() -> Value {
    json!({
        "name": EVERY_ADDRESS,
        "addresses": ["0.0.0.0/0", "::/0"],
        "autoAssign": false,
        "sharing": "Cluster",
        "announce": {"none": {}},
    })
}

/// The argument by which helm takes these pools.
pub fn pools_argument(pools: &Value) -> String {
    format!("--set-json=addressPools={pools}")
}

impl Account {
    /// Makes [`every_address`], on an API server that knows Sluice's kinds: without a pool no virtual server gets an address.
    pub fn allow_every_address(&self) -> Result<()> {
        let mut spec = every_address();
        let name = spec["name"].take();
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("name");
        }
        let pool = json!({
            "apiVersion": API_VERSION, "kind": "AddressPool", "metadata": {"name": name}, "spec": spec,
        });
        self.apply(&pool.to_string())?;
        Ok(())
    }
}

impl ControlPlane {
    /// Runs the command of the chart's Job that applies address pools, with the Job's account. Returns its log.
    pub fn apply_pools(&self, pools: &Value, directory: &Path) -> Result<String> {
        let account = self.service_account(RELEASE_NAMESPACE, "sluice-pools")?;
        self.apply_pools_as(&account, pools, directory)
    }

    /// The same with this account. The file of pools is written to `directory`.
    pub fn apply_pools_as(
        &self,
        account: &Account,
        pools: &Value,
        directory: &Path,
    ) -> Result<String> {
        let file = directory.join("pools.json");
        fs::write(&file, pools.to_string())?;
        let mut command = self.namespace().command(binary("sluice-operator")?);
        command
            .args(["apply-pools", "--timeout-seconds=20", "--file"])
            .arg(file)
            .arg("--kubeconfig")
            .arg(account.kubeconfig().path());
        let output = command.output()?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{log}");
        Ok(log)
    }
}
