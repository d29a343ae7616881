//! Keeps the authorities in a Secret, and what agents need to find the operator in a ConfigMap.
//!
//! Whoever has started last is the operator that agents are told of. One that reads of another steps back, so two never write against each
//! other, and comes back when nobody listens there any more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use sluice_api::OPERATOR_MANAGER;
use sluice_api::jiff::Timestamp;
use sluice_kube::error::{RequestError, within};
use sluice_stream::{ADDRESS_KEY, AUTHORITIES_KEY, CONFIG_MAP};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::authority::Authorities;
use super::certificate::{Certificate, CertificateError, make_authority};
use super::claim::{Claim, Claims};
use super::service::Service;

/// Secret with the authorities and their keys.
const SECRET: &str = "sluice-stream-authorities";
/// Its key.
const SECRET_KEY: &str = "authorities.json";
/// Key of the ConfigMap by which an operator knows what it wrote itself.
const WRITER_KEY: &str = "writer";

/// Time between two looks. What somebody has changed or deleted is right again after that.
const LOOK: Duration = Duration::from_secs(5);
/// How long another operator may take to let somebody connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the API server is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What went wrong in a look.
#[derive(thiserror::Error, Debug)]
pub(super) enum KeepError {
    /// The API server does not do as asked.
    #[error("{0}: {1}")]
    Request(&'static str, RequestError),
    /// A certificate cannot be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Keeps Secret and ConfigMap.
pub(super) struct Keeper {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    namespace: String,
    address: SocketAddr,
    writer: String,
    claims: Claims,
    certificate: Arc<Certificate>,
    service: Arc<Service>,
}

impl Keeper {
    /// For an operator that agents reach at `address`. `writer` tells it from others.
    pub(super) fn new(
        client: &Client,
        namespace: &str,
        address: SocketAddr,
        writer: String,
        certificate: Arc<Certificate>,
        service: Arc<Service>,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            maps: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            address,
            writer,
            claims: Claims::default(),
            certificate,
            service,
        }
    }

    /// Looks again and again, for as long as it is polled.
    pub(super) async fn run(mut self) {
        let mut failing = String::new();
        loop {
            match self.look().await {
                Ok(()) => {
                    if !failing.is_empty() {
                        info!("keeps the way to itself again");
                        failing.clear();
                    }
                }
                Err(error) if failing != error.to_string() => {
                    failing = error.to_string();
                    warn!("agents may not find the operator: {failing}; tries again");
                }
                Err(_) => {}
            }
            sleep(LOOK).await;
        }
    }

    async fn look(&mut self) -> Result<(), KeepError> {
        let request = within(ANSWER_TIMEOUT, self.maps.get_opt(CONFIG_MAP)).await;
        let map = request.map_err(|error| failed("cannot read the ConfigMap", error))?;
        let written = map.and_then(|map| map.data).unwrap_or_default();
        let writer = written.get(WRITER_KEY).map(String::as_str);
        let is_own = writer == Some(self.writer.as_str());
        if self.claims.read(writer, is_own) == Claim::StepBack {
            self.service.set_named(false);
            let is_there = is_listening(written.get(ADDRESS_KEY)).await;
            self.claims.looked(is_there);
            return Ok(());
        }
        let authorities = self.authorities().await?;
        let wanted = BTreeMap::from([
            (ADDRESS_KEY.to_owned(), self.address.to_string()),
            (AUTHORITIES_KEY.to_owned(), authorities.bundle()),
            (WRITER_KEY.to_owned(), self.writer.clone()),
        ]);
        if wanted != written {
            self.write_map(&wanted).await?;
        }
        self.claims.written();
        self.service.set_named(true);
        Ok(())
    }

    /// The authorities as they should be, written and in use.
    async fn authorities(&self) -> Result<Authorities, KeepError> {
        let request = within(ANSWER_TIMEOUT, self.secrets.get_opt(SECRET)).await;
        let secret = request.map_err(|error| failed("cannot read the Secret", error))?;
        let text = secret.as_ref().and_then(|secret| secret.data.as_ref());
        let text = text.and_then(|data| data.get(SECRET_KEY));
        let known: Authorities = match text.map(|ByteString(text)| serde_json::from_slice(text)) {
            None => Authorities::default(),
            Some(Ok(known)) => known,
            Some(Err(error)) => {
                warn!("Secret {SECRET} cannot be read, makes new authorities: {error}");
                Authorities::default()
            }
        };
        let now = Timestamp::now().as_second();
        let mut wanted = known.at(now, make_authority)?;
        if let Err(error) = self.use_signer(&wanted, now) {
            warn!("Secret {SECRET} has a key of no use, makes new authorities: {error}");
            wanted = Authorities::default().at(now, make_authority)?;
            self.use_signer(&wanted, now)?;
        }
        if wanted != known {
            let version = secret.and_then(|secret| secret.metadata.resource_version);
            self.write_secret(&wanted, version).await?;
            info!("has brought the authorities of the stream of signals up to date");
        }
        Ok(wanted)
    }

    fn use_signer(&self, authorities: &Authorities, now: i64) -> Result<(), CertificateError> {
        match authorities.signer(now) {
            Some(signer) => self.certificate.renew(signer, now),
            None => Ok(()),
        }
    }

    /// Writes the Secret over the version that was read. Two that make it at the same time write one after the other, and both read what stands
    /// then.
    async fn write_secret(
        &self,
        authorities: &Authorities,
        version: Option<String>,
    ) -> Result<(), KeepError> {
        let text = serde_json::to_vec(authorities).unwrap_or_default();
        let mut body = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": self.namespace},
            "data": {SECRET_KEY: ByteString(text)},
        });
        if let Some(version) = version {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        let parameters = PatchParams::apply(OPERATOR_MANAGER).force();
        let patch = Patch::Apply(&body);
        let request = self.secrets.patch(SECRET, &parameters, &patch);
        let written = within(ANSWER_TIMEOUT, request).await;
        written.map_err(|error| failed("cannot write the Secret", error))?;
        Ok(())
    }

    async fn write_map(&self, data: &BTreeMap<String, String>) -> Result<(), KeepError> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": self.namespace},
            "data": data,
        });
        let parameters = PatchParams::apply(OPERATOR_MANAGER).force();
        let patch = Patch::Apply(&body);
        let request = self.maps.patch(CONFIG_MAP, &parameters, &patch);
        let written = within(ANSWER_TIMEOUT, request).await;
        written.map_err(|error| failed("cannot write the ConfigMap", error))?;
        Ok(())
    }
}

/// Whether somebody listens at the address of another operator.
async fn is_listening(address: Option<&String>) -> bool {
    let address = address.and_then(|address| address.parse::<SocketAddr>().ok());
    match address {
        Some(address) => {
            let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
            connected.is_ok_and(|connected| connected.is_ok())
        }
        None => false,
    }
}

const fn failed(what: &'static str, error: RequestError) -> KeepError {
    KeepError::Request(what, error)
}
