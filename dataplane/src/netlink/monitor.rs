//! Hearing of changes.

use std::io;
use std::thread;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::Error;
use super::requests::frames;

/// Multicast groups (RTNLGRP_*): links, neighbours, addresses, routes and rules of both families.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// Bytes of changes that the kernel keeps for us; more at once mean asking for everything anew.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A socket on which the kernel tells of changes.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Opens it in the network namespace of this thread. Changes from now on will be told.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            // The kernel may grant less, which only means asking for everything anew more often.
            let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER);
            Ok(socket)
        };
        open()
            .map(|socket| Self { socket })
            .map_err(|source| Error::Socket {
                action: "listen for changes",
                source,
            })
    }

    /// Waits for changes for as long as the process lives, in a thread of its own. `tell` gets each message, or `None` when
    /// some were lost.
    pub fn run(self, mut tell: impl FnMut(Option<RouteNetlinkMessage>) + Send + 'static) {
        thread::spawn(move || {
            loop {
                match self.socket.recv_from_full() {
                    Ok((buffer, _)) => {
                        for bytes in frames(&buffer) {
                            if let Ok(message) = NetlinkMessage::deserialize(bytes)
                                && let NetlinkPayload::InnerMessage(inner) = message.payload
                            {
                                tell(Some(inner));
                            }
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // ENOBUFS: there was no room for a change.
                    Err(_) => tell(None),
                }
            }
        });
    }
}
