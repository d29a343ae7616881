//! A whole life of Sluice with the accounts and roles of the chart and nothing more: nothing is forbidden, and nothing is
//! granted that is not asked for. What server-side apply needs without leaving a trace is taken away, verb by verb.
//!
//! Agents are real, with tokens that are bound to their nodes as those of pods are.

#[path = "rights/group_leases.rs"]
mod group_leases;
#[path = "rights/services.rs"]
mod services;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::kube::chart::{self, RELEASE_NAMESPACE};
use sluice_tests::kube::{
    Account, CHANGE_TIMEOUT, EVERY_ADDRESS, audit, condition, departure, every_address, finish,
    rights,
};
use sluice_tests::net::fabric::{DIRECTORS, Fabric, ServerSpec, vip_of_both};
use sluice_tests::net::manifest;
use sluice_tests::net::sluice::{Daemons, Sluice, binary};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{Dual, Family, Process, Protocol, until};

const WEB: &str = "web";
const VIP: Dual = vip_of_both(20);
const SERVERS: [&str; 2] = ["s1", "s2"];
const OPERATOR: &str = "sluice-operator";
const AGENT: &str = "sluice-agent";
const SELECTED: [&str; 4] = [
    "get",
    "endpointslices",
    "--selector",
    "sluice.dev/pool=pods",
];
/// Daemons that were refused wait up to a minute before they try again.
const AGAIN: Duration = Duration::from_secs(90);

struct Rights {
    /// Daemons go first.
    sluice: Sluice,
    fabric: Fabric,
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("agents make their nodes, decisions come into force", decide);
    suite.check("a user takes over the spec of an agent's node", taken_over);
    suite.check("a canary", canary);
    suite.check("pools that select pods, and pools by a Service", slices);
    suite.check("a Service of type LoadBalancer", services::served);
    suite.check("an agent writes its own node alone", own_node);
    suite.check(
        "agents pass VIP groups on among themselves",
        group_leases::passed_on,
    );
    suite.check(
        "an agent takes nothing else of a VIP group",
        group_leases::refused,
    );
    suite.check("agents read Leases and address pools", group_leases::read);
    suite.check("without create on endpointslices", without_slices);
    suite.check("without create on events", without_events);
    suite.check("without create on leases", without_leases);
    suite.check("nodes are detached with the hook's account", detach);
    suite.check("what a node left goes when its Node is gone", departed);
    suite.check("an agent reads its own node alone", only_own_nodes);
    suite.check("what is granted is what is asked for", permissions);
    suite.main(|| {
        let fabric = Fabric::build(&SERVERS.map(ServerSpec::new))?;
        let sluice = Sluice::start_by_chart(&fabric, &DIRECTORS, "")?;
        // Kinds are watched apart: a pool may be heard of after the virtual server that names it.
        sluice.expect_complaint("reason=\"PoolNotFound\"");
        let account = ["create", "serviceaccount", "default"];
        sluice.control_plane()?.admin().kubectl(account)?;
        Ok(Rights { sluice, fabric })
    })
}

impl Rights {
    fn admin(&self) -> Result<&Account> {
        Ok(self.sluice.control_plane()?.admin())
    }

    /// Grants a verb on a resource as the chart does, or not, and waits until that counts.
    fn grant(&self, role: &Role, granted: bool) -> Result<()> {
        let Role {
            kind,
            name,
            resource,
            group,
        } = role;
        let objects = rights()?;
        let mut object = chart::object(&objects, kind, name)?.clone();
        if !granted {
            let rules = object["rules"].as_array_mut().context("no rules")?;
            let found = rules
                .iter_mut()
                .find(|rule| rule["resources"] == json!([resource]));
            let verbs = found.and_then(|rule| rule["verbs"].as_array_mut());
            let verbs = verbs.context("no such rule")?;
            let before = verbs.len();
            verbs.retain(|verb| verb != "create");
            ensure!(
                verbs.len() + 1 == before,
                "{name} may not create {resource}"
            );
        }
        self.admin()?.apply(&object.to_string())?;
        let user = format!("--as=system:serviceaccount:{RELEASE_NAMESPACE}:{name}");
        let what = format!("{resource}.{group}");
        let namespace = ["--namespace", RELEASE_NAMESPACE];
        let question = [&["auth", "can-i", "create", &what, &user][..], &namespace].concat();
        let mut last = String::new();
        until("the role to count", CHANGE_TIMEOUT, || {
            // `no` is a failure, too.
            let command = self.admin().and_then(|admin| admin.command("kubectl"));
            let output = command.and_then(|mut command| Ok(command.args(&question).output()?));
            last = output.map_or_else(
                |error| error.to_string(),
                |output| String::from_utf8_lossy(&output.stdout).into_owned(),
            );
            last.trim() == if granted { "yes" } else { "no" }
        })
        .with_context(|| last.clone())
    }

    fn await_log(&self, of_operator: bool, words: &[&str]) -> Result<()> {
        let mut last = String::new();
        until("a complaint", AGAIN, || {
            let process = if of_operator {
                self.sluice.operator()
            } else {
                self.sluice.agent_process(DIRECTORS[0])
            };
            last = process.map(Process::log).unwrap_or_default();
            last.lines().any(|line| {
                (line.contains("WARN") || line.contains("ERROR"))
                    && words.iter().all(|word| line.contains(word))
            })
        })
        .with_context(|| format!("{words:?} in {last}"))
    }

    /// Both families answer.
    fn expect_served(&self) -> Result<()> {
        for family in Family::BOTH {
            let target = VIP.socket(family, 80);
            let client = self.fabric.client();
            client.within(|| Protocol::Tcp.ask(None, target))??;
        }
        Ok(())
    }
}

/// A role of the chart, which has its account's name, and a resource that it allows to create.
struct Role {
    kind: &'static str,
    name: &'static str,
    resource: &'static str,
    group: &'static str,
}

impl Daemons for Rights {
    fn sluice(&mut self) -> &mut Sluice {
        &mut self.sluice
    }

    fn fabric(&self) -> &Fabric {
        &self.fabric
    }
}

fn decide(stage: &mut Rights) -> Result<()> {
    for node in DIRECTORS {
        let object = stage.admin()?.json(["get", "loadbalancernode", node])?;
        let interfaces = &object["spec"]["interfaces"];
        ensure!(*interfaces == json!(["eth0"]), "{interfaces}");
    }
    for server in SERVERS {
        let members = [(server, stage.fabric.address(server)?, 1)];
        let pool = manifest::pool(server, &members, Some(8080));
        stage.sluice.apply(server, &[pool])?;
    }
    // Once as at an installation, and once as at an upgrade.
    for expected in ["made", "is as wanted"] {
        let control = stage.sluice.control_plane()?;
        let pools = json!([every_address()]);
        let log = control.apply_pools(&pools, stage.fabric.run().directory())?;
        ensure!(log.contains(expected), "{log}");
    }
    // The test plays the agents that announce it.
    let announce =
        json!({"none": null, "l2": {"nodeSelector": {"matchLabels": {"announces": "nothing"}}}});
    let announce = json!({"spec": {"announce": announce}}).to_string();
    let patch = [
        "patch",
        "addresspool",
        EVERY_ADDRESS,
        "--type=merge",
        "--patch",
        &announce,
    ];
    stage.admin()?.kubectl(patch)?;
    let question = ["get", "addresspool", EVERY_ADDRESS];
    stage.admin()?.until(&question, CHANGE_TIMEOUT, |object| {
        condition(object, "Ready")["status"] == "True"
    })?;
    let pools = [(SERVERS[0], 100), (SERVERS[1], 0)];
    let server = manifest::virtual_server(WEB, "FullNAT", VIP, &pools);
    stage.sluice.apply(WEB, &[server])?;
    stage.sluice.await_weights(WEB, &pools)?;
    stage.sluice.await_ready()?;
    let of_nodes = ["--selector", "sluice.dev/node"];
    let leases = ["get", "leases", "--namespace", RELEASE_NAMESPACE];
    let leases = [&leases[..], &of_nodes].concat();
    stage.admin()?.until(&leases, CHANGE_TIMEOUT, |list| {
        list["items"]
            .as_array()
            .is_some_and(|items| items.len() == 2)
    })?;
    await_event(stage, WEB, "Live")?;
    stage.expect_served()
}

fn await_event(stage: &Rights, name: &str, reason: &str) -> Result<()> {
    let arguments = ["get", "events.events.k8s.io"];
    stage.admin()?.until(&arguments, CHANGE_TIMEOUT, |list| {
        list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|event| event["regarding"]["name"] == name && event["reason"] == reason)
    })?;
    Ok(())
}

/// Server-side apply tells the user who has had the field so far; after that it is the user's.
fn taken_over(stage: &mut Rights) -> Result<()> {
    let node = DIRECTORS[1];
    let apply = |mode: &str, more: &[&str]| {
        let manifest = json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "LoadBalancerNode",
            "metadata": {"name": node},
            "spec": {"role": "Director", "interfaces": ["eth0"], "xdpMode": mode},
        });
        let arguments = [&["apply", "--server-side", "-f", "-"], more].concat();
        stage
            .admin()?
            .kubectl_with(arguments, &manifest.to_string())
    };
    let attached = |mode: &str| {
        let question = ["get", "loadbalancernode", node];
        stage.admin()?.until(&question, CHANGE_TIMEOUT, |object| {
            object["status"]["interfaces"][0]["attachMode"] == mode
        })
    };
    let refusal = apply("Generic", &[]).err().map(|error| error.to_string());
    let refusal = refusal.context("the agent's fields were taken without a word")?;
    ensure!(
        refusal.contains("conflict") && refusal.contains(AGENT) && refusal.contains("xdpMode"),
        "{refusal}"
    );
    apply("Generic", &["--force-conflicts"])?;
    attached("Generic")?;
    apply("Native", &[])?;
    attached("Native")?;
    Ok(())
}

fn canary(stage: &mut Rights) -> Result<()> {
    let steps = [(10, 0), (100, 0)];
    let policy = manifest::rollout("roll", WEB, SERVERS[0], SERVERS[1], &steps);
    stage.sluice.apply("roll", &[policy])?;
    let policy = ["get", "rolloutpolicy", "roll"];
    stage.admin()?.until(&policy, AGAIN, |object| {
        object["status"]["phase"] == "Completed"
    })?;
    stage
        .sluice
        .await_weights(WEB, &[(SERVERS[0], 0), (SERVERS[1], 1)])?;
    await_event(stage, "roll", "Completed")?;
    stage.expect_served()
}

fn pool(name: &str, servers: &Value) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "RealServerPool",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"servers": servers, "targetPorts": [{"name": "web", "port": 8080}]},
    })
}

/// Makes a pod with the address of a server, as its kubelet would. `app` is its label and the pool's name.
fn pod(stage: &Rights, app: &str, server: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": app, "namespace": "default", "labels": {"app": app}},
        "spec": {"nodeName": server, "containers": [{"name": "web", "image": "localhost/web:1"}]},
    });
    let address = stage.fabric.address(server)?;
    let admin = stage.admin()?;
    admin.apply(&pod.to_string())?;
    let status = json!({"status": {
        "podIP": address.v4,
        "podIPs": [{"ip": address.v4}, {"ip": address.v6}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let patch = status.to_string();
    admin.kubectl([
        "patch",
        "pod",
        app,
        "--subresource=status",
        "--patch",
        &patch,
    ])?;
    Ok(())
}

fn slices(stage: &mut Rights) -> Result<()> {
    pod(stage, "pods", SERVERS[0])?;
    let selector = json!({"selector": {"matchLabels": {"app": "pods"}}});
    let by_service = json!({"serviceName": "shop"});
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"ports": [{"name": "web", "port": 80}]},
    });
    stage.sluice.apply("service", &[service])?;
    stage.sluice.apply(
        "pools",
        &[pool("pods", &selector), pool("shop", &by_service)],
    )?;
    let vip = vip_of_both(21);
    let server = manifest::virtual_server("pods", "FullNAT", vip, &[("pods", 1), ("shop", 0)]);
    stage.sluice.apply("pods", &[server])?;
    stage
        .sluice
        .await_weights("pods", &[("pods", 1), ("shop", 0)])?;
    stage.sluice.await_ready()?;
    let client = stage.fabric.client();
    until("an answer of the pod", CHANGE_TIMEOUT, || {
        Family::BOTH.into_iter().all(|family| {
            let target = vip.socket(family, 80);
            let answer = client.within(|| Protocol::Tcp.ask(None, target));
            answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.server == SERVERS[0]))
        })
    })?;
    // Two more of its verbs: a slice that is not new is patched, and one that is no longer needed is deleted.
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let status = status.to_string();
    let patch = ["patch", "pod", "pods", "--subresource=status", "--patch"];
    let patch = [&patch[..], &[&status]].concat();
    stage.admin()?.kubectl(patch)?;
    stage.admin()?.until(&SELECTED, CHANGE_TIMEOUT, |list| {
        let slices = list["items"].as_array().into_iter().flatten();
        let mut ready = slices.map(|slice| &slice["endpoints"][0]["conditions"]["ready"]);
        ready.all(|ready| *ready == false)
    })?;
    stage.sluice.remove("pods")?;
    stage.sluice.remove("pools")?;
    stage.admin()?.until(&SELECTED, CHANGE_TIMEOUT, |list| {
        list["items"].as_array().is_some_and(Vec::is_empty)
    })?;
    Ok(())
}

fn own_node(stage: &mut Rights) -> Result<()> {
    let control = stage.sluice.control_plane()?;
    let agent = control.agent_account(DIRECTORS[0])?;
    let status = |node: &str| {
        json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "LoadBalancerNode",
            "metadata": {"name": node},
            "status": {"acknowledgedRevision": 999_999},
        })
    };
    let lease = |node: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": format!("sluice-node-{node}"), "namespace": RELEASE_NAMESPACE},
            "spec": {"holderIdentity": "another"},
        })
    };
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    let of_status = [&apply[..], &["--subresource=status"]].concat();
    let other = DIRECTORS[1];
    for (arguments, object) in [(&of_status[..], status(other)), (&apply[..], lease(other))] {
        let answer = agent.kubectl_with(arguments, &object.to_string());
        let refusal = answer.err().context("another node's object was written")?;
        let refusal = format!("{refusal:#}");
        ensure!(
            refusal.contains(&format!("the agent of node {}", DIRECTORS[0])),
            "{refusal}"
        );
    }
    Ok(())
}

fn without_slices(stage: &mut Rights) -> Result<()> {
    let role = Role {
        kind: "ClusterRole",
        name: OPERATOR,
        resource: "endpointslices",
        group: "discovery.k8s.io",
    };
    stage
        .sluice
        .expect_complaint("its EndpointSlices cannot be written");
    stage.grant(&role, false)?;
    pod(stage, "unwritten", SERVERS[0])?;
    let selector = json!({"selector": {"matchLabels": {"app": "unwritten"}}});
    stage
        .sluice
        .apply("unwritten", &[pool("unwritten", &selector)])?;
    stage.await_log(
        true,
        &[
            "its EndpointSlices cannot be written",
            "default/unwritten",
            "create",
        ],
    )?;
    await_event(stage, "unwritten", "EndpointSlicesNotWritten")?;
    stage.expect_served()?;
    stage.grant(&role, true)?;
    let slices = [
        "get",
        "endpointslices",
        "--selector",
        "sluice.dev/pool=unwritten",
    ];
    stage.admin()?.until(&slices, AGAIN, |list| {
        list["items"]
            .as_array()
            .is_some_and(|items| items.len() == 2)
    })?;
    stage.sluice.remove("unwritten")
}

fn without_events(stage: &mut Rights) -> Result<()> {
    let role = Role {
        kind: "ClusterRole",
        name: OPERATOR,
        resource: "events",
        group: "events.k8s.io",
    };
    stage
        .sluice
        .expect_complaint("an event could not be written");
    stage.grant(&role, false)?;
    let vip = vip_of_both(22);
    let server = |pools| manifest::virtual_server("mute", "FullNAT", vip, pools);
    stage.sluice.apply("mute", &[server(&[(SERVERS[0], 1)])])?;
    stage.await_log(true, &["an event could not be written", "create"])?;
    // Nothing else depends on it.
    stage.sluice.await_weights("mute", &[(SERVERS[0], 1)])?;
    stage.grant(&role, true)?;
    stage.sluice.remove("mute")
}

fn without_leases(stage: &mut Rights) -> Result<()> {
    let node = DIRECTORS[0];
    let role = Role {
        kind: "Role",
        name: AGENT,
        resource: "leases",
        group: "coordination.k8s.io",
    };
    stage
        .sluice
        .expect_complaint("cannot renew this node's Lease");
    stage.grant(&role, false)?;
    let lease = format!("sluice-node-{node}");
    let admin = stage.admin()?;
    admin.kubectl(["delete", "lease", &lease, "--namespace", RELEASE_NAMESPACE])?;
    stage.await_log(false, &["cannot renew this node's Lease", "create"])?;
    stage.expect_served()?;
    // A verb that the operator needs for that alone.
    stage
        .sluice
        .expect_complaint("is silent and no longer waited for");
    let object = ["get", "loadbalancernode", node];
    let says = |object: &Value, silent: &str| condition(object, "Silent")["status"] == silent;
    let admin = stage.admin()?;
    admin.until(&object, AGAIN, |object| says(object, "True"))?;
    stage.grant(&role, true)?;
    let arguments = ["get", "lease", &lease, "--namespace", RELEASE_NAMESPACE];
    let admin = stage.admin()?;
    admin.until(&arguments, AGAIN, |lease| lease["spec"].is_object())?;
    admin.until(&object, AGAIN, |object| says(object, "False"))?;
    Ok(())
}

/// Runs the command of the hook's pod, which takes the agents' programs and objects away.
fn detach(stage: &mut Rights) -> Result<()> {
    let control = stage.sluice.control_plane()?;
    let account = control.service_account(RELEASE_NAMESPACE, "sluice-detach")?;
    let mut command = control.namespace().command(binary("sluice-operator")?);
    command
        .arg("--kubeconfig")
        .arg(account.kubeconfig().path())
        .args(["detach-nodes", "--timeout-seconds", "60"]);
    finish(&mut command, "")?;
    let list = stage.admin()?.json(["get", "loadbalancernodes"])?;
    let left = list["items"].as_array().map_or(0, Vec::len);
    ensure!(left == 0, "{list:#}");
    for node in DIRECTORS {
        let links = stage
            .fabric
            .node(node)?
            .namespace
            .run("ip -details link show eth0")?;
        ensure!(!links.contains("xdp"), "{node}: {links}");
    }
    Ok(())
}

/// A node whose agent has ended, and whose Node somebody deletes.
fn departed(stage: &mut Rights) -> Result<()> {
    let silent = "is silent and no longer waited for";
    stage.sluice.expect_complaint(silent);
    departure::depart(stage.admin()?, RELEASE_NAMESPACE, AGAIN)
}

/// Whether a refusal is of what was taken away, or of an agent that asked for another node's object.
fn is_provoked(event: &Value) -> bool {
    let object = &event["objectRef"];
    let nodes = &event["user"]["extra"]["authentication.kubernetes.io/node-name"];
    let (node, name) = (nodes[0].as_str(), object["name"].as_str());
    let of_another = node
        .zip(name)
        .is_some_and(|(node, name)| !name.contains(node));
    of_another
        || ["endpointslices", "events", "leases"]
            .iter()
            .any(|resource| object["resource"] == *resource)
}

/// No agent asks for another node's object.
fn only_own_nodes(stage: &mut Rights) -> Result<()> {
    let mut asked = 0;
    for event in stage.sluice.control_plane()?.audit_events()? {
        let verb = event["verb"].as_str().unwrap_or_default();
        let is_read = ["list", "watch"].contains(&verb);
        let node = &event["user"]["extra"]["authentication.kubernetes.io/node-name"][0];
        let (Some(node), true) = (node.as_str(), is_read) else {
            continue;
        };
        if event["objectRef"]["resource"] == "loadbalancernodes" {
            let uri = event["requestURI"].as_str().unwrap_or_default();
            let own = format!("fieldSelector=metadata.name%3D{node}");
            let parameters = uri.split_once('?').map_or("", |(_, query)| query);
            ensure!(parameters.split('&').any(|one| one == own), "{node}: {uri}");
            asked += 1;
        }
    }
    println!("{asked} requests for nodes, each for the agent's own");
    ensure!(asked > 0, "no agent asked for its node");
    Ok(())
}

fn permissions(stage: &mut Rights) -> Result<()> {
    let control = stage.sluice.control_plane()?;
    audit::expect_neither_more_nor_less(&audit::asked_except(control, is_provoked)?)
}
