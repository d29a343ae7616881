//! Tokens of agents that the API server would not give: with an end of the test's choice.

use std::fs;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use sluice_api::jiff::Timestamp;
use sluice_tests::kube::ControlPlane;

/// The same token with another end, so many seconds from now, signed with the cluster's key.
pub(super) fn ending_in(seconds: i64, token: &str, control: &ControlPlane) -> Result<String> {
    let claims = token.split('.').nth(1).context("no claims")?;
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let end = Timestamp::now().as_second() + seconds;
    let begin = end - 3600;
    for (claim, second) in [("exp", end), ("iat", begin), ("nbf", begin)] {
        ensure!(claims[claim].is_number(), "no claim {claim}");
        claims[claim] = json!(second);
    }
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({"alg": "ES256"})), encode(&claims));
    let pem = fs::read_to_string(control.pki().file("service-account.key"))?;
    let lines = pem.lines().filter(|line| !line.starts_with('-'));
    let key = STANDARD.decode(lines.collect::<String>())?;
    let chance = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &chance);
    let key = key.ok().context("not a key of P-256")?;
    let signature = key.sign(&chance, signed.as_bytes());
    let signature = signature.ok().context("cannot sign")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
