//! CPUs that write one slot of a flow table at once must never mix the halves of their entries.
//!
//! Every flow here tells from each of its parts what the others must be: client addresses, ports and tags carry
//! the VIP port's number, and each VIP port has one server. The tables are far too small, so that nearly every packet
//! takes a slot away from another flow while the other thread does the same.

use std::{net::SocketAddr, sync::Barrier};

use sluice_abi::{ForwardingMode, Stat, TCP, UDP};
use sluice_packet::{AlignedMac, Route};
use sluice_tests::packet::{
    cpus::{stay_on, two_cpus},
    frame::{ACK, DIRECTOR_MAC, ROUTER_MAC, RST, SERVER_MAC, SYN, tcp, udp},
    host::HostTables,
    kernel::Kernel,
    layout,
    machine::{Machine, Program, State},
    random::Rng,
    setup::{IFINDEX, Server, Setup, VipPort},
};

const SERVICES: u8 = 4;
const CLIENTS: u32 = 60;
const ROUNDS: u64 = 20;

/// A flow, its frames, and the station that they must be sent to.
struct Flow {
    /// A SYN, an ACK and a RST: they open, confirm and end the flow.
    frames: [Vec<u8>; 3],
    server_mac: [u8; 6],
    is_v4: bool,
}

struct Scene {
    setup: Setup,
    flows: Vec<Flow>,
    /// VIP port and server id by number.
    vip_ports: Vec<(VipPort, u32)>,
}

fn address(is_v4: bool, net: u8, host: u8, port: u16) -> SocketAddr {
    let ip = if is_v4 {
        format!("10.{net}.0.{host}:{port}")
    } else {
        format!("[2001:db8:{net:x}::{host:x}]:{port}")
    };
    ip.parse().expect("an address")
}

fn scene() -> Scene {
    let mut scene = Scene {
        setup: Setup::director(),
        flows: Vec::new(),
        vip_ports: Vec::new(),
    };
    for number in 1..=SERVICES {
        let is_v4 = number % 2 == 0;
        let vip = address(is_v4, 200, number, 80);
        let vip_port = scene.setup.virtual_server(vip, TCP);
        let server_mac = [2, 0, 0, 0, 9, number];
        let server = Server {
            next_hop_mac: server_mac,
            ..Server::new(
                ForwardingMode::Dr,
                address(is_v4, 100, number, 80),
                vip.ip(),
            )
        };
        let id = scene.setup.only_server(&vip_port, &server);
        scene.vip_ports.push((vip_port, id));
        for client in 0..CLIENTS {
            let port = 1000 * u16::from(number) + u16::try_from(client).expect("few clients");
            let client = address(is_v4, number, number, port);
            scene.flows.push(Flow {
                frames: [SYN, ACK, RST].map(|flags| tcp(client, vip, flags).bytes()),
                server_mac,
                is_v4,
            });
        }
    }
    scene
}

impl Scene {
    /// Sends packets of random flows through `run`, which returns the frame that comes out. One family at a time: that
    /// makes twice as many of them meet.
    fn send(&self, seed: u64, is_v4: bool, packets: u32, run: impl Fn(&[u8]) -> Vec<u8>) {
        let mut rng = Rng::new(seed);
        let flows: Vec<&Flow> = self
            .flows
            .iter()
            .filter(|flow| flow.is_v4 == is_v4)
            .collect();
        for _ in 0..packets {
            let flow = rng.pick(&flows);
            let frame: &Vec<u8> = rng.pick(&flow.frames);
            let sent = run(frame);
            assert_eq!(
                sent[..6],
                flow.server_mac,
                "seed {seed}: to another flow's server"
            );
        }
    }

    /// Looks at all entries when nobody writes.
    fn check(&self, state: &State) {
        let v4 = state.v4.flows.iter().chain(&state.v4.half_open);
        let v6 = state.v6.flows.iter().chain(&state.v6.half_open);
        let keys = v4
            .flat_map(|bucket| bucket.iter().step_by(2))
            .chain(v6.flat_map(|bucket| bucket.iter().step_by(4)));
        assert!(keys.clone().all(|key| *key != 1), "a slot is left claimed");
        assert!(keys.filter(|key| **key != 0).count() > 0);
        for ((client, tag), entry) in state.flows() {
            let number = u8::try_from(client.port() / 1000).expect("a VIP port's number");
            let (vip_port, id) = &self.vip_ports[usize::from(number) - 1];
            let is_v4 = number % 2 == 0;
            assert_eq!(client, address(is_v4, number, number, client.port()));
            assert_eq!(
                (tag, entry.server),
                (layout::tag(vip_port.far()), *id),
                "{client}: {entry:?}"
            );
        }
    }
}

#[test]
fn threads_on_the_host() {
    let scene = scene();
    let mut tables = HostTables::new(&scene.setup);
    tables.dawdle();
    for round in 0..ROUNDS {
        tables.set_clock((1000 + round) << 30);
        let shared = &tables;
        let scene = &scene;
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    scene.send(4 * round + thread, round % 2 == 0, 3000, |frame| {
                        shared.decide(Program::Xdp, frame, true).frame
                    });
                });
            }
        });
        let state = tables.state();
        scene.check(&state);
        println!("{:?}", state.stats);
        // The next round begins with empty slots to fight for.
        if round % 4 == 3 {
            tables = HostTables::new(&scene.setup);
            tables.dawdle();
        }
    }
}

#[test]
fn two_cpus_in_the_kernel() {
    let cpus = two_cpus().unwrap();
    let scene = scene();
    let mut kernel = Kernel::load().unwrap();
    kernel.reset(&scene.setup).unwrap();
    for round in 0..ROUNDS {
        kernel.set_clock((1000 + round) << 30).unwrap();
        let (shared, scene) = (&kernel, &scene);
        std::thread::scope(|scope| {
            for (cpu, thread) in cpus.iter().zip(0..) {
                scope.spawn(move || {
                    stay_on(*cpu).unwrap();
                    scene.send(2 * round + thread, round % 2 == 0, 50_000, |frame| {
                        shared.run_shared(frame).unwrap()
                    });
                });
            }
        });
        let state = kernel.state().unwrap();
        scene.check(&state);
    }
    let stats = kernel.state().unwrap().stats;
    println!("{stats:?}");
    for stat in [Stat::HalfOpenEvicted, Stat::FlowEvicted, Stat::Promoted] {
        assert!(
            stats.get(&stat).is_some_and(|count| *count > 100),
            "{stat:?}"
        );
    }
}

/// A server answers while another packet of its client confirms the flow, which moves the entries of both directions from
/// one table to another. Every answer gets the VIP as its source.
#[test]
fn a_flow_that_moves_is_found() {
    let [one, other] = two_cpus().unwrap();
    let vip = address(true, 200, 1, 80);
    let server = address(true, 100, 1, 80);
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(vip, UDP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Nat, server, vip.ip()),
    );
    let client = |round: u16| address(true, 1, 1, 2000 + round);
    let route = Route::Resolved {
        ifindex: IFINDEX,
        source_mac: AlignedMac(DIRECTOR_MAC),
        next_hop_mac: AlignedMac(ROUTER_MAC),
    };
    setup.route(client(0).ip(), route);
    let mut kernel = Kernel::load().unwrap();
    kernel.reset(&setup).unwrap();
    for round in 0..20_000 {
        let request = udp(client(round), vip).bytes();
        let reply = udp(server, client(round)).macs(SERVER_MAC, DIRECTOR_MAC);
        let reply = reply.bytes();
        // Far enough from the round before that its entries have expired.
        let begins = (1000 + 1000 * u64::from(round)) << 30;
        kernel.set_clock(begins).unwrap();
        kernel.run_shared(&request).unwrap();
        kernel.set_clock(begins + (2 << 30)).unwrap();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            let (kernel, start) = (&kernel, &start);
            scope.spawn(move || {
                stay_on(one).unwrap();
                start.wait();
                kernel.run_shared(&request).unwrap();
            });
            stay_on(other).unwrap();
            start.wait();
            for _ in 0..8 {
                let restored = kernel.run_shared(&reply).unwrap();
                assert_eq!(restored[26..30], [10, 200, 0, 1], "round {round}");
            }
        });
    }
}
