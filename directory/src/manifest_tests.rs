use sluice_api::{PoolSelection, Validate as _};

use super::*;

const GOOD: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: VirtualServer
metadata: {name: web, namespace: shop}
spec:
  addresses: [{ip: 203.0.113.10}]
  ports: [{name: http, protocol: TCP, port: 80}]
  forwarding: {mode: TUN}
  pools:
  - {name: web-v1, weight: 100}
  - name: web-v2
    weight: 0
---
---
apiVersion: sluice.dev/v1alpha1
kind: RealServerPool
metadata: {name: web-v1, namespace: shop}
spec:
  servers:
    static: [{name: a, address: 10.0.0.1}]
---
apiVersion: sluice.dev/v1alpha1
kind: LoadBalancerNode
metadata: {name: d1}
spec: {interfaces: [eth0]}
";

fn errors(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(objects) => panic!("accepted: {objects:?}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn reads_all_documents_and_fills_in_defaults() {
    let objects = parse(GOOD).expect("is valid");
    assert_eq!(objects.len(), 3);
    let Object::VirtualServer(web) = &objects[0] else {
        panic!("{objects:?}");
    };
    assert_eq!(web.spec.pool_selection, PoolSelection::Flow);
    assert_eq!(web.spec.validate(), []);
    assert_eq!(objects[0].key(), ObjectKey::new("shop", "web"));
    assert_eq!(objects[2].key(), ObjectKey::new("", "d1"));
}

#[test]
fn an_empty_file_holds_no_objects() {
    assert_eq!(parse(""), Ok(vec![]));
    assert_eq!(parse("# nothing\n---\n"), Ok(vec![]));
}

#[test]
fn names_the_line_document_object_and_path_of_an_unknown_field() {
    let found = errors(&GOOD.replace("    weight: 0", "    wieght: 0"));
    assert_eq!(
        found[0],
        "line 11: document 1: VirtualServer shop/web: spec.pools[1].wieght: unknown field: remove it or correct its \
         name (known here: name, weight)"
    );
    assert!(
        found[1].contains("spec.pools[1].weight: is missing"),
        "{found:?}"
    );
}

#[test]
fn names_the_field_of_a_wrong_type_or_value() {
    let found = errors(&GOOD.replace("port: 80", "port: \"80\""));
    assert!(
        found[0].contains("line 6")
            && found[0].contains("spec.ports[0].port: must be a whole number"),
        "{found:?}"
    );
    let found = errors(&GOOD.replace("port: 80", "port: 70000"));
    assert!(
        found[0].contains("spec.ports[0].port: must be from 1 to 65535"),
        "{found:?}"
    );
    let found = errors(&GOOD.replace("mode: TUN", "mode: IPIP"));
    assert!(
        found[0].contains("spec.forwarding.mode: \"IPIP\" is not one of"),
        "{found:?}"
    );
    let found = errors(&GOOD.replace("{interfaces: [eth0]}", "{}"));
    assert!(
        found[0].contains("document 3: LoadBalancerNode d1: spec.interfaces: is missing"),
        "{found:?}"
    );
}

#[test]
fn names_the_line_of_broken_yaml() {
    let found = errors(&GOOD.replace("  forwarding: {mode: TUN}", "  forwarding: {mode: TUN"));
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("line ") && found[0].contains("not valid YAML"),
        "{found:?}"
    );
    let found = errors("a: 1\na: 2\n");
    assert!(found[0].starts_with("line 2"), "{found:?}");
}

#[test]
fn refuses_names_that_are_no_names() {
    let found = errors(&GOOD.replace("name: web,", "name: ../web,"));
    assert!(found[0].contains("metadata.name"), "{found:?}");
    let found = errors(&GOOD.replace("{name: d1}", "{name: d1, namespace: shop}"));
    assert!(
        found[0].contains("metadata.namespace: LoadBalancerNode has no namespace"),
        "{found:?}"
    );
    let found = errors(&GOOD.replace("kind: RealServerPool", "kind: Pool"));
    assert!(found[0].contains("kind: must be one of"), "{found:?}");
}

#[test]
fn limits_and_rules_are_told_by_validation_not_by_the_manifest() {
    let text = GOOD
        .replace("weight: 100", "weight: 0")
        .replace("203.0.113.10", "203.0.113.300")
        .replace("name: http", "name: HTTP");
    let objects = parse(&text).expect("has the right shape");
    let Object::VirtualServer(web) = &objects[0] else {
        panic!("{objects:?}");
    };
    let found: Vec<String> = web
        .spec
        .validate()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        found
            .iter()
            .any(|e| e.starts_with("spec.ports[0].name: must consist of")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|e| e.starts_with("spec.addresses[0].ip: must be an IPv4 or IPv6")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|e| e.starts_with("spec.pools[*].weight: the weights of all pools are 0")),
        "{found:?}"
    );
}
