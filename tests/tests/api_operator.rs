//! The operator on a real API server: what it admits and says, and what holds it up.
//!
//! The agent is played: to the operator it is a status and a Lease, and nothing here looks at packets.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::Api;
use serde_json::{Value, json};
use sluice_api::{Reason, VirtualServer};
use sluice_tests::kube::{CHANGE_TIMEOUT, Operated, condition};
use sluice_tests::net::manifest::{WEB, object, rollout, virtual_server_at, web_server};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::until;

/// The operator.
const ONE: &str = "one";
/// A node's own address.
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 11));
const VIRTUAL_SERVER: &str = "virtualserver";
const POOL: &str = "realserverpool";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("every status has its conditions", first_visit);
    for case in CASES {
        suite.check(case.name, move |stage| is_refused(stage, case));
    }
    suite.check("an edit is refused, and the decision stays in force", edit);
    suite.check("two policies on one virtual server", two_policies);
    suite.check(
        "of two virtual servers the older one has the address",
        older,
    );
    suite.check("what changes is told by events", events);
    suite.check(
        "what the API server fails at holds nothing up",
        failing_objects,
    );
    suite.check(
        "an operator that starts soon knows who is silent",
        silent_before,
    );
    suite.main(|| {
        let mut stage = Operated::start()?;
        stage.play_agent("n1", &[NODE])?;
        stage.start_operator(ONE)?;
        stage.apply(&[pool("v1", &["10.0.0.1"]), pool("v2", &["10.0.0.2"])])?;
        stage.apply(&[web_server("web", "203.0.113.10", "v1")])?;
        stage.await_ready(VIRTUAL_SERVER, "web")?;
        Ok(stage)
    })
}

fn pool(name: &str, servers: &[&str]) -> Value {
    let servers: Vec<Value> = servers
        .iter()
        .enumerate()
        .map(|(i, address)| json!({"name": format!("s{i}"), "address": address}))
        .collect();
    let spec = json!({
        "servers": {"static": servers},
        "targetPorts": [{"name": "web", "port": 8080}],
    });
    object("RealServerPool", name, &spec)
}

/// Watches an object from before it is there: no version of its status may lack a condition.
fn first_visit(stage: &mut Operated) -> Result<()> {
    let done = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&done);
    let watch = stage.admin().spawn_client("watch", async move |client| {
        let api: Api<VirtualServer> = Api::namespaced(client, "default");
        let mut seen = Vec::new();
        while !over.load(Ordering::Relaxed) {
            if let Some(found) = api.get_opt("first").await?
                && seen.last() != Some(&found)
            {
                seen.push(found);
            }
        }
        Ok(seen)
    })?;
    let applied = stage.apply(&[web_server("first", "203.0.113.11", "v1")]);
    let ready = stage.await_ready(VIRTUAL_SERVER, "first");
    done.store(true, Ordering::Relaxed);
    let seen = watch.join().map_err(|_| anyhow::anyhow!("the watch"))??;
    applied?;
    ready?;
    let statuses = seen.iter().filter(|version| version.status.is_some());
    ensure!(statuses.clone().count() > 0, "no status was seen");
    for version in statuses {
        let value = serde_json::to_value(version)?;
        let generation = &value["metadata"]["generation"];
        let true_ones: Vec<&str> = ["Ready", "Reconciling", "Stalled"]
            .into_iter()
            .filter(|kind| condition(&value, kind)["status"] == "True")
            .collect();
        for kind in ["Ready", "Reconciling", "Stalled"] {
            let found = condition(&value, kind);
            ensure!(
                found["observedGeneration"] == *generation && found["reason"].is_string(),
                "{kind} is {found} in {value:#}"
            );
        }
        ensure!(
            true_ones.len() == 1 && value["status"]["observedGeneration"] == *generation,
            "{true_ones:?} in {value:#}"
        );
    }
    stage.admin().kubectl(["delete", VIRTUAL_SERVER, "first"])?;
    Ok(())
}

/// A mistake of a user in a new pool `victim` and a new virtual server of that name, and what is said of it.
struct Case {
    name: &'static str,
    /// Spoils the good objects: the pool, then the virtual server.
    spoil: fn(&mut Value, &mut Value),
    /// Which of them complains.
    kind: &'static str,
    reason: Reason,
    /// Field and remedy.
    words: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "a pool that does not exist",
        spoil: |_, server| server["spec"]["pools"][0]["name"] = json!("nowhere"),
        kind: VIRTUAL_SERVER,
        reason: Reason::PoolNotFound,
        words: &[
            "spec.pools[0].name",
            "default/nowhere",
            "create it or correct",
        ],
    },
    Case {
        name: "an address and port that another virtual server has",
        spoil: |_, server| server["spec"]["addresses"][0]["ip"] = json!("203.0.113.10"),
        kind: VIRTUAL_SERVER,
        reason: Reason::AddressConflict,
        words: &["spec.addresses[0].ip", "default/web", "choose another"],
    },
    Case {
        name: "a family that no server has",
        spoil: |_, server| server["spec"]["addresses"][0]["ip"] = json!("2001:db8:cafe::9"),
        kind: VIRTUAL_SERVER,
        reason: Reason::AddressFamilyMismatch,
        words: &["spec.pools[0].name", "no IPv6 server", "add one"],
    },
    Case {
        name: "a VIP that is a static server",
        spoil: |_, server| server["spec"]["addresses"][0]["ip"] = json!("10.0.0.9"),
        kind: VIRTUAL_SERVER,
        reason: Reason::ServerIsVip,
        words: &["spec.servers.static", "server's own address"],
    },
    Case {
        name: "a VIP that is a node's own address",
        spoil: |_, server| server["spec"]["addresses"][0]["ip"] = json!(NODE),
        kind: VIRTUAL_SERVER,
        reason: Reason::VipIsNodeAddress,
        words: &[
            "spec.addresses[0].ip",
            "node n1",
            "give one that no node has",
        ],
    },
    Case {
        name: "a loopback VIP",
        spoil: |_, server| server["spec"]["addresses"][0]["ip"] = json!("127.0.0.1"),
        kind: VIRTUAL_SERVER,
        reason: Reason::AddressNotUsable,
        words: &["spec.addresses[0].ip", "loopback", "give an address"],
    },
    Case {
        name: "a multicast VIP",
        spoil: |_, server| server["spec"]["addresses"][0]["ip"] = json!("ff02::1"),
        kind: VIRTUAL_SERVER,
        reason: Reason::AddressNotUsable,
        words: &["spec.addresses[0].ip", "multicast", "give an address"],
    },
    Case {
        name: "a loopback server",
        spoil: |pool, _| pool["spec"]["servers"]["static"][0]["address"] = json!("127.0.0.1"),
        kind: POOL,
        reason: Reason::AddressNotUsable,
        words: &[
            "spec.servers.static[0].address",
            "loopback",
            "give an address",
        ],
    },
    Case {
        name: "a link-local server",
        spoil: |pool, _| pool["spec"]["servers"]["static"][0]["address"] = json!("fe80::1"),
        kind: POOL,
        reason: Reason::AddressNotUsable,
        words: &[
            "spec.servers.static[0].address",
            "link-local",
            "give an address",
        ],
    },
    Case {
        name: "another target port under DR without an agent on the server",
        spoil: |_, server| server["spec"]["forwarding"]["mode"] = json!("DR"),
        kind: VIRTUAL_SERVER,
        reason: Reason::TargetPortMismatch,
        words: &["targetPorts", "8080", "run an agent", "NAT"],
    },
    Case {
        name: "another target port under TUN without an agent on the server",
        spoil: |_, server| server["spec"]["forwarding"]["mode"] = json!("TUN"),
        kind: VIRTUAL_SERVER,
        reason: Reason::TargetPortMismatch,
        words: &["targetPorts", "8080", "run an agent", "NAT"],
    },
];

fn is_refused(stage: &mut Operated, case: &Case) -> Result<()> {
    let before = decision(stage)?;
    stage.expect_complaint(&format!("reason=\"{}\"", case.reason));
    let good = [
        pool("victim", &["10.0.0.9"]),
        web_server("victim", "203.0.113.19", "victim"),
    ];
    let [mut spoilt_pool, mut spoilt_server] = good.clone();
    (case.spoil)(&mut spoilt_pool, &mut spoilt_server);
    stage.apply(&[spoilt_pool, spoilt_server])?;
    let reason = case.reason.to_string();
    let object = stage.await_object(case.kind, "victim", |object| {
        let stalled = condition(object, "Stalled");
        stalled["status"] == "True" && stalled["reason"] == reason
    })?;
    let message = condition(&object, "Stalled")["message"].clone();
    let message = message.as_str().context("a message")?;
    for word in case.words {
        ensure!(message.contains(word), "no {word:?} in {message:?}");
    }
    let ready = condition(&object, "Ready");
    ensure!(
        ready["status"] == "False" && ready["reason"] == reason,
        "{ready}"
    );
    let victim = stage.get(VIRTUAL_SERVER, "victim")?;
    ensure!(
        victim["status"]["decision"].is_null(),
        "a mistake was decided: {}",
        victim["status"]["decision"]
    );
    ensure!(decision(stage)? == before, "the decision of `web` changed");
    stage.apply(&good)?;
    stage.await_ready(VIRTUAL_SERVER, "victim")?;
    let path = [VIRTUAL_SERVER, POOL].map(|kind| format!("{kind}/victim"));
    stage.admin().kubectl(["delete", &path[0], &path[1]])?;
    Ok(())
}

fn decision(stage: &Operated) -> Result<Value> {
    Ok(stage.get(VIRTUAL_SERVER, "web")?["status"]["decision"].take())
}

fn edit(stage: &mut Operated) -> Result<()> {
    let before = decision(stage)?;
    stage.apply(&[web_server("web", "127.0.0.1", "v1")])?;
    let object = stage.await_object(VIRTUAL_SERVER, "web", |object| {
        condition(object, "Stalled")["status"] == "True"
    })?;
    let message = condition(&object, "Stalled")["message"].to_string();
    ensure!(message.contains("stays in force"), "{message}");
    ensure!(object["status"]["decision"] == before, "{object:#}");
    // The operator knows of it only from the object.
    stage.stop_operator(ONE)?;
    stage.start_operator(ONE)?;
    stage.apply(&[web_server("next", "203.0.113.12", "v2")])?;
    stage.await_ready(VIRTUAL_SERVER, "next")?;
    ensure!(decision(stage)? == before, "not after a restart");
    stage.apply(&[web_server("web", "203.0.113.10", "v1")])?;
    stage.await_ready(VIRTUAL_SERVER, "web")?;
    stage.admin().kubectl(["delete", VIRTUAL_SERVER, "next"])?;
    Ok(())
}

fn two_policies(stage: &mut Operated) -> Result<()> {
    let vip = "203.0.113.13".parse()?;
    let both = virtual_server_at("both", "FullNAT", &[vip], &[WEB], &[("v1", 100), ("v2", 0)]);
    stage.apply(&[both, rollout("roll", "both", "v1", "v2", &[(20, 3600)])])?;
    let weight = |object: &Value| {
        let pools = object["status"]["decision"]["pools"].as_array();
        let [v1, v2] = ["v1", "v2"].map(|name| {
            let found = pools
                .into_iter()
                .flatten()
                .find(|pool| pool["name"] == name);
            found
                .and_then(|pool| pool["weight"].as_u64())
                .unwrap_or_default()
        });
        v2 * 5 == v1 + v2 && v2 > 0
    };
    stage.await_object(VIRTUAL_SERVER, "both", weight)?;
    stage.expect_complaint("reason=\"PolicyConflict\"");
    stage.apply(&[rollout("a-second", "both", "v1", "v2", &[(70, 3600)])])?;
    let second = stage.await_object("rolloutpolicy", "a-second", |object| {
        condition(object, "Stalled")["reason"] == "PolicyConflict"
    })?;
    let message = condition(&second, "Stalled")["message"].to_string();
    for word in ["spec.virtualServerName", "default/roll", "remove one"] {
        ensure!(message.contains(word), "no {word:?} in {message}");
    }
    let object = stage.get(VIRTUAL_SERVER, "both")?;
    ensure!(weight(&object), "{object:#}");
    for path in [
        "rolloutpolicy/a-second",
        "rolloutpolicy/roll",
        "virtualserver/both",
    ] {
        stage.admin().kubectl(["delete", path])?;
    }
    Ok(())
}

/// Neither was ever decided, and the younger one comes first by name.
fn older(stage: &mut Operated) -> Result<()> {
    stage.stop_operator(ONE)?;
    stage.apply(&[web_server("z-older", "203.0.113.14", "v1")])?;
    let born = |stage: &Operated, name| -> Result<Value> {
        Ok(stage.get(VIRTUAL_SERVER, name)?["metadata"]["creationTimestamp"].take())
    };
    let first = born(stage, "z-older")?;
    // Timestamps are whole seconds.
    until("a younger object", CHANGE_TIMEOUT, || {
        let younger = stage.apply(&[web_server("a-younger", "203.0.113.14", "v1")]);
        let age = younger.and_then(|_| born(stage, "a-younger"));
        let is_younger = age.is_ok_and(|second| second != first);
        if !is_younger {
            // It is made anew until it is.
            let _ = stage
                .admin()
                .kubectl(["delete", VIRTUAL_SERVER, "a-younger"]);
        }
        is_younger
    })?;
    stage.start_operator(ONE)?;
    stage.await_ready(VIRTUAL_SERVER, "z-older")?;
    let object = stage.await_object(VIRTUAL_SERVER, "a-younger", |object| {
        condition(object, "Stalled")["reason"] == "AddressConflict"
    })?;
    let message = condition(&object, "Stalled")["message"].to_string();
    ensure!(message.contains("default/z-older"), "{message}");
    ensure!(object["status"]["decision"].is_null(), "{object:#}");
    stage
        .admin()
        .kubectl(["delete", VIRTUAL_SERVER, "z-older"])?;
    stage.await_ready(VIRTUAL_SERVER, "a-younger")?;
    stage
        .admin()
        .kubectl(["delete", VIRTUAL_SERVER, "a-younger"])?;
    Ok(())
}

fn events(stage: &mut Operated) -> Result<()> {
    stage.apply(&[web_server("news", "203.0.113.15", "later")])?;
    let (warning, normal) = (json!("Warning"), json!("Normal"));
    await_event(
        stage,
        "news",
        &warning,
        "PoolNotFound",
        "spec.pools[0].name",
    )?;
    stage.apply(&[pool("later", &["10.0.0.8"])])?;
    await_event(stage, "news", &normal, "Live", "")?;
    for path in ["virtualserver/news", "realserverpool/later"] {
        stage.admin().kubectl(["delete", path])?;
    }
    Ok(())
}

fn await_event(stage: &Operated, name: &str, kind: &Value, reason: &str, note: &str) -> Result<()> {
    let arguments = ["get", "events.events.k8s.io"];
    stage.admin().until(&arguments, CHANGE_TIMEOUT, |list| {
        list["items"].as_array().into_iter().flatten().any(|event| {
            event["regarding"]["name"] == name
                && event["type"] == *kind
                && event["reason"] == reason
                && event["reportingController"] == "sluice-operator"
                && event["note"]
                    .as_str()
                    .is_some_and(|text| text.contains(note))
        })
    })?;
    Ok(())
}

/// Waits until a new virtual server is in force.
fn serve(stage: &Operated, name: &str, vip: &str) -> Result<()> {
    let start = Instant::now();
    stage.apply(&[web_server(name, vip, "v1")])?;
    let question = ["get", VIRTUAL_SERVER, name];
    stage
        .admin()
        .until(&question, 2 * CHANGE_TIMEOUT, |object| {
            condition(object, "Ready")["status"] == "True"
        })?;
    println!("{name} is in force after {:.1?}", start.elapsed());
    Ok(())
}

/// Sends writes of the status of pools in a namespace to a webhook at this port.
fn webhook(namespace: &str, port: u16) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "broken"},
        "webhooks": [{
            "name": "broken.example.com",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "timeoutSeconds": 30,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "clientConfig": {"url": format!("https://127.0.0.1:{port}/")},
            "rules": [{
                "apiGroups": ["sluice.dev"],
                "apiVersions": ["v1alpha1"],
                "operations": ["UPDATE"],
                "resources": ["realserverpools/status"],
            }],
        }],
    })
}

/// A webhook that is asked about every status in a namespace and is not there, then one that never answers.
fn failing_objects(stage: &mut Operated) -> Result<()> {
    const NAMESPACE: &str = "a-broken";
    stage.expect_complaint("cannot be written now; tries again");
    let admin = stage.admin().clone();
    admin.kubectl(["create", "namespace", NAMESPACE])?;
    let silent = stage
        .control
        .namespace()
        .within(|| TcpListener::bind("127.0.0.1:0"))??;
    let broken_pool = |name: &str| {
        let mut pool = pool(name, &["10.0.0.1"]);
        pool["metadata"]["namespace"] = json!(NAMESPACE);
        pool
    };
    stage.apply(&[webhook(NAMESPACE, 1)])?;
    stage.apply(&[broken_pool("probe")])?;
    let probe = [
        "patch",
        POOL,
        "probe",
        "--namespace",
        NAMESPACE,
        "--subresource=status",
        "--type=merge",
        "--patch={\"status\": {\"servers\": 9}}",
    ];
    let fails_by = |words: &str| {
        until("the webhook to be asked", CHANGE_TIMEOUT, || {
            let answer = admin.kubectl(probe);
            answer.is_err_and(|error| format!("{error:#}").contains(words))
        })
    };
    fails_by("connection refused")?;
    let many: Vec<Value> = (0..10)
        .map(|i| broken_pool(&format!("refused-{i}")))
        .collect();
    stage.apply(&many)?;
    until("writes to fail", CHANGE_TIMEOUT, || {
        stage
            .writes(ONE, "failed")
            .is_ok_and(|failed| failed >= 10.0)
    })?;
    serve(stage, "beside-refused", "203.0.113.19")?;

    let port = silent.local_addr()?.port();
    stage.apply(&[webhook(NAMESPACE, port)])?;
    stage.apply(&[broken_pool("silent-0"), broken_pool("silent-1")])?;
    until("a write without an answer", 2 * CHANGE_TIMEOUT, || {
        stage
            .writes(ONE, "unavailable")
            .is_ok_and(|late| late >= 1.0)
    })?;
    serve(stage, "beside-silent", "203.0.113.20")?;
    admin.kubectl(["delete", "validatingwebhookconfiguration", "broken"])?;
    let broken = [
        "wait",
        "--namespace",
        NAMESPACE,
        "--for=condition=Ready",
        POOL,
        "--all",
        "--timeout=60s",
    ];
    admin.kubectl(broken)?;
    Ok(())
}

/// As when the operator's own node is lost: the next operator finds a Lease that nobody renews.
fn silent_before(stage: &mut Operated) -> Result<()> {
    stage.expect_complaint("is silent and no longer waited for");
    stage.play_agent("n2", &["10.1.0.12".parse()?])?;
    stage.apply(&[web_server("silent", "203.0.113.18", "v1")])?;
    stage.await_ready(VIRTUAL_SERVER, "silent")?;
    stage.end_agent("n2")?;
    let limit = Duration::from_mins(1);
    let node = ["get", "loadbalancernode", "n2"];
    stage.admin().until(&node, limit, |object| {
        condition(object, "Silent")["status"] == "True"
    })?;
    stage.stop_operator(ONE)?;
    stage.start_operator("next")?;
    // It is waited for as long as it takes to say something, but not for another 40 s.
    let start = Instant::now();
    stage.apply(&[web_server("silent", "203.0.113.18", "v2")])?;
    stage.await_ready(VIRTUAL_SERVER, "silent")?;
    println!(
        "in force without the silent node after {:.1?}",
        start.elapsed()
    );
    let silent = ["get", VIRTUAL_SERVER, "silent"];
    stage.admin().until(&silent, limit, |object| {
        let condition = condition(object, "NodesSilent");
        let message = condition["message"].as_str();
        condition["status"] == "True" && message.is_some_and(|text| text.contains("n2"))
    })?;
    Ok(())
}
