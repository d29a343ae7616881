//! The rules in the schemas, run by a CEL interpreter, against the same rules for files: they never disagree.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use kube_cel::{CompiledSchema, compile_schema, estimate_rule_cost};
use proptest::prelude::*;
use serde::Serialize;
use serde_json::Value;
use sluice_api::schema::object_schema;
use sluice_api::{
    AddressPoolSpec, AddressSharing, Allowed, Announce, CanaryStep, CanaryStrategy, CheckTls,
    DEFAULT_MIN_READY_PERCENT, ExternalTrafficPolicy, Forwarding, ForwardingMode, GrpcCheck,
    HealthCheck, HttpCheck, HttpMethod, IcmpCheck, IpFamily, Kind, L2Announcement, LabelSelector,
    MAX_POOLS, NoAnnouncement, OnDown, PoolSelection, Protocol, RealServerPoolSpec,
    RolloutPolicySpec, RolloutStrategy, ServerSelection, Servers, SignalAnalysis, Sources,
    StaticServer, StatusRange, TcpCheck, UdpCheck, Validate, VirtualServerAddress,
    VirtualServerPort, VirtualServerSpec, WeightedPool, WhenAllDown, default_bake_seconds,
};

fn spec_schema(kind: Kind) -> &'static Value {
    &object_schema(kind)["properties"]["spec"]
}

/// Messages of the rules in a schema.
fn rules(schema: &Value, found: &mut Vec<(String, String)>) {
    match schema {
        Value::Object(fields) => {
            for rule in fields
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let text = |name: &str| rule[name].as_str().expect("is a string").to_owned();
                found.push((text("rule"), text("message")));
            }
            fields.values().for_each(|value| rules(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| rules(value, found)),
        _ => {}
    }
}

fn messages(kind: Kind) -> BTreeSet<String> {
    let mut found = Vec::new();
    rules(spec_schema(kind), &mut found);
    found.into_iter().map(|(_, message)| message).collect()
}

/// The errors that CEL finds in a spec, and those that the validation of files finds, limits aside.
fn both<S: Serialize + Validate>(kind: Kind, spec: &S) -> (BTreeSet<String>, BTreeSet<String>) {
    let value = serde_json::to_value(spec).expect("is JSON");
    let cel = match kube_cel::validate(spec_schema(kind), &value, None) {
        Ok(()) => BTreeSet::new(),
        Err(errors) => errors
            .into_vec()
            .into_iter()
            .map(|error| error.message)
            .collect(),
    };
    let known = messages(kind);
    let own = spec
        .validate()
        .into_iter()
        .map(|error| error.message)
        .filter(|message| known.contains(message))
        .collect();
    (cel, own)
}

fn any_address() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "203.0.113.10",
        "203.0.113.11",
        "0.0.0.0",
        "10.0.0.01",
        "10.0.0.256",
        "10.0.0",
        "10.0.0.0/8",
        "2001:db8::1",
        "2001:DB8::2",
        "2001:db8::1%eth0",
        "::",
        "::1.2.3.4",
        "::ffff:1.2.3.4",
        "[::1]",
        "fe80::1",
        "2001:db8::1::2",
        "web",
        "",
        " 10.0.0.1",
    ])
    .prop_map(str::to_owned)
}

fn any_request() -> impl Strategy<Value = VirtualServerAddress> {
    let family = prop::sample::select(vec![IpFamily::IPv4, IpFamily::IPv6]);
    let any = (
        prop::option::of(any_address()),
        prop::option::of(family.clone()),
        prop::option::of(Just("edge".to_owned())),
    );
    let any = any.prop_map(|(ip, family, address_pool_name)| VirtualServerAddress {
        ip,
        family,
        address_pool_name,
    });
    let by_family = family.prop_map(|family| VirtualServerAddress {
        ip: None,
        family: Some(family),
        address_pool_name: None,
    });
    prop_oneof![
        any_address().prop_map(VirtualServerAddress::of),
        by_family,
        any
    ]
}

fn any_range() -> impl Strategy<Value = String> {
    let range = prop::sample::select(vec![
        "203.0.113.0/28",
        "203.0.113.1/28",
        "203.0.113.0/33",
        "2001:db8::/64",
        "::ffff:1.2.3.0/120",
        "203.0.113.1-203.0.113.9",
        "203.0.113.9-203.0.113.1",
        "203.0.113.1-",
        "-",
        "203.0.113.1-203.0.113.2-203.0.113.3",
        "2001:db8::1-2001:db8::9",
        "2001:db8::1-203.0.113.1",
    ]);
    prop_oneof![any_address(), range.prop_map(str::to_owned)]
}

fn any_source() -> impl Strategy<Value = String> {
    let block = prop::sample::select(vec![
        "198.51.100.0/24",
        "198.51.100.1/24",
        "198.51.100.1/32",
        "0.0.0.0/0",
        "10.0.0.0/+8",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0/8",
        "2001:db8::/32",
        "2001:DB8::/32",
        "2001:db8::1/32",
        "::/0",
        "::1/128",
        "::/129",
        "::ffff:1.2.3.0/120",
        "fe80::%eth0/64",
    ]);
    prop_oneof![any_range(), block.prop_map(str::to_owned)]
}

prop_compose! {
    fn any_virtual_server()(
        addresses in prop::collection::vec(any_request(), 0..4),
        ports in prop::collection::vec((any::<bool>(), 1_u16..4), 0..5),
        weights in prop::collection::vec(prop::sample::select(vec![0_u32, 0, 1, 9]), 0..4),
        sources in prop::option::of(prop::collection::vec(any_source(), 1..4)),
        further in 0..MAX_POOLS,
        fallback in prop::option::of(0..MAX_POOLS + 2),
    ) -> VirtualServerSpec {
        VirtualServerSpec {
            addresses,
            ports: ports
                .into_iter()
                .enumerate()
                .map(|(i, (tcp, port))| VirtualServerPort {
                    name: format!("p{i}"),
                    protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                    port,
                })
                .collect(),
            forwarding: Forwarding { mode: ForwardingMode::Nat },
            pool_selection: PoolSelection::Flow,
            server_selection: ServerSelection::Flow,
            external_traffic_policy: ExternalTrafficPolicy::Cluster,
            when_all_down: WhenAllDown::LastKnown,
            fallback_pool_name: fallback.map(|i| format!("v{i}")),
            min_ready_percent: DEFAULT_MIN_READY_PERCENT,
            sources: sources.map(|allow| Sources { allow }),
            pools: weights
                .into_iter()
                .chain(std::iter::repeat_n(0, further))
                .take(MAX_POOLS)
                .enumerate()
                .map(|(i, weight)| WeightedPool { name: format!("v{i}"), weight })
                .collect(),
        }
    }
}

prop_compose! {
    fn any_policy()(
        stable in "[ab]",
        candidate in "[ab]",
        weights in prop::collection::vec(0_u8..=100, 0..4),
        sorted in any::<bool>(),
    ) -> RolloutPolicySpec {
        let mut weights = weights;
        if sorted {
            weights.sort_unstable();
        }
        let steps = weights
            .into_iter()
            .map(|weight| CanaryStep { weight, pause_seconds: None, gate: None })
            .collect();
        RolloutPolicySpec {
            virtual_server_name: "web".to_owned(),
            stable_pool_name: stable,
            candidate_pool_name: candidate,
            strategy: RolloutStrategy { canary: CanaryStrategy { steps } },
            signal_analysis: SignalAnalysis::default(),
            bake_seconds: default_bake_seconds(),
        }
    }
}

fn any_check() -> impl Strategy<Value = HealthCheck> {
    let range = (100_u16..600, 100_u16..600).prop_map(|(min, max)| StatusRange { min, max });
    let tls = (prop::option::of(Just("PEM".to_owned())), any::<bool>());
    let tls = tls.prop_map(|(ca_certificates, skip_verification)| CheckTls {
        server_name: None,
        ca_certificates,
        skip_verification,
    });
    let grpc = prop::option::of(tls.clone()).prop_map(|tls| GrpcCheck {
        service: String::new(),
        tls,
    });
    let http = (prop::collection::vec(range, 0..3), prop::option::of(tls));
    let http = http.prop_map(|(expected_statuses, tls)| HttpCheck {
        method: HttpMethod::Get,
        path: "/".to_owned(),
        host: None,
        headers: Vec::new(),
        expected_statuses,
        body_contains: None,
        tls,
    });
    let udp = Just(UdpCheck {
        send: "ping".to_owned(),
        expect: None,
    });
    let tcp = prop::option::of(Just(TcpCheck {}));
    let icmp = prop::option::of(Just(IcmpCheck {}));
    let by_request = (prop::option::of(http), prop::option::of(grpc));
    let ways = (tcp, by_request, prop::option::of(udp), icmp);
    let others = (prop::option::of(Just(80)), 1_u32..4, 500_u32..4_000);
    (ways, others).prop_map(
        |((tcp, (http, grpc), udp, icmp), (port, seconds, timeout))| HealthCheck {
            tcp,
            http,
            grpc,
            udp,
            icmp,
            port,
            interval_seconds: seconds,
            jitter_percent: 0,
            timeout_milliseconds: timeout,
            rise: 2,
            fall: 3,
            max_response_milliseconds: None,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn virtual_servers(spec in any_virtual_server()) {
        let (cel, own) = both(Kind::VirtualServer, &spec);
        prop_assert_eq!(cel, own);
    }

    #[test]
    fn pools(addresses in prop::collection::vec(any_address(), 1..4), health_check in prop::option::of(any_check().prop_map(Box::new))) {
        let static_servers = addresses
            .into_iter()
            .enumerate()
            .map(|(i, address)| StaticServer {
                name: format!("s{i}"),
                address,
                weight: None,
                target_ports: Vec::new(),
            })
            .collect();
        let servers = Servers { static_servers, ..Servers::default() };
        let spec = RealServerPoolSpec { servers, target_ports: Vec::new(), health_check, warmup: None, drain: None, on_down: OnDown::Keep };
        let (cel, own) = both(Kind::RealServerPool, &spec);
        prop_assert_eq!(cel, own);
    }

    #[test]
    fn address_pools(
        addresses in prop::collection::vec(any_range(), 1..4),
        allow in prop::option::of((
            prop::option::of(Just(LabelSelector::default())), any::<bool>(), prop::option::of(Just(LabelSelector::default())),
        )),
        announce in prop::option::of((
            prop::option::of((
                prop::option::of(Just(LabelSelector::default())), 1..3_u8, prop::collection::vec(any_address(), 0..3),
            )),
            any::<bool>(),
        )),
    ) {
        let allow = allow.map(|(namespace_selector, is_named, service_selector)| Allowed {
            namespaces: is_named.then(|| "shop".to_owned()).into_iter().collect(),
            namespace_selector,
            service_selector,
        });
        let announce = announce.map(|(l2, is_none)| Announce {
            l2: l2.map(|(node_selector, groups, gateways)| L2Announcement { interfaces: Vec::new(), node_selector, groups, gateways }),
            none: is_none.then(NoAnnouncement::default),
        });
        let spec = AddressPoolSpec {
            addresses,
            allow,
            priority: 0,
            auto_assign: true,
            sharing: AddressSharing::Namespace,
            announce,
        };
        let (cel, own) = both(Kind::AddressPool, &spec);
        prop_assert_eq!(cel, own);
    }

    #[test]
    fn policies(spec in any_policy()) {
        let (cel, own) = both(Kind::RolloutPolicy, &spec);
        prop_assert_eq!(cel, own);
    }
}

fn assert_cheap(schema: &CompiledSchema, path: &str) {
    for rule in &schema.validations {
        assert!(rule.is_ok(), "{path}: {rule:?}");
        let Ok(rule) = rule else { continue };
        let warnings = estimate_rule_cost(&rule.rule.rule, schema);
        assert!(warnings.is_empty(), "{path}: {warnings:?}");
    }
    for (name, property) in &schema.properties {
        assert_cheap(property, &format!("{path}.{name}"));
    }
    if let Some(items) = &schema.items {
        assert_cheap(items, &format!("{path}[]"));
    }
}

#[test]
fn every_rule_compiles_and_is_cheap_enough_for_the_api_server() {
    let mut count = 0;
    for kind in Kind::ALL {
        assert_cheap(&compile_schema(spec_schema(kind)), kind.name());
        count += messages(kind).len();
    }
    assert!(count >= 6, "the rules are gone");
}
