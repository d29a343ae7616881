//! What a Service's status is to say: the addresses at which it is served, and why not.
//!
//! Entries and conditions of others stay as they are.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, PortStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use sluice_api::{SERVICE_CONDITION, Time, UnheldReason, VirtualServer};

use super::facts::{Balanced, address};
use super::wanted::{Objection, protocol};
use crate::managed;

/// How kube-proxy takes the address: what leaves a node for it is balanced there (Kubernetes API reference, `LoadBalancerIngress`).
const IP_MODE: &str = "VIP";
/// Why a port of a protocol other than TCP and UDP does not answer.
const PORT_ERROR: &str = "sluice.dev/ProtocolNotSupported";

/// Whether a Service is served, for its condition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    pub(super) is_ready: bool,
    /// Whether somebody has to do something.
    pub(super) is_stalled: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Standing {
    /// That of a Service which this virtual server serves at these addresses, one of which nobody may answer for, or which is not
    /// served for this reason.
    pub(super) fn of(
        object: Option<&VirtualServer>,
        addresses: &[IpAddr],
        unheld: Option<(IpAddr, Option<UnheldReason>)>,
        objection: Option<Objection>,
    ) -> Self {
        if let Some(Objection { reason, message }) = objection {
            return Self::stalled(reason, message);
        }
        let status = object.and_then(|object| object.status.as_ref());
        let conditions = status.map_or(&[][..], |status| &status.conditions);
        let server = managed::Standing::of(conditions);
        if let Some(server) = &server
            && server.stalled
        {
            return Self::stalled(server.reason, server.message);
        }
        if let Some((address, reason)) = unheld {
            let why = reason.map_or("", unheld_because);
            let message = format!("no director answers for {address}{why}");
            return Self::stalled("NoHolder", message);
        }
        match server {
            _ if !addresses.is_empty() => Self {
                is_ready: true,
                ..Self::waits("Served", "")
            },
            Some(server) if !server.ready => Self::waits(server.reason, server.message),
            _ => Self::waits(
                "AwaitingHolder",
                "no director answers for its addresses yet",
            ),
        }
    }

    fn waits(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            is_ready: false,
            is_stalled: false,
            reason: reason.into(),
            message: message.into(),
        }
    }

    fn stalled(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            is_stalled: true,
            ..Self::waits(reason, message)
        }
    }
}

/// Why nobody answers for an address, after the statement that nobody does.
const fn unheld_because(reason: UnheldReason) -> &'static str {
    match reason {
        UnheldReason::NoCandidate => {
            ": all are drained or excluded, or their programs are not in place; see their LoadBalancerNodes"
        }
        UnheldReason::NoLocalServer => {
            ": spec.externalTrafficPolicy is Local, and none has a ready endpoint; see that pods on directors are ready"
        }
        UnheldReason::LeaseRefused => {
            ": the API server does not take what they write into its Lease; see their logs"
        }
        UnheldReason::NoWitness => ": they hear nobody at all on the link; see that it is not cut",
        UnheldReason::AddressInUse => ": another host has it; take it off that host",
    }
}

/// The parts of a Service's status that are written together.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Told {
    pub(super) ingress: Vec<LoadBalancerIngress>,
    pub(super) conditions: Vec<Condition>,
}

impl Told {
    /// What stands.
    pub(super) fn before(service: &Balanced) -> Self {
        Self {
            ingress: service.ingress.clone(),
            conditions: service.conditions.clone(),
        }
    }

    /// With these addresses as ours. `is_own` says of an address whether an entry of it can only be ours.
    pub(super) fn of(
        service: &Balanced,
        addresses: &[IpAddr],
        is_own: impl Fn(IpAddr) -> bool,
        standing: Option<&Standing>,
        now: &Time,
    ) -> Self {
        let is_foreign = |entry: &&LoadBalancerIngress| !address(entry).is_some_and(&is_own);
        let foreign = service.ingress.iter().filter(is_foreign).cloned();
        let ports = ports(service);
        let own = addresses.iter().map(|address| LoadBalancerIngress {
            ip: Some(address.to_string()),
            ip_mode: Some(IP_MODE.to_owned()),
            ports: ports.clone(),
            ..LoadBalancerIngress::default()
        });
        let others = service.conditions.iter();
        let others = others.filter(|condition| condition.type_ != SERVICE_CONDITION);
        let own_condition = standing.map(|standing| condition(service, standing, now));
        Self {
            ingress: foreign.chain(own).collect(),
            conditions: others.cloned().chain(own_condition).collect(),
        }
    }
}

/// All ports, with what is wrong with some; `None`: nothing is.
fn ports(service: &Balanced) -> Option<Vec<PortStatus>> {
    let ports = service.ports.iter();
    let ports: Vec<PortStatus> = ports
        .map(|port| PortStatus {
            port: port.number,
            protocol: port.protocol.clone(),
            error: protocol(port).is_none().then(|| PORT_ERROR.to_owned()),
        })
        .collect();
    let is_any_wrong = ports.iter().any(|port| port.error.is_some());
    is_any_wrong.then_some(ports)
}

fn condition(service: &Balanced, standing: &Standing, now: &Time) -> Condition {
    let status = if standing.is_ready { "True" } else { "False" };
    let before = service.condition();
    let unchanged = before.filter(|before| before.status == status);
    let since = unchanged.map_or(now, |before| &before.last_transition_time);
    Condition {
        last_transition_time: since.clone(),
        message: standing.message.clone(),
        observed_generation: None,
        reason: standing.reason.clone(),
        status: status.to_owned(),
        type_: SERVICE_CONDITION.to_owned(),
    }
}
