//! A Service of type LoadBalancer with the operator's account: what is made for it is made, changed and deleted.

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::kube::{CHANGE_TIMEOUT, condition};
use sluice_tests::net::fabric::vip_of_both;
use sluice_tests::net::{Family, Protocol, until};

use super::{Rights, SERVERS};

const MADE: &str = "balanced.service.sluice.dev";

fn service(port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "sluice.dev/sluice",
            "loadBalancerIP": vip_of_both(22).v4, "ports": [{"name": "web", "port": port}],
        },
    })
}

pub(crate) fn served(stage: &mut Rights) -> Result<()> {
    let address = stage.fabric.address(SERVERS[0])?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "balanced", "namespace": "default", "labels": {"kubernetes.io/service-name": "balanced"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address.v4], "conditions": {"ready": true}}],
    });
    let admin = stage.admin()?;
    for port in [80, 8088] {
        admin.apply(&service(port).to_string())?;
        admin.apply(&slice.to_string())?;
        let target = vip_of_both(22).socket(Family::V4, port);
        until("an answer of the Service", CHANGE_TIMEOUT, || {
            let answer = stage
                .fabric
                .client()
                .within(|| Protocol::Tcp.ask(None, target));
            answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.server == SERVERS[0]))
        })?;
    }
    // The VIP is routed here, so no director holds its group.
    let question = ["get", "service", "balanced"];
    admin.until(&question, CHANGE_TIMEOUT, |service| {
        condition(service, "sluice.dev/Ready")["reason"] == "AwaitingHolder"
    })?;
    let other = json!({"spec": {"servers": {"serviceName": "other"}}}).to_string();
    let patch = ["--type=merge", "--patch", &other];
    admin.kubectl([&["patch", "realserverpool", MADE][..], &patch].concat())?;
    let pool = ["get", "realserverpool", MADE];
    admin.until(&pool, CHANGE_TIMEOUT, |pool| {
        pool["spec"]["servers"]["serviceName"] == "balanced"
    })?;
    admin.kubectl(["delete", "service,endpointslice", "balanced"])?;
    let all = ["get", "virtualservers,realserverpools"];
    admin.until(&all, CHANGE_TIMEOUT, |list| {
        let mut items = list["items"].as_array().into_iter().flatten();
        items.all(|object| object["metadata"]["name"] != MADE)
    })?;
    Ok(())
}
