//! Who has a VIP: requests for it, and what the stack says of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sluice_abi::{AnnouncedWord, DropReason, MAX_GROUPS, Stat, TCP};
use sluice_packet::Verdict;

use crate::packet::{
    case::{Case, ToBytes},
    frame::{Checksum, DIRECTOR_MAC, Mac, ROUTER_MAC, SERVER_MAC},
    layout,
    machine::Program,
    neighbour::{
        ADVERTISEMENT, ALL_NODES, ALL_NODES_MAC, Arp, BROADCAST, Neighbour, REPLY,
        link_layer_address,
    },
    setup::{IFINDEX, Setup},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    vec![
        arp_requests(),
        arp_follows_the_deadline(),
        arp_passes(),
        arp_of_the_stack(),
        solicitations(),
        solicitations_without_headroom(),
        options(),
        duplicates(),
        routers(),
        solicitations_follow_the_deadline(),
        solicitations_pass(),
        invalid_solicitations(),
        invalid_duplicate_detection(),
        solicitations_to_a_vip_that_is_not_announced(),
        neighbour_discovery_of_the_stack(),
        short_frames(),
    ]
}

const VIP4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const OTHER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
const ROUTER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0x12, 0x3456);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0x12, 0x3457);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

const GROUP: u16 = 700;
/// Ten seconds after the first packet of a case.
const DEADLINE: u64 = 1_010_000_000_000;

/// A director that announces both VIPs in one group, and holds it.
fn holder() -> Setup {
    let mut setup = Setup::director();
    let word = AnnouncedWord(layout::announced_word(DIRECTOR_MAC, GROUP, false));
    for (vip, port) in [(IpAddr::from(VIP4), 80), (IpAddr::from(VIP6), 80)] {
        setup.virtual_server(SocketAddr::new(vip, port), TCP);
        setup.announce(vip, IFINDEX, word);
    }
    arm(&mut setup, DEADLINE);
    setup
}

fn arm(setup: &mut Setup, deadline: u64) {
    setup.groups.insert(u32::from(GROUP), deadline);
}

fn ask4() -> Arp {
    Arp::request(ROUTER4, VIP4)
}

fn ask6() -> Neighbour {
    Neighbour::solicitation(ROUTER6, VIP6)
}

/// As a host asks that has no address yet (RFC 5227, section 2.1.1).
fn probe() -> Arp {
    Arp::request(Ipv4Addr::UNSPECIFIED, VIP4)
}

/// The frame behind a VLAN tag.
fn tagged(frame: &impl ToBytes) -> Vec<u8> {
    let mut bytes = frame.to_bytes();
    bytes.splice(12..12, [0x81, 0, 0, 5]);
    bytes
}

fn arp_requests() -> Case {
    let from_elsewhere = Arp {
        source_mac: SERVER_MAC,
        ..ask4()
    };
    Case::new("ARP requests are answered", holder())
        .xdp(&ask4(), Verdict::Tx, &ask4().reply())
        .xdp(&probe(), Verdict::Tx, &probe().reply())
        .xdp(
            &ask4().to(DIRECTOR_MAC),
            Verdict::Tx,
            &ask4().to(DIRECTOR_MAC).reply(),
        )
        .xdp(&from_elsewhere, Verdict::Tx, &from_elsewhere.reply())
        .xdp(
            &Arp {
                padding: 18,
                ..ask4()
            },
            Verdict::Tx,
            &Arp {
                padding: 18,
                ..ask4()
            }
            .reply(),
        )
        .check("five answers are counted", |state| {
            state.stat(Stat::Answered) == 5 && state.drops.is_empty()
        })
}

fn arp_follows_the_deadline() -> Case {
    let answered = |case: Case| case.xdp(&ask4(), Verdict::Tx, &ask4().reply());
    let swallowed = |case: Case| {
        case.drops(Program::Xdp, &ask4(), DropReason::VipNotArmed)
            .drops(Program::Xdp, &probe(), DropReason::VipNotArmed)
    };
    let nowhere = AnnouncedWord(layout::announced_word(
        DIRECTOR_MAC,
        AnnouncedWord::NO_GROUP,
        false,
    ));
    let case = swallowed(
        Case::new("ARP follows the group's deadline", holder()).then(|setup| arm(setup, 0)),
    );
    let case = answered(case.then(|setup| arm(setup, DEADLINE))).after_seconds(9);
    let case = swallowed(answered(case).after_seconds(1));
    let case = answered(case.then(|setup| arm(setup, DEADLINE + 1)));
    assert!(
        u32::from(2000_u16) >= MAX_GROUPS,
        "a group that there is not"
    );
    swallowed(case.then(move |setup| setup.announce(VIP4.into(), IFINDEX, nowhere)))
}

fn arp_passes() -> Case {
    let mac: Mac = [0x02, 0, 0, 0, 9, 9];
    let group: Mac = [0x03, 0, 0, 0, 0, 1];
    let format = |format| Arp { format, ..ask4() };
    let frames = [
        Arp::request(ROUTER4, OTHER4),
        // An announcement of somebody else (RFC 5227, section 2.3), as request and as reply.
        Arp::request(VIP4, VIP4),
        Arp {
            operation: REPLY,
            ..Arp::request(VIP4, VIP4)
        },
        Arp {
            operation: REPLY,
            ..ask4()
        },
        Arp {
            operation: 8,
            ..ask4()
        },
        ask4().to(mac),
        Arp {
            source_mac: group,
            ..ask4()
        },
        Arp {
            sender_mac: group,
            ..ask4()
        },
        format([0, 6, 8, 0, 6, 4]),
        format([0, 1, 8, 6, 6, 4]),
        format([0, 1, 8, 0, 8, 4]),
        format([0, 1, 8, 0, 6, 16]),
    ];
    let mut case = Case::new("ARP that is left alone", holder());
    for frame in &frames {
        case = case.passes(Program::Xdp, frame);
    }
    case.passes(Program::Xdp, &tagged(&ask4()))
        .passes(
            Program::Ingress,
            &Arp {
                padding: 18,
                ..ask4()
            },
        )
        .then(|setup| {
            let word = setup.v4.announced.values().next().copied();
            setup.v4.announced.clear();
            setup.announce(VIP4.into(), 9, word.unwrap_or_default());
        })
        .passes(Program::Xdp, &ask4())
        .then(|setup| arm(setup, 0))
        .passes(Program::Xdp, &ask4())
        .check("nothing is counted", |state| {
            state.stats.is_empty() && state.drops.is_empty()
        })
}

/// All frames pass while the group is armed, and later only those that do not tell of a VIP.
fn sent_by_the_stack(name: &str, of_vip: &[impl ToBytes], others: &[impl ToBytes]) -> Case {
    let mut case = Case::new(name, holder());
    for frame in of_vip {
        case = case.passes(Program::Egress, frame);
    }
    for frame in others {
        case = case.passes(Program::Egress, frame);
    }
    case = case.after_seconds(10);
    for frame in of_vip {
        case = case.drops(Program::Egress, frame, DropReason::AnnouncementNotArmed);
    }
    for frame in others {
        case = case.passes(Program::Egress, frame);
    }
    case
}

fn arp_of_the_stack() -> Case {
    let padded = |arp: Arp| Arp { padding: 18, ..arp };
    let of_vip = [
        // An announcement, a question of the stack, an answer.
        padded(Arp::request(VIP4, VIP4)),
        padded(Arp::request(VIP4, ROUTER4)),
        padded(ask4().reply()),
        padded(Arp {
            format: [0, 6, 8, 0, 6, 4],
            ..ask4().reply()
        }),
    ];
    let others = [
        padded(Arp::request(OTHER4, ROUTER4)),
        padded(probe()),
        padded(Arp::request(OTHER4, VIP4)),
        padded(Arp {
            format: [0, 1, 8, 0, 6, 8],
            ..ask4().reply()
        }),
    ];
    sent_by_the_stack("ARP that the stack sends", &of_vip, &others)
        .then(|setup| setup.v4.announced.clear())
        .passes(Program::Egress, &of_vip[0])
}

fn solicitations() -> Case {
    let again = ask6().unicast();
    let bare = ask6().unicast().options(&[]);
    let padded = Neighbour {
        padding: 5,
        ..bare.clone()
    };
    let elsewhere = Neighbour {
        source_mac: SERVER_MAC,
        ..ask6()
    };
    Case::new("solicitations are answered", holder())
        .xdp(&ask6(), Verdict::Tx, &ask6().advertisement())
        .xdp(&again, Verdict::Tx, &again.advertisement())
        .xdp(&bare, Verdict::Tx, &bare.advertisement())
        .xdp(&padded, Verdict::Tx, &bare.advertisement())
        .xdp(&elsewhere, Verdict::Tx, &elsewhere.advertisement())
        .check("five answers are counted", |state| {
            state.stat(Stat::Answered) == 5 && state.drops.is_empty()
        })
}

fn solicitations_without_headroom() -> Case {
    Case::new("an answer that is longer than the question", holder())
        .drops_without_headroom(&ask6().options(&[]), DropReason::NoHeadroom)
}

/// A nonce (RFC 3971, section 5.3.2) of so many units.
fn nonce(units: u8) -> Vec<u8> {
    let mut option = vec![14, units];
    option.resize(usize::from(units) * 8, 0x5a);
    option
}

fn options() -> Case {
    let source = link_layer_address(1, ROUTER_MAC);
    let answered = [
        [&source[..], &nonce(1)].concat(),
        [&nonce(3)[..], &source].concat(),
        [&nonce(3)[..], &nonce(4), &source].concat(),
        nonce(8),
        // The content of an option is no option.
        [&[14, 2, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat(),
    ];
    let left_alone = [
        [&nonce(8)[..], &source].concat(),
        // Of length 0, and longer than the packet.
        [&source[..], &[14, 0, 0, 0, 0, 0, 0, 0]].concat(),
        vec![14, 0, 0, 0, 0, 0, 0, 0],
        vec![14, 2, 0, 0, 0, 0, 0, 0],
        [&source[..], &[14, 255, 0, 0, 0, 0, 0, 0]].concat(),
        // Half an option.
        [&source[..], &[14, 1, 0, 0]].concat(),
    ];
    let mut case = Case::new("options of solicitations", holder());
    for options in &answered {
        let ask = ask6().options(options);
        case = case.xdp(&ask, Verdict::Tx, &ask.advertisement());
    }
    for options in &left_alone {
        case = case.passes(Program::Xdp, &ask6().options(options));
    }
    case
}

fn duplicates() -> Case {
    let bare = Neighbour::duplicate_detection(VIP6);
    let enhanced = bare.clone().options(&nonce(1));
    Case::new("duplicate address detection is answered", holder())
        .xdp(&bare, Verdict::Tx, &bare.advertisement())
        .xdp(&enhanced, Verdict::Tx, &enhanced.advertisement())
        .then(|setup| arm(setup, 0))
        .drops(Program::Xdp, &bare, DropReason::VipNotArmed)
}

fn routers() -> Case {
    let mut setup = holder();
    let word = AnnouncedWord(layout::announced_word(DIRECTOR_MAC, GROUP, true));
    setup.announce(VIP4.into(), IFINDEX, word);
    setup.announce(VIP6.into(), IFINDEX, word);
    let as_router = |mut answer: Neighbour| {
        answer.flags |= 0x80;
        answer
    };
    let detection = Neighbour::duplicate_detection(VIP6);
    Case::new("a gateway's advertisements", setup)
        .xdp(&ask6(), Verdict::Tx, &as_router(ask6().advertisement()))
        .xdp(
            &detection,
            Verdict::Tx,
            &as_router(detection.advertisement()),
        )
        .xdp(&ask4(), Verdict::Tx, &ask4().reply())
}

fn solicitations_follow_the_deadline() -> Case {
    let answered = |case: Case| case.xdp(&ask6(), Verdict::Tx, &ask6().advertisement());
    let swallowed = |case: Case| {
        case.drops(Program::Xdp, &ask6(), DropReason::VipNotArmed)
            .drops(Program::Xdp, &ask6().unicast(), DropReason::VipNotArmed)
    };
    let case = Case::new("solicitations follow the group's deadline", holder());
    let case = swallowed(answered(case.after_seconds(9)).after_seconds(1));
    swallowed(answered(case.then(|setup| arm(setup, u64::MAX))).then(|setup| arm(setup, 1)))
}

fn solicitations_pass() -> Case {
    let other_mac: Mac = [0x02, 0, 0, 0, 9, 9];
    let frames = [
        Neighbour::solicitation(ROUTER6, OTHER6),
        // Somebody else says that it has the address, or asks in its name.
        Neighbour::solicitation(VIP6, VIP6),
        Neighbour {
            kind: ADVERTISEMENT,
            destination: ALL_NODES,
            destination_mac: ALL_NODES_MAC,
            ..Neighbour::solicitation(VIP6, VIP6)
        },
        // A switch has flooded it.
        Neighbour {
            destination_mac: other_mac,
            ..ask6().unicast()
        },
        Neighbour {
            source_mac: BROADCAST,
            ..ask6()
        },
    ];
    let mut case = Case::new("solicitations that are left alone", holder());
    for frame in &frames {
        case = case.passes(Program::Xdp, frame);
    }
    case.passes(Program::Xdp, &tagged(&ask6()))
        .passes(Program::Ingress, &ask6())
        .then(|setup| {
            let word = setup.v6.announced.values().next().copied();
            setup.v6.announced.clear();
            setup.announce(VIP6.into(), 9, word.unwrap_or_default());
        })
        .passes(Program::Xdp, &ask6())
        .check("nothing is counted", |state| {
            state.stats.is_empty() && state.drops.is_empty()
        })
}

/// What RFC 4861, section 7.1.1, has a node discard goes to the stack, or is dropped where it comes to a VIP.
fn invalid_solicitations() -> Case {
    let multicast: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 5);
    let invalid: [fn(&mut Neighbour); 10] = [
        |ask| ask.hop_limit = 254,
        |ask| ask.code = 1,
        |ask| ask.checksum = Checksum::Fixed(0),
        |ask| ask.checksum = Checksum::Fixed(0xffff),
        |ask| ask.excess = -16,
        |ask| ask.excess = 8,
        |ask| ask.excess = -1,
        |ask| ask.excess = -32,
        |ask| ask.excess = i16::MAX,
        |ask| ask.source = ALL_NODES,
    ];
    let mut case = Case::new("solicitations that are not valid", holder());
    for spoil in invalid {
        let mut ask = ask6();
        spoil(&mut ask);
        let mut again = ask6().unicast();
        spoil(&mut again);
        case = case.passes(Program::Xdp, &ask);
        case = case.drops(Program::Xdp, &again, DropReason::NoVirtualServer);
    }
    let word = AnnouncedWord(layout::announced_word(DIRECTOR_MAC, GROUP, false));
    case.then(move |setup| setup.announce(multicast.into(), IFINDEX, word))
        .passes(Program::Xdp, &Neighbour::solicitation(ROUTER6, multicast))
}

fn invalid_duplicate_detection() -> Case {
    let detection = Neighbour::duplicate_detection(VIP6);
    let source = link_layer_address(1, ROUTER_MAC);
    let to = |destination| Neighbour {
        destination,
        ..detection.clone()
    };
    let almost = |segment: usize, value: u16| {
        let mut segments = detection.destination.segments();
        segments[segment] = value;
        to(segments.into())
    };
    let mut case = Case::new("duplicate address detection that is not valid", holder());
    for frame in [
        detection.clone().options(&source),
        detection.clone().options(&[nonce(1), source].concat()),
        to(ALL_NODES),
        to(VIP6),
        almost(0, 0xff05),
        almost(4, 1),
        almost(5, 2),
        almost(6, 0xfe12),
    ] {
        case = case.passes(Program::Xdp, &frame);
    }
    case
}

/// As any packet to a VIP that is neither TCP nor UDP.
fn solicitations_to_a_vip_that_is_not_announced() -> Case {
    let mut setup = holder();
    setup.v6.announced.clear();
    Case::new("solicitations to a VIP that is not announced", setup)
        .passes(Program::Xdp, &ask6())
        .drops(Program::Xdp, &ask6().unicast(), DropReason::NoVirtualServer)
}

fn neighbour_discovery_of_the_stack() -> Case {
    let unsolicited = Neighbour {
        destination: ALL_NODES,
        destination_mac: ALL_NODES_MAC,
        flags: 0x20,
        ..ask6().advertisement()
    };
    let of_vip = [
        ask6().advertisement(),
        Neighbour::duplicate_detection(VIP6).advertisement(),
        unsolicited.clone(),
        // In its own name, but about the VIP.
        Neighbour {
            source: ROUTER6,
            ..unsolicited.clone()
        },
        // Neighbours learn from who asks.
        Neighbour::solicitation(VIP6, ROUTER6),
    ];
    let others = [
        Neighbour::solicitation(ROUTER6, OTHER6).advertisement(),
        Neighbour::solicitation(OTHER6, VIP6),
        Neighbour::duplicate_detection(VIP6),
        Neighbour {
            kind: 134,
            ..unsolicited
        },
    ];
    sent_by_the_stack("neighbour discovery that the stack sends", &of_vip, &others)
        .then(|setup| setup.v6.announced.clear())
        .passes(Program::Egress, &of_vip[0])
}

/// Cut anywhere, a frame is left alone.
fn short_frames() -> Case {
    let mut case = Case::new("frames that end too early", holder());
    for frame in [ask4().to_bytes(), ask6().to_bytes()] {
        for length in 14..frame.len() {
            case = case.passes(Program::Xdp, &frame[..length].to_vec());
        }
    }
    case.check("nothing is counted", |state| {
        state.stats.is_empty() && state.drops.is_empty()
    })
}
