//! Bad input: each mistake gets a condition that names the field and the remedy, and everything goes on being served as it
//! was decided before.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_api::{Condition, Reason};
use sluice_tests::net::fabric::{DIRECTORS, ServerSpec, vip_of_one};
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::manifest;
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{Dual, Family, Protocol, until};

/// The virtual server and pool that each case spoils.
const VICTIM: &str = "victim";
const VIP: Dual = vip_of_one(80);
const LIMIT: Duration = Duration::from_secs(10);

/// A mistake and what must be said of it.
struct Case {
    name: &'static str,
    /// Spoils the good objects: the pool, then the virtual server.
    spoil: fn(&mut Value, &mut Value, &Lab) -> Result<()>,
    /// Kind and object that complain.
    object: (Kind, &'static str),
    reason: Reason,
    /// A part of the message: the field.
    field: &'static str,
}

#[derive(Clone, Copy)]
enum Kind {
    VirtualServer,
    Pool,
}

const THE_SERVER: (Kind, &str) = (Kind::VirtualServer, VICTIM);
const THE_POOL: (Kind, &str) = (Kind::Pool, VICTIM);

const CASES: [Case; 14] = [
    Case {
        name: "a pool that does not exist",
        spoil: |_, server, _| set(server, "/spec/pools/0/name", json!("nowhere")),
        object: THE_SERVER,
        reason: Reason::PoolNotFound,
        field: "spec.pools[0]",
    },
    Case {
        name: "a VIP and port that another virtual server has",
        spoil: |_, server, _| set(server, "/spec/addresses/0/ip", json!(Mode::Nat.vip().v4)),
        object: THE_SERVER,
        reason: Reason::AddressConflict,
        field: "spec.addresses[0]",
    },
    Case {
        name: "a family that no server has",
        spoil: |pool, _, _| {
            let servers = pool.pointer_mut("/spec/servers/static");
            let servers = servers
                .and_then(Value::as_array_mut)
                .context("no servers")?;
            servers.retain(|server| !server["address"].as_str().unwrap_or("").contains(':'));
            Ok(())
        },
        object: THE_POOL,
        reason: Reason::AddressFamilyMismatch,
        field: "spec.servers.static",
    },
    Case {
        name: "weights that sum to 0",
        spoil: |_, server, _| set(server, "/spec/pools/0/weight", json!(0)),
        object: THE_SERVER,
        reason: Reason::InvalidSpec,
        field: "spec.pools",
    },
    Case {
        name: "a static server that is the VIP",
        spoil: |pool, _, _| set(pool, "/spec/servers/static/0/address", json!(VIP.v4)),
        object: THE_POOL,
        reason: Reason::ServerIsVip,
        field: "spec.servers.static",
    },
    Case {
        name: "a VIP that is a static server",
        spoil: |_, server, lab| {
            let own = lab.fabric.address("plain")?.v6;
            set(server, "/spec/addresses/1/ip", json!(own))
        },
        object: THE_SERVER,
        reason: Reason::ServerIsVip,
        field: "spec.pools[0].name",
    },
    Case {
        name: "a VIP that is a node's own address",
        spoil: |_, server, lab| {
            let own = lab.fabric.address(DIRECTORS[1])?.v4;
            set(server, "/spec/addresses/0/ip", json!(own))
        },
        object: THE_SERVER,
        reason: Reason::VipIsNodeAddress,
        field: "spec.addresses[0]",
    },
    Case {
        name: "a loopback VIP",
        spoil: |_, server, _| set(server, "/spec/addresses/0/ip", json!("127.0.0.1")),
        object: THE_SERVER,
        reason: Reason::AddressNotUsable,
        field: "spec.addresses[0]",
    },
    Case {
        name: "a multicast VIP",
        spoil: |_, server, _| set(server, "/spec/addresses/1/ip", json!("ff02::1")),
        object: THE_SERVER,
        reason: Reason::AddressNotUsable,
        field: "spec.addresses[1]",
    },
    Case {
        name: "a loopback server",
        spoil: |pool, _, _| set(pool, "/spec/servers/static/1/address", json!("::1")),
        object: THE_POOL,
        reason: Reason::AddressNotUsable,
        field: "spec.servers.static[1].address",
    },
    Case {
        name: "a link-local server",
        spoil: |pool, _, _| set(pool, "/spec/servers/static/0/address", json!("169.254.1.1")),
        object: THE_POOL,
        reason: Reason::AddressNotUsable,
        field: "spec.servers.static[0].address",
    },
    Case {
        name: "another target port under TUN without an RS side",
        spoil: |_, server, _| set(server, "/spec/forwarding/mode", json!("TUN")),
        object: THE_SERVER,
        reason: Reason::TargetPortMismatch,
        field: "targetPorts",
    },
    Case {
        name: "another target port under DR without an RS side",
        spoil: |_, server, _| set(server, "/spec/forwarding/mode", json!("DR")),
        object: THE_SERVER,
        reason: Reason::TargetPortMismatch,
        field: "targetPorts",
    },
    Case {
        name: "two ports that are one",
        spoil: |_, server, _| set(server, "/spec/ports/1/protocol", json!("TCP")),
        object: THE_SERVER,
        reason: Reason::InvalidSpec,
        field: "spec.ports",
    },
];

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for case in CASES {
        suite.check(case.name, move |lab| is_refused(lab, &case));
    }
    suite.check("broken YAML", broken_yaml);
    suite.check("broken YAML at a restart", broken_yaml_at_restart);
    suite.check("two policies on one virtual server", two_policies);
    suite.main(|| {
        let more = [ServerSpec::new("plain")];
        let mut lab = Lab::build(&[Mode::Nat, Mode::Tun], &more, &[])?;
        let objects = good(&lab)?;
        lab.sluice.apply(VICTIM, &objects)?;
        lab.sluice.await_weights(VICTIM, &[(VICTIM, 1)])?;
        // The daemons report refused manifests. They may complain of nothing else.
        for refusal in [
            "stays in force",
            "is driven by RolloutPolicy",
            "not valid YAML",
        ] {
            lab.sluice.expect_complaint(refusal);
        }
        Ok(lab)
    })
}

/// The pool, then the virtual server: FullNAT to a server without agent, with another target port.
fn good(lab: &Lab) -> Result<[Value; 2]> {
    let members = lab.members(&["plain"])?;
    Ok([
        manifest::pool(VICTIM, &members, Some(8080)),
        manifest::virtual_server(VICTIM, "FullNAT", VIP, &[(VICTIM, 1)]),
    ])
}

fn set(object: &mut Value, pointer: &str, value: Value) -> Result<()> {
    *object
        .pointer_mut(pointer)
        .with_context(|| format!("no {pointer}"))? = value;
    Ok(())
}

fn is_refused(lab: &mut Lab, case: &Case) -> Result<()> {
    let before = decision(lab);
    let [mut pool, mut server] = good(lab)?;
    (case.spoil)(&mut pool, &mut server, lab)?;
    lab.sluice.apply(VICTIM, &[pool, server])?;
    let mut last = Vec::new();
    let told = until("a condition", LIMIT, || {
        last = conditions(lab, case.object);
        let mut stalled = last
            .iter()
            .filter(|c| c.type_ == "Stalled" && c.status == "True");
        stalled.any(|c| {
            // Field, fault and remedy.
            c.reason == case.reason.to_string()
                && c.message.contains(case.field)
                && c.message.contains(": ")
        })
    });
    told.with_context(|| format!("the conditions are {last:#?}"))?;
    all_served(lab)?;
    let now = decision(lab);
    ensure!(
        now == before,
        "the decision changed from {before:?} to {now:?}"
    );
    recover(lab)
}

/// The decision that the virtual server is served by, without revision and generation.
fn decision(lab: &Lab) -> Option<String> {
    let decision = lab.sluice.virtual_server(VICTIM)?.decision?;
    Some(format!("{:?}", decision.content))
}

fn conditions(lab: &Lab, (kind, name): (Kind, &str)) -> Vec<Condition> {
    match kind {
        Kind::VirtualServer => lab.sluice.virtual_server(name).map(|s| s.conditions),
        Kind::Pool => lab.sluice.pool(name).map(|s| s.conditions),
    }
    .unwrap_or_default()
}

/// The victim and the others answer at every VIP.
fn all_served(lab: &Lab) -> Result<()> {
    for vip in [VIP, Mode::Nat.vip(), Mode::Tun.vip()] {
        for family in Family::BOTH {
            for protocol in Protocol::BOTH {
                let target = vip.socket(family, 80);
                lab.fabric
                    .client()
                    .within(|| protocol.ask(None, target))??;
            }
        }
    }
    Ok(())
}

/// Repairs the manifest and waits until nothing is amiss.
fn recover(lab: &mut Lab) -> Result<()> {
    lab.sluice.apply(VICTIM, &good(lab)?)?;
    let mut last = Vec::new();
    let recovered = until("recovery", LIMIT, || {
        last = conditions(lab, THE_SERVER);
        last.extend(conditions(lab, THE_POOL));
        let ready = last
            .iter()
            .filter(|c| c.type_ == "Ready" && c.status == "True");
        ready.count() == 2
            && !last
                .iter()
                .any(|c| c.type_ == "Stalled" && c.status == "True")
    });
    recovered.with_context(|| format!("the conditions are {last:#?}"))?;
    lab.sluice.await_weights(VICTIM, &[(VICTIM, 1)])
}

fn broken_yaml(lab: &mut Lab) -> Result<()> {
    let before = decision(lab);
    lab.sluice
        .apply_text(VICTIM, "kind: VirtualServer\n  spec: [oops\n")?;
    await_file_error(lab)?;
    all_served(lab)?;
    ensure!(decision(lab) == before, "the decision changed");
    // Others are still listened to.
    lab.set_shares(Mode::Tun, 1, 1)?;
    lab.set_shares(Mode::Tun, 1, 0)?;
    recover(lab)?;
    until("the error to go", LIMIT, || !file_error(lab).exists())
}

/// The last good copy stands in, for the operator and for agents alike.
fn broken_yaml_at_restart(lab: &mut Lab) -> Result<()> {
    let before = decision(lab);
    lab.sluice.kill_operator()?;
    lab.sluice.kill_agent(DIRECTORS[0])?;
    lab.sluice.apply_text(VICTIM, "a: b: c\n")?;
    lab.sluice.restart_operator()?;
    lab.sluice.restart_agent(DIRECTORS[0])?;
    lab.sluice.await_ready()?;
    await_file_error(lab)?;
    all_served(lab)?;
    ensure!(decision(lab) == before, "the decision changed");
    recover(lab)
}

fn await_file_error(lab: &Lab) -> Result<()> {
    until("the error", LIMIT, || file_error(lab).exists())?;
    let text = std::fs::read_to_string(file_error(lab))?;
    ensure!(text.contains("line"), "no line in {text}");
    Ok(())
}

fn file_error(lab: &Lab) -> std::path::PathBuf {
    let name = format!(".status/files/{VICTIM}.yaml");
    let directory = lab.sluice.directory().expect("standalone mode");
    directory.join(name)
}

fn two_policies(lab: &mut Lab) -> Result<()> {
    let mode = Mode::Tun;
    let policy = |name: &str, weight| {
        manifest::rollout(
            name,
            mode.virtual_server(),
            mode.stable(),
            mode.candidate(),
            &[(weight, 3600)],
        )
    };
    lab.sluice.apply("first", &[policy("first", 20)])?;
    lab.await_shares(mode, 80, 20)?;
    lab.sluice.apply("second", &[policy("second", 70)])?;
    let mut last = None;
    let told = until("a conflict", LIMIT, || {
        last = lab.sluice.rollout("second");
        last.as_ref().is_some_and(|status| {
            status.conditions.iter().any(|c| {
                c.reason == Reason::PolicyConflict.to_string() && c.message.contains("first")
            })
        })
    });
    told.with_context(|| format!("the status is {last:#?}"))?;
    lab.await_shares(mode, 80, 20)?;
    all_served(lab)?;
    lab.sluice.remove("second")?;
    lab.sluice.remove("first")?;
    lab.sluice.await_no_rollout("first")?;
    lab.set_shares(mode, 2, 0)
}
