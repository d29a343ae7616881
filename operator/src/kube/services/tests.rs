//! What Services lead to, without an API server.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use sluice_api::jiff::Timestamp;
use sluice_api::{IpFamily, LoadBalancerNodeStatus, RealServerPool, Time};
use sluice_kube::{Item, Stamp};

use super::wanted::wanted;
use super::write::{Job, Plan, plan};
use super::*;
use crate::core::{Node, Standing as NodeStanding, Trust};
use crate::kube::facts::ServiceFacts;

const VIP: &str = "203.0.113.7";
const OWNED: &str = "web.service.sluice.dev";

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn now() -> Time {
    Time(Timestamp::from_second(1_700_000_000).expect("a time"))
}

/// A Service of type LoadBalancer with a port 80; `change` is laid over it.
fn service(change: &Value) -> Value {
    let mut service = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "s1"},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "sluice.dev/sluice",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP"}],
        },
    });
    merge(&mut service, change);
    service
}

fn merge(to: &mut Value, from: &Value) {
    match (to, from) {
        (Value::Object(to), Value::Object(from)) => {
            for (name, value) in from {
                merge(to.entry(name).or_insert(Value::Null), value);
            }
        }
        (to, from) => *to = from.clone(),
    }
}

fn facts(service: &Value) -> ServiceFacts {
    let service: Service = serde_json::from_value(service.clone()).expect("a Service");
    ServiceFacts::of(service)
}

/// Gives addresses of some families, and knows the addresses of some Services.
#[derive(Default)]
struct Given {
    families: Vec<IpFamily>,
    others: BTreeMap<String, Vec<IpAddr>>,
}

impl Offers for Given {
    fn has(&self, family: IpFamily, _: Option<&str>) -> bool {
        self.families.contains(&family)
    }
    fn addresses_of(&self, service: &str) -> &[IpAddr] {
        self.others.get(service).map_or(&[], Vec::as_slice)
    }
}

/// The spec of the virtual server, or the reason why there is none.
fn asked(change: &Value, offers: &Given) -> Result<Value, &'static str> {
    let facts = facts(&service(change));
    let balanced = facts.balanced.expect("of type LoadBalancer");
    let wanted = wanted("web", &balanced, offers).map_err(|objection| objection.reason)?;
    assert_eq!(wanted.pool.servers.service_name.as_deref(), Some("web"));
    Ok(serde_json::to_value(wanted.virtual_server).expect("JSON"))
}

#[test]
fn a_service_becomes_a_virtual_server() {
    let spec = asked(&json!({}), &Given::default()).expect("served");
    let expected = json!({
        "addresses": [{"family": "IPv4"}],
        "ports": [{"name": "tcp-80", "protocol": "TCP", "port": 80}],
        "forwarding": {"mode": "FullNAT"},
        "poolSelection": "Flow",
        "serverSelection": "Flow",
        "externalTrafficPolicy": "Cluster",
        "whenAllDown": "LastKnown",
        "minReadyPercent": 1,
        "pools": [{"name": OWNED, "weight": 1}],
    });
    assert_eq!(spec, expected);

    let ports = json!({"spec": {"ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "sig", "port": 99, "protocol": "SCTP"},
    ]}});
    let spec = asked(&ports, &Given::default()).expect("served");
    let expected = json!([
        {"name": "dns", "protocol": "UDP", "port": 53},
        {"name": "dns-tcp", "protocol": "TCP", "port": 53},
    ]);
    assert_eq!(spec["ports"], expected, "SCTP is left out");
    let sticky = json!({"spec": {"sessionAffinity": "ClientIP"}});
    let spec = asked(&sticky, &Given::default()).expect("served");
    assert_eq!(spec["serverSelection"], "ClientAddress");
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let spec = asked(&local, &Given::default()).expect("served");
    assert_eq!(spec["externalTrafficPolicy"], "Local");
    assert_eq!(spec["forwarding"]["mode"], "NAT", "so pods see the client");
    let ranges = ["10.1.2.3/8", "10.0.0.0/8", "2001:db8::/32"];
    let few = json!({"spec": {"loadBalancerSourceRanges": ranges}});
    let spec = asked(&few, &Given::default()).expect("served");
    assert_eq!(
        spec["sources"]["allow"],
        json!(["10.0.0.0/8", "2001:db8::/32"])
    );
}

fn annotated(mut change: Value, annotations: &Value) -> Value {
    change["metadata"] = json!({"annotations": annotations});
    change
}

fn dual(policy: &str) -> Value {
    json!({"spec": {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": policy}})
}

fn assert_addresses(change: &Value, offers: &Given, expected: &Result<Value, &str>) {
    let spec = asked(change, offers);
    let addresses = spec.map(|spec| spec["addresses"].clone());
    assert_eq!(addresses, *expected, "{change}");
}

#[test]
fn addresses_are_asked_for_by_family() {
    let both = Given {
        families: vec![IpFamily::IPv4, IpFamily::IPv6],
        ..Given::default()
    };
    let none = Given::default();
    let (v4, v6) = (json!({"family": "IPv4"}), json!({"family": "IPv6"}));
    let pool = annotated(json!({}), &json!({"sluice.dev/address-pool": "edge"}));
    let in_edge = json!({"family": "IPv4", "addressPoolName": "edge"});
    for (change, offers, expected) in [
        (dual("RequireDualStack"), &none, json!([v6, v4])),
        (dual("PreferDualStack"), &none, json!([v6])),
        (dual("PreferDualStack"), &both, json!([v6, v4])),
        (pool, &none, json!([in_edge])),
    ] {
        assert_addresses(&change, offers, &Ok(expected));
    }
}

#[test]
fn addresses_are_asked_for_by_name() {
    let of = |texts: &str| json!({"sluice.dev/addresses": texts});
    let single = |texts: &str| annotated(json!({}), &of(texts));
    let both = annotated(dual("RequireDualStack"), &of("2001:db8::7, 203.0.113.7"));
    let by_field = json!({"spec": {"loadBalancerIP": VIP}});
    for (change, expected) in [
        (by_field, Ok(json!([{"ip": VIP}]))),
        (both, Ok(json!([{"ip": "2001:db8::7"}, {"ip": VIP}]))),
        (single("2001:db8::7"), Err("AddressFamilyMismatch")),
        (single("here"), Err("InvalidAddress")),
        (single("192.0.2.3,192.0.2.4"), Err("InvalidAddress")),
    ] {
        assert_addresses(&change, &Given::default(), &expected);
    }
}

#[test]
fn addresses_of_another_service_are_shared() {
    let other = Given {
        others: [("dns".to_owned(), vec![VIP.parse().expect("an address")])].into(),
        ..Given::default()
    };
    let with = |name: &str| annotated(json!({}), &json!({"sluice.dev/share-addresses-with": name}));
    assert_addresses(&with("dns"), &other, &Ok(json!([{"ip": VIP}])));
    assert_addresses(&with("no"), &other, &Err("NoAddressToShare"));
}

#[test]
fn what_cannot_be_served_is_refused_with_a_reason() {
    let ports = |count: u16| {
        let port = |port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"});
        json!({"spec": {"ports": (1..=count).map(port).collect::<Vec<_>>()}})
    };
    assert!(asked(&ports(32), &Given::default()).is_ok());
    let sctp = json!({"spec": {"ports": [{"port": 99, "protocol": "SCTP"}]}});
    let mode = annotated(json!({}), &json!({"sluice.dev/mode": "nat"}));
    let cases = [
        (ports(33), "TooManyPorts"),
        (mode, "InvalidAnnotation"),
        (
            json!({"spec": {"loadBalancerSourceRanges": ["10.0.0.0"]}}),
            "InvalidSourceRange",
        ),
        (
            json!({"spec": {"loadBalancerSourceRanges": vec!["10.0.0.0/8"; 257]}}),
            "TooManySourceRanges",
        ),
        (sctp, "ProtocolNotSupported"),
    ];
    for (change, reason) in cases {
        assert_eq!(asked(&change, &Given::default()), Err(reason));
    }
}

/// An index with one Service.
struct Stage {
    index: Index,
    version: u64,
}

impl Stage {
    fn new() -> Self {
        Self {
            index: Index::new("sluice-system"),
            version: 1,
        }
    }

    fn item<T>(&mut self, name: &str, uid: &str, content: T) -> Item<T> {
        self.version += 1;
        Item {
            key: key(name),
            stamp: Stamp {
                uid: uid.to_owned(),
                version: self.version,
            },
            content: Ok(content),
        }
    }

    fn service(&mut self, service: &Value) {
        let item = self.item("web", "s1", facts(service));
        let changes: Vec<_> = self.index.services.apply(item).into_iter().collect();
        self.index.services_changed(&changes);
    }

    /// The virtual server that was asked for, with this status.
    fn server(&mut self, mut object: VirtualServer, status: &Value) {
        object.status = serde_json::from_value(status.clone()).expect("a status");
        let item = self.item(OWNED, "v1", object);
        let changes = self.index.virtual_servers.apply(item);
        self.index
            .virtual_servers_changed(changes.into_iter().collect());
    }

    fn pool(&mut self, object: RealServerPool) {
        let item = self.item(OWNED, "p1", object);
        let changes = self.index.pools.apply(item);
        self.index.pools_changed(changes.into_iter().collect());
    }

    fn node(&mut self, status: &Value) {
        let status: LoadBalancerNodeStatus =
            serde_json::from_value(status.clone()).expect("a status");
        let node = Node {
            status,
            live: true,
            wanted: true,
            starting: false,
            standing: NodeStanding::Joined,
            trust: Trust::Believed,
        };
        self.index.known_nodes.insert("n1".to_owned(), node);
        self.index.reports_changed();
    }

    fn plan(&mut self) -> Plan {
        assert!(
            self.index.concerns.dirty.remove(&key("web")),
            "not looked at"
        );
        let plan = plan(&self.index, &key("web"), &now());
        if plan.is_unheld {
            self.index.concerns.unheld.insert(key("web"));
        }
        plan
    }

    /// Makes what the first plan asks for. The status that it asks for as well is returned.
    fn begin(&mut self) -> Value {
        self.service(&service(&json!({})));
        let mut told = Value::Null;
        for job in self.plan().jobs {
            match job {
                Job::Pool(pool, None) => self.pool(*pool),
                Job::Server(server, None) => self.server(*server, &Value::Null),
                Job::Status(status, _) => {
                    told = json!({"ingress": status.ingress, "conditions": status.conditions});
                }
                job => panic!("{job:?}"),
            }
        }
        told
    }

    fn made(&self) -> VirtualServer {
        self.index.virtual_servers.objects[&key(OWNED)].clone()
    }

    /// What the plan writes to the Service's status, if nothing else is to be done.
    fn told(&mut self) -> Option<Value> {
        let mut plan = self.plan();
        let job = plan.jobs.pop();
        assert!(plan.jobs.is_empty(), "{plan:?}");
        match job {
            Some(Job::Status(told, _)) => {
                Some(json!({"ingress": told.ingress, "conditions": told.conditions}))
            }
            None => None,
            Some(job) => panic!("{job:?}"),
        }
    }
}

fn decided(group: Option<&str>) -> Value {
    let groups = group.map_or_else(Vec::new, |group| {
        vec![json!({"address": VIP, "group": group})]
    });
    json!({
        "decision": {
            "revision": 5, "generation": 1, "addresses": [VIP], "ports": [], "mode": "FullNAT",
            "poolSelection": "Flow", "pools": [], "groups": groups,
        },
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Live", "message": "",
            "lastTransitionTime": "2023-11-14T22:13:20Z",
        }],
    })
}

fn holder(revision: u64, role: &str) -> Value {
    json!({"acknowledgedRevision": revision, "groups": [{"name": "edge-0", "role": role}]})
}

#[test]
fn an_address_is_told_once_a_director_answers_for_it_and_stays() {
    let mut stage = Stage::new();
    let told = stage.begin();
    assert_eq!(told["conditions"][0]["reason"], "AwaitingHolder");
    let made = stage.made();
    let owner = &made.metadata.owner_references.as_ref().expect("an owner")[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Service", "s1"));
    assert!(stage.plan().jobs.len() == 1, "its status alone is left");

    stage.server(made.clone(), &decided(Some("edge-0")));
    let mut asks = holder(5, "Holder");
    asks["newAddresses"] = json!([VIP]);
    for report in [holder(5, "Candidate"), holder(4, "Holder"), asks] {
        stage.node(&report);
        let told = stage.told().expect("a status");
        assert_eq!(told["ingress"], json!([]), "{report}");
    }
    stage.node(&holder(5, "Holder"));
    let told = stage.told().expect("a status");
    let entry = json!({"ip": VIP, "ipMode": "VIP"});
    assert_eq!(told["ingress"], json!([entry]));
    assert_eq!(told["conditions"][0]["reason"], "Served");

    let foreign = json!({"ip": "198.51.100.1", "ipMode": "Proxy"});
    let status = json!({"status": {
        "loadBalancer": {"ingress": [foreign, entry]}, "conditions": told["conditions"],
    }});
    stage.service(&service(&status));
    assert_eq!(stage.told(), None, "others' entries are left alone");
    stage.node(&json!({"acknowledgedRevision": 5}));
    stage.index.offers_changed(None);
    assert_eq!(stage.told(), None, "without a holder it stays");

    let unheld = json!({
        "acknowledgedRevision": 5,
        "unheldGroups": [{"name": "edge-0", "since": "2023-11-14T22:13:20Z", "reason": "NoCandidate"}],
    });
    stage.node(&unheld);
    let told = stage.told().expect("a status");
    assert_eq!(told["ingress"], json!([foreign, entry]));
    assert_eq!(told["conditions"][0]["status"], "False");
    assert_eq!(told["conditions"][0]["reason"], "NoHolder");
    let message = told["conditions"][0]["message"].as_str();
    let expected = format!("no director answers for {VIP}: all are drained");
    assert!(
        message.is_some_and(|message| message.starts_with(&expected)),
        "{message:?}"
    );
    // The others may still say so when somebody holds it again.
    let mut held = unheld.clone();
    held["groups"] = holder(5, "Holder")["groups"].take();
    stage.node(&held);
    assert_eq!(stage.told(), None);
}

#[test]
fn a_routed_address_is_told_once_all_directors_serve_it() {
    let mut stage = Stage::new();
    stage.begin();
    let made = stage.made();
    let mut status = decided(None);
    stage.server(made.clone(), &status);
    assert_eq!(stage.told().expect("a status")["ingress"], json!([]));
    status["acknowledged"] = json!({"revision": 5, "pools": []});
    stage.server(made, &status);
    let told = stage.told().expect("a status");
    assert_eq!(told["ingress"][0]["ip"], VIP);
}

#[test]
fn what_was_made_is_put_right_and_let_go() {
    let mut stage = Stage::new();
    stage.begin();
    let mut edited = stage.made();
    edited.spec.pools[0].weight = 7;
    stage.server(edited, &decided(Some("edge-0")));
    let jobs = stage.plan().jobs;
    let Some(Job::Server(server, Some(stamp))) = jobs.first() else {
        panic!("{jobs:?}");
    };
    assert_eq!((server.spec.pools[0].weight, stamp.uid.as_str()), (1, "v1"));

    // A Service that was made anew takes what is there over.
    let put_right = (**server).clone();
    stage.server(put_right.clone(), &decided(Some("edge-0")));
    let again = service(&json!({"metadata": {"uid": "s2"}}));
    stage.service(&again);
    let jobs = stage.plan().jobs;
    assert!(
        matches!(
            &jobs[..],
            [Job::Pool(_, Some(_)), Job::Server(_, Some(_)), ..]
        ),
        "{jobs:?}"
    );

    // Of another class: first its status, then what was made for it.
    let told = json!({"type": "sluice.dev/Ready", "status": "True", "reason": "Served", "message": "",
        "lastTransitionTime": "2023-11-14T22:13:20Z"});
    let foreign = json!({"hostname": "lb.example"});
    let other = service(&json!({
        "spec": {"loadBalancerClass": "example.com/other"},
        "status": {
            "loadBalancer": {"ingress": [{"ip": VIP, "ipMode": "VIP"}, foreign]}, "conditions": [told],
        },
    }));
    stage.service(&other);
    let jobs = stage.plan().jobs;
    let [
        Job::Status(told, _),
        Job::DeleteServer(..),
        Job::DeletePool(..),
    ] = &jobs[..]
    else {
        panic!("{jobs:?}");
    };
    let kept = serde_json::to_value(&told.ingress).expect("JSON");
    assert_eq!(kept, json!([foreign]));
    assert!(told.conditions.is_empty());

    // And once there is no such Service.
    let changes = stage.index.services.remove(&key("web"));
    let changes: Vec<_> = changes.into_iter().collect();
    stage.index.services_changed(&changes);
    let jobs = stage.plan().jobs;
    assert!(
        matches!(&jobs[..], [Job::DeleteServer(..), Job::DeletePool(..)]),
        "{jobs:?}"
    );
}

#[test]
fn a_name_that_a_user_has_is_left_alone() {
    let mut stage = Stage::new();
    stage.begin();
    let mut foreign = stage.made();
    foreign.metadata.owner_references = None;
    stage.server(foreign, &decided(Some("edge-0")));
    let told = stage.told().expect("a status");
    assert_eq!(told["conditions"][0]["reason"], "NameTaken");
    stage.node(&holder(5, "Holder"));
    stage.index.offers_changed(None);
    assert_eq!(stage.told().expect("a status")["ingress"], json!([]));
    let changes = stage.index.services.remove(&key("web"));
    let changes: Vec<_> = changes.into_iter().collect();
    stage.index.services_changed(&changes);
    let jobs = stage.plan().jobs;
    assert!(matches!(&jobs[..], [Job::DeletePool(..)]), "{jobs:?}");
}

#[test]
fn services_without_a_class_are_served_by_choice() {
    let mut stage = Stage::new();
    let classless = service(&json!({"spec": {"loadBalancerClass": null}}));
    stage.service(&classless);
    assert!(stage.plan().jobs.is_empty());
    stage.index.concerns.without_class = true;
    stage.index.offers_changed(None);
    assert_eq!(stage.plan().jobs.len(), 3);
    let mut other = service(&json!({"spec": {"type": "ClusterIP"}}));
    assert_eq!(facts(&other).balanced, None);
    // The API server clears the addresses of one that was of the other type, and leaves its conditions.
    other["status"] = json!({"conditions": [{
        "type": "sluice.dev/Ready", "status": "True", "reason": "Served", "message": "",
        "lastTransitionTime": "2023-11-14T22:13:20Z",
    }]});
    stage.service(&other);
    let jobs = stage.plan().jobs;
    assert!(
        matches!(&jobs[..], [Job::Status(told, _)] if told.conditions.is_empty()),
        "{jobs:?}"
    );
}
