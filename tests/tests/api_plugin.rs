//! `kubectl sluice` on a real API server, which dates Leases and refuses what users may not do. Tests play the operator and the
//! agents: they write statuses and Leases.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_api::{AGENT_MANAGER, CLI_MANAGER, GROUP_LABEL, OPERATOR_MANAGER, group_lease};
use sluice_tests::kube::{Account, CHANGE_TIMEOUT, ControlPlane, finish};
use sluice_tests::net::sluice::binary;
use sluice_tests::net::suite::{Stage, Suite};
use sluice_tests::net::{Run, until};

const GROUP: &str = "public-0";
/// Where Sluice's Leases are.
const SYSTEM: &str = "sluice-system";
/// Longer than a check takes.
const LONG_SECONDS: u32 = 3_600;

struct Server {
    control: ControlPlane,
    run: Run,
}

impl Server {
    fn start() -> Result<Self> {
        let run = Run::start()?;
        let control = ControlPlane::api(&run, "control")?;
        control.install_rights()?;
        let server = Self { control, run };
        let spec = json!({
            "addresses": [{"ip": "203.0.113.10"}, {"ip": "2001:db8::7"}],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            "forwarding": {"mode": "NAT"},
            "pools": [{"name": "v1", "weight": 1}],
        });
        server.write("user", "VirtualServer", "web", &json!({"spec": spec}))?;
        let decision = json!({
            "revision": 1, "generation": 1,
            "addresses": ["203.0.113.10", "2001:db8::7"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            "mode": "NAT", "poolSelection": "Flow",
            "pools": [{"name": "v1", "weight": 1, "specWeight": 1}],
            "groups": [{"address": "203.0.113.10", "group": GROUP}],
        });
        let status = json!({"status": {"observedGeneration": 1, "decision": decision}});
        server.write(OPERATOR_MANAGER, "VirtualServer", "web", &status)?;
        for node in ["n1", "n2"] {
            let spec = json!({"spec": {"role": "Director", "interfaces": ["eth0"]}});
            server.write(AGENT_MANAGER, "LoadBalancerNode", node, &spec)?;
        }
        Ok(server)
    }

    /// Writes a part of an object, by server-side apply.
    fn write(&self, manager: &str, kind: &str, name: &str, part: &Value) -> Result<()> {
        let mut object = part.clone();
        object["apiVersion"] = json!("sluice.dev/v1alpha1");
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": name});
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["apply", "--server-side", &manager, "-f", "-"];
        if part.get("status").is_some() {
            arguments.push("--subresource=status");
        }
        let admin = self.control.admin();
        admin.kubectl_with(arguments, &object.to_string())?;
        Ok(())
    }

    /// What a node says: its role in the group, if any, and the generation of its spec that it has seen.
    fn report(&self, node: &str, role: Option<&str>, seen: i64) -> Result<()> {
        let group = role.map(|role| match role {
            "Holder" => json!({"name": GROUP, "role": role, "authority": "Lease"}),
            _ => json!({"name": GROUP, "role": role}),
        });
        let groups: Vec<Value> = group.into_iter().collect();
        let status = json!({"status": {"observedGeneration": seen, "groups": groups}});
        self.write(AGENT_MANAGER, "LoadBalancerNode", node, &status)
    }

    /// Writes the group's Lease.
    fn lease(&self, holder: &str, seconds: u32) -> Result<()> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": group_lease(GROUP), "namespace": SYSTEM, "labels": {GROUP_LABEL: GROUP}},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds, "acquireTime": "2026-01-01T00:00:00.000000Z"},
        });
        self.control.admin().apply(&lease.to_string())?;
        Ok(())
    }

    fn node(&self, name: &str) -> Result<Value> {
        let admin = self.control.admin();
        admin.json(["get", "loadbalancernode", name, "--show-managed-fields"])
    }

    /// A user with these of the chart's and Kubernetes' ways to get a right.
    fn user(&self, name: &str, bindings: &[&str]) -> Result<Account> {
        let admin = self.control.admin();
        for binding in bindings {
            let words = format!("create {binding} --user={name}");
            admin.kubectl(words.split(' '))?;
        }
        self.control.user(name, None)
    }
}

impl Stage for Server {
    fn after_check(&mut self) -> Result<()> {
        Ok(())
    }

    fn evidence(&mut self) -> String {
        self.control.evidence()
    }

    fn run_name(&self) -> String {
        self.run.name().to_owned()
    }
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("vips weighs Leases and reports", vips);
    suite.check("vips tells what a user may know", rights);
    suite.check("a node is drained and undrained", drained);
    suite.check("only some may drain, and only what there is", refused);
    suite.main(Server::start)
}

/// Runs `kubectl sluice`.
fn plugin(account: &Account, words: &str) -> Result<String> {
    let program = binary("kubectl-sluice")?;
    let directory = program.parent().context("a program has a directory")?;
    let script = format!("kubectl sluice {words}");
    finish(&mut account.shell(&script, &[directory])?, "")
}

/// The address of the group.
fn vip(account: &Account) -> Result<Value> {
    let text = plugin(account, "vips -o json")?;
    let mut view: Value = serde_json::from_str(&text)?;
    Ok(view["vips"][0].take())
}

fn expect(account: &Account, state: &str, holder: &Value) -> Result<()> {
    let vip = vip(account)?;
    ensure!(vip["state"] == state && vip["holder"] == *holder, "{vip:#}");
    Ok(())
}

fn vips(server: &mut Server) -> Result<()> {
    let admin = server.control.admin();
    let (n1, n2) = (json!("n1"), json!("n2"));
    expect(admin, "NoHolder", &Value::Null)?;
    server.lease("n1", LONG_SECONDS)?;
    expect(admin, "TakingOver", &n1)?;
    server.report("n1", Some("Holder"), 1)?;
    expect(admin, "Armed", &n1)?;
    server.lease("n2", LONG_SECONDS)?;
    expect(admin, "Contested", &n2)?;
    server.report("n1", Some("Candidate"), 1)?;
    server.report("n2", Some("Holder"), 1)?;
    expect(admin, "Armed", &n2)?;
    let table = plugin(admin, "vips -A")?;
    println!("{table}");
    ensure!(
        table.contains("203.0.113.10") && table.contains("not announced"),
        "{table}"
    );
    let status = plugin(admin, "status web")?;
    ensure!(
        status.contains("203.0.113.10 (at n2), 2001:db8::7\n"),
        "{status}"
    );
    // The API server tells when it was written, by its own clock.
    server.lease("n2", 2)?;
    expect(admin, "Armed", &n2)?;
    until("the Lease to expire", CHANGE_TIMEOUT, || {
        vip(admin).is_ok_and(|vip| vip["state"] == "Expired")
    })?;
    server.lease("n2", LONG_SECONDS)?;
    expect(admin, "Armed", &n2)
}

fn rights(server: &mut Server) -> Result<()> {
    let holder = json!("n2");
    let within = "rolebinding within --namespace=default --clusterrole=sluice-view";
    let one = server.user("one", &[within])?;
    expect(&one, "Unknown", &Value::Null)?;
    let told = plugin(&one, "vips 2>&1")?;
    println!("{told}");
    ensure!(told.matches("note: ").count() == 2, "{told}");
    let admin = server.control.admin();
    for (name, resource, state) in [
        ("leases", "leases.coordination.k8s.io", "Renewed"),
        ("nodes", "loadbalancernodes.sluice.dev", "Armed"),
    ] {
        let words = format!("create clusterrole {name} --verb=list --resource={resource}");
        admin.kubectl(words.split(' '))?;
        let within = format!("rolebinding {name} --namespace=default --clusterrole=sluice-view");
        let everywhere = format!("clusterrolebinding {name} --clusterrole={name}");
        let user = server.user(name, &[&within, &everywhere])?;
        expect(&user, state, &holder)?;
    }
    let everywhere = "clusterrolebinding all --clusterrole=sluice-view";
    let all = server.user("all", &[everywhere])?;
    expect(&all, "Armed", &holder)?;
    let told = plugin(&all, "vips -A 2>&1")?;
    ensure!(!told.contains("note: "), "{told}");
    Ok(())
}

fn drained(server: &mut Server) -> Result<()> {
    let admin = server.control.admin();
    let late = plugin(admin, "node drain n2 --timeout=500ms").err();
    let late = late.context("nobody has handed over")?.to_string();
    println!("{late}");
    ensure!(
        late.contains("n2 still holds public-0: its agent has not seen the change"),
        "{late}"
    );
    let node = server.node("n2")?;
    ensure!(node["spec"]["drain"] == true, "{node:#}");
    let managers = node["metadata"]["managedFields"].as_array();
    let ours = managers.into_iter().flatten();
    let ours = ours.filter(|entry| entry["manager"] == CLI_MANAGER);
    let owned: Vec<&Value> = ours.map(|entry| &entry["fieldsV1"]).collect();
    ensure!(owned == [&json!({"f:spec": {"f:drain": {}}})], "{owned:?}");

    plugin(admin, "node undrain n2")?;
    let done = std::thread::scope(|scope| {
        let drain = scope.spawn(|| plugin(admin, "node drain n2"));
        let reported = handed_over(server);
        let done = drain.join().expect("no panic");
        reported.and(done)
    })?;
    println!("{done}");
    // It may have looked after the handover only.
    ensure!(done.contains("n2 holds no VIP group "), "{done}");
    let done = plugin(admin, "node drain n2")?;
    ensure!(done == "n2 holds no VIP group and takes none\n", "{done}");
    let status = plugin(admin, "status -o json")?;
    let status: Value = serde_json::from_str(&status)?;
    ensure!(status["nodes"][1]["drain"] == true, "{status:#}");
    plugin(admin, "node undrain n2")?;
    let node = server.node("n2")?;
    ensure!(
        node["spec"].get("drain").is_none_or(|drain| drain == false),
        "{node:#}"
    );
    Ok(())
}

/// Plays the agent of `n2`, once that is to be drained.
fn handed_over(server: &Server) -> Result<()> {
    let question = ["get", "loadbalancernode", "n2"];
    let is_drained = |node: &Value| node["spec"]["drain"] == true;
    let admin = server.control.admin();
    let node = admin.until(&question, CHANGE_TIMEOUT, is_drained)?;
    let seen = node["metadata"]["generation"].as_i64();
    server.report("n2", Some("Candidate"), seen.context("a generation")?)
}

fn refused(server: &mut Server) -> Result<()> {
    let admin = server.control.admin();
    let editor = server.user(
        "editor",
        &[
            "clusterrolebinding editor --clusterrole=sluice-edit",
            "clusterrolebinding reader --clusterrole=sluice-view",
        ],
    )?;
    for (account, words, parts) in [
        (
            &editor,
            "node drain n1",
            [
                "not allowed to patch loadbalancernodes.sluice.dev",
                "ClusterRoleBinding",
            ],
        ),
        (
            admin,
            "node drain n3",
            ["no LoadBalancerNode n3", "There are: n1, n2"],
        ),
        (
            admin,
            "node undrain n3",
            ["no LoadBalancerNode n3", "There are: n1, n2"],
        ),
    ] {
        let error = plugin(account, words).err().context("done")?.to_string();
        println!("{error}");
        for part in parts {
            ensure!(error.contains(part), "{words}: {error}");
        }
    }
    Ok(())
}
