//! How new flows spread over pools and servers, in the kernel and on the host.

use std::net::{IpAddr, SocketAddr};

use sluice_abi::{ForwardingMode, POOL_BY_CLIENT_ADDRESS, SHARE_WHOLE, TCP};
use sluice_tests::packet::{
    frame::{SYN, tcp},
    host::Host,
    kernel::Kernel,
    machine::{Input, Machine, Program},
    setup::{Server, Setup},
};

/// Slots of each pool's ring, all different servers.
const SERVERS: u32 = 4;
/// The second pool's ring.
const SECOND_RING: u32 = 60;
/// Of the flows, what goes to the first pool: a quarter.
const SHARE: u32 = SHARE_WHOLE / 4;

fn vip() -> SocketAddr {
    "203.0.113.10:80".parse().expect("an address")
}

/// Two pools of [`SERVERS`] servers; a server's number is the last byte of its next hop's address.
fn setup(flags: u8) -> Setup {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(vip(), TCP);
    let ids: Vec<u32> = (0_u8..)
        .take(2 * SERVERS as usize)
        .map(|number| {
            let server = Server {
                next_hop_mac: [2, 0, 0, 0, 0, number],
                ..Server::new(ForwardingMode::Dr, vip(), vip().ip())
            };
            setup.server(&vip_port, &server)
        })
        .collect();
    let (first, second) = ids.split_at(SERVERS as usize);
    setup.ring(vip_port.head, first);
    setup.ring(SECOND_RING, second);
    let head = setup.heads.entry(vip_port.head).or_default();
    head.flags = flags;
    head.pool_count = 2;
    head.pools[1] = head.pools[0];
    head.pools[1].ring = SECOND_RING;
    head.pools[0].threshold = SHARE;
    setup
}

/// The number of the server that a new flow goes to.
fn server(machine: &mut dyn Machine, client: u32, port: u16) -> usize {
    let ip = IpAddr::from((0xc633_0000 + client).to_be_bytes());
    let output = machine
        .run(&Input {
            program: Program::Xdp,
            now_ns: 1 << 40,
            random: 0,
            frame: &tcp(SocketAddr::new(ip, port), vip(), SYN).bytes(),
            headroom: true,
        })
        .expect("the packet runs");
    usize::from(output.frame[5])
}

/// Within 3 standard deviations of a binomial distribution.
fn assert_share(count: u32, of: u32, share: f64) {
    let (count, of) = (f64::from(count), f64::from(of));
    let deviation = (of * share * (1.0 - share)).sqrt();
    assert!(
        (count - of * share).abs() <= 3.0 * deviation,
        "{count} of {of}, expected {share}"
    );
}

/// Every flow chooses its pool; pools get their shares and servers theirs of the pool.
fn by_flow(machine: &mut dyn Machine) {
    machine.reset(&setup(0)).expect("tables");
    let mut counts = [0_u32; 2 * SERVERS as usize];
    for client in 0..1000 {
        for port in 0..10 {
            counts[server(machine, client, 20_000 + port)] += 1;
        }
    }
    println!("{counts:?}");
    let (first, second) = counts.split_at(SERVERS as usize);
    assert_share(first.iter().sum(), 10_000, 0.25);
    for count in first {
        assert_share(*count, 10_000, 0.25 / f64::from(SERVERS));
    }
    for count in second {
        assert_share(*count, 10_000, 0.75 / f64::from(SERVERS));
    }
}

/// A client stays with one pool, whatever its ports; clients get the pools by their shares.
fn by_client(machine: &mut dyn Machine) {
    machine
        .reset(&setup(POOL_BY_CLIENT_ADDRESS))
        .expect("tables");
    let mut first_pool = 0;
    for client in 0..2000 {
        let pools: Vec<bool> = (0..5)
            .map(|port| server(machine, client, 30_000 + 7 * port) < SERVERS as usize)
            .collect();
        assert!(
            pools.iter().all(|pool| *pool == pools[0]),
            "{client}: {pools:?}"
        );
        first_pool += u32::from(pools[0]);
    }
    assert_share(first_pool, 2000, 0.25);
}

#[test]
fn on_the_host() {
    by_flow(&mut Host::new());
    by_client(&mut Host::new());
}

#[test]
fn in_the_kernel() {
    let mut kernel = Kernel::load().unwrap();
    by_flow(&mut kernel);
    by_client(&mut kernel);
}
