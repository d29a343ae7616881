//! Services of type LoadBalancer on a real API server: what is made for them, which addresses their status has and when, and what others
//! keep.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::kube::{Account, CHANGE_TIMEOUT, Operated, condition};
use sluice_tests::net::manifest::object;
use sluice_tests::net::suite::Suite;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
const CLASS: &str = "sluice.dev/sluice";
/// The condition of a Service.
const READY: &str = "sluice.dev/Ready";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("a Service gets an address once it is held", held);
    suite.check("its address outlives restarts and edits", kept);
    suite.check("what was made for it is put right", put_right);
    suite.check("two families, protocols, and one that is not served", mixed);
    suite.check("Services ask for addresses, and share them", asked_for);
    suite.check("a pool may be for some Services", selected);
    suite.check("by the policy Local it has a group of its own", local);
    suite.check("what cannot be served says why", refused);
    suite.check("a tenant without a pool's leave gets no address", no_leave);
    suite.check("others' Services and names are left alone", others);
    suite.check("another type lets everything go", let_go);
    suite.check("what was made for a Service goes with it", gone);
    suite.main(|| {
        let mut stage = Operated::without_address_pools()?;
        for reason in ["AddressNotAllowed", "AddressConflict"] {
            stage.expect_complaint(&format!("reason=\"{reason}\""));
        }
        stage.play_agent("n1", &[NODE])?;
        stage.start_operator("one")?;
        let admin = stage.admin();
        for tenant in ["shop", "bank"] {
            admin.kubectl(["create", "namespace", tenant])?;
        }
        let mut pool = object(
            "AddressPool",
            "edge",
            &json!({
                "addresses": ["203.0.113.0/28", "2001:db8:7::/64"],
                "allow": {"namespaces": ["shop"]},
                "announce": {"l2": {"groups": 1}},
            }),
        );
        if let Some(metadata) = pool["metadata"].as_object_mut() {
            metadata.remove("namespace");
        }
        admin.apply(&pool.to_string())?;
        Ok(stage)
    })
}

/// A Service with a TCP port 80 and one endpoint; `spec` is laid over its own.
fn service(namespace: &str, name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": CLASS,
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object
}

fn annotated(mut service: Value, annotations: &Value) -> Value {
    service["metadata"]["annotations"] = annotations.clone();
    service
}

/// Applies a Service, with an endpoint: no controller runs here.
fn apply(admin: &Account, service: &Value) -> Result<()> {
    admin.apply(&service.to_string())?;
    let meta = &service["metadata"];
    let name = meta["name"].as_str().context("a name")?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": meta["namespace"],
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.0.5"], "conditions": {"ready": true}}],
    });
    admin.apply(&slice.to_string())?;
    Ok(())
}

fn question<'a>(kind: &'a str, namespace: &'a str, name: &'a str) -> [&'a str; 5] {
    ["get", kind, name, "--namespace", namespace]
}

/// The node says that it holds the pool's group, or not.
fn report(admin: &Account, role: &str) -> Result<()> {
    report_groups(admin, &json!([{"name": "edge-0", "role": role}]))
}

fn report_groups(admin: &Account, groups: &Value) -> Result<()> {
    let status = json!({"status": {"groups": groups}}).to_string();
    let patch = ["--type=merge", "--subresource=status", "--patch", &status];
    admin.kubectl([&["patch", "loadbalancernode", "n1"][..], &patch].concat())?;
    Ok(())
}

fn ips(service: &Value) -> Vec<&str> {
    let entries = service["status"]["loadBalancer"]["ingress"].as_array();
    let entries = entries.into_iter().flatten();
    entries.filter_map(|entry| entry["ip"].as_str()).collect()
}

/// Waits until a Service's status has these addresses, and says that it is served at them.
fn await_served(admin: &Account, namespace: &str, name: &str, addresses: &[&str]) -> Result<Value> {
    let question = question("service", namespace, name);
    admin.until(&question, CHANGE_TIMEOUT, |service| {
        ips(service) == addresses && condition(service, READY)["status"] == "True"
    })
}

/// Waits until a Service's status says why it is not served, with this part of the message: what stood before may have the same reason.
fn await_reason(
    admin: &Account,
    namespace: &str,
    name: &str,
    reason: &str,
    part: &str,
) -> Result<()> {
    let question = question("service", namespace, name);
    admin.until(&question, CHANGE_TIMEOUT, |service| {
        let ready = condition(service, READY);
        let says = |message: &str| message.contains(part);
        ready["status"] == "False"
            && ready["reason"] == reason
            && ready["message"].as_str().is_some_and(says)
    })?;
    Ok(())
}

fn held(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    apply(admin, &service("shop", "web", &json!({})))?;
    let server = question("virtualserver", "shop", "web.service.sluice.dev");
    let object = admin.until(&server, CHANGE_TIMEOUT, |object| {
        condition(object, "Ready")["status"] == "True"
    })?;
    let owner = &object["metadata"]["ownerReferences"][0];
    let service = admin.json(question("service", "shop", "web"))?;
    ensure!(owner["uid"] == service["metadata"]["uid"], "{object:#}");
    await_reason(admin, "shop", "web", "AwaitingHolder", "no director")?;
    ensure!(ips(&service).is_empty(), "{service:#}");
    report(admin, "Holder")?;
    let service = await_served(admin, "shop", "web", &["203.0.113.1"])?;
    let entry = &service["status"]["loadBalancer"]["ingress"][0];
    ensure!(entry["ipMode"] == "VIP", "{entry}");
    let events = ["get", "events", "--namespace", "shop"];
    admin.until(&events, CHANGE_TIMEOUT, |list| {
        let mut events = list["items"].as_array().into_iter().flatten();
        events.any(|event| {
            let object = &event["involvedObject"];
            event["reason"] == "Served"
                && (&object["kind"], &object["apiVersion"], &object["name"])
                    == (&json!("Service"), &json!("v1"), &json!("web"))
        })
    })?;
    Ok(())
}

fn kept(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin().clone();
    report(&admin, "Candidate")?;
    stage.stop_operator("one")?;
    let mut edited = service("shop", "web", &json!({}));
    edited["spec"]["ports"][0]["port"] = json!(8081);
    admin.apply(&edited.to_string())?;
    stage.start_operator("two")?;
    let server = question("virtualserver", "shop", "web.service.sluice.dev");
    admin.until(&server, CHANGE_TIMEOUT, |object| {
        let decision = &object["status"]["decision"];
        decision["ports"][0]["port"] == 8081 && decision["addresses"] == json!(["203.0.113.1"])
    })?;
    // Nobody holds it now, and it is told all the same.
    await_served(&admin, "shop", "web", &["203.0.113.1"])?;
    report(&admin, "Holder")
}

fn put_right(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let name = "web.service.sluice.dev";
    let spec = |kind: &str| -> Result<Value> {
        let object = admin.json(question(kind, "shop", name))?;
        Ok(object["spec"].clone())
    };
    let (server, pool) = (spec("virtualserver")?, spec("realserverpool")?);
    let weight = json!({"spec": {"pools": [{"name": name, "weight": 7}]}}).to_string();
    let other = json!({"spec": {"servers": {"serviceName": "other"}}}).to_string();
    for (kind, patch, wanted) in [
        ("virtualserver", &weight, &server),
        ("realserverpool", &other, &pool),
    ] {
        let arguments = ["patch", kind, name, "--namespace", "shop"];
        let patch = ["--type=merge", "--patch", patch];
        admin.kubectl([&arguments[..], &patch].concat())?;
        admin.until(&question(kind, "shop", name), CHANGE_TIMEOUT, |object| {
            object["spec"] == *wanted
        })?;
    }
    for kind in ["virtualserver", "realserverpool"] {
        admin.kubectl(["delete", kind, name, "--namespace", "shop"])?;
        admin.until(&question(kind, "shop", name), CHANGE_TIMEOUT, |object| {
            condition(object, "Ready")["status"] == "True"
        })?;
    }
    await_served(admin, "shop", "web", &["203.0.113.1"])?;
    Ok(())
}

fn mixed(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let spec = json!({
        "ipFamilyPolicy": "PreferDualStack",
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            {"name": "sig", "port": 99, "protocol": "SCTP"},
        ],
    });
    apply(admin, &service("shop", "dns", &spec))?;
    let object = admin.json(question("service", "shop", "dns"))?;
    let families = object["spec"]["ipFamilies"].as_array();
    let both = ["203.0.113.2", "2001:db8:7::1"];
    let count = families.map_or(0, Vec::len);
    let object = await_served(admin, "shop", "dns", &both[..count])?;
    let ports = &object["status"]["loadBalancer"]["ingress"][0]["ports"];
    let expected = json!([
        {"port": 53, "protocol": "UDP"},
        {"port": 53, "protocol": "TCP"},
        {"port": 99, "protocol": "SCTP", "error": "sluice.dev/ProtocolNotSupported"},
    ]);
    ensure!(*ports == expected, "{ports}");
    let server = admin.json(question("virtualserver", "shop", "dns.service.sluice.dev"))?;
    let ports = server["status"]["decision"]["ports"].as_array();
    ensure!(ports.is_some_and(|ports| ports.len() == 2), "{server:#}");
    Ok(())
}

fn asked_for(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let by_field = service("shop", "named", &json!({"loadBalancerIP": "203.0.113.9"}));
    apply(admin, &by_field)?;
    await_served(admin, "shop", "named", &["203.0.113.9"])?;
    let other_port = json!({"ports": [{"name": "http", "port": 443}]});
    let shared = service("shop", "shared", &other_port);
    let with = json!({"sluice.dev/share-addresses-with": "named"});
    apply(admin, &annotated(shared, &with))?;
    await_served(admin, "shop", "shared", &["203.0.113.9"])?;
    // Both move, and the old address is told by neither.
    let by_annotation = json!({"sluice.dev/addresses": "203.0.113.10"});
    let moved = annotated(service("shop", "named", &json!({})), &by_annotation);
    admin.apply(&moved.to_string())?;
    for name in ["named", "shared"] {
        await_served(admin, "shop", name, &["203.0.113.10"])?;
    }
    for name in ["shared", "named"] {
        admin.kubectl(["delete", "service", name, "--namespace", "shop"])?;
    }
    Ok(())
}

fn selected(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let pool = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "front"},
        "spec": {
            "addresses": ["198.51.100.0/29"], "priority": 9, "announce": {"none": {}},
            "allow": {"serviceSelector": {"matchLabels": {"tier": "front"}}},
        },
    });
    admin.apply(&pool.to_string())?;
    let from_front = json!({"sluice.dev/address-pool": "front"});
    let mut object = annotated(service("shop", "front", &json!({})), &from_front);
    apply(admin, &object)?;
    let part = "does not allow a Service with these labels";
    await_reason(admin, "shop", "front", "AddressNotAllowed", part)?;
    object["metadata"]["labels"] = json!({"tier": "front"});
    admin.apply(&object.to_string())?;
    await_served(admin, "shop", "front", &["198.51.100.1"])?;
    // Without the label it keeps what it has.
    object["metadata"]["labels"] = json!({"tier": "back"});
    admin.apply(&object.to_string())?;
    let server = question("virtualserver", "shop", "front.service.sluice.dev");
    admin.until(&server, CHANGE_TIMEOUT, |object| {
        condition(object, "AddressAdvice")["status"] == "True"
    })?;
    await_served(admin, "shop", "front", &["198.51.100.1"])?;
    admin.kubectl(["delete", "service", "front", "--namespace", "shop"])?;
    admin.kubectl(["delete", "addresspool", "front"])?;
    Ok(())
}

fn local(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let address = "203.0.113.14";
    let with_policy = |policy: &str| {
        let object = service("shop", "local", &json!({"externalTrafficPolicy": policy}));
        annotated(object, &json!({"sluice.dev/addresses": address}))
    };
    apply(admin, &with_policy("Local"))?;
    await_reason(admin, "shop", "local", "AwaitingHolder", "no director")?;
    let server = question("virtualserver", "shop", "local.service.sluice.dev");
    let object = admin.json(server)?;
    let decision = &object["status"]["decision"];
    ensure!(
        decision["externalTrafficPolicy"] == "Local"
            && decision["mode"] == "NAT"
            && decision["groups"][0]["group"] == "edge-128",
        "{object:#}"
    );
    let leases = ["get", "leases", "--selector", "sluice.dev/vip-group"];
    let is_own = |lease: &Value| lease["metadata"]["name"] == "sluice-vip-edge-128";
    admin.until(&leases, CHANGE_TIMEOUT, |list| {
        let mut leases = list["items"].as_array().into_iter().flatten();
        leases.any(is_own)
    })?;
    let holds = |group: &str| json!({"name": group, "role": "Holder"});
    report_groups(admin, &json!([holds("edge-0"), holds("edge-128")]))?;
    await_served(admin, "shop", "local", &[address])?;
    // Shared with everybody, the address is in one of the pool's groups, and the other is nobody's.
    admin.apply(&with_policy("Cluster").to_string())?;
    admin.until(&server, CHANGE_TIMEOUT, |object| {
        object["status"]["decision"]["groups"][0]["group"] == "edge-0"
    })?;
    admin.until(&leases, CHANGE_TIMEOUT, |list| {
        let mut leases = list["items"].as_array().into_iter().flatten();
        !leases.any(is_own)
    })?;
    await_served(admin, "shop", "local", &[address])?;
    admin.kubectl(["delete", "service", "local", "--namespace", "shop"])?;
    report(admin, "Holder")
}

fn refused(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let plain = || service("shop", "odd", &json!({}));
    let cases = [
        (
            annotated(plain(), &json!({"sluice.dev/mode": "nat"})),
            "InvalidAnnotation",
            "NAT, FullNAT, DR or TUN",
        ),
        (
            annotated(plain(), &json!({"sluice.dev/addresses": "here"})),
            "InvalidAddress",
            "sluice.dev/addresses has here",
        ),
        (
            annotated(plain(), &json!({"sluice.dev/address-pool": "none"})),
            "AddressNotAllowed",
            "AddressPool none does not exist",
        ),
        (
            service(
                "shop",
                "odd",
                &json!({"ports": [{"name": "sig", "port": 99, "protocol": "SCTP"}]}),
            ),
            "ProtocolNotSupported",
            "no port of TCP or UDP",
        ),
    ];
    for (object, reason, part) in cases {
        apply(admin, &object)?;
        await_reason(admin, "shop", "odd", reason, part)?;
        admin.kubectl(["delete", "service", "odd", "--namespace", "shop"])?;
    }
    Ok(())
}

fn no_leave(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    apply(admin, &service("bank", "web", &json!({})))?;
    await_reason(admin, "bank", "web", "AddressNotAllowed", "namespace bank")?;
    // One that is in use is nobody else's, whatever its status or spec is made to say.
    let thief = json!({"loadBalancerIP": "203.0.113.1", "externalIPs": ["203.0.113.1"]});
    apply(admin, &service("bank", "web", &thief))?;
    await_reason(admin, "bank", "web", "AddressNotAllowed", "203.0.113.1")?;
    await_served(admin, "shop", "web", &["203.0.113.1"])?;
    let server = question("virtualserver", "shop", "web.service.sluice.dev");
    let object = admin.json(server)?;
    ensure!(
        condition(&object, "Ready")["status"] == "True",
        "{object:#}"
    );
    admin.kubectl(["delete", "service", "web", "--namespace", "bank"])?;
    Ok(())
}

fn others(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let spec = json!({"loadBalancerClass": "example.com/other"});
    apply(admin, &service("shop", "other", &spec))?;
    let mut classless = service("shop", "classless", &json!({}));
    if let Some(spec) = classless["spec"].as_object_mut() {
        spec.remove("loadBalancerClass");
    }
    apply(admin, &classless)?;
    let foreign = json!({"ip": "198.51.100.4", "ipMode": "Proxy"});
    for name in ["other", "web"] {
        let object = admin.json(question("service", "shop", name))?;
        let entries = object["status"]["loadBalancer"]["ingress"].as_array();
        let mut entries = entries.cloned().unwrap_or_default();
        entries.insert(0, foreign.clone());
        let status = json!({"status": {"loadBalancer": {"ingress": entries}}}).to_string();
        let arguments = ["patch", "service", name, "--namespace", "shop"];
        let patch = ["--type=merge", "--subresource=status", "--patch", &status];
        admin.kubectl([&arguments[..], &patch].concat())?;
    }
    // A name that a user has.
    let mut server = admin.json(question("virtualserver", "shop", "web.service.sluice.dev"))?;
    server["metadata"] = json!({"name": "mine.service.sluice.dev", "namespace": "shop"});
    if let Some(server) = server.as_object_mut() {
        server.remove("status");
    }
    server["spec"]["addresses"] = json!([{"ip": "203.0.113.12"}]);
    admin.apply(&server.to_string())?;
    apply(admin, &service("shop", "mine", &json!({})))?;
    await_reason(admin, "shop", "mine", "NameTaken", "was not made for")?;
    let found = admin.json(question("virtualserver", "shop", "mine.service.sluice.dev"))?;
    ensure!(found["spec"] == server["spec"], "{found:#}");
    // By now the operator has seen the others.
    let object = await_served(admin, "shop", "web", &["198.51.100.4", "203.0.113.1"])?;
    let entry = &object["status"]["loadBalancer"]["ingress"][0];
    ensure!(*entry == foreign, "{entry}");
    for name in ["other", "classless"] {
        let object = admin.json(question("service", "shop", name))?;
        ensure!(condition(&object, READY).is_null(), "{object:#}");
    }
    for name in ["mine", "other", "classless"] {
        admin.kubectl(["delete", "service", name, "--namespace", "shop"])?;
    }
    let mine = ["virtualserver", "mine.service.sluice.dev"];
    admin.kubectl([&["delete", "--namespace", "shop"][..], &mine].concat())?;
    Ok(())
}

/// Waits until nothing is left of what was made for a Service.
fn await_nothing(admin: &Account, name: &str) -> Result<()> {
    let kinds = [
        "get",
        "virtualservers,realserverpools",
        "--namespace",
        "shop",
    ];
    let made = format!("{name}.service.sluice.dev");
    admin.until(&kinds, CHANGE_TIMEOUT, |list| {
        let mut items = list["items"].as_array().into_iter().flatten();
        items.all(|object| object["metadata"]["name"] != made)
    })?;
    Ok(())
}

fn let_go(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let spec = json!({"type": "ClusterIP", "loadBalancerClass": null});
    let patch = json!({"spec": spec}).to_string();
    let arguments = ["patch", "service", "dns", "--namespace", "shop"];
    admin.kubectl([&arguments[..], &["--type=merge", "--patch", &patch]].concat())?;
    await_nothing(admin, "dns")?;
    let object = admin.json(question("service", "shop", "dns"))?;
    ensure!(ips(&object).is_empty(), "{object:#}");
    ensure!(condition(&object, READY).is_null(), "{object:#}");
    Ok(())
}

fn gone(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    admin.kubectl(["delete", "service", "web", "--namespace", "shop"])?;
    await_nothing(admin, "web")?;
    // Its address is its own for a while.
    apply(admin, &service("shop", "next", &json!({})))?;
    await_served(admin, "shop", "next", &["203.0.113.3"])?;
    apply(admin, &service("shop", "web", &json!({})))?;
    await_served(admin, "shop", "web", &["203.0.113.1"])?;
    Ok(())
}
