//! Pools that are for some Services.

use super::*;

#[test]
fn a_pool_may_be_for_some_services() {
    let mut world = World::new();
    let front = json!({"serviceSelector": {"matchLabels": {"tier": "front"}}});
    let spec = json!({"addresses": ["203.0.113.0/24"], "allow": front});
    world.pool("front", &spec);
    let labels = |tier: &str| BTreeMap::from([("tier".to_owned(), tier.to_owned())]);
    let (ours, theirs) = (key("shop/a"), key("shop/b"));
    assert!(world.ledger.set_service(&ours, Some(&labels("front"))));
    assert!(!world.ledger.set_service(&ours, Some(&labels("front"))));
    world.ledger.set_service(&theirs, Some(&labels("back")));
    world.apply("shop/a", &by_family());
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    world.apply("shop/b", &by_family());
    assert_eq!(world.has("shop/b"), "AddressNotAllowed");
    world.apply("shop/b", &json!([{"ip": "203.0.113.9"}]));
    let why = world.why("shop/b");
    assert!(
        why.contains("does not allow a Service with these labels"),
        "{why}"
    );
    world.apply("shop/c", &by_family());
    assert_eq!(
        world.has("shop/c"),
        "203.0.113.2",
        "it is made for no Service"
    );
    // Whoever has an address keeps it.
    world.ledger.set_service(&ours, Some(&labels("back")));
    world.ask_all();
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    assert!(world.ledger.set_service(&theirs, None));
    world.ask_all();
    assert_eq!(world.has("shop/b"), "203.0.113.9");
    world.check();
}
