//! Keys and certificates of a cluster, made anew for each.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct KeyedCertificate {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// A certificate authority.
#[derive(Debug)]
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut parameters = parameters(name, None, Vec::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let key = KeyPair::generate()?;
        Ok(Self {
            certificate: parameters.self_signed(&key)?,
            issuer: Issuer::new(parameters, key),
        })
    }

    fn issue(
        &self,
        mut parameters: CertificateParams,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<KeyedCertificate> {
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![purpose];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok(KeyedCertificate {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    fn as_keyed(&self) -> KeyedCertificate {
        KeyedCertificate {
            certificate: self.certificate.pem(),
            key: self.issuer.key().serialize_pem(),
        }
    }
}

/// The certificate authorities of one cluster, and the directory with their keys and the API server's own credentials.
#[derive(Debug)]
pub struct Pki {
    cluster: Authority,
    front_proxy: Authority,
    directory: PathBuf,
}

impl Pki {
    /// Makes authorities and the API server's credentials for these addresses, in `directory`.
    pub(super) fn create(directory: &Path, addresses: &[IpAddr]) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let pki = Self {
            cluster: Authority::new("kubernetes-ca")?,
            front_proxy: Authority::new("front-proxy-ca")?,
            directory: directory.to_owned(),
        };
        pki.write("ca", &pki.cluster.as_keyed())?;
        pki.write("front-proxy-ca", &pki.front_proxy.as_keyed())?;
        pki.write("apiserver", &pki.server("kube-apiserver", addresses)?)?;
        pki.write(
            "kubelet-client",
            &pki.client("apiserver-kubelet", Some("system:masters"))?,
        )?;
        let proxy = pki.front_proxy.issue(
            parameters("front-proxy-client", None, Vec::new())?,
            ExtendedKeyUsagePurpose::ClientAuth,
        )?;
        pki.write("front-proxy-client", &proxy)?;
        let tokens = KeyPair::generate()?;
        fs::write(pki.file("service-account.key"), tokens.serialize_pem())?;
        fs::write(pki.file("service-account.pub"), tokens.public_key_pem())?;
        Ok(pki)
    }

    /// Credentials of a user, in at most one group.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<KeyedCertificate> {
        let parameters = parameters(user, group, Vec::new())?;
        self.cluster
            .issue(parameters, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Credentials of a server that is called by these addresses, or as `kubernetes`, `localhost` and its own name.
    pub fn server(&self, name: &str, addresses: &[IpAddr]) -> Result<KeyedCertificate> {
        let mut names: Vec<String> = [
            name,
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ]
        .map(str::to_owned)
        .to_vec();
        names.extend(addresses.iter().map(IpAddr::to_string));
        let parameters = parameters(name, None, names)?;
        self.cluster
            .issue(parameters, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// The cluster's authority, PEM.
    pub fn authority(&self) -> String {
        self.cluster.certificate.pem()
    }

    /// A file such as `ca.crt`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, pair: &KeyedCertificate) -> Result<()> {
        fs::write(self.file(&format!("{name}.crt")), &pair.certificate)?;
        fs::write(self.file(&format!("{name}.key")), &pair.key)?;
        Ok(())
    }
}

fn parameters(name: &str, group: Option<&str>, names: Vec<String>) -> Result<CertificateParams> {
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        parameters
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    Ok(parameters)
}
