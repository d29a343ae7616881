use proptest::prelude::*;
use serde_json::json;

use super::*;

const NUMBERS: [u16; 3] = [0, 8080, 9090];

fn pool() -> RealServerPool {
    let pool = json!({
        "apiVersion": API_VERSION, "kind": "RealServerPool",
        "metadata": {"name": "web-v1", "namespace": "shop", "uid": "u"},
        "spec": {"servers": {"selector": {"matchLabels": {"app": "web"}}}},
    });
    serde_json::from_value(pool).expect("a pool")
}

fn decided(names: bool) -> DecidedEndpoints {
    let target = if names { json!("web") } else { json!(8080) };
    let decided = json!({
        "source": "Pods",
        "name": "web-v1",
        "selector": {"matchLabels": {"app": "web"}},
        "targetPorts": [{"name": "http", "port": target}],
    });
    serde_json::from_value(decided).expect("endpoints")
}

/// A pod with this number. Number 0 for the port is none.
fn pod(i: usize, ready: bool, terminating: bool, dual: bool, port: u16) -> PodFacts {
    let (high, low) = (i / 250, i % 250);
    let mut addresses = vec![format!("10.0.{high}.{low}").parse().expect("an address")];
    if dual {
        addresses.push(format!("2001:db8::{i:x}").parse().expect("an address"));
    }
    let named = |number| NamedPort {
        name: "web".to_owned(),
        number,
        protocol: "TCP".to_owned(),
    };
    PodFacts {
        uid: format!("uid-{i}"),
        addresses,
        ready,
        terminating,
        node: Some("n1".to_owned()),
        ports: Some(port)
            .filter(|port| *port > 0)
            .map(named)
            .into_iter()
            .collect(),
        ..PodFacts::default()
    }
}

type Pods = BTreeMap<String, PodFacts>;
type Slices = BTreeMap<String, EndpointSlice>;

fn plan_for(names: bool, pods: &Pods, slices: &Slices) -> Plan {
    let (pool, decided) = (pool(), decided(names));
    let key = ObjectKey::new("shop", "web-v1");
    let own: BTreeMap<&str, &EndpointSlice> = slices
        .iter()
        .map(|(name, slice)| (name.as_str(), slice))
        .collect();
    let pods = pods.iter().map(|(name, pod)| (name.as_str(), pod));
    plan(&Wanted::of(&key, &pool, &decided), pods, &own, |_| false)
}

fn written(plan: &Plan) -> impl Iterator<Item = &EndpointSlice> {
    plan.gaining.iter().chain(&plan.changed)
}

fn carry_out(plan: &Plan, slices: &mut Slices) {
    for name in &plan.delete {
        slices.remove(name);
    }
    for slice in written(plan) {
        let name = slice.metadata.name.clone().expect("a name");
        slices.insert(name, slice.clone());
    }
}

fn endpoints(slices: &Slices) -> impl Iterator<Item = (&EndpointSlice, &Endpoint)> {
    slices
        .values()
        .flat_map(|slice| slice.endpoints.iter().flatten().map(move |e| (slice, e)))
}

fn check(names: bool, pods: &Pods, slices: &Slices) {
    let mut seen = BTreeSet::new();
    for (slice, endpoint) in endpoints(slices) {
        let name = endpoint
            .target_ref
            .as_ref()
            .and_then(|r| r.name.clone())
            .expect("a pod");
        let address: IpAddr = endpoint.addresses[0].parse().expect("an address");
        let pod = &pods[&name];
        assert!(pod.addresses.contains(&address), "{name} has {address}");
        let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
        assert_eq!(slice.address_type, family);
        let conditions = endpoint.conditions.clone().expect("conditions");
        assert_eq!(conditions.ready, Some(pod.ready && !pod.terminating));
        assert_eq!(conditions.serving, Some(pod.ready));
        assert_eq!(conditions.terminating, Some(pod.terminating));
        let ports: Vec<Option<i32>> = slice.ports.iter().flatten().map(|p| p.port).collect();
        let wanted = pod.ports.iter().filter(|_| names);
        let wanted: Vec<Option<i32>> = wanted.map(|p| Some(i32::from(p.number))).collect();
        assert_eq!(ports, wanted, "ports of {name}");
        assert!(seen.insert((name, address)), "an endpoint stands twice");
    }
    let wanted: usize = pods.values().map(|pod| pod.addresses.len()).sum();
    assert_eq!(seen.len(), wanted, "an endpoint is missing");
    for slice in slices.values() {
        let count = slice.endpoints.iter().flatten().count();
        assert!(
            (1..=MAX_SLICE_ENDPOINTS).contains(&count),
            "{count} endpoints in a slice"
        );
    }
}

fn pods() -> impl Strategy<Value = Pods> {
    let one = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(&NUMBERS[..]),
    );
    prop::collection::btree_map(0..400_usize, one, 0..350).prop_map(|pods| {
        let named = |(i, (ready, terminating, dual, port))| {
            (format!("pod-{i}"), pod(i, ready, terminating, dual, port))
        };
        pods.into_iter().map(named).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_pod_is_there_once_and_nothing_is_written_twice(
        worlds in prop::collection::vec(pods(), 1..4),
        names: bool,
    ) {
        let mut slices = Slices::new();
        for pods in worlds {
            carry_out(&plan_for(names, &pods, &slices), &mut slices);
            check(names, &pods, &slices);
            let again = plan_for(names, &pods, &slices);
            prop_assert_eq!(again, Plan::default());
        }
    }

    #[test]
    fn one_pod_more_touches_one_slice_of_each_family(
        first in pods(),
        second in pods(),
        port in prop::sample::select(&NUMBERS[..]),
        names: bool,
    ) {
        let mut slices = Slices::new();
        carry_out(&plan_for(names, &first, &slices), &mut slices);
        carry_out(&plan_for(names, &second, &slices), &mut slices);
        let mut more = second;
        more.insert("new".to_owned(), pod(1000, true, false, true, port));
        let plan = plan_for(names, &more, &slices);
        prop_assert!(plan.delete.is_empty() && plan.changed.is_empty());
        let families: Vec<&str> = plan.gaining.iter().map(|s| s.address_type.as_str()).collect();
        prop_assert_eq!(families, ["IPv4", "IPv6"]);
    }

    #[test]
    fn a_pod_that_changes_stays_in_its_slice(pods in pods(), which: prop::sample::Index) {
        prop_assume!(!pods.is_empty());
        let mut slices = Slices::new();
        carry_out(&plan_for(true, &pods, &slices), &mut slices);
        let mut after = pods.clone();
        let names: Vec<String> = pods.keys().cloned().collect();
        let name = which.get(&names).clone();
        let changed = after.get_mut(&name).expect("is there");
        changed.terminating = !changed.terminating;
        changed.ready = true;
        let plan = plan_for(true, &after, &slices);
        prop_assert!(plan.delete.is_empty() && plan.gaining.is_empty());
        for slice in &plan.changed {
            let last = &slices[slice.metadata.name.as_ref().expect("a name")];
            let places = |slice: &EndpointSlice| -> Vec<Vec<String>> {
                slice.endpoints.iter().flatten().map(|e| e.addresses.clone()).collect()
            };
            prop_assert_eq!(places(last), places(slice));
        }
    }
}

#[test]
fn pods_that_have_ended_or_have_no_address_are_left_out() {
    let mut pods = Pods::new();
    let done = PodFacts {
        done: true,
        ..pod(1, true, false, true, 8080)
    };
    let nowhere = PodFacts {
        addresses: Vec::new(),
        ..pod(2, true, false, true, 8080)
    };
    pods.insert("done".to_owned(), done);
    pods.insert("nowhere".to_owned(), nowhere);
    assert_eq!(plan_for(true, &pods, &Slices::new()), Plan::default());
}

#[test]
fn what_somebody_else_changed_is_put_right() {
    let pods: Pods = [("a".to_owned(), pod(1, true, false, false, 8080))].into();
    let mut slices = Slices::new();
    carry_out(&plan_for(true, &pods, &slices), &mut slices);
    let good = slices.clone();
    let name = good.keys().next().expect("a slice").clone();
    let edits: [fn(&mut EndpointSlice); 5] = [
        |slice| slice.endpoints = None,
        |slice| slice.ports = None,
        |slice| slice.metadata.owner_references = None,
        |slice| {
            let labels = slice.metadata.labels.as_mut().expect("labels");
            labels.remove(POOL_LABEL);
        },
        |slice| {
            let endpoints = slice.endpoints.as_mut().expect("endpoints");
            endpoints[0].addresses[0] = "10.9.9.9".to_owned();
        },
    ];
    for edit in edits {
        let mut edited = good.clone();
        edit(edited.get_mut(&name).expect("the slice"));
        carry_out(&plan_for(true, &pods, &edited), &mut edited);
        check(true, &pods, &edited);
        assert_eq!(plan_for(true, &pods, &edited), Plan::default());
    }
    let mut labelled = good.clone();
    let labels = &mut labelled.get_mut(&name).expect("the slice").metadata.labels;
    labels
        .get_or_insert_default()
        .insert("theirs".to_owned(), "1".to_owned());
    let further = plan_for(true, &pods, &labelled);
    assert_eq!(
        further,
        Plan::default(),
        "a label of somebody else is not touched"
    );
}

#[test]
fn a_pool_has_a_limit_and_keeps_those_that_it_has() {
    let range = |range: std::ops::Range<usize>| -> Pods {
        range
            .map(|i| (format!("pod-{i:06}"), pod(i, true, false, false, 8080)))
            .collect()
    };
    let mut slices = Slices::new();
    let last = range(5..MAX_POOL_PODS + 5);
    let plan = plan_for(true, &last, &slices);
    assert_eq!(
        (plan.left_out, plan.gaining.len()),
        (0, MAX_POOL_PODS / MAX_SLICE_ENDPOINTS)
    );
    carry_out(&plan, &mut slices);
    let plan = plan_for(true, &range(0..MAX_POOL_PODS + 5), &slices);
    let crowded = Plan {
        left_out: 5,
        ..Plan::default()
    };
    assert_eq!(plan, crowded);
}

/// Every endpoint is in some slice at any time, whatever moves.
#[test]
fn an_endpoint_that_moves_is_written_before_it_is_removed() {
    let with_port = |port| -> Pods { [("a".to_owned(), pod(1, true, false, false, port))].into() };
    let mut slices = Slices::new();
    carry_out(&plan_for(true, &with_port(8080), &slices), &mut slices);
    let before = slices.keys().next().expect("a slice").clone();
    let plan = plan_for(true, &with_port(9090), &slices);
    assert_eq!((plan.gaining.len(), plan.changed.len()), (1, 0));
    assert_eq!(plan.delete, [before]);
}

#[test]
fn names_are_valid_and_differ() {
    let long = "a".repeat(250);
    let (one, two) = (format!("{long}.b"), format!("{long}.c"));
    for pool in ["web", "web.v1", &one, &two] {
        let name = format!("{}v4-100", name_prefix(pool));
        assert!(name.len() <= 253, "{name}");
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        assert!(name.chars().all(inner) && !name.contains(".-") && !name.contains("-."));
    }
    assert_ne!(name_prefix(&one), name_prefix(&two));
}
