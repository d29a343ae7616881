//! Addresses from pools, on a real API server: who gets which, keeps it through restarts, edits and re-creation, and who gets none.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::kube::{Account, CHANGE_TIMEOUT, Operated, condition};
use sluice_tests::net::manifest::{documents, object, web_server};
use sluice_tests::net::suite::Suite;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
const TENANTS: [&str; 2] = ["shop", "bank"];

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check(
        "without a pool an address is refused, with one it is served",
        without_pools,
    );
    suite.check("the lowest free address is given", lowest);
    suite.check("addresses outlive the operator and the object", kept);
    suite.check("what rests goes to nobody else", rests);
    suite.check("a tenant without a pool's leave gets no address", no_leave);
    suite.check(
        "of two tenants that ask for one address the first keeps it",
        first_keeps,
    );
    suite.check("many come at once and none shares an address", many);
    suite.check("an exhausted pool says so, and grows", exhausted);
    suite.check("what a pool loses stays where it is", lost);
    suite.check("addresses of a pool are in VIP groups", grouped);
    suite.check("groups outlive the operator, and holders too", groups_kept);
    suite.check("a pool says who announces its addresses", announcers);
    suite.check("addresses that are routed are in no group", routed);
    suite.check("the Leases of groups go with their pool", groups_gone);
    suite.main(|| {
        let mut stage = Operated::without_address_pools()?;
        for reason in ["AddressNotAllowed", "AddressConflict", "NoFreeAddress"] {
            stage.expect_complaint(&format!("reason=\"{reason}\""));
        }
        stage.play_agent("n1", &[NODE])?;
        // Else the node's address is given, taken back and at rest.
        let question = ["get", "loadbalancernode", "n1"];
        stage.admin().until(&question, CHANGE_TIMEOUT, |object| {
            object["status"]["addresses"][0] == json!(NODE)
        })?;
        stage.start_operator("one")?;
        let admin = stage.admin();
        for tenant in TENANTS {
            admin.kubectl(["create", "namespace", tenant])?;
            let servers = [("a", "10.0.0.1"), ("b", "fd00::1")];
            let servers = servers.map(|(name, address)| json!({"name": name, "address": address}));
            let spec = json!({"servers": {"static": servers}});
            let mut pool = object("RealServerPool", "v1", &spec);
            pool["metadata"]["namespace"] = json!(tenant);
            admin.apply(&pool.to_string())?;
        }
        Ok(stage)
    })
}

fn address_pool(name: &str, spec: &Value) -> String {
    let mut pool = object("AddressPool", name, spec);
    if let Some(metadata) = pool["metadata"].as_object_mut() {
        metadata.remove("namespace");
    }
    pool.to_string()
}

fn server(namespace: &str, name: &str, addresses: &Value) -> Value {
    let mut server = web_server(name, "192.0.2.1", "v1");
    server["metadata"]["namespace"] = json!(namespace);
    server["spec"]["addresses"] = addresses.clone();
    server
}

fn by_family() -> Value {
    json!([{"family": "IPv4"}])
}

/// Waits until the newest spec of a virtual server is judged like this. Returns its addresses.
fn await_reason(admin: &Account, namespace: &str, name: &str, reason: &str) -> Result<String> {
    let question = ["get", "virtualserver", name, "--namespace", namespace];
    let object = admin.until(&question, CHANGE_TIMEOUT, |object| {
        let ready = condition(object, "Ready");
        ready["reason"] == reason && ready["observedGeneration"] == object["metadata"]["generation"]
    })?;
    let addresses = object["status"]["decision"]["addresses"].as_array();
    let texts = addresses.into_iter().flatten().filter_map(Value::as_str);
    Ok(texts.collect::<Vec<_>>().join(" "))
}

fn expect(admin: &Account, namespace: &str, name: &str, address: &str) -> Result<()> {
    let found = await_reason(admin, namespace, name, "Live")?;
    ensure!(
        found == address,
        "{namespace}/{name} has {found}, not {address}"
    );
    Ok(())
}

/// Waits for a condition of a pool, and returns its message.
fn await_pool(admin: &Account, name: &str, kind: &str, status: &str) -> Result<String> {
    let question = ["get", "addresspool", name];
    let object = admin.until(&question, CHANGE_TIMEOUT, |object| {
        condition(object, kind)["status"] == status
    })?;
    let message = condition(&object, kind)["message"].as_str();
    Ok(message.unwrap_or_default().to_owned())
}

/// An operator that starts over has read the pools before it judges.
fn without_pools(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin().clone();
    let named = json!([{"ip": "192.0.2.200"}]);
    admin.apply(&server("shop", "named", &named).to_string())?;
    let addresses = await_reason(&admin, "shop", "named", "AddressNotAllowed")?;
    ensure!(addresses.is_empty(), "it got {addresses}");
    let question = ["get", "virtualserver", "named", "--namespace", "shop"];
    let refused = admin.json(question)?;
    let told = condition(&refused, "Ready")["message"].as_str();
    let told = told.context("no message")?;
    ensure!(
        told.contains("there is no AddressPool") && told.contains("addressPools"),
        "{told}"
    );
    let spec = json!({"addresses": ["192.0.2.200"]});
    admin.apply(&address_pool("first", &spec))?;
    expect(&admin, "shop", "named", "192.0.2.200")?;
    let before = admin.json(question)?["status"]["decision"].clone();
    stage.stop_operator("one")?;
    stage.start_operator("one")?;
    // Whatever the operator makes of it, it has done so once it has decided a later object.
    let mut later = server("shop", "later", &named);
    later["spec"]["ports"][0]["port"] = json!(81);
    admin.apply(&later.to_string())?;
    expect(&admin, "shop", "later", "192.0.2.200")?;
    ensure!(
        admin.json(question)?["status"]["decision"] == before,
        "it changed"
    );
    admin.kubectl(["delete", "virtualserver", "later", "--namespace", "shop"])?;

    // Without the pool what is served stays, and its owner is told.
    admin.kubectl(["delete", "addresspool", "first"])?;
    let kept = admin.until(&question, CHANGE_TIMEOUT, |object| {
        // Its group went with the pool, which every node acknowledges.
        let is = |kind| condition(object, kind)["status"] == "True";
        is("AddressAdvice") && is("Ready")
    })?;
    let decision = &kept["status"]["decision"];
    ensure!(decision["addresses"] == json!(["192.0.2.200"]), "{kept:#}");
    admin.kubectl(["delete", "virtualserver", "named", "--namespace", "shop"])?;
    Ok(())
}

fn lowest(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    admin.apply(&server("shop", "web", &by_family()).to_string())?;
    await_reason(admin, "shop", "web", "AddressNotAllowed")?;
    let spec = json!({"addresses": ["203.0.113.0/29", "2001:db8::/64"]});
    admin.apply(&address_pool("edge", &spec))?;
    // The block's own address and the node's are left out.
    expect(admin, "shop", "web", "203.0.113.2")?;
    let both = json!([{"family": "IPv4", "addressPoolName": "edge"}, {"family": "IPv6"}]);
    admin.apply(&server("shop", "both", &both).to_string())?;
    expect(admin, "shop", "both", "203.0.113.3 2001:db8::1")?;
    await_pool(admin, "edge", "Ready", "True")?;
    let metrics = stage.metrics("one")?;
    let of_pool = |state: &str| {
        let mut series = metrics.iter();
        let found = series.find(|(series, _)| {
            series.starts_with("sluice_operator_address_pool_addresses")
                && series.contains("pool=\"edge\"")
                && series.contains(&format!("state=\"{state}\""))
        });
        found.map(|(_, value)| *value)
    };
    ensure!(of_pool("used") == Some(3.0), "{metrics:?}");
    ensure!(
        of_pool("assignable").is_some_and(|size| size > 1e19),
        "{metrics:?}"
    );
    Ok(())
}

fn kept(stage: &mut Operated) -> Result<()> {
    stage.stop_operator("one")?;
    let admin = stage.admin().clone();
    admin.kubectl(["delete", "virtualserver", "web", "--namespace", "shop"])?;
    let early = server("shop", "aaa", &by_family());
    admin.apply(&early.to_string())?;
    stage.start_operator("two")?;
    expect(&admin, "shop", "aaa", "203.0.113.4")?;
    admin.apply(&server("shop", "web", &by_family()).to_string())?;
    expect(&admin, "shop", "web", "203.0.113.2")?;
    expect(&admin, "shop", "both", "203.0.113.3 2001:db8::1")
}

fn rests(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    admin.kubectl(["delete", "virtualserver", "aaa", "--namespace", "shop"])?;
    let wish = json!([{"ip": "203.0.113.4"}]);
    admin.apply(&server("bank", "web", &wish).to_string())?;
    await_reason(admin, "bank", "web", "AddressConflict")?;
    admin.kubectl(["delete", "virtualserver", "web", "--namespace", "bank"])?;
    Ok(())
}

fn no_leave(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let spec = json!({
        "addresses": ["198.51.100.0/24"], "priority": 9,
        "allow": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}}},
    });
    admin.apply(&address_pool("vault", &spec))?;
    await_pool(admin, "vault", "Ready", "True")?;
    for (name, addresses) in [
        ("thief", json!([{"ip": "198.51.100.7"}])),
        (
            "named",
            json!([{"family": "IPv4", "addressPoolName": "vault"}]),
        ),
        ("stray", json!([{"ip": "192.0.2.77"}])),
    ] {
        admin.apply(&server("shop", name, &addresses).to_string())?;
        let addresses = await_reason(admin, "shop", name, "AddressNotAllowed")?;
        ensure!(addresses.is_empty(), "{name} got {addresses}");
        admin.kubectl(["delete", "virtualserver", name, "--namespace", "shop"])?;
    }
    admin.apply(&server("bank", "web", &by_family()).to_string())?;
    expect(admin, "bank", "web", "198.51.100.1")
}

fn first_keeps(stage: &mut Operated) -> Result<()> {
    let wish = json!([{"ip": "203.0.113.5"}]);
    let admin = stage.admin().clone();
    admin.apply(&server("bank", "first", &wish).to_string())?;
    expect(&admin, "bank", "first", "203.0.113.5")?;
    admin.apply(&server("shop", "second", &wish).to_string())?;
    await_reason(&admin, "shop", "second", "AddressConflict")?;
    // Restarts, edits, and re-creation: the second waits.
    stage.stop_operator("two")?;
    stage.start_operator("three")?;
    let admin = stage.admin();
    let mut edited = server("bank", "first", &wish);
    edited["spec"]["ports"][0]["port"] = json!(8080);
    admin.apply(&edited.to_string())?;
    expect(admin, "bank", "first", "203.0.113.5")?;
    admin.kubectl(["delete", "virtualserver", "first", "--namespace", "bank"])?;
    await_reason(admin, "shop", "second", "AddressConflict")?;
    admin.apply(&server("bank", "first", &wish).to_string())?;
    expect(admin, "bank", "first", "203.0.113.5")?;
    await_reason(admin, "shop", "second", "AddressConflict")?;
    for (namespace, name) in [("shop", "second"), ("bank", "first")] {
        admin.kubectl(["delete", "virtualserver", name, "--namespace", namespace])?;
    }
    Ok(())
}

fn many(stage: &mut Operated) -> Result<()> {
    const COUNT: usize = 200;
    let admin = stage.admin();
    let spec = json!({"addresses": ["10.99.0.0/16"], "autoAssign": false});
    admin.apply(&address_pool("large", &spec))?;
    let wish = json!([{"family": "IPv4", "addressPoolName": "large"}]);
    let servers: Vec<Value> = (0..COUNT)
        .map(|number| server(TENANTS[number % 2], &format!("many-{number}"), &wish))
        .collect();
    let began = Instant::now();
    admin.apply(&documents(&servers))?;
    let applied = began.elapsed();
    let question = ["get", "virtualservers", "--all-namespaces"];
    let decided = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().into_iter().flatten();
        let addresses =
            items.filter_map(|object| object["status"]["decision"]["addresses"][0].as_str());
        let addresses = addresses.filter(|address| address.starts_with("10.99."));
        addresses.map(str::to_owned).collect()
    };
    let list = admin.until(&question, Duration::from_mins(1), |list| {
        decided(list).len() == COUNT
    })?;
    println!(
        "applied in {applied:.1?}, decided after {:.1?}",
        began.elapsed()
    );
    let mut addresses = decided(&list);
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == COUNT, "some have one address together");
    let delete = ["delete", "--wait=false", "-f", "-"];
    admin.kubectl_with(delete, &documents(&servers))?;
    admin.kubectl(["delete", "addresspool", "large"])?;
    Ok(())
}

fn exhausted(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let wish = json!([{"family": "IPv4", "addressPoolName": "small"}]);
    let spec = json!({"addresses": ["192.0.2.9"]});
    admin.apply(&address_pool("small", &spec))?;
    for name in ["s1", "s2"] {
        admin.apply(&server("shop", name, &wish).to_string())?;
        let reason = if name == "s1" {
            "Live"
        } else {
            "NoFreeAddress"
        };
        await_reason(admin, "shop", name, reason)?;
    }
    await_pool(admin, "small", "Exhausted", "True")?;
    let overlapping = json!({"addresses": ["192.0.2.0/24"]});
    admin.apply(&address_pool("more", &overlapping))?;
    let message = await_pool(admin, "more", "Stalled", "True")?;
    ensure!(message.contains("AddressPool small"), "{message}");
    let grown = json!({"addresses": ["192.0.2.9-192.0.2.10"]});
    admin.apply(&address_pool("small", &grown))?;
    expect(admin, "shop", "s2", "192.0.2.10")?;
    await_pool(admin, "small", "Exhausted", "False")?;
    Ok(())
}

fn lost(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let shrunk = json!({"addresses": ["192.0.2.10"]});
    admin.apply(&address_pool("small", &shrunk))?;
    let message = await_pool(admin, "small", "InUseOutside", "True")?;
    ensure!(
        message.contains("192.0.2.9 (VirtualServer shop/s1)"),
        "{message}"
    );
    admin.kubectl(["delete", "addresspool", "more", "small"])?;
    let question = ["get", "virtualserver", "s1", "--namespace", "shop"];
    let object = admin.until(&question, CHANGE_TIMEOUT, |object| {
        // Its group went with the pool, which every node acknowledges.
        let is = |kind| condition(object, kind)["status"] == "True";
        is("AddressAdvice") && is("Ready")
    })?;
    let addresses = &object["status"]["decision"]["addresses"];
    ensure!(*addresses == json!(["192.0.2.9"]), "{object:#}");
    let advice = condition(&object, "AddressAdvice")["message"].as_str();
    let advice = advice.context("no message")?;
    ensure!(
        advice.contains("no AddressPool gives 192.0.2.9"),
        "{advice}"
    );
    Ok(())
}

/// Virtual servers of this pool, and their groups.
const LOCAL: [(&str, [&str; 2]); 3] = [
    ("g1", ["local-0", "local-0"]),
    ("g2", ["local-1", "local-1"]),
    ("g3", ["local-0", "local-0"]),
];
const HOLDER: &str = "n1";

fn local(announce: &Value) -> String {
    let spec = json!({
        "addresses": ["10.98.0.0/24", "2001:db8:98::/64"], "autoAssign": false, "announce": announce,
    });
    address_pool("local", &spec)
}

fn l2(groups: u8) -> Value {
    json!({"l2": {"interfaces": ["eth0"], "groups": groups}})
}

/// Waits until a virtual server's addresses are in these groups.
fn await_groups(admin: &Account, name: &str, groups: &[&str]) -> Result<Value> {
    let question = ["get", "virtualserver", name, "--namespace", "shop"];
    admin.until(&question, CHANGE_TIMEOUT, |object| {
        let decision = &object["status"]["decision"];
        let addresses = decision["addresses"].as_array().into_iter().flatten();
        let pairs = addresses.zip(groups);
        let wanted: Vec<Value> = pairs
            .map(|(address, group)| json!({"address": address, "group": group}))
            .collect();
        let found = decision["groups"].as_array().cloned().unwrap_or_default();
        found == wanted && found.len() == groups.len()
    })
}

/// Waits until the groups of the pool that have Leases are these.
fn await_leases(admin: &Account, groups: &[&str]) -> Result<()> {
    let question = ["get", "leases", "--selector", "sluice.dev/vip-group"];
    admin.until(&question, CHANGE_TIMEOUT, |list| {
        let items = list["items"].as_array().into_iter().flatten();
        let labels = items.map(|lease| {
            let label = lease["metadata"]["labels"]["sluice.dev/vip-group"].as_str();
            let name = lease["metadata"]["name"].as_str();
            let group = label.unwrap_or_default();
            assert_eq!(name, Some(format!("sluice-vip-{group}").as_str()));
            group
        });
        let local: Vec<&str> = labels.filter(|group| group.starts_with("local-")).collect();
        local == groups
    })?;
    Ok(())
}

fn await_decision(admin: &Account, wanted: &Value) -> Result<()> {
    let question = ["get", "addresspool", "local"];
    admin.until(&question, CHANGE_TIMEOUT, |pool| {
        let decision = &pool["status"]["decision"];
        decision["l2"] == *wanted && decision["generation"] == pool["metadata"]["generation"]
    })?;
    Ok(())
}

fn grouped(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    admin.apply(&local(&l2(2)))?;
    await_decision(admin, &json!({"interfaces": ["eth0"], "groups": 2}))?;
    await_leases(admin, &["local-0", "local-1"])?;
    let lease = admin.json(["get", "lease", "sluice-vip-local-0"])?;
    let spec = json!({"leaseDurationSeconds": 4});
    ensure!(lease["spec"] == spec, "{lease:#}");
    let by_pool = |family: &str| json!({"family": family, "addressPoolName": "local"});
    let both = json!([by_pool("IPv4"), by_pool("IPv6")]);
    for (name, groups) in LOCAL {
        admin.apply(&server("shop", name, &both).to_string())?;
        await_groups(admin, name, &groups)?;
    }
    // Those of pools that say nothing are announced too.
    await_groups(admin, "web", &["edge-0"])?;
    Ok(())
}

fn groups_kept(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin().clone();
    let patch = json!({"spec": {"holderIdentity": HOLDER}}).to_string();
    let patch = ["--type=merge", "--patch", &patch];
    admin.kubectl([&["patch", "lease", "sluice-vip-local-1"][..], &patch].concat())?;
    let version = |name: &str| -> Result<Value> {
        let object = admin.json(["get", "virtualserver", name, "--namespace", "shop"])?;
        Ok(object["status"]["decision"]["revision"].clone())
    };
    let before = LOCAL.map(|(name, _)| version(name));
    stage.stop_operator("three")?;
    // Whoever comes back in the meantime gets its group back.
    let recreated = admin.json(["get", "virtualserver", "g2", "--namespace", "shop"])?;
    let spec = &recreated["spec"]["addresses"];
    admin.kubectl(["delete", "virtualserver", "g2", "--namespace", "shop"])?;
    admin.kubectl(["delete", "lease", "sluice-vip-local-0"])?;
    stage.start_operator("four")?;
    await_leases(&admin, &["local-0", "local-1"])?;
    admin.apply(&server("shop", "g2", spec).to_string())?;
    for ((name, groups), before) in LOCAL.into_iter().zip(before) {
        await_groups(&admin, name, &groups)?;
        ensure!(
            name == "g2" || version(name)? == before?,
            "{name} was decided anew"
        );
    }
    admin.kubectl(["delete", "lease", "sluice-vip-local-0"])?;
    await_leases(&admin, &["local-0", "local-1"])?;
    let lease = admin.json(["get", "lease", "sluice-vip-local-1"])?;
    ensure!(lease["spec"]["holderIdentity"] == HOLDER, "{lease:#}");
    Ok(())
}

fn announcers(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let mut announce = l2(2);
    announce["l2"]["nodeSelector"] = json!({"matchLabels": {"rack": "a"}});
    admin.apply(&local(&announce))?;
    let decided = |nodes: &[&str]| json!({"interfaces": ["eth0"], "nodes": nodes, "groups": 2});
    await_decision(admin, &decided(&[]))?;
    let message = await_pool(admin, "local", "Ready", "True")?;
    ensure!(message.contains("nobody announces them"), "{message}");
    for (name, rack) in [("n0", "a"), ("n1", "a"), ("n2", "b")] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"rack": rack}}});
        admin.apply(&node.to_string())?;
    }
    // Of the others no agent has ever reported.
    await_decision(admin, &decided(&["n1"]))?;
    admin.kubectl(["label", "node", "n1", "rack=b", "--overwrite"])?;
    await_decision(admin, &decided(&[]))?;
    admin.apply(&local(&l2(1)))?;
    // Addresses are in the other one, too.
    await_decision(admin, &json!({"interfaces": ["eth0"], "groups": 2}))?;
    await_leases(admin, &["local-0", "local-1"])
}

fn routed(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    admin.apply(&local(&json!({"none": {}})))?;
    await_decision(admin, &Value::Null)?;
    await_leases(admin, &[])?;
    for (name, _) in LOCAL {
        let object = await_groups(admin, name, &[])?;
        let count = object["status"]["decision"]["addresses"].as_array();
        ensure!(count.is_some_and(|it| it.len() == 2), "{object:#}");
    }
    admin.apply(&local(&l2(2)))?;
    await_leases(admin, &["local-0", "local-1"])?;
    for (name, groups) in LOCAL {
        await_groups(admin, name, &groups)?;
    }
    Ok(())
}

fn groups_gone(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let foreign = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "sluice-vip-local-7", "labels": {"sluice.dev/vip-group": "local-7"}},
    });
    admin.apply(&foreign.to_string())?;
    admin.kubectl(["delete", "addresspool", "local"])?;
    await_leases(admin, &["local-7"])?;
    for (name, _) in LOCAL {
        await_groups(admin, name, &[])?;
        await_reason(admin, "shop", name, "Live")?;
    }
    Ok(())
}
