//! Who has which addresses.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node as KubeNode, Service};
use kube::core::Status;

use super::*;
use crate::core::Addresses;
use crate::kube::facts::{NodeFacts, ServiceFacts, ranges};
use crate::settings::Settings;

const VIP: &str = "203.0.113.10";

/// Everything that has the VIP, be it somebody's to write or not.
fn claim(index: &mut Index, version: u64) {
    let service = json!({
        "spec": {"clusterIPs": ["10.96.0.7"], "externalIPs": [VIP]},
        "status": {"loadBalancer": {"ingress": [{"ip": VIP}, {"hostname": "lb.example"}]}},
    });
    let service: Service = serde_json::from_value(service).expect("a Service");
    let facts = ServiceFacts::of(service);
    apply::<Services>(index, item("thief", "u", version, Ok(facts)));
    let slice = json!({
        "metadata": {"name": "thief", "namespace": "shop"},
        "addressType": "IPv4", "endpoints": [{"addresses": [VIP]}],
    });
    let slice = serde_json::from_value(slice).expect("a slice");
    apply::<Slices>(
        index,
        item("thief", "u", version, Ok(SliceFacts::of(slice))),
    );
    apply::<KubeNodes>(
        index,
        item("n1", "u", version, Ok(node("10.0.0.9", "203.0.113.0/24"))),
    );
    let range = json!({"spec": {"cidrs": ["203.0.0.0/16", "2001:db8::/64"]}});
    let range = serde_json::from_value(range).expect("a ServiceCIDR");
    apply::<ServiceCidrs>(index, item("more", "u", version, Ok(ranges(range))));
}

fn node(own: &str, pods: &str) -> NodeFacts {
    let node = json!({
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": own},
            {"type": "Hostname", "address": "n1.example"},
        ]},
    });
    let node: KubeNode = serde_json::from_value(node).expect("a Node");
    NodeFacts::of(node)
}

fn refusal(index: &Index) -> String {
    let object = &index.virtual_servers.objects[&key("web")];
    let conditions = &object.status.as_ref().expect("a status").conditions;
    let stalled = conditions
        .iter()
        .find(|condition| condition.type_ == "Stalled");
    stalled.expect("told").message.clone()
}

#[test]
fn what_others_claim_takes_no_vip_from_whoever_has_it() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    let before = decision(&index).cloned();
    assert!(before.is_some());
    claim(&mut index, 11);
    index.dirty = Dirty::All;
    decide(&mut index, 12);
    assert_eq!(decision(&index).cloned(), before);
    // A node that gets the address itself is another matter.
    apply::<KubeNodes>(
        &mut index,
        item("n1", "u", 13, Ok(node(VIP, "10.244.0.0/24"))),
    );
    decide(&mut index, 14);
    assert_eq!(decision(&index), None);
    assert!(refusal(&index).contains("is an address of node"));
}

#[test]
fn a_newcomer_gets_no_address_of_others_and_gets_it_when_it_is_free() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    claim(&mut index, 5);
    let mut version = 10;
    let mut step = |index: &mut Index, change: &dyn Fn(&mut Index)| {
        change(index);
        decide(index, version);
        version += 1;
        refusal(index)
    };
    let text = step(&mut index, &|_| {});
    assert!(text.contains("is in the range of ServiceCIDR"), "{text}");
    let text = step(&mut index, &|index| {
        delete::<ServiceCidrs>(index, key("more"), stamp("u", 90));
    });
    assert!(text.contains("range of the pods of node"), "{text}");
    let text = step(&mut index, &|index| {
        delete::<KubeNodes>(index, key("n1"), stamp("u", 91));
    });
    assert!(text.contains("external IP of Service shop/thief"), "{text}");
    let text = step(&mut index, &|index| {
        delete::<Services>(index, key("thief"), stamp("u", 92));
    });
    assert!(text.contains("EndpointSlice shop/thief"), "{text}");
    let text = step(&mut index, &|index| {
        delete::<Slices>(index, key("thief"), stamp("u", 93));
    });
    assert_eq!(text, "");
    assert!(decision(&index).is_some());
    assert_eq!(index.addresses, Addresses::default(), "nothing is left");
}

#[test]
fn a_newcomer_gets_no_reserved_address() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    let block = "203.0.113.10/31".parse().expect("a block");
    index.set(&Settings {
        reserved: BTreeSet::from([block]),
        ..Settings::default()
    });
    decide(&mut index, 10);
    assert!(refusal(&index).contains("in the reserved range 203.0.113.10/31"));
}

/// What concerns nobody's VIPs is looked at by nobody.
#[test]
fn addresses_that_nobody_asks_for_cost_nothing() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    index.dirty = Dirty::default();
    let facts = node("10.0.0.9", "10.244.0.0/24");
    apply::<KubeNodes>(&mut index, item("n1", "u", 12, Ok(facts)));
    assert!(index.dirty.is_empty());
    claim(&mut index, 13);
    assert!(!index.dirty.is_empty());
}

/// API servers before Kubernetes 1.33 have no ServiceCIDRs.
#[test]
fn a_kind_that_the_api_server_lacks_is_not_waited_for() {
    fn absent<T>(code: u16) -> Event<T, ()> {
        let status = json!({"status": "Failure", "code": code, "reason": "x", "message": "m"});
        let status: Status = serde_json::from_value(status).expect("a status");
        let error = RequestError::from(kube::Error::Api(Box::new(status)));
        Event::Failed {
            verb: "list",
            error,
        }
    }
    let mut index = Index::new("sluice-system");
    let waits = |index: &mut Index| {
        let awaited = index.awaited();
        awaited.iter().any(|(kind, _)| *kind == ServiceCidrs::NAME)
    };
    take::<ServiceCidrs>(&mut index, absent(403));
    assert!(waits(&mut index), "the operator's role lacks it");
    take::<ServiceCidrs>(&mut index, absent(404));
    assert!(!waits(&mut index));
    take::<Pods>(&mut index, absent(404));
    let awaited = index.awaited();
    assert!(awaited.iter().any(|(kind, _)| *kind == Pods::NAME));
}
