//! Validation of specs without an API server.

use std::fmt;

/// What is wrong with a field.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FieldError {
    /// Path from the object's root, such as `spec.pools[1].weight`.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// An object whose spec can be validated.
pub trait Validate {
    /// Everything that is wrong with the spec: the schema's limits and its CEL rules.
    fn validate(&self) -> Vec<FieldError>;
}
