//! Who speaks to which API server.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::pki::KeyedCertificate;

/// How somebody proves who they are.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A certificate of the cluster's authority.
    Certificate(KeyedCertificate),
    /// A bearer token, such as a ServiceAccount's.
    Token(String),
}

/// A file for kubectl, helm, kube-rs and the programs of Kubernetes alike.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    path: PathBuf,
}

impl Kubeconfig {
    /// Writes it to `path`. `authority` is PEM.
    pub(super) fn write(
        path: PathBuf,
        server: SocketAddr,
        authority: &str,
        credentials: &Credentials,
    ) -> Result<Self> {
        let user = match credentials {
            Credentials::Certificate(pair) => json!({
                "client-certificate-data": base64(pair.certificate.as_bytes()),
                "client-key-data": base64(pair.key.as_bytes()),
            }),
            Credentials::Token(token) => json!({ "token": token }),
        };
        let config: Value = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "clusters": [{ "name": "cluster", "cluster": {
                "server": format!("https://{server}"),
                "certificate-authority-data": base64(authority.as_bytes()),
            }}],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "cluster", "context": { "cluster": "cluster", "user": "user" } }],
        });
        // JSON is YAML.
        fs::write(&path, config.to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self { path })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, index| {
            (bits << 8) | usize::from(chunk.get(index).copied().unwrap_or(0))
        });
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            let padding = digit > chunk.len();
            text.push(if padding {
                '='
            } else {
                char::from(DIGITS[value])
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648, section 10.
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
