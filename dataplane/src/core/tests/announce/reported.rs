//! What is told of strangers and of groups without a holder.

use sluice_api::{
    AddressClaim, ConditionType, MAX_UNHELD_GROUPS, Time, UnheldGroup, find_condition,
};

use super::*;
use crate::announce::{Claimed, Stranger};

#[test]
fn status_tells_of_strangers_while_they_claim_vips() {
    let mut world = world();
    let stranger = Stranger {
        address: ip("203.0.113.1"),
        uplink: UPLINK.to_owned(),
        mac: Mac([2, 0, 0, 0, 0, 99]),
    };
    let mut tell = |strangers: &[(Stranger, Claimed)]| {
        world.tell(Input::Announcer(Box::new(Told {
            strangers: strangers.iter().cloned().collect(),
            ..Told::default()
        })));
        wait(&mut world, Duration::from_secs(2));
        world.status.clone().expect("a status")
    };
    let status = tell(&[(stranger.clone(), Claimed::Defended)]);
    let claim = AddressClaim {
        address: ip("203.0.113.1"),
        interface: UPLINK.to_owned(),
        mac_address: MacAddress([2, 0, 0, 0, 0, 99]),
        withheld: false,
    };
    assert_eq!(status.address_claims, [claim]);
    let claimed = find_condition(&status.conditions, ConditionType::AddressClaimed);
    let claimed = claimed.expect("the condition");
    assert_eq!(claimed.reason, "AnsweredElsewhere");
    let message = "203.0.113.1 is claimed by 02:00:00:00:00:63 on eth0";
    assert!(claimed.message.contains(message), "{}", claimed.message);
    let status = tell(&[(stranger, Claimed::Withheld)]);
    assert!(status.address_claims[0].withheld);
    let claimed = find_condition(&status.conditions, ConditionType::AddressClaimed);
    let claimed = claimed.expect("the condition");
    assert_eq!(claimed.reason, "AddressInUse");
    let message = "203.0.113.1 is not announced: 02:00:00:00:00:63 on eth0 has it";
    assert!(claimed.message.contains(message), "{}", claimed.message);
    let status = tell(&[]);
    assert!(status.address_claims.is_empty());
    let claimed = find_condition(&status.conditions, ConditionType::AddressClaimed);
    assert_eq!(claimed, None);
}

#[test]
fn status_tells_of_groups_that_nobody_holds() {
    let mut world = world();
    let since = Timestamp::UNIX_EPOCH;
    let unheld = (0..100).map(|number| {
        let cause = Some(Cause::Obstacle(Obstacle::LeaseRefused));
        (format!("edge-{number:03}"), Unheld { since, cause })
    });
    world.tell(Input::Announcer(Box::new(Told {
        unheld: unheld.collect(),
        ..Told::default()
    })));
    wait(&mut world, Duration::from_secs(2));
    let status = world.status.clone().expect("a status");
    let first = UnheldGroup {
        name: "edge-000".to_owned(),
        since: Time(since),
        reason: Some(UnheldReason::LeaseRefused),
    };
    assert_eq!(status.unheld_groups.first(), Some(&first));
    assert_eq!(status.unheld_groups.len(), MAX_UNHELD_GROUPS);
    assert_eq!(world.published.groups_without_holder, 100);
}

#[test]
fn a_node_that_cannot_announce_says_so_and_gets_no_group() {
    let options = AnnounceOptions {
        unable: Some("no CAP_NET_RAW".to_owned()),
        ..AnnounceOptions::default()
    };
    let mut world = World::with(options, Memory::default());
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    world.tell(Input::Source(Event::MayHold(true)));
    world.tell(pool(|_| ()));
    world.tell(Input::Source(announced(7, &[SERVER])));
    world.turn();
    wait(&mut world, Duration::from_secs(2));
    assert_eq!(
        group(&world).map(|group| group.health),
        Some(Health::Broken)
    );
    assert_eq!(candidates(&world), "d1", "it is not steady");
    let status = world.status.expect("a status");
    assert!(status.conditions[0].message.contains("no CAP_NET_RAW"));
}
