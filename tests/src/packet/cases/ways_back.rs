//! Replies when a client uses its port again: they belong to the new connection, whatever the old one left behind.

use sluice_abi::{DropReason, FULLNAT_PORT_MIN, ForwardingMode, Path, ServerWord, TCP, VipWord};
use sluice_packet::{AlignedMac, Route, Verdict};

use super::{Net, at_server, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, FIN, Frame, ROUTER_MAC, SERVER_MAC, SYN, tcp},
    machine::Program,
    setup::{IFINDEX, Server, Setup, VipPort},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        for way in [Way::Nat, Way::OwnAddress, Way::Tunnel] {
            cases.push(server_of_another_identity(&net, way));
            cases.push(other_virtual_server(&net, way));
        }
    }
    cases
}

/// Who rewrites replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// A director, those of a server of NAT.
    Nat,
    /// A director, by a port of its own.
    FullNat,
    /// The server's own node, where packets come by DR.
    OwnAddress,
    /// The server's own node, where packets come by TUN.
    Tunnel,
}

impl Way {
    fn server(self, net: &Net) -> Server {
        let mode = match self {
            Self::Nat => ForwardingMode::Nat,
            Self::FullNat => ForwardingMode::FullNat,
            Self::OwnAddress => ForwardingMode::Dr,
            Self::Tunnel => ForwardingMode::Tun,
        };
        let server = Server::new(mode, net.server, net.own);
        if matches!(self, Self::Nat | Self::FullNat) {
            server
        } else {
            server.by(Path::Local)
        }
    }

    /// A virtual server whose only server it is, with the server's id.
    pub(super) fn virtual_server(
        self,
        setup: &mut Setup,
        net: &Net,
        vip: std::net::SocketAddr,
    ) -> (VipPort, u32) {
        let vip_port = setup.virtual_server(vip, TCP);
        let id = setup.only_server(&vip_port, &self.server(net));
        if self == Self::Tunnel {
            setup.set_vip(vip, TCP, VipWord::new(vip_port.index, 0, 0));
        }
        (vip_port, id)
    }

    /// How the client's packet comes.
    fn comes(self, net: &Net, frame: &Frame) -> Frame {
        match self {
            Self::Tunnel => frame.clone().wrapped(net.own, net.server.ip()),
            Self::Nat | Self::FullNat | Self::OwnAddress => frame.clone(),
        }
    }

    /// The client's packet gets to the server.
    pub(super) fn arrives(self, case: Case, net: &Net, frame: &Frame) -> Case {
        let comes = self.comes(net, frame);
        match self {
            Self::Nat => {
                let arrives = at_server(net, ForwardingMode::Nat, frame);
                case.xdp(&comes, Verdict::Tx, &arrives)
            }
            Self::FullNat => {
                let arrives = at_server(net, ForwardingMode::FullNat, frame);
                case.xdp(&comes, Verdict::Tx, &arrives)
            }
            Self::OwnAddress | Self::Tunnel => {
                case.xdp(&comes, Verdict::Up, &frame.clone().to(net.server))
            }
        }
    }

    /// The server's packet comes to the client from `vip`.
    fn answers(self, case: Case, net: &Net, vip: std::net::SocketAddr, flags: u8) -> Case {
        self.hands_back(case, net, vip, &tcp(net.server, net.client, flags))
    }

    /// A packet of the server's to a client comes to it from `vip`.
    pub(super) fn hands_back(
        self,
        case: Case,
        net: &Net,
        vip: std::net::SocketAddr,
        reply: &Frame,
    ) -> Case {
        let client = std::net::SocketAddr::new(reply.ip.destination, reply.destination_port);
        let reply = match self {
            Self::Nat => reply.clone().macs(SERVER_MAC, DIRECTOR_MAC),
            Self::FullNat => {
                let own = std::net::SocketAddr::new(net.own, FULLNAT_PORT_MIN);
                reply.clone().macs(SERVER_MAC, DIRECTOR_MAC).to(own)
            }
            Self::OwnAddress | Self::Tunnel => {
                let reply = reply.clone().macs(DIRECTOR_MAC, ROUTER_MAC);
                let at_client = reply.clone().from(vip);
                return case.run(Program::Egress, &reply, Verdict::Up, &at_client);
            }
        };
        let at_client = reply.clone().ttl(63).from(vip).to(client);
        let at_client = at_client.macs(DIRECTOR_MAC, ROUTER_MAC);
        case.xdp(&reply, Verdict::Tx, &at_client)
    }
}

fn setup(net: &Net) -> Setup {
    let mut setup = Setup::director();
    setup.route(
        net.client.ip(),
        Route::Resolved {
            ifindex: IFINDEX,
            source_mac: AlignedMac(DIRECTOR_MAC),
            next_hop_mac: AlignedMac(ROUTER_MAC),
        },
    );
    setup
}

/// The server of the client's last connection is now another one by its id: it was taken out and came back.
fn server_of_another_identity(net: &Net, way: Way) -> Case {
    let mut setup = setup(net);
    let (vip_port, old) = way.virtual_server(&mut setup, net, net.vip);
    let new = setup.server(&vip_port, &way.server(net));
    if way == Way::Tunnel {
        setup.local(net.server.ip(), vip_port.index, old);
    }
    let packet = |flags| tcp(net.client, net.vip, flags);
    let mut case = Case::new(
        format!("{} {way:?}: another server's port again", net.family),
        setup,
    );
    case = way.arrives(case, net, &packet(SYN));
    case = way.answers(case, net, net.vip, SYN | ACK);
    case = way.arrives(case, net, &packet(ACK));
    case = way.answers(case, net, net.vip, ACK);
    let (server, index) = (net.server.ip(), vip_port.index);
    case = case.then(move |setup| {
        setup.ring(vip_port.head, &[new]);
        setup.change_server(old, |word| ServerWord::absent(word.epoch()));
        if way == Way::Tunnel {
            setup.local(server, index, new);
        }
    });
    case = way.arrives(case, net, &packet(SYN));
    case = way.answers(case, net, net.vip, SYN | ACK);
    case = way.arrives(case, net, &packet(ACK));
    way.answers(case, net, net.vip, ACK)
}

/// The client closes its connection and uses the port for another virtual server of the same real server. As long as it is
/// open, the port is in use.
fn other_virtual_server(net: &Net, way: Way) -> Case {
    let mut setup = setup(net);
    way.virtual_server(&mut setup, net, net.vip);
    way.virtual_server(&mut setup, net, net.other_vip);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let other = |flags| tcp(net.client, net.other_vip, flags);
    let mut case = Case::new(
        format!(
            "{} {way:?}: another virtual server's port again",
            net.family
        ),
        setup,
    );
    case = way.arrives(case, net, &packet(SYN));
    case = way.arrives(case, net, &packet(ACK));
    case = case.drops(
        Program::Xdp,
        &way.comes(net, &other(SYN)),
        DropReason::PortInUse,
    );
    case = way.arrives(case, net, &packet(FIN | ACK));
    case = case.drops(
        Program::Xdp,
        &way.comes(net, &other(ACK)),
        DropReason::PortInUse,
    );
    case = way.arrives(case, net, &other(SYN));
    case = way.answers(case, net, net.other_vip, SYN | ACK);
    case = way.arrives(case, net, &other(ACK));
    case = case.after_seconds(20);
    if way != Way::Tunnel {
        // A late packet of the first connection takes nothing back.
        case = way.arrives(case, net, &packet(FIN | ACK));
    }
    way.answers(case, net, net.other_vip, ACK)
}
