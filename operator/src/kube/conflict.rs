//! Why the API server did not take a write, and what follows from it.

use kube::core::Status;
use sluice_kube::error::text;

use crate::order::Failure;

/// A write that was not taken.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub(super) enum WriteError {
    /// The object has changed: the watch will tell.
    #[error("has changed meanwhile")]
    Stale,
    /// The object is gone.
    #[error("is gone")]
    Gone,
    /// Another field manager has a field that is ours.
    #[error(
        "another field manager has written what only the operator writes, and the operator does not force it: {0}. Remove \
         that manager's entry from metadata.managedFields of this object, and keep it from writing the status"
    )]
    FieldManager(String),
    /// The API server does not want it, and will not want it again.
    #[error("the API server refuses it: {0}")]
    Refused(String),
    /// The API server answers, but fails at this object: a webhook that does not answer, say.
    #[error("the API server fails at it: {0}")]
    Failed(String),
    /// The API server cannot be reached or takes nothing from us now.
    #[error("the API server does not take it now: {0}")]
    Unavailable(String),
}

impl WriteError {
    /// The name in metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Gone => "gone",
            Self::FieldManager(_) => "field_manager_conflict",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// The failure by which the schedule decides when to write again.
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Stale => Failure::Stale,
            Self::Gone => Failure::Gone,
            Self::FieldManager(why) | Self::Refused(why) => Failure::Refused(why.clone()),
            Self::Failed(why) => Failure::Failed(why.clone()),
            Self::Unavailable(why) => Failure::Unavailable(why.clone()),
        }
    }

    /// Reads the answer to a write.
    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            other => Self::Unavailable(text(other)),
        }
    }

    fn of_status(status: &Status) -> Self {
        const FIELD_MANAGER: &str = "FieldManagerConflict";
        const TERMINATING: &str = "NamespaceTerminating";
        let details = status.details.as_ref();
        let causes = || details.iter().flat_map(|details| &details.causes);
        // A kind that is not defined any more has no name either.
        let is_named = details.is_some_and(|details| !details.name.is_empty());
        let conflicts: Vec<String> = causes()
            .filter(|cause| cause.reason == FIELD_MANAGER)
            .map(|cause| format!("{} ({})", cause.field, cause.message))
            .collect();
        match status.code {
            409 if !conflicts.is_empty() => Self::FieldManager(conflicts.join(", ")),
            404 if is_named => Self::Gone,
            404 | 409 | 410 => Self::Stale,
            // All of it will be gone soon.
            403 if causes().any(|cause| cause.reason == TERMINATING) => Self::Stale,
            403 => Self::Refused(format!(
                "{}; is the operator's role as the chart has it?",
                status.message
            )),
            400 | 405 | 406 | 413 | 415 | 422 => Self::Refused(status.message.clone()),
            401 | 429 | 503 => Self::Unavailable(status.message.clone()),
            _ => Self::Failed(status.message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn status(code: u16, causes: &Value) -> WriteError {
        let status = json!({
            "status": "Failure", "code": code, "reason": "x", "message": "m",
            "details": {"causes": causes},
        });
        WriteError::of_status(&serde_json::from_value(status).expect("a status"))
    }

    #[test]
    fn conflicts_are_told_apart() {
        let cause = json!([{
            "reason": "FieldManagerConflict", "message": "conflict with \"kubectl-edit\"", "field": ".status.decision",
        }]);
        let WriteError::FieldManager(text) = status(409, &cause) else {
            panic!("no field manager conflict");
        };
        assert!(
            text.contains("kubectl-edit") && text.contains(".status.decision"),
            "{text}"
        );
        assert_eq!(status(409, &json!([])), WriteError::Stale);
        assert_eq!(status(404, &json!([])), WriteError::Stale);
        let terminating = json!([{"reason": "NamespaceTerminating", "message": "m", "field": "x"}]);
        assert_eq!(status(403, &terminating), WriteError::Stale);
        assert_eq!(status(422, &json!([])), WriteError::Refused("m".to_owned()));
        assert!(matches!(status(403, &json!([])), WriteError::Refused(_)));
        for code in [401, 429, 503] {
            let answer = status(code, &json!([]));
            assert_eq!(answer, WriteError::Unavailable("m".to_owned()));
        }
        for code in [500, 504] {
            let answer = status(code, &json!([]));
            assert_eq!(answer, WriteError::Failed("m".to_owned()));
        }
        let gone = json!({
            "status": "Failure", "code": 404, "reason": "NotFound", "message": "m",
            "details": {"name": "web", "kind": "virtualservers"},
        });
        let gone = serde_json::from_value(gone).expect("a status");
        assert_eq!(WriteError::of_status(&gone), WriteError::Gone);
    }
}
