//! How new flows spread over pools and servers, in the kernel and on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sluice_abi::{
    ForwardingMode, POOL_BY_CLIENT_ADDRESS, SERVER_BY_CLIENT_ADDRESS, SHARE_WHOLE, TCP, UDP,
};
use sluice_tests::packet::{
    frame::{SYN, tcp, udp},
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

/// Clients and virtual servers of one family and protocol.
#[derive(Clone, Copy, Debug)]
struct Net {
    is_ipv6: bool,
    protocol: u8,
}

const NETS: [Net; 4] = {
    const fn net(is_ipv6: bool, protocol: u8) -> Net {
        Net { is_ipv6, protocol }
    }
    [
        net(false, TCP),
        net(false, UDP),
        net(true, TCP),
        net(true, UDP),
    ]
};

impl Net {
    fn address(self, net: u16, host: u16) -> IpAddr {
        if self.is_ipv6 {
            Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host).into()
        } else {
            Ipv4Addr::from_bits(u32::from(net) << 16 | u32::from(host)).into()
        }
    }

    fn vip(self) -> SocketAddr {
        SocketAddr::new(self.address(0xcb00, 10), 80)
    }

    fn other_vip(self) -> SocketAddr {
        SocketAddr::new(self.address(0xcb00, 11), 80)
    }

    /// Two pools of [`SERVERS`] servers; a server's number is the last byte of its next hop's address.
    fn setup(self, flags: u8) -> Setup {
        let mut setup = Setup::director();
        let vip_port = setup.virtual_server(self.vip(), self.protocol);
        let ids: Vec<u32> = (0_u8..)
            .take(2 * SERVERS as usize)
            .map(|number| setup.server(&vip_port, &self.server(ForwardingMode::Dr, number)))
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

    fn server(self, mode: ForwardingMode, number: u8) -> Server {
        let address = SocketAddr::new(self.address(0x0a00, number.into()), 8080);
        Server {
            next_hop_mac: [2, 0, 0, 0, 0, number],
            ..Server::new(mode, address, self.vip().ip())
        }
    }

    /// The number of the server that a new flow to `vip` goes to.
    fn to(self, machine: &mut dyn Machine, vip: SocketAddr, client: u16, port: u16) -> usize {
        let client = SocketAddr::new(self.address(0xc633, client), port);
        let frame = if self.protocol == TCP {
            tcp(client, vip, SYN)
        } else {
            udp(client, vip)
        };
        let output = machine
            .run(&Input {
                program: Program::Xdp,
                now_ns: 1 << 40,
                random: 0,
                frame: &frame.bytes(),
                headroom: true,
            })
            .expect("the packet runs");
        usize::from(*output.frame.get(5).expect("the packet is sent on"))
    }

    /// The servers that a client's flows of some ports go to.
    fn servers(self, machine: &mut dyn Machine, client: u16) -> Vec<usize> {
        (0..5)
            .map(|port| self.to(machine, self.vip(), client, 30_000 + 7 * port))
            .collect()
    }
}

fn pool(server: usize) -> usize {
    server / SERVERS as usize
}

fn all_same(numbers: &[usize]) -> bool {
    numbers.iter().all(|number| *number == numbers[0])
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
fn by_flow(machine: &mut dyn Machine, net: Net) {
    machine.reset(&net.setup(0)).expect("tables");
    let mut counts = [0_u32; 2 * SERVERS as usize];
    for client in 0..1000 {
        for port in 0..10 {
            counts[net.to(machine, net.vip(), client, 20_000 + port)] += 1;
        }
    }
    println!("{net:?} {counts:?}");
    let (first, second) = counts.split_at(SERVERS as usize);
    assert_share(first.iter().sum(), 10_000, 0.25);
    for count in first {
        assert_share(*count, 10_000, 0.25 / f64::from(SERVERS));
    }
    for count in second {
        assert_share(*count, 10_000, 0.75 / f64::from(SERVERS));
    }
}

/// A client stays with one pool, whatever its ports, and its flows spread over the pool's servers; clients get the pools by their
/// shares.
fn pool_by_client(machine: &mut dyn Machine, net: Net) {
    let setup = net.setup(POOL_BY_CLIENT_ADDRESS);
    machine.reset(&setup).expect("tables");
    let (mut first_pool, mut spread) = (0, 0);
    for client in 0..2000 {
        let servers = net.servers(machine, client);
        let pools: Vec<usize> = servers.iter().copied().map(pool).collect();
        assert!(all_same(&pools), "{net:?} {client}: {servers:?}");
        first_pool += u32::from(pools[0] == 0);
        spread += u32::from(!all_same(&servers));
    }
    assert_share(first_pool, 2000, 0.25);
    // Of five flows, all go to one of four servers once in 256.
    assert_share(spread, 2000, 255.0 / 256.0);
}

/// A client has one server in each pool, while its flows choose their pools as without the flag. Servers get equal parts.
fn server_by_client(machine: &mut dyn Machine, net: Net) {
    machine.reset(&net.setup(0)).expect("tables");
    let clients = 0..2000;
    let by_flow: Vec<_> = clients
        .clone()
        .map(|client| net.servers(machine, client))
        .collect();
    let setup = net.setup(SERVER_BY_CLIENT_ADDRESS);
    machine.reset(&setup).expect("tables");
    let mut counts = [0_u32; SERVERS as usize];
    for (client, by_flow) in clients.zip(by_flow) {
        let servers = net.servers(machine, client);
        let by_client = servers.iter().zip(by_flow);
        for (server, by_flow) in by_client {
            assert_eq!(pool(*server), pool(by_flow), "{net:?} {client}");
        }
        let places: Vec<usize> = servers.iter().map(|s| s % SERVERS as usize).collect();
        assert!(all_same(&places), "{net:?} {client}: {servers:?}");
        counts[places[0]] += 1;
    }
    for count in counts {
        assert_share(count, 2000, 1.0 / f64::from(SERVERS));
    }
}

/// With both flags a client has one server, and its pool says nothing about which of its servers that is.
fn all_by_client(machine: &mut dyn Machine, net: Net) {
    let setup = net.setup(POOL_BY_CLIENT_ADDRESS | SERVER_BY_CLIENT_ADDRESS);
    machine.reset(&setup).expect("tables");
    let mut counts = [0_u32; 2 * SERVERS as usize];
    for client in 0..2000 {
        let servers = net.servers(machine, client);
        assert!(all_same(&servers), "{net:?} {client}: {servers:?}");
        counts[servers[0]] += 1;
    }
    for (server, count) in counts.into_iter().enumerate() {
        let share = if pool(server) == 0 { 0.25 } else { 0.75 };
        assert_share(count, 2000, share / f64::from(SERVERS));
    }
}

/// Two virtual servers of NAT that choose alike, with the same servers: where a client's port is in use at its server through the
/// other one, the next candidate is chosen by another hash.
fn next_by_client(machine: &mut dyn Machine, net: Net) {
    let mut setup = Setup::director();
    for vip in [net.vip(), net.other_vip()] {
        let vip_port = setup.virtual_server(vip, net.protocol);
        let servers = (0_u8..4).map(|number| net.server(ForwardingMode::Nat, number));
        let ids: Vec<u32> = servers.map(|s| setup.server(&vip_port, &s)).collect();
        setup.ring(vip_port.head, &ids);
        let head = setup.heads.entry(vip_port.head).or_default();
        (head.seed, head.flags) = (7, SERVER_BY_CLIENT_ADDRESS);
    }
    let mut steps = [0_u32; SERVERS as usize];
    for client in 0..20 {
        // Small flow tables: each client begins with empty ones.
        machine.reset(&setup).expect("tables");
        let first = net.to(machine, net.vip(), client, 30_000);
        let second = net.to(machine, net.other_vip(), client, 30_001);
        assert_eq!(first, second, "{net:?} {client}: two ports");
        let third = net.to(machine, net.other_vip(), client, 30_000);
        assert_ne!(first, third, "{net:?} {client}: one port");
        steps[(third + SERVERS as usize - first) % SERVERS as usize] += 1;
    }
    assert!(steps[1..].iter().all(|count| *count > 0), "{steps:?}");
}

fn choices(machine: &mut dyn Machine) {
    for net in NETS {
        by_flow(machine, net);
        pool_by_client(machine, net);
        server_by_client(machine, net);
        all_by_client(machine, net);
        next_by_client(machine, net);
    }
}

#[test]
fn on_the_host() {
    choices(&mut Host::new());
}

#[test]
fn in_the_kernel() {
    choices(&mut Kernel::load().unwrap());
}
