//! Manifests: YAML streams with one object per document.
//!
//! A manifest is taken as a whole or not at all. What makes it *broken* is what an API server's client would see at
//! once: no YAML, an unknown kind or field, a missing field, a wrong type. Limits and rules of a spec are no reason:
//! those are told by conditions of the object ([`Validate`](sluice_api::Validate)).

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};
use serde_saphyr::budget::BudgetBreach;
use sluice_api::{
    API_VERSION, AddressPool, FieldError, Kind, LoadBalancerNode, MAX_LABEL_LENGTH, ObjectKey,
    RealServerPool, RolloutPolicy, VirtualServer, is_label, is_subdomain, schema,
};

use crate::yaml::Node;

/// Largest manifest in bytes.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Most documents in a manifest.
pub const MAX_DOCUMENTS: usize = 1_024;
/// Most values in a manifest: lists, maps, and what is in them.
pub const MAX_VALUES: usize = 250_000;
/// How deep lists and maps of a manifest may be nested.
pub const MAX_DEPTH: usize = 64;
/// Longest name of an object, in bytes: its status file and its node's lock are named after it.
pub const MAX_NAME_BYTES: usize = 240;
/// Namespace of a namespaced object that gives none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// An object of a manifest. Of its metadata, name, namespace, labels and annotations are kept.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    /// A virtual server.
    VirtualServer(VirtualServer),
    /// A pool.
    RealServerPool(RealServerPool),
    /// A rollout policy.
    RolloutPolicy(RolloutPolicy),
    /// A node.
    LoadBalancerNode(LoadBalancerNode),
    /// An address pool.
    AddressPool(AddressPool),
}

impl Object {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::VirtualServer(_) => Kind::VirtualServer,
            Self::RealServerPool(_) => Kind::RealServerPool,
            Self::RolloutPolicy(_) => Kind::RolloutPolicy,
            Self::LoadBalancerNode(_) => Kind::LoadBalancerNode,
            Self::AddressPool(_) => Kind::AddressPool,
        }
    }

    /// Its namespace and name.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::VirtualServer(object) => ObjectKey::of(object),
            Self::RealServerPool(object) => ObjectKey::of(object),
            Self::RolloutPolicy(object) => ObjectKey::of(object),
            Self::LoadBalancerNode(object) => ObjectKey::of(object),
            Self::AddressPool(object) => ObjectKey::of(object),
        }
    }
}

/// Why a manifest is broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestError {
    /// Line in the file from 1, where it is known.
    pub line: Option<u64>,
    /// Document in the file from 1 (empty ones are not counted); 0 when no document could be read.
    pub document: usize,
    /// Kind, namespace and name, as far as they are known.
    pub object: Option<String>,
    /// The problem and the remedy; `path` is empty if it is no field.
    pub error: FieldError,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if self.document > 0 {
            write!(f, "document {}: ", self.document)?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if self.error.path.is_empty() {
            f.write_str(&self.error.message)
        } else {
            self.error.fmt(f)
        }
    }
}

impl std::error::Error for ManifestError {}

impl ManifestError {
    /// A problem of the file as a whole, with its remedy.
    pub(crate) fn of_file(message: impl Into<String>) -> Self {
        file_error(None, message.into())
    }
}

/// Reads a manifest. All errors of all documents are returned.
pub fn parse(text: &str) -> Result<Vec<Object>, Vec<ManifestError>> {
    if text.len() > MAX_MANIFEST_BYTES {
        return Err(vec![file_error(None, too_large())]);
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS,
            max_nodes: MAX_VALUES,
            max_depth: MAX_DEPTH,
        },
    };
    let documents: Vec<Node> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| vec![yaml_error(&error)])?;
    let mut objects = Vec::new();
    let mut errors = Vec::new();
    for (i, node) in documents.into_iter().enumerate() {
        match Document::new(i + 1, node).object() {
            Ok(object) => objects.push(object),
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() {
        Ok(objects)
    } else {
        Err(errors)
    }
}

fn file_error(line: Option<u64>, message: String) -> ManifestError {
    ManifestError {
        line,
        document: 0,
        object: None,
        error: FieldError::new("", message),
    }
}

/// The message on a manifest of more than [`MAX_MANIFEST_BYTES`].
pub(crate) fn too_large() -> String {
    format!("larger than {MAX_MANIFEST_BYTES} bytes: split it into several files")
}

fn yaml_error(error: &serde_saphyr::Error) -> ManifestError {
    let line = error.location().map(|location| location.line());
    let message = match error.without_snippet() {
        serde_saphyr::Error::Budget { breach, .. } => limit(breach),
        other => {
            let text = other.to_string();
            let message = text.lines().next().unwrap_or_default();
            format!("not valid YAML, correct it there: {message}")
        }
    };
    file_error(line, message)
}

/// The limit that a manifest exceeds, and the remedy.
fn limit(breach: &BudgetBreach) -> String {
    match breach {
        BudgetBreach::Documents { .. } => {
            format!("more than {MAX_DOCUMENTS} documents: split it into several files")
        }
        BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. } => {
            format!("more than {MAX_VALUES} values: split it into several files")
        }
        BudgetBreach::Depth { .. } => {
            format!("nested more than {MAX_DEPTH} deep, as no object is: correct it there")
        }
        _ => "too many anchors, aliases or merge keys (& * <<): write out what they stand for, or split it into several \
              files"
            .to_owned(),
    }
}

struct Document {
    number: usize,
    node: Node,
    object: Option<String>,
}

impl Document {
    fn new(number: usize, node: Node) -> Self {
        Self {
            number,
            node,
            object: None,
        }
    }

    fn error(&self, path: &str, message: impl Into<String>) -> ManifestError {
        ManifestError {
            line: self.node.line_of(path),
            document: self.number,
            object: self.object.clone(),
            error: FieldError::new(path, message),
        }
    }

    fn object(mut self) -> Result<Object, Vec<ManifestError>> {
        let value = self.node.to_json();
        let Value::Object(mut fields) = value else {
            return Err(vec![self.error(
                "",
                "must be an object with apiVersion, kind, metadata and spec",
            )]);
        };
        let kind = self.kind(&fields).map_err(|error| vec![error])?;
        self.object = Some(kind.to_string());
        let mut errors = Vec::new();
        let meta = self.meta(kind, fields.get("metadata"), &mut errors);
        for name in fields.keys() {
            if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&name.as_str()) {
                errors.push(self.error(name, "unknown field: remove it"));
            }
        }
        let spec = fields.remove("spec").unwrap_or(Value::Object(Map::new()));
        let issues = schema::check_spec(kind, &spec);
        let (structural, limits): (Vec<_>, Vec<_>) =
            issues.into_iter().partition(|issue| issue.structural);
        errors.extend(
            structural
                .into_iter()
                .map(|issue| self.error(&issue.error.path, issue.error.message)),
        );
        if !errors.is_empty() {
            return Err(errors);
        }
        let object = built(kind, meta, spec);
        // A limit that the type cannot even hold, such as port 70000.
        object.map_err(|error| {
            let mut errors: Vec<_> = limits
                .into_iter()
                .map(|issue| self.error(&issue.error.path, issue.error.message))
                .collect();
            if errors.is_empty() {
                errors.push(self.error("spec", error.to_string()));
            }
            errors
        })
    }

    fn kind(&self, fields: &Map<String, Value>) -> Result<Kind, ManifestError> {
        if fields.get("apiVersion").and_then(Value::as_str) != Some(API_VERSION) {
            return Err(self.error("apiVersion", format!("must be {API_VERSION}")));
        }
        fields
            .get("kind")
            .and_then(Value::as_str)
            .and_then(Kind::from_name)
            .ok_or_else(|| {
                let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                self.error("kind", format!("must be one of {}", known.join(", ")))
            })
    }

    fn meta(
        &mut self,
        kind: Kind,
        value: Option<&Value>,
        errors: &mut Vec<ManifestError>,
    ) -> ObjectMeta {
        let value = value.cloned().unwrap_or(Value::Null);
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        let namespace = value["namespace"].as_str().map(str::to_owned);
        let namespace = match (kind.namespaced(), namespace) {
            (true, namespace) => Some(namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())),
            (false, None) => None,
            (false, Some(_)) => {
                let message = format!("{kind} has no namespace: remove the field");
                errors.push(self.error("metadata.namespace", message));
                None
            }
        };
        let max = MAX_NAME_BYTES.min(kind.max_name_length());
        if !is_subdomain(&name) || name.len() > max {
            let message =
                format!("must be lower-case letters, digits, - and ., at most {max} characters");
            errors.push(self.error("metadata.name", message));
        }
        if let Some(namespace) = &namespace
            && (!is_label(namespace) || namespace.len() > MAX_LABEL_LENGTH)
        {
            let message = "must be lower-case letters, digits and -, at most 63 characters";
            errors.push(self.error("metadata.namespace", message));
        }
        let key = ObjectKey::new(namespace.clone().unwrap_or_default(), name.clone());
        self.object = Some(format!("{kind} {key}"));
        for field in value.as_object().into_iter().flat_map(Map::keys) {
            if !METADATA_FIELDS.contains(&field.as_str()) {
                let path = format!("metadata.{field}");
                errors.push(self.error(&path, "unknown field: remove it or correct its name"));
            }
        }
        let mut strings = |field: &str| {
            serde_json::from_value(value[field].clone()).unwrap_or_else(|_| {
                let path = format!("metadata.{field}");
                errors.push(self.error(&path, "must map names to strings: put values in quotes"));
                None
            })
        };
        ObjectMeta {
            labels: strings("labels"),
            annotations: strings("annotations"),
            name: Some(name),
            namespace,
            ..ObjectMeta::default()
        }
    }
}

/// Fields that metadata may have. They include those that an API server sets, so that kubectl's output is a manifest.
const METADATA_FIELDS: [&str; 15] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// The object of a kind, with this metadata.
fn built(kind: Kind, metadata: ObjectMeta, spec: Value) -> Result<Object, serde_json::Error> {
    macro_rules! of {
        ($kind:ident) => {
            Object::$kind($kind {
                metadata,
                spec: serde_json::from_value(spec)?,
                status: None,
            })
        };
    }
    Ok(match kind {
        Kind::VirtualServer => of!(VirtualServer),
        Kind::RealServerPool => of!(RealServerPool),
        Kind::RolloutPolicy => of!(RolloutPolicy),
        Kind::LoadBalancerNode => of!(LoadBalancerNode),
        Kind::AddressPool => of!(AddressPool),
    })
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
