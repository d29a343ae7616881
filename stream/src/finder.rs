//! Where the operator is: it writes its address into a ConfigMap, with the authorities that sign its certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use sluice_kube::error::{RequestError, within};

use crate::{ADDRESS_KEY, ALPN, AUTHORITIES_KEY, CONFIG_MAP};

/// How long the API server is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Authorities that are read of a ConfigMap.
const MAX_AUTHORITIES: usize = 16;

/// Where the operator is, and whom to trust.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its address and port.
    pub address: SocketAddr,
    /// How its certificate is checked.
    pub tls: Arc<ClientConfig>,
}

/// The operator is not found.
#[derive(thiserror::Error, Debug)]
pub enum FindError {
    /// The API server did not say.
    #[error("cannot read ConfigMap {CONFIG_MAP}: {0}")]
    Request(#[from] RequestError),
    /// No operator has said where it is.
    #[error("there is no ConfigMap {CONFIG_MAP}: no operator takes reports")]
    Nowhere,
    /// What it says is not understood.
    #[error("ConfigMap {CONFIG_MAP}: {0}")]
    Unreadable(String),
}

/// Reads the ConfigMap in Sluice's namespace.
#[derive(Clone)]
pub struct Finder {
    api: Api<ConfigMap>,
}

impl std::fmt::Debug for Finder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finder").finish_non_exhaustive()
    }
}

impl Finder {
    /// Looks in this namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
        }
    }

    /// Where the operator is now. It is read before each connection and at no other time: who is connected knows that it is right.
    pub async fn find(&self) -> Result<Place, FindError> {
        let object = within(ANSWER_TIMEOUT, self.api.get_opt(CONFIG_MAP)).await?;
        let data = object.and_then(|object| object.data);
        let data = data.ok_or(FindError::Nowhere)?;
        let text = |key: &str| {
            let text = data.get(key).map(String::as_str);
            text.ok_or_else(|| FindError::Unreadable(format!("data: there is no {key}")))
        };
        Place::read(text(ADDRESS_KEY)?, text(AUTHORITIES_KEY)?).map_err(FindError::Unreadable)
    }
}

impl Place {
    /// Reads an address with a port, and certificates as PEM.
    pub fn read(address: &str, authorities: &str) -> Result<Self, String> {
        let address = address.parse();
        let address = address.map_err(|_| format!("data.{ADDRESS_KEY} is no address with port"))?;
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_slice_iter(authorities.as_bytes());
        for certificate in certificates.take(MAX_AUTHORITIES) {
            let certificate =
                certificate.map_err(|error| format!("data.{AUTHORITIES_KEY}: {error}"))?;
            let added = roots.add(certificate);
            added.map_err(|error| format!("data.{AUTHORITIES_KEY}: {error}"))?;
        }
        if roots.is_empty() {
            return Err(format!("data.{AUTHORITIES_KEY} has no certificate"));
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(|error| format!("no TLS: {error}"))?;
        let mut tls = builder.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self {
            address,
            tls: Arc::new(tls),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_place_is_named() {
        let error = |address, authorities| Place::read(address, authorities).err();
        let text = error("192.0.2.1", "").expect("no port");
        assert_eq!(text, "data.address is no address with port");
        let text = error("192.0.2.1:9202", "").expect("no certificate");
        assert_eq!(text, "data.ca.crt has no certificate");
    }
}
