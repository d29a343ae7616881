//! Ports on servers.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_LABEL_LENGTH, MAX_PORT_NAME_LENGTH};
use crate::rules;

/// A port on a server.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct TargetPort {
    /// Name of the virtual server's port.
    #[schemars(length(min = 1, max = MAX_LABEL_LENGTH), regex(pattern = rules::LABEL))]
    pub name: String,
    /// Port number on the server, or a name: of a container port where pods are selected, of the Service's port where
    /// a Service is named.
    pub port: PortRef,
}

/// A port by number or by name.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(untagged)]
pub enum PortRef {
    /// From 1 to 65,535.
    Number(u16),
    /// The name of a port.
    Name(String),
}

impl PortRef {
    /// The number, if it is one.
    pub const fn number(&self) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(_) => None,
        }
    }
}

impl From<u16> for PortRef {
    fn from(number: u16) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl JsonSchema for PortRef {
    fn schema_name() -> Cow<'static, str> {
        "PortRef".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Of these limits the first two speak of numbers, the others of texts. A CEL rule would be refused for its cost: in
        // it, a text that may be a number counts as one of any length.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1,
            "maximum": u16::MAX,
            "minLength": 1,
            "maxLength": MAX_PORT_NAME_LENGTH,
        })
    }
}
