//! Checks values against the generated schemas, so that files meet the same limits as objects of an API server.
//!
//! Kubernetes prunes unknown fields; files have nobody to tell, so there an unknown field is an error.

use std::fmt;
use std::sync::OnceLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};
use kube::CustomResourceExt;
use serde_json::Value;

use crate::limits::MAX_NAME_LENGTH;
use crate::object::Kind;
use crate::rules;
use crate::{AddressPool, LoadBalancerNode, RealServerPool, RolloutPolicy, VirtualServer};

/// A fault of a field.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FieldError {
    /// Path from the object's root, such as `spec.pools[1].weight`.
    pub path: String,
    /// The fault and its remedy.
    pub message: String,
}

impl FieldError {
    /// `path` is from the object's root.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Something a value breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issue {
    /// Where and what.
    pub error: FieldError,
    /// The value does not have the shape of the type: an unknown or missing field, a wrong type or enum value. The
    /// other issues are limits.
    pub structural: bool,
}

/// The definition of a kind.
pub fn definition(kind: Kind) -> CustomResourceDefinition {
    let mut definition = match kind {
        Kind::VirtualServer => VirtualServer::crd(),
        Kind::RealServerPool => RealServerPool::crd(),
        Kind::RolloutPolicy => RolloutPolicy::crd(),
        Kind::LoadBalancerNode => LoadBalancerNode::crd(),
        Kind::AddressPool => AddressPool::crd(),
    };
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut();
        if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            drop_unknown_formats(schema);
            limit_name(kind, schema);
        }
    }
    definition
}

/// Has names of this kind be no longer than they may be, where that is less than Kubernetes allows.
fn limit_name(kind: Kind, schema: &mut JSONSchemaProps) {
    let max = kind.max_name_length();
    if max < MAX_NAME_LENGTH {
        let rule = ValidationRule {
            rule: format!("self.metadata.name.size() <= {max}"),
            message: Some(format!("metadata.name may have at most {max} characters")),
            ..ValidationRule::default()
        };
        schema.x_kubernetes_validations = Some(vec![rule]);
    }
}

/// Takes out the formats of unsigned numbers. API servers do not know them, check nothing by them, and warn whoever
/// installs the definition; minima and maxima say the same.
fn drop_unknown_formats(schema: &mut JSONSchemaProps) {
    if schema
        .format
        .as_ref()
        .is_some_and(|format| format.starts_with("uint"))
    {
        schema.format = None;
    }
    for field in schema.properties.iter_mut().flatten() {
        drop_unknown_formats(field.1);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_unknown_formats(items);
    }
}

/// The schema of a kind's whole object.
pub fn object_schema(kind: Kind) -> &'static Value {
    static SCHEMAS: [OnceLock<Value>; Kind::ALL.len()] =
        [const { OnceLock::new() }; Kind::ALL.len()];
    SCHEMAS[kind as usize].get_or_init(|| {
        definition(kind)
            .spec
            .versions
            .first()
            .and_then(|version| version.schema.as_ref())
            .and_then(|schema| serde_json::to_value(&schema.open_api_v3_schema).ok())
            .unwrap_or(Value::Null)
    })
}

/// Checks a spec; paths begin with `spec`.
pub fn check_spec(kind: Kind, spec: &Value) -> Vec<Issue> {
    let mut issues = Vec::new();
    check(
        &object_schema(kind)["properties"]["spec"],
        spec,
        "spec",
        &mut issues,
    );
    issues
}

fn check(schema: &Value, value: &Value, path: &str, issues: &mut Vec<Issue>) {
    if value.is_null() {
        if schema["nullable"] != Value::Bool(true) {
            structural(
                issues,
                path,
                "must not be empty: give a value or remove the field",
            );
        }
        return;
    }
    if schema["x-kubernetes-int-or-string"] == Value::Bool(true) {
        match value {
            Value::String(text) => check_string(schema, text, path, issues),
            // A number that no port can have does not even decode.
            Value::Number(number) if number.as_u64().is_some_and(|n| n <= 65_535) => {
                check_integer(schema, value, path, issues);
            }
            _ => structural(
                issues,
                path,
                "must be a port number from 1 to 65535 or a port's name",
            ),
        }
        return;
    }
    match (schema["type"].as_str().unwrap_or_default(), value) {
        ("object", Value::Object(_)) => check_object(schema, value, path, issues),
        ("array", Value::Array(items)) => check_array(schema, items, path, issues),
        ("string", Value::String(text)) => check_string(schema, text, path, issues),
        ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => {
            check_integer(schema, value, path, issues);
        }
        ("boolean", Value::Bool(_)) => {}
        (expected, _) => {
            let message = format!("must be {}", article(expected));
            structural(issues, path, &message);
        }
    }
}

fn check_object(schema: &Value, value: &Value, path: &str, issues: &mut Vec<Issue>) {
    if let (Some(fields), Some(values)) = (
        value.as_object(),
        schema.get("additionalProperties").filter(|v| v.is_object()),
    ) {
        if let Some(max) = schema["maxProperties"].as_u64()
            && fields.len() as u64 > max
        {
            limit(issues, path, &format!("may have at most {max} entries"));
        }
        for (name, field) in fields {
            check(values, field, &format!("{path}.{name}"), issues);
        }
        return;
    }
    let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    else {
        return;
    };
    for (name, field) in fields {
        let path = format!("{path}.{name}");
        if let Some(schema) = properties.get(name) {
            check(schema, field, &path, issues);
            continue;
        }
        let known: Vec<&str> = properties.keys().map(String::as_str).collect();
        let message = format!(
            "unknown field: remove it or correct its name (known here: {})",
            known.join(", ")
        );
        structural(issues, &path, &message);
    }
    for name in strings(&schema["required"]) {
        if !fields.contains_key(name) {
            structural(issues, &format!("{path}.{name}"), "is missing: add it");
        }
    }
}

fn check_array(schema: &Value, items: &[Value], path: &str, issues: &mut Vec<Issue>) {
    if let Some(min) = schema["minItems"].as_u64()
        && (items.len() as u64) < min
    {
        limit(issues, path, &format!("needs at least {min} entries"));
    }
    if let Some(max) = schema["maxItems"].as_u64()
        && items.len() as u64 > max
    {
        limit(issues, path, &format!("may have at most {max} entries"));
    }
    for (i, item) in items.iter().enumerate() {
        check(&schema["items"], item, &format!("{path}[{i}]"), issues);
    }
    let keys: Vec<&str> = strings(&schema["x-kubernetes-list-map-keys"]).collect();
    let is_set = schema["x-kubernetes-list-type"] == "set";
    if keys.is_empty() && !is_set {
        return;
    }
    for (i, item) in items.iter().enumerate() {
        let same = |other: &Value| {
            if is_set {
                other == item
            } else {
                keys.iter().all(|key| other[*key] == item[*key])
            }
        };
        if items[..i].iter().any(same) {
            let (path, what) = match keys.first() {
                Some(key) => (format!("{path}[{i}].{key}"), &item[*key]),
                None => (format!("{path}[{i}]"), item),
            };
            let message = format!("{what} is given twice: remove or rename one");
            limit(issues, &path, &message);
        }
    }
}

fn check_string(schema: &Value, text: &str, path: &str, issues: &mut Vec<Issue>) {
    let choices: Vec<&str> = strings(&schema["enum"]).collect();
    if !choices.is_empty() && !choices.contains(&text) {
        let message = format!("{text:?} is not one of {}", choices.join(", "));
        structural(issues, path, &message);
        return;
    }
    let length = text.chars().count() as u64;
    if let Some(min) = schema["minLength"].as_u64()
        && length < min
    {
        limit(issues, path, &format!("needs at least {min} characters"));
    }
    if let Some(max) = schema["maxLength"].as_u64()
        && length > max
    {
        limit(issues, path, &format!("may have at most {max} characters"));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Some(error) = rules::pattern_error(pattern, text)
    {
        limit(issues, path, error);
    }
}

fn check_integer(schema: &Value, value: &Value, path: &str, issues: &mut Vec<Issue>) {
    let number = value.as_i64().map_or(i128::from(u64::MAX), i128::from);
    let bound = |name: &str| schema[name].as_f64();
    #[allow(clippy::cast_precision_loss, reason = "bounds are far below 2^53")]
    let given = number as f64;
    let (min, max) = (bound("minimum"), bound("maximum"));
    if min.is_some_and(|min| given < min) || max.is_some_and(|max| given > max) {
        let message = match (min, max) {
            (Some(min), Some(max)) => format!("must be from {min} to {max}"),
            (Some(min), None) => format!("must be {min} or more"),
            (_, max) => format!("must be {} or less", max.unwrap_or_default()),
        };
        limit(issues, path, &message);
    }
}

fn structural(issues: &mut Vec<Issue>, path: &str, message: &str) {
    push(issues, path, message, true);
}

fn limit(issues: &mut Vec<Issue>, path: &str, message: &str) {
    push(issues, path, message, false);
}

fn push(issues: &mut Vec<Issue>, path: &str, message: &str, structural: bool) {
    issues.push(Issue {
        error: FieldError {
            path: path.to_owned(),
            message: message.to_owned(),
        },
        structural,
    });
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn article(kind: &str) -> &'static str {
    match kind {
        "object" => "an object with fields",
        "array" => "a list",
        "string" => "a string: put it in quotes if it looks like something else",
        "integer" => "a whole number",
        "boolean" => "true or false",
        _ => "of another type",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                if let Some(Value::String(pattern)) = fields.get("pattern") {
                    found.push(pattern.clone());
                }
                fields.values().for_each(|value| patterns(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| patterns(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_pattern_of_the_schemas_is_known() {
        for kind in Kind::ALL {
            let mut found = Vec::new();
            patterns(object_schema(kind), &mut found);
            for pattern in found {
                assert!(rules::is_known_pattern(&pattern), "{pattern}");
            }
        }
    }

    /// An unbounded list or string makes the API server refuse CEL rules for their cost.
    fn assert_bounded(schema: &Value, path: &str) {
        let Some(fields) = schema.as_object() else {
            return;
        };
        let is = |kind| schema["type"] == kind;
        if is("object") && schema["additionalProperties"].is_object() {
            assert!(
                fields.contains_key("maxProperties"),
                "{path} has no maxProperties"
            );
        }
        if is("array") {
            assert!(fields.contains_key("maxItems"), "{path} has no maxItems");
        }
        if is("string") && !fields.contains_key("enum") && schema["format"] != "date-time" {
            assert!(fields.contains_key("maxLength"), "{path} has no maxLength");
        }
        assert_ne!(schema["additionalProperties"], false, "{path}");
        if let Some(properties) = schema["properties"].as_object() {
            for (name, schema) in properties {
                assert_bounded(schema, &format!("{path}.{name}"));
            }
        }
        assert_bounded(&schema["items"], &format!("{path}[]"));
    }

    #[test]
    fn every_list_and_string_of_a_spec_is_bounded() {
        for kind in Kind::ALL {
            assert_bounded(&object_schema(kind)["properties"]["spec"], kind.name());
        }
    }

    fn assert_no_default_in_lists(schema: &Value, in_list: bool, path: &str) {
        assert!(
            !(in_list && schema.get("default").is_some()),
            "{path} has a default inside a list"
        );
        if let Some(properties) = schema["properties"].as_object() {
            for (name, schema) in properties {
                assert_no_default_in_lists(schema, in_list, &format!("{path}.{name}"));
            }
        }
        if let Some(items) = schema.get("items") {
            assert_no_default_in_lists(items, true, &format!("{path}[]"));
        }
    }

    /// Argo CD compares lists as a whole.
    #[test]
    fn defaults_stand_only_outside_lists() {
        for kind in Kind::ALL {
            let spec = &object_schema(kind)["properties"]["spec"];
            assert_no_default_in_lists(spec, false, kind.name());
        }
    }

    #[test]
    fn api_servers_know_every_format() {
        fn assert_known(schema: &Value, path: &str) {
            let format = schema["format"].as_str().unwrap_or("date-time");
            let known = ["date-time", "double", "float", "int32", "int64"];
            assert!(known.contains(&format), "{path} has format {format}");
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                assert_known(schema, &format!("{path}.{name}"));
            }
            for inner in ["items", "additionalProperties"] {
                if schema[inner].is_object() {
                    assert_known(&schema[inner], &format!("{path}[]"));
                }
            }
        }
        for kind in Kind::ALL {
            assert_known(object_schema(kind), kind.name());
        }
    }
}
