//! Errors on the way to the API server, each with its remedy.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// A request's verb and resource, as RBAC names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// As RBAC calls it.
    pub verb: &'static str,
    /// Plural of the kind, as RBAC calls it.
    pub resource: &'static str,
    /// The API group.
    pub group: &'static str,
}

impl Access {
    /// Access to a kind of Sluice's.
    pub const fn sluice(verb: &'static str, resource: &'static str) -> Self {
        Self {
            verb,
            resource,
            group: sluice_api::GROUP,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{}", self.verb, self.resource, self.group)
    }
}

/// A request that failed.
#[derive(Error, Debug)]
pub enum Problem {
    /// The cluster does not know the kind.
    #[error(
        "the cluster does not know {}.{}: Sluice is not installed; install its chart: \
         helm install sluice charts/sluice --namespace sluice-system --create-namespace",
        .0.resource, .0.group
    )]
    NotInstalled(Access),
    /// The user may not do it.
    #[error(
        "not allowed to {access}: ask for this verb on this resource in a Role or ClusterRole ({message})"
    )]
    Forbidden {
        /// The request.
        access: Access,
        /// The API server's message.
        message: String,
    },
    /// The credentials do not count.
    #[error(
        "the API server does not accept the credentials: log in again or correct the user of the context ({0})"
    )]
    Unauthorized(String),
    /// No object of this name.
    #[error("{access}: {message}")]
    NotFound {
        /// The request.
        access: Access,
        /// The API server's message.
        message: String,
    },
    /// The object has changed since it was read.
    #[error("{access}: {message}")]
    Conflict {
        /// The request.
        access: Access,
        /// The API server's message.
        message: String,
    },
    /// No answer in time.
    #[error(
        "no answer within {limit:?} to {access}: see that the API server is reachable, or give a longer --request-timeout"
    )]
    TimedOut {
        /// The request.
        access: Access,
        /// The limit.
        limit: Duration,
    },
    /// The API server cannot be reached.
    #[error(
        "cannot reach the API server: see that the context is the right one and the server is up ({0})"
    )]
    Unreachable(String),
    /// Something else.
    #[error("cannot {access}: {source}")]
    Other {
        /// The request.
        access: Access,
        /// The client's error.
        source: kube::Error,
    },
}

impl Problem {
    /// Turns an error of the client into a problem.
    pub fn of(access: Access, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                401 => Self::Unauthorized(status.message),
                403 => Self::Forbidden {
                    access,
                    message: status.message,
                },
                // A kind that is not served has no details; an object that is not there is named in them.
                404 if status.details.as_ref().is_none_or(|d| d.name.is_empty()) => {
                    Self::NotInstalled(access)
                }
                404 => Self::NotFound {
                    access,
                    message: status.message,
                },
                409 => Self::Conflict {
                    access,
                    message: status.message,
                },
                _ => Self::Other {
                    access,
                    source: kube::Error::Api(status),
                },
            },
            kube::Error::Service(source) => Self::Unreachable(chain(source.as_ref())),
            kube::Error::HyperError(source) => Self::Unreachable(chain(&source)),
            source => Self::Other { access, source },
        }
    }

    /// Whether the API server answered 404 (Not Found).
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// A list of names for a message: all of a few, else the first ones.
pub fn names(names: &[String]) -> String {
    const NAMED: usize = 10;
    match names {
        [] => "none".to_owned(),
        names if names.len() <= NAMED => names.join(", "),
        names => format!(
            "{} and {} more",
            names[..NAMED].join(", "),
            names.len() - NAMED
        ),
    }
}

/// Says that there is no object of this name, which there are, and which may be meant.
pub fn not_found(kind: &str, name: &str, namespace: &str, known: &[String]) -> String {
    let text = format!("no {kind} {name} in namespace {namespace}");
    if known.is_empty() {
        return format!("{text}, and no other one: is it the right namespace? (-n)");
    }
    with_known(text, name, known)
}

/// Says that there is no LoadBalancerNode of this name, and which there are, as far as that is known.
pub fn no_such_node(name: &str, known: &[String]) -> String {
    let text = format!("no LoadBalancerNode {name}");
    if known.is_empty() {
        return text;
    }
    with_known(text, name, known)
}

/// Adds the names that there are, and which of them may be meant.
fn with_known(mut text: String, name: &str, known: &[String]) -> String {
    // A transposition counts 2.
    let far = name.chars().count().div_ceil(2).clamp(1, 3);
    let mut near: Vec<(usize, &String)> = known
        .iter()
        .map(|other| (distance(name, other), other))
        .filter(|(distance, other)| *distance <= far || other.contains(name))
        .collect();
    near.sort();
    match near.first() {
        Some((_, nearest)) => text = format!("{text}: did you mean {nearest}?"),
        None => text.push('.'),
    }
    format!("{text} There are: {}", names(known))
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: Access = Access::sluice("list", "virtualservers");

    fn api_error(code: u16, name: &str) -> Problem {
        let status = serde_json::json!({"code": code, "message": "said", "reason": "", "details": {"name": name}});
        let status = serde_json::from_value(status).unwrap();
        Problem::of(LIST, kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn errors_say_what_to_do() {
        let text = api_error(404, "").to_string();
        assert!(text.contains("virtualservers.sluice.dev"), "{text}");
        assert!(text.contains("helm install sluice"), "{text}");
        let text = api_error(403, "").to_string();
        assert!(text.contains("list virtualservers.sluice.dev"), "{text}");
        assert!(api_error(404, "web").is_not_found());
        assert!(matches!(api_error(409, "web"), Problem::Conflict { .. }));
        assert!(matches!(api_error(401, ""), Problem::Unauthorized(_)));
    }

    #[test]
    fn near_names_are_suggested() {
        let known = ["web".to_owned(), "api".to_owned()];
        assert_eq!(
            not_found("VirtualServer", "shop", "shop", &known),
            "no VirtualServer shop in namespace shop. There are: web, api"
        );
        assert_eq!(
            not_found("VirtualServer", "wbe", "shop", &known),
            "no VirtualServer wbe in namespace shop: did you mean web? There are: web, api"
        );
        assert!(not_found("VirtualServer", "web", "shop", &[]).contains("right namespace"));
        assert_eq!(
            no_such_node("node-1", &["node-10".to_owned()]),
            "no LoadBalancerNode node-1: did you mean node-10? There are: node-10"
        );
        assert_eq!(no_such_node("node-1", &[]), "no LoadBalancerNode node-1");
    }

    #[test]
    fn distances_are_counted() {
        assert_eq!(distance("web", "web"), 0);
        assert_eq!(distance("web", "wob"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
