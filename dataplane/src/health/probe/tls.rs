//! TLS towards servers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sluice_api::CheckTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Sets of trusted certificates that are kept ready; those beyond are read for each check.
const MAX_CONTEXTS: usize = 256;

/// A protocol's name in TLS (ALPN, RFC 7301), where it is asked for.
type Alpn = Option<&'static [u8]>;

/// The certificates that are trusted, where not all are, and the protocol.
type ContextKey = (Option<String>, Alpn);

/// What is needed for TLS.
#[derive(Debug, Default)]
pub(super) struct Contexts(Mutex<BTreeMap<ContextKey, Arc<ClientConfig>>>);

impl Contexts {
    /// Begins TLS on a connection.
    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        server: SocketAddr,
        check: &CheckTls,
        protocol: Alpn,
        stream: S,
    ) -> Result<TlsStream<S>, String> {
        let context = self.of(check.ca_certificates.as_deref(), protocol)?;
        let name = match &check.server_name {
            Some(name) => ServerName::try_from(name.clone())
                .map_err(|_| format!("{name} is no name of a server"))?,
            None => ServerName::from(server.ip()),
        };
        let connected = TlsConnector::from(context).connect(name, stream).await;
        connected.map_err(|error| format!("no TLS: {error}"))
    }

    fn of(&self, trusted: Option<&str>, protocol: Alpn) -> Result<Arc<ClientConfig>, String> {
        let key = (trusted.map(str::to_owned), protocol);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = known.get(&key) {
            return Ok(Arc::clone(context));
        }
        let mut context = context(trusted)?;
        context.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
        let context = Arc::new(context);
        if known.len() < MAX_CONTEXTS {
            known.insert(key, Arc::clone(&context));
        }
        Ok(context)
    }
}

fn context(trusted: Option<&str>) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("no TLS: {error}"))?;
    let Some(trusted) = trusted else {
        let anybody = Arc::new(Anybody(provider));
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(anybody);
        return Ok(builder.with_no_client_auth());
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        format!("healthCheck: caCertificates cannot be used: {error}: give certificates as PEM")
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
        let certificate = certificate.map_err(|error| unreadable(&error))?;
        roots.add(certificate).map_err(|error| unreadable(&error))?;
    }
    if roots.is_empty() {
        return Err(unreadable(&"there is no certificate in it"));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Takes any certificate, but has its key sign.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
