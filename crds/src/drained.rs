//! Servers that somebody drains: an annotation of their pool.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::condition::Time;
use crate::limits::{MAX_ADDRESS_LENGTH, MAX_DRAINED_SERVERS, MAX_UID_LENGTH};
use crate::object::DRAINED_SERVERS_ANNOTATION;
use crate::real_server_pool::RealServerPool;
use crate::schema::FieldError;

/// A server of a pool that takes no new flows until somebody lets it again.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DrainedServer {
    /// Its address.
    #[schemars(with = "String", length(max = MAX_ADDRESS_LENGTH))]
    pub address: IpAddr,
    /// The pod that has the address: another one that gets it is not meant. Absent: whoever has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_UID_LENGTH))]
    pub pod_uid: Option<String>,
    /// When it takes new flows again, by the operator's clock. Absent: never by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

impl DrainedServer {
    /// Whether this server, of this pod if it is one, is meant.
    pub fn is(&self, address: IpAddr, pod_uid: Option<&str>) -> bool {
        self.address == address && (self.pod_uid.is_none() || self.pod_uid.as_deref() == pod_uid)
    }

    /// Whether it takes new flows again.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.as_ref().is_some_and(|until| until.0 <= now)
    }
}

/// The servers of a pool that its annotation has drained, also those whose time is over.
///
/// # Errors
///
/// The annotation is not what `kubectl sluice drain server` writes.
pub fn drained_servers(pool: &RealServerPool) -> Result<Vec<DrainedServer>, FieldError> {
    let annotations = pool.metadata.annotations.as_ref();
    let text = annotations.and_then(|all| all.get(DRAINED_SERVERS_ANNOTATION));
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    read(text).map_err(|why| {
        let path = format!("metadata.annotations[{DRAINED_SERVERS_ANNOTATION}]");
        let message =
            format!("{why}: correct it, or remove it and drain by kubectl sluice drain server");
        FieldError::new(path, message)
    })
}

fn read(text: &str) -> Result<Vec<DrainedServer>, String> {
    const KEYS: [&str; 3] = ["address", "podUid", "until"];
    let objects: Vec<Map<String, Value>> = serde_json::from_str(text).map_err(|error| {
        format!("is no JSON list such as [{{\"address\": \"192.0.2.1\"}}] ({error})")
    })?;
    if objects.len() > MAX_DRAINED_SERVERS {
        return Err(format!("has more than {MAX_DRAINED_SERVERS} servers"));
    }
    let servers = objects.into_iter().map(|object| {
        // A misspelt `until` would drain a server for good.
        if let Some(key) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!(
                "has the unknown key {key}, beside address, podUid and until"
            ));
        }
        let server: Result<DrainedServer, _> = serde_json::from_value(Value::Object(object));
        let server = server.map_err(|error| error.to_string())?;
        let uid = server.pod_uid.as_deref().unwrap_or_default();
        if uid.len() > MAX_UID_LENGTH {
            return Err(format!(
                "has a podUid of more than {MAX_UID_LENGTH} characters"
            ));
        }
        Ok(server)
    });
    servers.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drained(text: &str) -> Result<Vec<DrainedServer>, String> {
        let pool: RealServerPool = serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {DRAINED_SERVERS_ANNOTATION: text}},
            "spec": {"servers": {"serviceName": "web"}},
        }))
        .expect("a pool");
        drained_servers(&pool).map_err(|error| error.to_string())
    }

    #[test]
    fn an_annotation_is_read() {
        let text = r#"[
            {"address": "10.0.0.1"},
            {"address": "2001:db8::1", "podUid": "u", "until": "2026-01-01T00:00:00Z"}
        ]"#;
        let [first, second] = drained(text).expect("two").try_into().expect("two");
        let (one, other) = (first.address, second.address);
        assert!(first.is(one, None) && first.is(one, Some("u")) && !first.is(other, None));
        assert!(second.is(other, Some("u")), "the pod that is meant");
        assert!(
            !second.is(other, Some("v")) && !second.is(other, None),
            "another one"
        );
        let end = second.until.clone().expect("an end").0;
        let before = end - k8s_openapi::jiff::SignedDuration::from_secs(1);
        assert!(second.is_over(end) && !second.is_over(before) && !first.is_over(end));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let many: Vec<Value> = (0..=MAX_DRAINED_SERVERS)
            .map(|_| json!({"address": "::1"}))
            .collect();
        for (text, said) in [
            ("10.0.0.1", "is no JSON list"),
            (r#"["10.0.0.1"]"#, "is no JSON list"),
            (r#"[{"address": "web-1"}]"#, "invalid IP address"),
            (r#"[{"adress": "10.0.0.1"}]"#, "unknown key adress"),
            (r#"[{"podUid": "u"}]"#, "missing field `address`"),
            (
                r#"[{"address": "::1", "until": "tomorrow"}]"#,
                "kubectl sluice drain server",
            ),
            (&json!(many).to_string(), "more than 64 servers"),
        ] {
            let error = drained(text).expect_err(text);
            assert!(error.contains(said), "{error}");
            assert!(
                error.starts_with("metadata.annotations[sluice.dev/drained-servers]: "),
                "{error}"
            );
        }
    }
}
