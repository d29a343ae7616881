//! Whether a token proves that a stream is of the node that it names. Pure: by what the API server said of the token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use serde::Deserialize;
use sluice_stream::AUDIENCE;
use tonic::{Code, Status};

/// What a token says of the node on which its pod runs.
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// Seconds until a token is asked for again, at least and at most.
const AGAIN: [i64; 2] = [15, 300];

/// Why a stream is not taken, or has ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Reason {
    /// It names no node, or nothing that could be one's name.
    NoNode,
    /// It has no token.
    NoToken,
    /// The API server does not take the token: it has expired, is for another audience, or is nobody's.
    NoProof,
    /// It is another account's.
    Account,
    /// It is bound to no node, or to another one.
    OtherNode,
    /// The API server does not say.
    Unavailable,
    /// There are too many streams, or too many that prove nothing.
    TooMany,
    /// Too much is told.
    Flood,
    /// What is told is no report.
    NoReport,
    /// The node has opened another stream.
    Replaced,
    /// Another operator takes reports.
    Elsewhere,
}

impl Reason {
    /// As metrics and the log name it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NoNode => "no_node",
            Self::NoToken => "no_token",
            Self::NoProof => "not_authenticated",
            Self::Account => "other_account",
            Self::OtherNode => "other_node",
            Self::Unavailable => "unavailable",
            Self::TooMany => "too_many",
            Self::Flood => "flood",
            Self::NoReport => "unreadable",
            Self::Replaced => "replaced",
            Self::Elsewhere => "elsewhere",
        }
    }

    /// The status that the agent gets.
    const fn code(self) -> Code {
        match self {
            Self::NoNode | Self::NoReport => Code::InvalidArgument,
            Self::NoToken | Self::NoProof => Code::Unauthenticated,
            Self::Account | Self::OtherNode => Code::PermissionDenied,
            Self::Unavailable | Self::Elsewhere => Code::Unavailable,
            Self::TooMany | Self::Flood => Code::ResourceExhausted,
            Self::Replaced => Code::Aborted,
        }
    }
}

/// A refusal, in words for the agent and the log.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// Why.
    pub(super) reason: Reason,
    /// In words.
    pub(super) message: String,
}

impl Refusal {
    /// Refuses.
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// As the agent gets it.
    pub(super) fn status(&self) -> Status {
        Status::new(self.reason.code(), self.message.clone())
    }
}

/// Whose tokens are taken.
#[derive(Clone, Debug)]
pub(super) struct Account {
    /// The ServiceAccount's namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
}

impl Account {
    /// Whether the API server's answer proves that this account's pod on `node` has sent the token.
    pub(super) fn judge(&self, status: &TokenReviewStatus, node: &str) -> Result<(), Refusal> {
        if status.authenticated != Some(true) {
            let why = status.error.as_deref().filter(|why| !why.is_empty());
            let why = why.unwrap_or("it has expired, or is no token of this cluster");
            let message = format!("the API server does not take the token: {why}");
            return Err(Refusal::new(Reason::NoProof, message));
        }
        // An API server that knows no audiences names none.
        let audiences = status.audiences.as_deref().unwrap_or_default();
        if !audiences.iter().any(|audience| audience == AUDIENCE) {
            let message = format!("the token is not for the audience {AUDIENCE}");
            return Err(Refusal::new(Reason::NoProof, message));
        }
        let user = status.user.as_ref();
        let name = user.and_then(|user| user.username.as_deref());
        let Self {
            namespace,
            name: account,
        } = self;
        if name != Some(&format!("system:serviceaccount:{namespace}:{account}")) {
            let name = name.unwrap_or("nobody");
            let message = format!("the token is that of {name}, not of {namespace}/{account}");
            return Err(Refusal::new(Reason::Account, message));
        }
        match user.and_then(bound_node) {
            Some(bound) if bound == node => Ok(()),
            Some(bound) => {
                let message = format!("the token is of a pod on node {bound}, not on {node}");
                Err(Refusal::new(Reason::OtherNode, message))
            }
            None => {
                let message = "the token is of no pod on a node";
                Err(Refusal::new(Reason::OtherNode, message))
            }
        }
    }
}

fn bound_node(user: &UserInfo) -> Option<&str> {
    let nodes = user.extra.as_ref()?.get(NODE_CLAIM)?;
    match &nodes[..] {
        [node] => Some(node),
        _ => None,
    }
}

/// The end of a token by its own word, in seconds since 1970. Nothing is decided by it but when the API server is asked again.
fn expiry(token: &str) -> Option<i64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(claims.exp)
}

/// Seconds until the API server is asked again about a token that it took at `now`: soon after the token's end, and at least every five
/// minutes, since its pod may be gone. The API server itself remembers for ten seconds what it took, so it is not asked more often than that.
pub(super) fn again(token: &str, now: i64) -> i64 {
    let left = expiry(token).map_or(AGAIN[1], |expiry| {
        expiry.saturating_sub(now).saturating_add(1)
    });
    left.clamp(AGAIN[0], AGAIN[1])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn account() -> Account {
        Account {
            namespace: "lb".to_owned(),
            name: "agent".to_owned(),
        }
    }

    fn status() -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.to_owned()]),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:lb:agent".to_owned()),
                extra: Some(BTreeMap::from([(
                    NODE_CLAIM.to_owned(),
                    vec!["n1".to_owned()],
                )])),
                ..UserInfo::default()
            }),
        }
    }

    fn refused(change: impl FnOnce(&mut TokenReviewStatus)) -> Option<(Reason, Code)> {
        let mut status = status();
        change(&mut status);
        let refusal = account().judge(&status, "n1").err()?;
        Some((refusal.reason, refusal.status().code()))
    }

    fn set_extra(status: &mut TokenReviewStatus, extra: &[(&str, &[&str])]) {
        let extra = extra.iter().map(|(key, values)| {
            let values = values.iter().map(|value| (*value).to_owned());
            ((*key).to_owned(), values.collect())
        });
        if let Some(user) = &mut status.user {
            user.extra = Some(extra.collect());
        }
    }

    #[test]
    fn a_good_token_proves_its_node() {
        assert_eq!(refused(|_| {}), None);
        let other = account().judge(&status(), "n2").expect_err("another node");
        assert_eq!(other.reason, Reason::OtherNode);
        assert!(
            other.message.contains("n1") && other.message.contains("n2"),
            "{}",
            other.message
        );
    }

    #[test]
    fn everything_that_is_missing_is_refused() {
        let unauthenticated = |reason| Some((reason, Code::Unauthenticated));
        let denied = |reason| Some((reason, Code::PermissionDenied));
        for authenticated in [None, Some(false)] {
            assert_eq!(
                refused(|status| status.authenticated = authenticated),
                unauthenticated(Reason::NoProof)
            );
        }
        for audiences in [None, Some(vec![]), Some(vec!["https://api".to_owned()])] {
            assert_eq!(
                refused(|status| status.audiences = audiences),
                unauthenticated(Reason::NoProof)
            );
        }
        assert_eq!(
            refused(|status| status.user = None),
            denied(Reason::Account)
        );
        for name in [
            "agent",
            "system:serviceaccount:lb:other",
            "system:serviceaccount:else:agent",
        ] {
            let change = |status: &mut TokenReviewStatus| {
                if let Some(user) = &mut status.user {
                    user.username = Some(name.to_owned());
                }
            };
            assert_eq!(refused(change), denied(Reason::Account), "{name}");
        }
    }

    #[test]
    fn a_token_of_no_single_node_is_refused() {
        let denied = Some((Reason::OtherNode, Code::PermissionDenied));
        for extra in [
            &[][..],
            &[("other", &["n1"][..])],
            &[(NODE_CLAIM, &[])],
            &[(NODE_CLAIM, &["n1", "n2"])],
            &[(NODE_CLAIM, &["n2"])],
        ] {
            let found = refused(|status| set_extra(status, extra));
            assert_eq!(found, denied, "{extra:?}");
        }
    }

    fn token(claims: &str) -> String {
        format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_is_asked_for_again_before_it_can_be_used_long_after_its_end() {
        for (left, again_after) in [(3600, 300), (200, 201), (5, 15), (-1000, 15), (299, 300)] {
            let token = token(&format!(r#"{{"exp":{}}}"#, 1_000_000 + left));
            assert_eq!(again(&token, 1_000_000), again_after, "{left}");
        }
        for token in [
            "",
            "a.b.c",
            "x",
            &token("{}"),
            &token(r#"{"exp":9223372036854775807}"#),
        ] {
            assert_eq!(again(token, -1000), 300, "{token}");
        }
    }
}
