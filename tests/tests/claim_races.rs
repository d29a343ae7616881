//! CPUs that want one FullNAT port at once: it is never two flows' at a time.
//!
//! Three ports are left of all that connections try. First three connections claim them. Six seconds later their ports may be taken
//! over, and each of them confirms itself while others want to begin: of every port either the old connection or one new one
//! may send, whichever CPU comes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Barrier, Mutex},
};

use sluice_abi::{ClaimData, ClaimState, FULLNAT_PORT_MIN, ForwardingMode, TCP};
use sluice_tests::packet::{
    cpus::{stay_on, two_cpus},
    frame::{ACK, SYN, tcp},
    host::HostTables,
    kernel::Kernel,
    machine::{Machine, Program},
    random::Rng,
    setup::{ALWAYS_FRESH, Claim, Server, Setup},
};

const PORTS: u16 = 3;
const BEGINNERS: u16 = 8;
/// On the host threads wait for each other, which takes long.
const HOST_ROUNDS: u16 = 100;
const KERNEL_ROUNDS: u16 = 1000;
/// Ports that a connection tries with a random number of 0.
const TRIED: u16 = 13;
const SECOND: u64 = 1_000_000_000;

struct Scene {
    setup: Setup,
    is_v4: bool,
    vip: SocketAddr,
}

/// Which clients sent from which port of the director's own.
type Senders = BTreeMap<u16, BTreeSet<u16>>;

impl Scene {
    fn new(is_v4: bool) -> Self {
        let address = |v4: &str, v6: &str| -> SocketAddr {
            let text = if is_v4 { v4 } else { v6 };
            text.parse().expect("an address")
        };
        let vip = address("10.200.0.1:80", "[2001:db8:200::1]:80");
        let server = address("10.100.0.1:8080", "[2001:db8:100::1]:8080");
        let own = address("10.100.0.9:1", "[2001:db8:100::9]:1");
        let mut setup = Setup::director();
        let vip_port = setup.virtual_server(vip, TCP);
        setup.only_server(
            &vip_port,
            &Server::new(ForwardingMode::FullNat, server, own.ip()),
        );
        for port in FULLNAT_PORT_MIN + PORTS..FULLNAT_PORT_MIN + TRIED {
            setup.claim(Claim {
                server,
                own: SocketAddr::new(own.ip(), port),
                client: own,
                vip,
                protocol: TCP,
                data: ClaimData::new(1, 1, ClaimState::Established, ALWAYS_FRESH),
            });
        }
        Self { setup, is_v4, vip }
    }

    fn frame(&self, client_port: u16, flags: u8) -> Vec<u8> {
        let ip = if self.is_v4 {
            "10.1.0.1"
        } else {
            "2001:db8:1::1"
        };
        let ip = ip.parse().expect("an address");
        tcp(SocketAddr::new(ip, client_port), self.vip, flags).bytes()
    }

    /// The own port from which a packet was sent on; `None` if it was dropped.
    fn port(&self, sent: &[u8]) -> Option<u16> {
        let at = 14 + if self.is_v4 { 20 } else { 40 };
        let port = u16::from_be_bytes(sent.get(at..at + 2)?.try_into().ok()?);
        (FULLNAT_PORT_MIN..FULLNAT_PORT_MIN + PORTS)
            .contains(&port)
            .then_some(port)
    }

    fn client(round: u16, number: u16) -> u16 {
        10_000 + round * (PORTS + BEGINNERS) + number
    }

    /// The first connections claim all ports.
    fn begin(&self, round: u16, run: impl Fn(&[u8]) -> Vec<u8>) {
        for number in 0..PORTS {
            let sent = run(&self.frame(Self::client(round, number), SYN));
            assert!(self.port(&sent).is_some(), "round {round}: no port");
        }
    }

    /// All threads send the packets of all connections, each in an order of its own. Returns who sent from which port.
    fn race(
        &self,
        round: u16,
        threads: &[Option<usize>],
        run: impl Fn(&[u8]) -> Vec<u8> + Sync,
    ) -> Senders {
        let senders = Mutex::new(Senders::new());
        let start = Barrier::new(threads.len());
        std::thread::scope(|scope| {
            for (cpu, thread) in threads.iter().zip(0..) {
                let (senders, start, run) = (&senders, &start, &run);
                scope.spawn(move || {
                    if let Some(cpu) = cpu {
                        stay_on(*cpu).expect("an allowed CPU");
                    }
                    let mut rng = Rng::new(u64::from(round) * 64 + thread);
                    let mut left: Vec<u16> = (0..PORTS + BEGINNERS).collect();
                    start.wait();
                    while !left.is_empty() {
                        let count = u32::try_from(left.len()).expect("few connections");
                        let number = left.swap_remove(rng.below(count) as usize);
                        let flags = if number < PORTS { ACK } else { SYN };
                        let sent = run(&self.frame(Self::client(round, number), flags));
                        if let Some(port) = self.port(&sent) {
                            let mut senders = senders.lock().expect("no thread panicked");
                            senders.entry(port).or_default().insert(number);
                        }
                    }
                });
            }
        });
        senders.into_inner().expect("no thread panicked")
    }
}

/// When a round begins; all flows of the one before have expired.
fn begins(round: u16) -> u64 {
    (10_000 + u64::from(round) * 8_000) * SECOND
}

/// How often the old connection kept its port, and how often a new one got it.
#[derive(Default, Debug)]
struct Outcomes {
    kept: u32,
    taken: u32,
}

impl Outcomes {
    fn add(&mut self, round: u16, senders: &Senders) {
        for (port, clients) in senders {
            assert_eq!(
                clients.len(),
                1,
                "round {round}: {clients:?} at port {port}"
            );
            if clients.iter().all(|client| *client < PORTS) {
                self.kept += 1;
            } else {
                self.taken += 1;
            }
        }
    }

    fn check(&self) {
        println!("{self:?}");
        assert!(self.kept > 20 && self.taken > 20, "{self:?}");
    }
}

#[test]
fn threads_on_the_host() {
    for is_v4 in [true, false] {
        let scene = Scene::new(is_v4);
        let mut tables = HostTables::new(&scene.setup);
        tables.dawdle();
        let run = |frame: &[u8]| tables.decide(Program::Xdp, frame, true).frame;
        let mut outcomes = Outcomes::default();
        for round in 0..HOST_ROUNDS {
            tables.set_clock(begins(round));
            scene.begin(round, run);
            tables.set_clock(begins(round) + 6 * SECOND);
            let senders = scene.race(round, &[None; 4], run);
            outcomes.add(round, &senders);
        }
        outcomes.check();
    }
}

#[test]
fn two_cpus_in_the_kernel() {
    let cpus = two_cpus().unwrap().map(Some);
    for is_v4 in [true, false] {
        let scene = Scene::new(is_v4);
        let mut kernel = Kernel::load().unwrap();
        kernel.reset(&scene.setup).unwrap();
        let mut outcomes = Outcomes::default();
        for round in 0..KERNEL_ROUNDS {
            kernel.set_clock(begins(round)).unwrap();
            scene.begin(round, |frame| kernel.run_shared(frame).unwrap());
            kernel.set_clock(begins(round) + 6 * SECOND).unwrap();
            let shared = &kernel;
            let senders = scene.race(round, &cpus, |frame| shared.run_shared(frame).unwrap());
            outcomes.add(round, &senders);
        }
        outcomes.check();
    }
}
