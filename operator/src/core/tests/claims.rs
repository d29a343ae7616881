//! Who gets a VIP port that several virtual servers ask for.

use super::*;

fn other(text: &str, name: &str) -> String {
    let server = text.split("---").next().expect("a document");
    server.replace("name: web", &format!("name: {name}"))
}

/// Says when an object was made.
fn made(sim: &mut Sim, name: &str, seconds: i64) {
    let object = sim.world.virtual_servers.get_mut(&key(name));
    let metadata = &mut object.expect("an object").metadata;
    let at = Timestamp::from_second(seconds).expect("time");
    metadata.creation_timestamp = Some(Time(at));
}

fn on_port(name: &str, port: u16) -> String {
    let ports = format!("port: {port}}}");
    other(&MANIFESTS.replace("port: 80}", &ports), name)
}

fn reasons(sim: &Sim, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| sim.ready(name).1).collect()
}

fn turn(sim: &Sim, name: &str) -> Option<u64> {
    let status = sim.world.virtual_servers[&key(name)].status.as_ref();
    Some(status?.claim.as_ref()?.turn)
}

#[test]
fn in_files_the_one_that_has_the_endpoint_keeps_it() {
    let mut sim = served();
    sim.apply(&other(MANIFESTS, "a"));
    sim.settle();
    let (_, reason, message) = sim.ready("a");
    assert_eq!(reason, "AddressConflict");
    assert!(
        message.contains("203.0.113.10 port 80 is held by VirtualServer default/web"),
        "{message}"
    );
    assert!(message.contains("spec.ports[0].port"), "{message}");
    assert_eq!(sim.ready("web").1, "Live");
    sim.apply(&other(&MANIFESTS.replace("port: 80}", "port: 81}"), "a"));
    sim.settle();
    assert_eq!(
        (sim.ready("a").1, sim.ready("web").1),
        ("Live".to_owned(), "Live".to_owned())
    );
    // It wants the other's port now, but keeps its own.
    sim.apply(&other(&MANIFESTS.replace("port: 80}", "port: 81}"), "web"));
    sim.assert_refused("AddressConflict", &["held by VirtualServer default/a"]);
    sim.world.virtual_servers.remove(&key("a"));
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
}

#[test]
fn of_two_new_ones_the_first_by_name_gets_the_endpoint_and_by_time_the_older() {
    let mut sim = Sim::new(MANIFESTS);
    sim.apply(&other(MANIFESTS, "a"));
    sim.settle();
    assert_eq!(reasons(&sim, &["a", "web"]), ["Live", "AddressConflict"]);

    let mut sim = Sim::new(MANIFESTS);
    sim.apply(&other(MANIFESTS, "a"));
    made(&mut sim, "a", 20);
    made(&mut sim, "web", 10);
    sim.settle();
    assert_eq!(reasons(&sim, &["a", "web"]), ["AddressConflict", "Live"]);
}

/// The age of an object says nothing of when it asked for what it asks for now.
#[test]
fn an_older_object_that_is_edited_takes_nothing_from_whoever_holds_it() {
    let mut sim = Sim::new(MANIFESTS);
    sim.apply(&on_port("old", 81));
    made(&mut sim, "old", 10);
    made(&mut sim, "web", 20);
    sim.settle();
    let before = sim.world.decision(&key("web")).cloned();
    sim.apply(&on_port("old", 80));
    made(&mut sim, "old", 10);
    sim.settle();
    assert_eq!(reasons(&sim, &["old", "web"]), ["AddressConflict", "Live"]);
    assert_eq!(sim.world.decision(&key("web")).cloned(), before);
    let kept = sim.world.decision(&key("old")).expect("is kept");
    assert_eq!(kept.content.ports[0].port, 81, "what it had is its own");
}

#[test]
fn who_asked_first_gets_what_becomes_free() {
    let mut sim = Sim::new(MANIFESTS);
    sim.apply(&on_port("old", 81));
    made(&mut sim, "old", 10);
    made(&mut sim, "web", 20);
    sim.settle();
    sim.apply(&on_port("young", 80));
    made(&mut sim, "young", 30);
    sim.settle();
    sim.apply(&on_port("old", 80));
    made(&mut sim, "old", 10);
    sim.settle();
    assert_eq!((turn(&sim, "young"), turn(&sim, "old")), (Some(1), Some(2)));
    // Whatever else it changes, it asks for the same; for less, it does so all the longer.
    sim.apply(&on_port("young", 80).replace("mode: NAT", "mode: FullNAT"));
    made(&mut sim, "young", 30);
    // No node's address is known for a while, so nobody is admitted: that costs no turn.
    sim.node("d2", &[]);
    sim.world.nodes.get_mut("d2").expect("d2").starting = true;
    sim.settle();
    sim.world.nodes.remove("d2");
    sim.world.virtual_servers.remove(&key("web"));
    sim.settle();
    let names = ["young", "old"];
    assert_eq!(reasons(&sim, &names), ["Live", "AddressConflict"]);
    assert_eq!((turn(&sim, "young"), turn(&sim, "old")), (None, Some(2)));
    sim.apply(&on_port("old", 81));
    sim.settle();
    assert_eq!(reasons(&sim, &names), ["Live", "Live"]);
    assert_eq!(turn(&sim, "old"), None);
}

#[test]
fn who_asks_for_more_asks_anew() {
    let mut sim = served();
    sim.apply(&on_port("a", 80));
    sim.settle();
    sim.apply(&on_port("b", 80));
    sim.settle();
    assert_eq!((turn(&sim, "a"), turn(&sim, "b")), (Some(1), Some(2)));
    let more = "port: 80}, {name: tls, protocol: TCP, port: 443}";
    sim.apply(&other(&MANIFESTS.replace("port: 80}", more), "a"));
    sim.settle();
    assert_eq!((turn(&sim, "a"), turn(&sim, "b")), (Some(3), Some(2)));
    sim.world.virtual_servers.remove(&key("web"));
    sim.settle();
    assert_eq!(reasons(&sim, &["a", "b"]), ["AddressConflict", "Live"]);
}

/// Else a virtual server that never gets all it asks for would keep the rest from everybody.
#[test]
fn who_waits_for_one_port_keeps_no_other_from_others() {
    let mut sim = served();
    let two = "port: 80}, {name: tls, protocol: TCP, port: 443}";
    sim.apply(&other(&MANIFESTS.replace("port: 80}", two), "a"));
    sim.settle();
    sim.apply(&on_port("b", 443));
    sim.settle();
    assert_eq!(
        reasons(&sim, &["web", "a", "b"]),
        ["Live", "AddressConflict", "Live"]
    );
}

/// Somebody else has written a decision.
#[test]
fn two_decisions_never_share_a_vip_port() {
    let mut sim = served();
    sim.apply(&on_port("a", 81));
    sim.settle();
    let object = sim.world.virtual_servers.get_mut(&key("a")).expect("a");
    let decision = object.status.as_mut().expect("status").decision.as_mut();
    decision.expect("decision").content.ports[0].port = 80;
    sim.apply(&on_port("a", 80));
    made(&mut sim, "a", 20);
    made(&mut sim, "web", 10);
    sim.settle();
    assert_eq!(reasons(&sim, &["a", "web"]), ["AddressConflict", "Live"]);
    assert!(sim.world.decision(&key("a")).is_none());
}
