//! What the owner of one namespace can do to the VIPs of another, on a real API server: nothing. And what nodes and the
//! cluster's own ranges do to them.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_tests::kube::{Account, CHANGE_TIMEOUT, Credentials, Operated, condition};
use sluice_tests::net::manifest::{documents, object, web_server};
use sluice_tests::net::suite::Suite;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 11));
/// The VIP of the victim.
const VIP: &str = "203.0.113.10";
const VICTIM: &str = "default";
const THIEF: &str = "thief";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("an older object that is edited takes no VIP", edited);
    suite.check("who asked first gets what becomes free", in_turn);
    suite.check("what others claim takes no VIP", claimed);
    suite.check("new VIPs are nobody else's addresses", newcomers);
    suite.check("a VIP that a node got is withdrawn", withdrawn);
    suite.check("a labelled Service gets no slices adopted", labelled);
    suite.check(
        "owners with all rights of edit change nothing of each other's",
        owners,
    );
    suite.main(|| {
        let mut stage = Operated::start()?;
        stage.expect_complaint("reason=\"AddressConflict\"");
        stage.play_agent("n1", &[NODE])?;
        stage.start_operator("one")?;
        let admin = stage.admin();
        admin.kubectl(["create", "namespace", THIEF])?;
        for namespace in [VICTIM, THIEF] {
            admin.apply(&within(namespace, pool()).to_string())?;
        }
        // It is the oldest object of all.
        let old = within(THIEF, web_server("old", "203.0.113.99", "v1"));
        admin.apply(&old.to_string())?;
        await_reason(admin, THIEF, "old", "Live")?;
        stage.apply(&[web_server("web", VIP, "v1")])?;
        await_reason(stage.admin(), VICTIM, "web", "Live")?;
        Ok(stage)
    })
}

fn pool() -> Value {
    let spec = json!({
        "servers": {"static": [{"name": "a", "address": "10.0.0.1"}]},
        "targetPorts": [{"name": "web", "port": 8080}],
    });
    object("RealServerPool", "v1", &spec)
}

fn within(namespace: &str, mut object: Value) -> Value {
    object["metadata"]["namespace"] = json!(namespace);
    object
}

fn get(admin: &Account, namespace: &str, name: &str) -> Result<Value> {
    admin.json(["get", "virtualserver", name, "--namespace", namespace])
}

/// Waits until the newest spec of a virtual server is judged like this.
fn await_reason(admin: &Account, namespace: &str, name: &str, reason: &str) -> Result<Value> {
    let question = ["get", "virtualserver", name, "--namespace", namespace];
    admin.until(&question, CHANGE_TIMEOUT, |object| {
        let ready = condition(object, "Ready");
        ready["reason"] == reason && ready["observedGeneration"] == object["metadata"]["generation"]
    })
}

/// Tries to take the VIP of `web`, and shows that not a letter of its status changes.
fn try_to_take(stage: &Operated, attempt: impl FnOnce(&Account) -> Result<()>) -> Result<()> {
    let admin = stage.admin();
    let before = get(admin, VICTIM, "web")?;
    attempt(admin)?;
    // Whatever the operator makes of it, it has done so once it has decided a later object.
    let later = within(THIEF, web_server("later", "203.0.113.98", "v1"));
    admin.apply(&later.to_string())?;
    await_reason(admin, THIEF, "later", "Live")?;
    let after = get(admin, VICTIM, "web")?;
    ensure!(before["status"] == after["status"], "{after:#}");
    admin.kubectl(["delete", "virtualserver", "later", "--namespace", THIEF])?;
    Ok(())
}

fn edited(stage: &mut Operated) -> Result<()> {
    try_to_take(stage, |admin| {
        let edit = within(THIEF, web_server("old", VIP, "v1"));
        admin.apply(&edit.to_string())?;
        let refused = await_reason(admin, THIEF, "old", "AddressConflict")?;
        let kept = &refused["status"]["decision"]["addresses"];
        ensure!(*kept == json!(["203.0.113.99"]), "{refused:#}");
        Ok(())
    })
}

fn in_turn(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    stage.apply(&[web_server("young", VIP, "v1")])?;
    let young = await_reason(admin, VICTIM, "young", "AddressConflict")?;
    let old = get(admin, THIEF, "old")?;
    let turn = |object: &Value| object["status"]["claim"]["turn"].as_u64();
    ensure!(turn(&old) < turn(&young), "{old:#}, {young:#}");
    admin.kubectl(["delete", "virtualserver", "web"])?;
    await_reason(admin, THIEF, "old", "Live")?;
    let back = within(THIEF, web_server("old", "203.0.113.99", "v1"));
    admin.apply(&back.to_string())?;
    await_reason(admin, VICTIM, "young", "Live")?;
    admin.kubectl(["delete", "virtualserver", "young"])?;
    stage.apply(&[web_server("web", VIP, "v1")])?;
    await_reason(admin, VICTIM, "web", "Live")?;
    Ok(())
}

/// Objects that the owner of a namespace may write, and that name an address.
fn claims(address: &str) -> [Value; 3] {
    let service = |name: &str, more: Value| {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": THIEF},
            "spec": {"ports": [{"port": 80}]},
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        service
    };
    [
        service("external", json!({"externalIPs": [address]})),
        service(
            "balancer",
            json!({"type": "LoadBalancer", "loadBalancerIP": address}),
        ),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "hand-made", "namespace": THIEF},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address]}],
        }),
    ]
}

const CLAIMS: [&str; 3] = [
    "service/external",
    "service/balancer",
    "endpointslice/hand-made",
];

fn make(admin: &Account, address: &str) -> Result<()> {
    for claim in claims(address) {
        admin.apply(&claim.to_string())?;
    }
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
    let status = status.to_string();
    let patch = ["--subresource=status", "--type=merge", "--patch", &status];
    let object = ["patch", "service", "balancer", "--namespace", THIEF];
    admin.kubectl([&object[..], &patch].concat())?;
    Ok(())
}

fn unmake(admin: &Account) -> Result<()> {
    for claim in CLAIMS {
        admin.kubectl(["delete", claim, "--namespace", THIEF])?;
    }
    Ok(())
}

fn claimed(stage: &mut Operated) -> Result<()> {
    try_to_take(stage, |admin| make(admin, VIP))?;
    // An operator that starts anew finds it as it is.
    stage.stop_operator("one")?;
    stage.start_operator("one")?;
    try_to_take(stage, |_| Ok(()))?;
    // Its owner may change it.
    let mut web = web_server("web", VIP, "v1");
    web["spec"]["ports"][0]["port"] = json!(8081);
    stage.apply(&[web])?;
    await_reason(stage.admin(), VICTIM, "web", "Live")?;
    stage.apply(&[web_server("web", VIP, "v1")])?;
    await_reason(stage.admin(), VICTIM, "web", "Live")?;
    unmake(stage.admin())
}

/// A new virtual server at this address is refused for these words.
fn expect_refusal(stage: &Operated, address: &str, reason: &str, words: &str) -> Result<()> {
    let admin = stage.admin();
    stage.expect_complaint(&format!("reason=\"{reason}\""));
    stage.apply(&[web_server("new", address, "v1")])?;
    let refused = await_reason(admin, VICTIM, "new", reason)?;
    let message = condition(&refused, "Stalled")["message"].to_string();
    ensure!(message.contains(words), "{message}");
    ensure!(refused["status"]["decision"].is_null(), "{refused:#}");
    admin.kubectl(["delete", "virtualserver", "new"])?;
    Ok(())
}

fn node(own: &str, pods: &str) -> (Value, String) {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "outside"},
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
    });
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": own}]}});
    (node, status.to_string())
}

fn make_node(admin: &Account, own: &str, pods: &str) -> Result<()> {
    let (node, status) = node(own, pods);
    admin.apply(&node.to_string())?;
    let patch = ["--subresource=status", "--type=merge", "--patch", &status];
    admin.kubectl([&["patch", "node", "outside"][..], &patch].concat())?;
    Ok(())
}

fn newcomers(stage: &mut Operated) -> Result<()> {
    let new = "203.0.113.50";
    make(stage.admin(), new)?;
    for claim in CLAIMS {
        let what = match claim {
            "service/external" => "an external IP of Service thief/external",
            "service/balancer" => "a load balancer address of Service thief/balancer",
            _ => "endpoint of EndpointSlice thief/hand-made",
        };
        expect_refusal(stage, new, "AddressNotUsable", what)?;
        let admin = stage.admin();
        admin.kubectl(["delete", claim, "--namespace", THIEF])?;
    }
    make_node(stage.admin(), "198.51.100.9", "198.51.100.128/25")?;
    expect_refusal(stage, "198.51.100.9", "VipIsNodeAddress", "of node outside")?;
    let pods = "range of the pods of node outside";
    expect_refusal(stage, "198.51.100.200", "AddressNotUsable", pods)?;
    stage.admin().kubectl(["delete", "node", "outside"])?;
    let services = ["get", "servicecidr", "kubernetes"];
    let range = stage.admin().json(services)?["spec"]["cidrs"][0].take();
    let range = range.as_str().unwrap_or_default();
    let first = range.split(".0/").next().unwrap_or_default();
    let words = "range of ServiceCIDR kubernetes";
    expect_refusal(stage, &format!("{first}.77"), "AddressNotUsable", words)?;
    // Nothing of it lasts.
    stage.apply(&[web_server("new", new, "v1")])?;
    await_reason(stage.admin(), VICTIM, "new", "Live")?;
    stage.admin().kubectl(["delete", "virtualserver", "new"])?;
    Ok(())
}

fn withdrawn(stage: &mut Operated) -> Result<()> {
    stage.expect_complaint("reason=\"VipIsNodeAddress\"");
    let admin = stage.admin();
    make_node(admin, VIP, "198.51.100.0/24")?;
    let refused = await_reason(admin, VICTIM, "web", "VipIsNodeAddress")?;
    ensure!(refused["status"]["decision"].is_null(), "{refused:#}");
    admin.kubectl(["delete", "node", "outside"])?;
    await_reason(admin, VICTIM, "web", "Live")?;
    Ok(())
}

/// The slice is as Kubernetes' controller makes it for a Service with the label.
fn labelled(stage: &mut Operated) -> Result<()> {
    let admin = stage.admin();
    let spec = json!({"servers": {"selector": {"matchLabels": {"app": "none"}}}});
    let pool = object("RealServerPool", "pods", &spec);
    stage.apply(&[pool])?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "svc-x7k2p", "namespace": VICTIM, "labels": {
            "sluice.dev/pool": "pods", "kubernetes.io/service-name": "svc",
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        }},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.9.9.9"]}],
    });
    admin.apply(&slice.to_string())?;
    let question = ["get", "endpointslice", "svc-x7k2p"];
    let before = admin.json(question)?;
    try_to_take(stage, |_| Ok(()))?;
    let pool = ["get", "realserverpool", "pods"];
    admin.until(&pool, CHANGE_TIMEOUT, |object| {
        object["status"]["servers"] == 0
    })?;
    let after = admin.json(question)?;
    ensure!(before == after, "{after:#}");
    for path in ["endpointslice/svc-x7k2p", "realserverpool/pods"] {
        admin.kubectl(["delete", path])?;
    }
    Ok(())
}

/// Roles of a namespace's owner: all that goes into Kubernetes' `edit`, and the chart's own. What gathers the former into one is
/// a controller that does not run here.
const EDIT: [&str; 4] = [
    "system:aggregate-to-edit",
    "system:aggregate-to-view",
    "sluice-edit",
    "sluice-view",
];

/// Virtual servers and pools by which an owner tries to fill lists and tables.
const MANY: usize = 260;

fn owner(stage: &Operated, namespace: &str) -> Result<Account> {
    let admin = stage.admin();
    let within = ["--namespace", namespace];
    admin.kubectl([&["create", "serviceaccount", "owner"][..], &within].concat())?;
    for (number, role) in EDIT.iter().enumerate() {
        let (name, role) = (format!("owner-{number}"), format!("--clusterrole={role}"));
        let account = format!("--serviceaccount={namespace}:owner");
        let binding = ["create", "rolebinding", &name, &role, &account];
        admin.kubectl([&binding[..], &within].concat())?;
    }
    let token = admin.kubectl([&["create", "token", "owner"][..], &within].concat())?;
    let token = Credentials::Token(token.trim().to_owned());
    stage.control.account(&format!("owner-{namespace}"), &token)
}

fn owners(stage: &mut Operated) -> Result<()> {
    for reason in [
        "AddressConflict",
        "AddressNotUsable",
        "PoolNotFound",
        "PoolNotInVirtualServer",
    ] {
        stage.expect_complaint(&format!("reason=\"{reason}\""));
    }
    stage.control.install_rights()?;
    let accounts = [owner(stage, VICTIM)?, owner(stage, THIEF)?];
    let settled = [(VICTIM, "web", VIP), (THIEF, "old", "203.0.113.99")];
    for (account, other) in [(&accounts[1], 0), (&accounts[0], 1)] {
        let (own, (victim, name, vip)) = (settled[1 - other].0, settled[other]);
        let admin = stage.admin();
        let mine = |admin: &Account| -> Result<[Value; 2]> {
            let of = ["--namespace", victim];
            let server = [&["get", "virtualserver", name][..], &of].concat();
            let pool = [&["get", "realserverpool", "v1"][..], &of].concat();
            Ok([admin.json(server)?, admin.json(pool)?])
        };
        let before = mine(admin)?;
        expect_no_reach(account, own, victim, name)?;
        attack(account, own, vip)?;
        // Whatever the operator makes of it, it has done so once it has decided a later object.
        let later = within(own, web_server("later", "203.0.113.98", "v1"));
        account.apply(&later.to_string())?;
        await_reason(admin, own, "later", "Live")?;
        ensure!(mine(admin)? == before, "{before:#?}");
        stage.stop_operator("one")?;
        stage.start_operator("one")?;
        let admin = stage.admin();
        account.kubectl(["delete", "virtualserver", "later", "--namespace", own])?;
        account.apply(&later.to_string())?;
        await_reason(admin, own, "later", "Live")?;
        let after = mine(admin)?;
        ensure!(after == before, "{before:#?}, then {after:#?}");
        let all = ["--all", "--wait=false", "--namespace", own];
        account.kubectl([&["delete", "services"][..], &all].concat())?;
        let rest = ["--selector=attack", "--wait=false", "--namespace", own];
        let kinds = "virtualservers,realserverpools,rolloutpolicies";
        account.kubectl([&["delete", kinds][..], &rest].concat())?;
        account.kubectl(["delete", "virtualserver", "later", "--namespace", own])?;
    }
    Ok(())
}

/// Nothing in the other's namespace may be written, and nothing that is in none.
fn expect_no_reach(account: &Account, own: &str, victim: &str, name: &str) -> Result<()> {
    let foreign = [
        within(victim, web_server(name, "203.0.113.77", "v1")),
        within(victim, pool()),
        json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "all"},
            "spec": {"addresses": ["0.0.0.0/0"]},
        }),
        json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "LoadBalancerNode", "metadata": {"name": "n1"},
            "spec": {"role": "RealServer", "interfaces": ["eth0"]},
        }),
    ];
    for object in &foreign {
        let refused = account.apply(&object.to_string());
        ensure!(refused.is_err(), "may write {object}");
    }
    for (verb, what, namespace) in [
        ("delete", "virtualserver", victim),
        ("delete", "realserverpool", victim),
        (
            "patch",
            "virtualservers.sluice.dev --subresource=status",
            own,
        ),
        ("patch", "configmaps", victim),
    ] {
        let question = ["auth", "can-i", verb].into_iter();
        let question = question.chain(what.split(' '));
        let answer = account.kubectl(question.chain(["--namespace", namespace]));
        ensure!(answer.is_err(), "may {verb} {what} in {namespace}");
    }
    Ok(())
}

/// What the owner of a namespace may write, aimed at the VIP of another one.
fn attack(account: &Account, own: &str, vip: &str) -> Result<()> {
    let labelled = |mut object: Value| {
        object["metadata"]["labels"] = json!({"attack": "yes"});
        within(own, object)
    };
    // Take the VIP, and every port of it.
    let mut objects = vec![labelled(web_server("take", vip, "v1"))];
    let mut ports = web_server("ports", vip, "v1");
    ports["spec"]["ports"] = (1..=32)
        .map(|port| json!({"name": format!("p{port}"), "protocol": "TCP", "port": 64 + port}))
        .collect();
    objects.push(labelled(ports));
    // Capture it by a Service, fill lists and tables, freeze the operator by what it refuses.
    let [mut external, mut balancer, _] = claims(vip);
    for service in [&mut external, &mut balancer] {
        service["metadata"]["namespace"] = json!(own);
        objects.push(service.clone());
    }
    for number in 0..MANY {
        let name = format!("many-{number}");
        let spec = json!({"servers": {"selector": {"matchLabels": {"app": name}}}});
        objects.push(labelled(object("RealServerPool", &name, &spec)));
        let address = format!("10.200.{}.{}", number / 250, 1 + number % 250);
        objects.push(labelled(web_server(&name, &address, &name)));
    }
    objects.push(labelled(web_server(
        "nobody",
        "203.0.113.97",
        "no-such-pool",
    )));
    objects.push(labelled(web_server("loop", "127.0.0.1", "v1")));
    let policy = json!({
        "virtualServerName": "web", "stablePoolName": "v1", "candidatePoolName": "many-1",
        "strategy": {"canary": {"steps": [{"weight": 100}]}},
    });
    objects.push(labelled(object("RolloutPolicy", "drive", &policy)));
    account.apply(&documents(&objects))?;
    for name in ["take", "ports"] {
        // Whichever is found first: that the other has it, or that the attacker's own Service claims it.
        let question = ["get", "virtualserver", name, "--namespace", own];
        let refused = account.until(&question, CHANGE_TIMEOUT, |object| {
            condition(object, "Stalled")["status"] == "True"
        })?;
        ensure!(refused["status"]["decision"].is_null(), "{refused:#}");
    }
    Ok(())
}
