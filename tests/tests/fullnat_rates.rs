//! FullNAT at rates and over times that real clients do not reach here: packet by packet through the program in the kernel, with a
//! clock of its own. Nothing but packets frees ports: no agent runs.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use sluice_abi::{ConfigWord, DropReason, ForwardingMode, HALF_OPEN_NS, TCP};
use sluice_packet::{AlignedMac, Route};
use sluice_tests::packet::{
    frame::{ACK, DIRECTOR_MAC, FIN, Frame, ROUTER_MAC, SERVER_MAC, SYN, tcp},
    kernel::{FlowSizes, Kernel},
    machine::{Action, Input, Machine, Program},
    random::Rng,
    setup::{IFINDEX, Server, Setup},
};

/// Addresses from which clients come, with all ports from the first one on.
const CLIENT_ADDRESSES: u32 = 32;
const FIRST_CLIENT_PORT: u32 = 1024;
const MS: u64 = 1_000_000;
/// The clock when a run begins, in nanoseconds.
const BEGINNING: u64 = 1_000_000 * MS;
/// Servers of the pool; the director has one own address.
const SERVERS: u8 = 4;

/// `SLUICE_SECONDS` makes the runs that ask for it longer.
fn seconds() -> u64 {
    let text = std::env::var("SLUICE_SECONDS").unwrap_or_default();
    text.parse().unwrap_or(10)
}

fn vip(number: u8) -> SocketAddr {
    SocketAddr::new([10, 200, 0, number].into(), 80)
}

/// The `number`th client; they come again after 2 million.
fn client(number: u32) -> SocketAddr {
    let ports = 65_536 - FIRST_CLIENT_PORT;
    let address = number / ports % CLIENT_ADDRESSES;
    let port = u16::try_from(FIRST_CLIENT_PORT + number % ports).expect("a port");
    let host = u8::try_from(address).expect("few addresses");
    SocketAddr::new([10, 1, 0, host].into(), port)
}

/// One virtual server for each of `vips`, all with the same servers.
fn setup(vips: u8, claims: u32) -> Setup {
    let mut setup = Setup::director();
    // As the agent sets it: an eighth of the slots at once, and as many in the time that a half-open flow has.
    let interval = HALF_OPEN_NS / u64::from(claims / 8);
    setup.config(ConfigWord::NewFlowInterval, interval);
    for number in 1..=vips {
        let vip_port = setup.virtual_server(vip(number), TCP);
        let ids: Vec<u32> = (1..=SERVERS)
            .map(|host| {
                let server = SocketAddr::new([10, 100, 0, host].into(), 8080);
                let own = [10, 100, 0, 200].into();
                let server = Server::new(ForwardingMode::FullNat, server, own);
                setup.server(&vip_port, &server)
            })
            .collect();
        setup.ring(vip_port.head, &ids);
    }
    for address in 0..CLIENT_ADDRESSES {
        let host = u8::try_from(address).expect("few addresses");
        setup.route(
            [10, 1, 0, host].into(),
            Route::Resolved {
                ifindex: IFINDEX,
                source_mac: AlignedMac(DIRECTOR_MAC),
                next_hop_mac: AlignedMac(ROUTER_MAC),
            },
        );
    }
    setup
}

/// A short connection: `step` of the packets of [`Run::step`] have been sent.
struct Connection {
    client: SocketAddr,
    vip: SocketAddr,
    /// What the server got last; its answers go back to there.
    at_server: Option<(SocketAddr, SocketAddr)>,
    step: usize,
}

struct Run {
    kernel: Kernel,
    rng: Rng,
    now_ns: u64,
    /// Connections whose next packet is due, by milliseconds since the beginning.
    due: BTreeMap<u64, VecDeque<Connection>>,
    packets: u64,
    drops: BTreeMap<(SocketAddr, DropReason), u64>,
    ended: u64,
}

impl Run {
    fn new(sizes: FlowSizes, vips: u8) -> Result<Self> {
        let mut kernel = Kernel::load_sized(sizes)?;
        kernel.reset(&setup(vips, sizes.claims))?;
        Ok(Self {
            kernel,
            rng: Rng::new(1),
            now_ns: BEGINNING,
            due: BTreeMap::new(),
            packets: 0,
            drops: BTreeMap::new(),
            ended: 0,
        })
    }

    /// Sends a packet; what comes out, or `None` if it is dropped, which counts for `vip`.
    fn send(&mut self, vip: SocketAddr, frame: &Frame) -> Result<Option<Vec<u8>>> {
        let output = self.kernel.run(&Input {
            program: Program::Xdp,
            now_ns: self.now_ns,
            random: u32::try_from(self.rng.bits() >> 32)?,
            frame: &frame.bytes(),
            headroom: false,
        })?;
        self.packets += 1;
        match output.action {
            Action::Tx => Ok(Some(output.frame)),
            Action::Drop(reason) => {
                *self.drops.entry((vip, reason)).or_default() += 1;
                Ok(None)
            }
            other => bail!("a packet for {vip} ended as {other:?}"),
        }
    }

    /// Sends a connection's next packet. Returns after how many milliseconds another one follows.
    fn step(&mut self, connection: &mut Connection) -> Result<Option<u64>> {
        // Whether it is the client's, its flags, and the pause after it.
        const PACKETS: [(bool, u8, u64); 7] = [
            (true, SYN, 1),
            (false, SYN | ACK, 1),
            (true, ACK, 5),
            (false, ACK, 1),
            (true, FIN | ACK, 1),
            (false, FIN | ACK, 1),
            (true, ACK, 0),
        ];
        let (from_client, flags, pause) = PACKETS[connection.step];
        let (client, vip) = (connection.client, connection.vip);
        let frame = match connection.at_server {
            Some((own, server)) if !from_client => {
                tcp(server, own, flags).macs(SERVER_MAC, DIRECTOR_MAC)
            }
            _ => tcp(client, vip, flags),
        };
        let Some(sent) = self.send(vip, &frame)? else {
            return Ok(None);
        };
        let ends = (end(&sent, 26, 34), end(&sent, 30, 36));
        if from_client {
            connection.at_server = Some(ends);
        } else {
            ensure!(
                ends == (vip, client),
                "a reply for {client} went to {ends:?}"
            );
        }
        connection.step += 1;
        if connection.step == PACKETS.len() {
            self.ended += 1;
            return Ok(None);
        }
        Ok(Some(pause))
    }

    fn begin(&mut self, ms: u64, client: SocketAddr, vip: SocketAddr) {
        self.due.entry(ms).or_default().push_back(Connection {
            client,
            vip,
            at_server: None,
            step: 0,
        });
    }

    /// Sends what is due in this millisecond.
    fn millisecond(&mut self, ms: u64) -> Result<()> {
        self.now_ns = BEGINNING + ms * MS;
        for mut connection in self.due.remove(&ms).unwrap_or_default() {
            if let Some(pause) = self.step(&mut connection)? {
                let due = self.due.entry(ms + pause).or_default();
                due.push_back(connection);
            }
        }
        Ok(())
    }

    fn report(&self, what: &str, begun: Instant) {
        println!(
            "{what}: {} connections ended well, {} packets, drops {:?}, in {:.1?}",
            self.ended,
            self.packets,
            self.drops,
            begun.elapsed()
        );
    }
}

/// An address and port of an IPv4 frame.
fn end(frame: &[u8], address: usize, port: usize) -> SocketAddr {
    let ip: [u8; 4] = frame[address..address + 4].try_into().expect("four bytes");
    let port = u16::from_be_bytes([frame[port], frame[port + 1]]);
    SocketAddr::new(ip.into(), port)
}

const LARGE: FlowSizes = FlowSizes {
    flows: 1 << 18,
    half_open: 1 << 15,
    claims: 1 << 17,
};

/// 20,000 connections a second, four servers and one own address: none is dropped.
#[test]
fn many_short_connections() -> Result<()> {
    let begun = Instant::now();
    let mut run = Run::new(LARGE, 1)?;
    let total = seconds() * 1000;
    for ms in 0..total + 20 {
        if ms < total {
            for n in 0..20 {
                let number = u32::try_from(ms * 20 + n).expect("below 2^32");
                run.begin(ms, client(number), vip(1));
            }
        }
        run.millisecond(ms)?;
    }
    run.report("20,000 a second", begun);
    assert_eq!((run.ended, run.drops.len()), (20 * total, 0));
    Ok(())
}

/// 100,000 forged SYNs a second to one virtual server take nothing away from another one's 1,000 connections a second.
#[test]
fn a_flood_is_its_own_virtual_servers_matter() -> Result<()> {
    let begun = Instant::now();
    let mut run = Run::new(LARGE, 2)?;
    let total = seconds() * 1000;
    for ms in 0..total + 20 {
        if ms < total {
            for n in 0..100 {
                // Some addresses and ports that the others do not have.
                let number = u32::try_from(ms * 100 + n).expect("below 2^32");
                let address = 0xac10_0000 | number >> 8;
                let port = 2000 + u16::from(number.to_le_bytes()[0]);
                let forged = SocketAddr::new(address.to_be_bytes().into(), port);
                run.send(vip(1), &tcp(forged, vip(1), SYN))?;
            }
            let number = u32::try_from(ms).expect("below 2^32");
            run.begin(ms, client(number), vip(2));
        }
        run.millisecond(ms)?;
    }
    run.report("flood", begun);
    assert_eq!(run.ended, total);
    let flooded = run.drops.remove(&(vip(1), DropReason::HalfOpenLimit));
    assert_eq!(run.drops, BTreeMap::new());
    // It takes an eighth of the slots at once, and once more in every five seconds.
    let share = u64::from(LARGE.claims / 8);
    let admitted = 100 * total - flooded.unwrap_or(0);
    let most = share + share * total / 5000 + 10;
    assert!(admitted <= most, "{admitted} of at most {most}");
    Ok(())
}

/// An hour of connections with no agent, through so few slots that each is taken over some hundred times.
#[test]
fn an_hour_without_an_agent() -> Result<()> {
    let begun = Instant::now();
    let sizes = FlowSizes {
        flows: 1 << 10,
        half_open: 1 << 8,
        claims: 1 << 8,
    };
    let mut run = Run::new(sizes, 1)?;
    let hour = 3_600_000;
    let mut number = 0;
    let mut ms = 0;
    while ms < hour || !run.due.is_empty() {
        if ms < hour && ms % 50 == 0 {
            run.begin(ms, client(number), vip(1));
            number += 1;
        }
        run.millisecond(ms)?;
        ms += 1;
    }
    run.report("an hour", begun);
    assert_eq!((run.ended, run.drops.len()), (u64::from(number), 0));
    Ok(())
}
