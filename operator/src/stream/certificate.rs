//! Keys and certificates: made, and shown in TLS.

use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use sluice_stream::{ALPN, SERVER_NAME};

use super::authority::{Authority, LIFETIME, SERVING, is_due};

/// Clocks of nodes may be late by that.
const BACK_DATED: i64 = 3600;

/// A certificate cannot be made or shown.
#[derive(thiserror::Error, Debug)]
pub(super) enum CertificateError {
    /// It cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// TLS does not take it.
    #[error("cannot use a certificate: {0}")]
    Use(#[from] rustls::Error),
}

/// Makes an authority.
pub(super) fn make_authority(now: i64) -> Result<Authority, CertificateError> {
    let key = KeyPair::generate()?;
    let certificate = authority_parameters(now)?.self_signed(&key)?;
    Ok(Authority {
        made_at: now,
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// Of a certificate that is there, what it signs takes name and usages alone.
fn authority_parameters(made_at: i64) -> Result<CertificateParams, CertificateError> {
    let mut parameters = parameters("Sluice operator's authority", Vec::new())?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    valid(&mut parameters, made_at, LIFETIME);
    Ok(parameters)
}

fn parameters(name: &str, names: Vec<String>) -> Result<CertificateParams, CertificateError> {
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    Ok(parameters)
}

fn valid(parameters: &mut CertificateParams, from: i64, seconds: i64) {
    let at = |second: i64| {
        let second = u64::try_from(second).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(second)
    };
    parameters.not_before = at(from - BACK_DATED);
    parameters.not_after = at(from + seconds);
}

/// A certificate that is shown, and by whom and when it was signed.
#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    signed_by: String,
    signed_at: i64,
}

/// The operator's certificate. It lives in memory alone.
#[derive(Debug, Default)]
pub(super) struct Certificate(RwLock<Option<Shown>>);

impl Certificate {
    /// Makes a new one if it is time for that. Connections that are there keep the one that they began with.
    pub(super) fn renew(&self, signer: &Authority, now: i64) -> Result<(), CertificateError> {
        let is_good = {
            let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let shown = shown.as_ref();
            shown.is_some_and(|shown| !is_due(&shown.signed_by, shown.signed_at, signer, now))
        };
        if is_good {
            return Ok(());
        }
        let issuer = Issuer::new(
            authority_parameters(signer.made_at)?,
            KeyPair::from_pem(&signer.key)?,
        );
        let key = KeyPair::generate()?;
        let mut parameters = parameters("Sluice operator", vec![SERVER_NAME.to_owned()])?;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        valid(&mut parameters, now, SERVING);
        let leaf = parameters.signed_by(&key, &issuer)?;
        let certificate: CertificateDer<'static> = leaf.der().clone();
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = ring::default_provider();
        let key = CertifiedKey::from_der(vec![certificate], secret, &provider)?;
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *shown = Some(Shown {
            key: Arc::new(key),
            signed_by: signer.certificate.clone(),
            signed_at: now,
        });
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shown.as_ref().map(|shown| Arc::clone(&shown.key))
    }
}

/// TLS as the operator speaks it. Agents prove themselves by their tokens, not here.
pub(super) fn server(certificate: Arc<Certificate>) -> Result<ServerConfig, CertificateError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&TLS13])?;
    let mut server = builder
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    server.alpn_protocols = vec![ALPN.to_vec()];
    // Nobody comes back soon enough for a session to be worth its memory.
    server.send_tls13_tickets = 0;
    Ok(server)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sluice_stream::Place;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::stream::authority::Authorities;

    const NOW: i64 = 1_900_000_000;

    async fn shake(bundle: &str, certificate: &Arc<Certificate>) -> Result<(), String> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let place = Place::read(&address.to_string(), bundle)?;
        let server = server(Arc::clone(certificate)).map_err(|error| error.to_string())?;
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        let accepting = TlsAcceptor::from(Arc::new(server)).accept(ours);
        let name = SERVER_NAME.try_into().expect("a name");
        let connecting = TlsConnector::from(place.tls).connect(name, theirs);
        let (_, connected) = tokio::join!(accepting, connecting);
        connected.map(drop).map_err(|error| error.to_string())
    }

    fn now() -> i64 {
        sluice_api::jiff::Timestamp::now().as_second()
    }

    /// Agents trust by the bundle, whichever of its authorities signs, and the certificate changes without a restart.
    #[tokio::test]
    async fn agents_trust_old_and_new() {
        let at = |all: &Authorities, now| all.at(now, make_authority).expect("authorities");
        let old = at(&Authorities::default(), now() - 61 * 86_400);
        let both = at(&old, now());
        assert_ne!(old.bundle(), both.bundle());
        let certificate = Arc::new(Certificate::default());
        let no_certificate = shake(&both.bundle(), &certificate).await;
        no_certificate.expect_err("there is none yet");
        let sign = |now| {
            let signer = both.signer(now).expect("one");
            certificate.renew(signer, now).expect("a certificate");
            signer.certificate.clone()
        };
        assert_eq!(sign(now()), old.bundle());
        shake(&old.bundle(), &certificate).await.expect("the old");
        shake(&both.bundle(), &certificate).await.expect("both");
        let new = sign(now() + 3600);
        assert_ne!(new, old.bundle());
        shake(&both.bundle(), &certificate).await.expect("both");
        shake(&new, &certificate).await.expect("the new");
        let error = shake(&old.bundle(), &certificate).await;
        error.expect_err("who knows the old alone is too late");
    }

    #[test]
    fn a_key_of_another_kind_is_an_error() {
        let broken = Authority {
            made_at: NOW,
            certificate: String::new(),
            key: "no key".to_owned(),
        };
        let certificate = Certificate::default();
        certificate.renew(&broken, NOW).expect_err("no key");
    }
}
