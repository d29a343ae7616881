//! Validation of specs without an API server: the schema's limits and the CEL rules of [`crate::schema`].

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use crate::address::parse_ip;
use crate::address_range::AddressRange;
use crate::limits::MAX_POOLS;
use crate::object::Kind;
use crate::rules;
use crate::schema::{self, FieldError};
use crate::sources::parse_source;
use crate::{
    AddressPoolSpec, HealthCheck, IpFamily, L2Announcement, LabelOperator, LabelSelector,
    LoadBalancerNodeSpec, RealServerPoolSpec, RolloutPolicySpec, VirtualServerSpec,
};

/// A spec that can be validated.
pub trait Validate {
    /// Everything that is wrong by itself, other objects aside.
    fn validate(&self) -> Vec<FieldError>;
}

impl Validate for VirtualServerSpec {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = limits(Kind::VirtualServer, self);
        let mut families = BTreeSet::new();
        for (i, address) in self.addresses.iter().enumerate() {
            let path = format!("spec.addresses[{i}]");
            let is_by_family = address.family.is_some();
            let is_one = match address.ip {
                Some(_) => !is_by_family && address.address_pool_name.is_none(),
                None => is_by_family,
            };
            if !is_one {
                errors.push(FieldError::new(&path, rules::ONE_REQUEST));
            }
            let certain = address.certain();
            if address.ip.is_some() && certain.is_none() {
                errors.push(FieldError::new(format!("{path}.ip"), rules::IP_ADDRESS));
            }
            let by_family = address.family.filter(|_| address.ip.is_none());
            let family = certain.map(IpFamily::of).or(by_family);
            if family.is_some_and(|family| !families.insert(family)) {
                errors.push(FieldError::new(path, rules::ONE_PER_FAMILY));
            }
        }
        let mut ports = BTreeSet::new();
        for (i, port) in self.ports.iter().enumerate() {
            if !ports.insert((port.protocol, port.port)) {
                let path = format!("spec.ports[{i}].port");
                errors.push(FieldError::new(path, rules::UNIQUE_PORT));
            }
        }
        if self.pools.iter().all(|pool| pool.weight == 0) {
            errors.push(FieldError::new("spec.pools[*].weight", rules::SOME_WEIGHT));
        }
        if self.pools.len() >= MAX_POOLS && self.further_pool().is_some() {
            errors.push(FieldError::new("spec", rules::FALLBACK_FITS));
        }
        let allow = self.sources.iter().flat_map(|sources| &sources.allow);
        for (i, text) in allow.enumerate() {
            if parse_source(text).is_none() {
                let path = format!("spec.sources.allow[{i}]");
                errors.push(FieldError::new(path, rules::SOURCE_BLOCKS));
            }
        }
        errors
    }
}

impl Validate for RealServerPoolSpec {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = limits(Kind::RealServerPool, self);
        let servers = &self.servers;
        let sources = [
            servers.selector.is_some(),
            servers.service_name.is_some(),
            !servers.static_servers.is_empty(),
        ];
        if sources.iter().filter(|given| **given).count() != 1 {
            errors.push(FieldError::new("spec.servers", rules::ONE_SOURCE));
        }
        let path = "spec.servers.selector";
        errors.extend(servers.selector.iter().flat_map(|it| selector(path, it)));
        for (i, server) in servers.static_servers.iter().enumerate() {
            if parse_ip(&server.address).is_none() {
                let path = format!("spec.servers.static[{i}].address");
                errors.push(FieldError::new(path, rules::IP_ADDRESS));
            }
        }
        let check = self.health_check.as_deref().into_iter();
        errors.extend(check.flat_map(health_check));
        errors
    }
}

impl Validate for RolloutPolicySpec {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = limits(Kind::RolloutPolicy, self);
        if self.stable_pool_name == self.candidate_pool_name {
            errors.push(FieldError::new("spec.candidatePoolName", rules::TWO_POOLS));
        }
        let steps = &self.strategy.canary.steps;
        if let Some(i) = (1..steps.len()).find(|&i| steps[i].weight < steps[i - 1].weight) {
            let path = format!("spec.strategy.canary.steps[{i}].weight");
            errors.push(FieldError::new(path, rules::STEPS_RISE));
        }
        errors
    }
}

impl Validate for AddressPoolSpec {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = limits(Kind::AddressPool, self);
        for (i, text) in self.addresses.iter().enumerate() {
            if let Err(message) = AddressRange::parse(text) {
                let path = format!("spec.addresses[{i}]");
                errors.push(FieldError::new(path, message));
            }
        }
        if let Some(announce) = &self.announce {
            if announce.l2.is_some() == announce.none.is_some() {
                errors.push(FieldError::new("spec.announce", rules::ONE_ANNOUNCEMENT));
            }
            errors.extend(announce.l2.iter().flat_map(gateways));
            let path = "spec.announce.l2.nodeSelector";
            let l2 = announce.l2.iter();
            let selector = l2.filter_map(|l2| l2.node_selector.as_ref());
            errors.extend(selector.flat_map(|it| self::selector(path, it)));
        }
        let Some(allow) = &self.allow else {
            return errors;
        };
        let selectors = [
            ("spec.allow.namespaceSelector", &allow.namespace_selector),
            ("spec.allow.serviceSelector", &allow.service_selector),
        ];
        if allow.namespaces.is_empty() && selectors.iter().all(|(_, it)| it.is_none()) {
            errors.push(FieldError::new("spec.allow", rules::SOME_ALLOWED));
        }
        for (path, selector) in selectors {
            let selector = selector.iter();
            errors.extend(selector.flat_map(|it| self::selector(path, it)));
        }
        errors
    }
}

impl Validate for LoadBalancerNodeSpec {
    fn validate(&self) -> Vec<FieldError> {
        limits(Kind::LoadBalancerNode, self)
    }
}

fn health_check(check: &HealthCheck) -> Vec<FieldError> {
    let path = "spec.healthCheck";
    let mut errors = Vec::new();
    if !check.has_one_way() {
        errors.push(FieldError::new(path, rules::ONE_CHECK));
    }
    if !check.fits() {
        let path = format!("{path}.timeoutMilliseconds");
        errors.push(FieldError::new(path, rules::TIMEOUT_FITS));
    }
    if !check.may_have_port() {
        errors.push(FieldError::new(format!("{path}.port"), rules::NO_PORT));
    }
    let ranges = check.http.iter().flat_map(|http| &http.expected_statuses);
    for (i, range) in ranges.enumerate() {
        if range.min > range.max {
            let path = format!("{path}.http.expectedStatuses[{i}]");
            errors.push(FieldError::new(path, rules::RANGE_RISES));
        }
    }
    for (field, _) in check.tls().filter(|(_, tls)| !tls.has_one_trust()) {
        let path = format!("{path}.{field}");
        errors.push(FieldError::new(path, rules::ONE_TRUST));
    }
    errors
}

fn gateways(l2: &L2Announcement) -> Vec<FieldError> {
    let path = "spec.announce.l2";
    let mut errors = Vec::new();
    if !l2.gateways.is_empty() && l2.groups != 1 {
        errors.push(FieldError::new(path, rules::ONE_GATEWAY_GROUP));
    }
    for (i, gateway) in l2.gateways.iter().enumerate() {
        if parse_ip(gateway).is_none() {
            let path = format!("{path}.gateways[{i}]");
            errors.push(FieldError::new(path, rules::IP_ADDRESS));
        }
    }
    errors
}

fn selector(path: &str, selector: &LabelSelector) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if selector.match_labels.is_empty() && selector.match_expressions.is_empty() {
        errors.push(FieldError::new(path, rules::SOME_CONDITION));
    }
    for (i, requirement) in selector.match_expressions.iter().enumerate() {
        let needs_values = matches!(
            requirement.operator,
            LabelOperator::In | LabelOperator::NotIn
        );
        if needs_values == requirement.values.is_empty() {
            let path = format!("{path}.matchExpressions[{i}].values");
            errors.push(FieldError::new(path, rules::VALUES_FIT_OPERATOR));
        }
    }
    errors
}

fn limits(kind: Kind, spec: &impl Serialize) -> Vec<FieldError> {
    let value = serde_json::to_value(spec).unwrap_or(Value::Null);
    schema::check_spec(kind, &value)
        .into_iter()
        .map(|issue| issue.error)
        .collect()
}
