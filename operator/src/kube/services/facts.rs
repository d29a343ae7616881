//! The parts of a Service of type LoadBalancer that the operator keeps, and of one that was of that type.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use sluice_api::{
    ADDRESS_POOL_ANNOTATION, ADDRESSES_ANNOTATION, ExternalTrafficPolicy, IpFamily,
    MODE_ANNOTATION, SERVICE_CLASS, SERVICE_CONDITION, SHARE_ANNOTATION, ServerSelection, parse_ip,
};

/// The type of Services that are meant.
const TYPE: &str = "LoadBalancer";

/// What a Service of type LoadBalancer asks for, and what its status says.
#[derive(Clone, PartialEq, Debug, Default)]
pub(in crate::kube) struct Balanced {
    pub(super) uid: String,
    /// Its labels, by which pools choose the Services that they are for.
    pub(super) labels: BTreeMap<String, String>,
    /// Whether it is of that type still.
    is_of_type: bool,
    /// `spec.loadBalancerClass`.
    pub(super) class: Option<String>,
    pub(super) ports: Vec<Port>,
    /// The first one is the Service's own.
    pub(super) families: Vec<IpFamily>,
    /// Whether it goes without the second family where there is no address of it.
    pub(super) prefers_dual_stack: bool,
    /// `spec.sessionAffinity`. Its timeout does not count: a client stays with its endpoint.
    pub(super) server_selection: ServerSelection,
    /// The clients that may connect; none: all.
    pub(super) sources: Vec<String>,
    pub(super) external_traffic_policy: ExternalTrafficPolicy,
    /// `spec.loadBalancerIP`.
    pub(super) requested: Option<String>,
    pub(super) wishes: Wishes,
    /// `status.loadBalancer.ingress`, whoever wrote it.
    pub(super) ingress: Vec<LoadBalancerIngress>,
    /// `status.conditions`, whoever wrote them.
    pub(super) conditions: Vec<Condition>,
}

/// What its annotations say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Wishes {
    pub(super) mode: Option<String>,
    pub(super) pool: Option<String>,
    pub(super) addresses: Option<String>,
    pub(super) share_with: Option<String>,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Port {
    /// Empty where it is the only one.
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) number: i32,
}

impl Balanced {
    /// Reads a Service; `None` if it is of another type, and its status has nothing of ours.
    pub(in crate::kube) fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let is = |value: &Option<String>, what: &str| value.as_deref() == Some(what);
        let status = service.status.clone().unwrap_or_default();
        let balancer = status.load_balancer.unwrap_or_default();
        let facts = Self {
            is_of_type: is(&spec.type_, TYPE),
            uid: service.metadata.uid.clone().unwrap_or_default(),
            labels: service.metadata.labels.clone().unwrap_or_default(),
            class: spec.load_balancer_class.clone(),
            ports: spec.ports.iter().flatten().map(Port::of).collect(),
            families: families(spec),
            prefers_dual_stack: is(&spec.ip_family_policy, "PreferDualStack"),
            server_selection: if is(&spec.session_affinity, "ClientIP") {
                ServerSelection::ClientAddress
            } else {
                ServerSelection::Flow
            },
            sources: spec.load_balancer_source_ranges.clone().unwrap_or_default(),
            external_traffic_policy: if is(&spec.external_traffic_policy, "Local") {
                ExternalTrafficPolicy::Local
            } else {
                ExternalTrafficPolicy::Cluster
            },
            requested: spec
                .load_balancer_ip
                .clone()
                .filter(|text| !text.is_empty()),
            wishes: Wishes::of(service.metadata.annotations.as_ref()),
            ingress: balancer.ingress.unwrap_or_default(),
            conditions: status.conditions.unwrap_or_default(),
        };
        (facts.is_of_type || facts.condition().is_some()).then_some(facts)
    }

    /// Whether Sluice serves it: by its class, or by choice where it has none.
    pub(in crate::kube) fn is_ours(&self, without_class: bool) -> bool {
        let is_meant = match &self.class {
            Some(class) => class == SERVICE_CLASS,
            None => without_class,
        };
        self.is_of_type && is_meant
    }

    /// The addresses in its status.
    pub(super) fn published(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ingress.iter().filter_map(address)
    }

    /// What its status says of being served.
    pub(super) fn condition(&self) -> Option<&Condition> {
        let mut conditions = self.conditions.iter();
        conditions.find(|condition| condition.type_ == SERVICE_CONDITION)
    }
}

impl Wishes {
    fn of(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let wish = |name: &str| {
            let text = annotations?.get(name)?.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        Self {
            mode: wish(MODE_ANNOTATION),
            pool: wish(ADDRESS_POOL_ANNOTATION),
            addresses: wish(ADDRESSES_ANNOTATION),
            share_with: wish(SHARE_ANNOTATION),
        }
    }
}

impl Port {
    fn of(port: &ServicePort) -> Self {
        Self {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            number: port.port,
        }
    }
}

/// The address of an entry in a Service's status, if it is none by name.
pub(super) fn address(entry: &LoadBalancerIngress) -> Option<IpAddr> {
    parse_ip(entry.ip.as_deref()?)
}

fn families(spec: &ServiceSpec) -> Vec<IpFamily> {
    let families = spec.ip_families.iter().flatten();
    let families = families.filter_map(|family| match family.as_str() {
        "IPv4" => Some(IpFamily::IPv4),
        "IPv6" => Some(IpFamily::IPv6),
        _ => None,
    });
    families.collect()
}
