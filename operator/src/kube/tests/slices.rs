//! Whose slices are whose, and how they are written.

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::server::{conflict, deleted, server};
use super::*;
use crate::kube::endpoints::Endpoints;

fn selecting() -> Value {
    json!({"selector": {"matchLabels": {"app": "web"}}})
}

/// A Service with the label `sluice.dev/pool` has slices with it.
#[test]
fn slices_of_strangers_are_not_adopted() {
    let mut index = index(virtual_server("v1"), pool(&selecting()));
    decide(&mut index, 10);
    let before = of_pool(&index, &key("v1"));
    for (name, by, kind) in [
        ("svc-abcde", "endpointslice-controller.k8s.io", "Service"),
        ("v1-sluice-hand-made", "me", "Service"),
    ] {
        let slice = json!({
            "metadata": {
                "name": name, "namespace": "shop",
                "labels": {
                    "sluice.dev/pool": "v1", "kubernetes.io/service-name": "svc",
                    "endpointslice.kubernetes.io/managed-by": by,
                },
                "ownerReferences": [{"apiVersion": "v1", "kind": kind, "name": "svc", "uid": "s", "controller": true}],
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.9.9.9"]}],
        });
        let slice = serde_json::from_value(slice).expect("a slice");
        let slice = SliceFacts::of(slice);
        apply::<Slices>(&mut index, item(name, "u", 11, Ok(slice)));
    }
    assert_eq!(of_pool(&index, &key("v1")), before, "they stay as they are");
    decide(&mut index, 12);
    let status = index.pools.objects[&key("v1")].status.clone();
    assert_eq!(status.expect("a status").servers, 0);
}

/// Writes slices to an API server that takes everything as another operator left it: with this code.
async fn write(index: &mut Index, code: u16) -> Vec<(String, String, Value)> {
    let (client, requests) = server(move |method, _, body| match method {
        _ if code == 409 => conflict(),
        "DELETE" => deleted(),
        _ => {
            let mut answer = body.clone();
            answer["metadata"]["uid"] = json!("new");
            answer["metadata"]["resourceVersion"] = json!("100");
            (code, answer)
        }
    });
    let metrics = Arc::new(Metrics::default());
    let writer = Writer::new(client.clone(), Arc::clone(&metrics));
    let events = Events::start(client, &metrics);
    let mut endpoints = Endpoints::default();
    endpoints.write(index, &writer, &events, 0).await;
    let requests = requests.lock().expect("no panic");
    requests.clone()
}

fn pod(ready: bool) -> PodFacts {
    PodFacts {
        labels: [("app".to_owned(), "web".to_owned())].into(),
        addresses: vec!["10.0.0.1".parse().expect("an address")],
        ready,
        ..PodFacts::default()
    }
}

#[tokio::test]
async fn slices_are_written_over_the_version_that_was_looked_at() {
    let mut index = index(virtual_server("v1"), pool(&selecting()));
    decide(&mut index, 10);
    apply::<Pods>(&mut index, item("p", "u", 20, Ok(pod(true))));
    let made = write(&mut index, 201).await;
    let [(method, _, body)] = &made[..] else {
        panic!("{made:?}");
    };
    assert_eq!(method, "POST", "one that is there already stays");
    assert_eq!(body["metadata"]["resourceVersion"], Value::Null);

    apply::<Pods>(&mut index, item("p", "u", 21, Ok(pod(false))));
    let changed = write(&mut index, 200).await;
    let [(method, _, body)] = &changed[..] else {
        panic!("{changed:?}");
    };
    assert_eq!(method, "PATCH");
    assert_eq!(body["metadata"]["resourceVersion"], "100");
    assert_eq!(body["metadata"]["uid"], "new");

    delete::<Pods>(&mut index, key("p"), stamp("u", 22));
    let deleted = write(&mut index, 200).await;
    let [(method, _, body)] = &deleted[..] else {
        panic!("{deleted:?}");
    };
    assert_eq!(method, "DELETE");
    let preconditions = json!({"uid": "new", "resourceVersion": "100"});
    assert_eq!(body["preconditions"], preconditions);
}

#[tokio::test]
async fn a_slice_that_another_operator_changed_is_looked_at_again() {
    let mut index = index(virtual_server("v1"), pool(&selecting()));
    decide(&mut index, 10);
    apply::<Pods>(&mut index, item("p", "u", 20, Ok(pod(true))));
    write(&mut index, 201).await;
    let before = index.slices.objects.clone();
    for is_deleted in [false, true] {
        if is_deleted {
            delete::<Pods>(&mut index, key("p"), stamp("u", 22));
        } else {
            apply::<Pods>(&mut index, item("p", "u", 21, Ok(pod(false))));
        }
        assert_eq!(write(&mut index, 409).await.len(), 1);
        assert_eq!(
            index.slices.objects, before,
            "nothing is known to be written"
        );
        assert!(index.dirty_pools.contains(&key("v1")));
    }
    // The watch tells what the other wrote.
    let (slice, _) = before.first_key_value().expect("a slice");
    let mut theirs = before[slice].own.clone().expect("ours");
    theirs.metadata.resource_version = Some("200".to_owned());
    theirs.endpoints = None;
    let theirs: EndpointSlice = *theirs;
    let facts = SliceFacts::of(theirs);
    apply::<Slices>(&mut index, item(&slice.name, "new", 200, Ok(facts)));
    let deleted = write(&mut index, 200).await;
    assert_eq!(deleted[0].2["preconditions"]["resourceVersion"], "200");
}
