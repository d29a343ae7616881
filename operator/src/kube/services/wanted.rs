//! From a Service to the virtual server and the pool that serve it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_api::{
    DEFAULT_MIN_READY_PERCENT, ExternalTrafficPolicy, Forwarding, ForwardingMode, IpFamily,
    MAX_PORTS, MAX_SOURCES, OnDown, PoolSelection, Protocol, RealServerPoolSpec, Servers, Sources,
    VirtualServerAddress, VirtualServerPort, VirtualServerSpec, WeightedPool, WhenAllDown,
    name_for_service, parse_ip,
};

use super::facts::{Balanced, Port};

/// What serves a Service.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Wanted {
    pub(super) virtual_server: VirtualServerSpec,
    pub(super) pool: RealServerPoolSpec,
}

/// Why nothing serves a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Objection {
    /// In CamelCase; part of the API.
    pub(super) reason: &'static str,
    /// The field and the remedy.
    pub(super) message: String,
}

impl Objection {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// What the Service's namespace may have, as the ledger knows it.
pub(super) trait Offers {
    /// Whether an AddressPool, this one if one is named, gives addresses of a family to the namespace.
    fn has(&self, family: IpFamily, pool: Option<&str>) -> bool;
    /// The addresses that another Service of the namespace has by now; none if there is no such Service, or it is not served.
    fn addresses_of(&self, service: &str) -> &[IpAddr];
}

/// The virtual server and the pool of a Service of this name.
pub(super) fn wanted(
    name: &str,
    service: &Balanced,
    offers: &impl Offers,
) -> Result<Wanted, Objection> {
    let pool = name_for_service(name);
    let virtual_server = VirtualServerSpec {
        addresses: addresses(service, offers)?,
        ports: ports(service)?,
        forwarding: Forwarding {
            mode: mode(service)?,
        },
        pool_selection: PoolSelection::default(),
        server_selection: service.server_selection,
        external_traffic_policy: service.external_traffic_policy,
        when_all_down: WhenAllDown::LastKnown,
        fallback_pool_name: None,
        min_ready_percent: DEFAULT_MIN_READY_PERCENT,
        sources: sources(service)?,
        pools: vec![WeightedPool {
            name: pool,
            weight: 1,
        }],
    };
    let pool = RealServerPoolSpec {
        servers: Servers {
            service_name: Some(name.to_owned()),
            ..Servers::default()
        },
        target_ports: Vec::new(),
        health_check: None,
        warmup: None,
        drain: None,
        on_down: OnDown::Keep,
    };
    Ok(Wanted {
        virtual_server,
        pool,
    })
}

/// The clients that may connect. Kubernetes takes blocks whose lower bits are not 0, too.
fn sources(service: &Balanced) -> Result<Option<Sources>, Objection> {
    let count = service.sources.len();
    if count > MAX_SOURCES {
        return Err(Objection::new(
            "TooManySourceRanges",
            format!(
                "spec.loadBalancerSourceRanges has {count} entries, {MAX_SOURCES} are possible: join some"
            ),
        ));
    }
    let mut allow = BTreeSet::new();
    for text in &service.sources {
        let block = text.trim().parse::<IpNet>();
        let block = block.map_err(|_| {
            let message =
                format!("spec.loadBalancerSourceRanges has {text}, which is no block of addresses");
            Objection::new("InvalidSourceRange", message)
        })?;
        allow.insert(block.trunc().to_string());
    }
    let allow: Vec<String> = allow.into_iter().collect();
    Ok((!allow.is_empty()).then_some(Sources { allow }))
}

fn mode(service: &Balanced) -> Result<ForwardingMode, Objection> {
    const MODES: [ForwardingMode; 4] = [
        ForwardingMode::Nat,
        ForwardingMode::FullNat,
        ForwardingMode::Dr,
        ForwardingMode::Tun,
    ];
    let Some(text) = &service.wishes.mode else {
        return Ok(match service.external_traffic_policy {
            // The only one by which pods answer whichever node they are on.
            ExternalTrafficPolicy::Cluster => ForwardingMode::FullNat,
            // The pods are on the director itself, and see who the client is.
            ExternalTrafficPolicy::Local => ForwardingMode::Nat,
        });
    };
    let mut modes = MODES.into_iter();
    modes.find(|mode| mode.name() == text).ok_or_else(|| {
        let message = format!(
            "the annotation {} is {text}: give NAT, FullNAT, DR or TUN",
            sluice_api::MODE_ANNOTATION
        );
        Objection::new("InvalidAnnotation", message)
    })
}

/// The protocol of a port, if packets of it can be balanced.
pub(super) fn protocol(port: &Port) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.name() == port.protocol)
}

fn ports(service: &Balanced) -> Result<Vec<VirtualServerPort>, Objection> {
    let ports = service.ports.iter();
    let ports: Vec<VirtualServerPort> = ports
        .filter_map(|port| {
            let (protocol, number) = (protocol(port)?, u16::try_from(port.number).ok()?);
            // Endpoints name their ports as the Service does; the only port needs no name.
            let name = if port.name.is_empty() {
                format!("{protocol}-{number}")
            } else {
                port.name.clone()
            };
            Some(VirtualServerPort {
                name,
                protocol,
                port: number,
            })
        })
        .collect();
    match ports.len() {
        0 => Err(Objection::new(
            "ProtocolNotSupported",
            "spec.ports has no port of TCP or UDP, and no other protocol can be served: give one",
        )),
        1..=MAX_PORTS => Ok(ports),
        count => Err(Objection::new(
            "TooManyPorts",
            format!(
                "spec.ports has {count} ports of TCP and UDP, {MAX_PORTS} are possible: use several Services"
            ),
        )),
    }
}

/// What it asks for in each of its families: the address that it shares, the one that it names, or any.
fn addresses(
    service: &Balanced,
    offers: &impl Offers,
) -> Result<Vec<VirtualServerAddress>, Objection> {
    let shared = shared(service, offers)?;
    let mut certain = if shared.is_empty() {
        named(service)?
    } else {
        shared
    };
    let pool = service.wishes.pool.as_deref();
    let mut addresses = Vec::new();
    for (i, family) in service.families.iter().enumerate() {
        if let Some(ip) = certain.remove(family) {
            addresses.push(VirtualServerAddress::of(ip.to_string()));
        } else if i == 0 || !service.prefers_dual_stack || offers.has(*family, pool) {
            addresses.push(VirtualServerAddress {
                ip: None,
                family: Some(*family),
                address_pool_name: pool.map(str::to_owned),
            });
        }
    }
    match certain.into_iter().next() {
        None => Ok(addresses),
        Some((family, ip)) => Err(Objection::new(
            "AddressFamilyMismatch",
            format!(
                "{ip} is asked for, and spec.ipFamilies has no {family}: set spec.ipFamilyPolicy and spec.ipFamilies so, or ask for another address"
            ),
        )),
    }
}

fn shared(
    service: &Balanced,
    offers: &impl Offers,
) -> Result<BTreeMap<IpFamily, IpAddr>, Objection> {
    let Some(other) = service.wishes.share_with.as_deref() else {
        return Ok(BTreeMap::new());
    };
    let addresses = offers.addresses_of(other);
    if addresses.is_empty() {
        let message = format!(
            "the annotation {} names Service {other}, which has no address of Sluice's yet: is it of type LoadBalancer and class {}?",
            sluice_api::SHARE_ANNOTATION,
            sluice_api::SERVICE_CLASS
        );
        return Err(Objection::new("NoAddressToShare", message));
    }
    let addresses = addresses
        .iter()
        .map(|&address| (IpFamily::of(address), address));
    // Of the other's addresses, those of this Service's families.
    Ok(addresses
        .filter(|(family, _)| service.families.contains(family))
        .collect())
}

/// The addresses that are asked for by name: by annotation, else by `spec.loadBalancerIP`.
fn named(service: &Balanced) -> Result<BTreeMap<IpFamily, IpAddr>, Objection> {
    let by_annotation = service.wishes.addresses.as_deref();
    let (field, texts) = match (by_annotation, service.requested.as_deref()) {
        (Some(texts), _) => (
            format!("the annotation {}", sluice_api::ADDRESSES_ANNOTATION),
            texts,
        ),
        (None, Some(text)) => ("spec.loadBalancerIP".to_owned(), text),
        (None, None) => return Ok(BTreeMap::new()),
    };
    let mut named = BTreeMap::new();
    for text in texts.split(',').map(str::trim) {
        let Some(address) = parse_ip(text) else {
            let message = format!("{field} has {text}, which is no IPv4 or IPv6 address");
            return Err(Objection::new("InvalidAddress", message));
        };
        if named.insert(IpFamily::of(address), address).is_some() {
            let message = format!(
                "{field} has two addresses of one family: a further one needs a Service of its own"
            );
            return Err(Objection::new("InvalidAddress", message));
        }
    }
    Ok(named)
}
