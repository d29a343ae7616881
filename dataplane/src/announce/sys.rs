//! Raw packet sockets: frames out of an uplink, and the claims of addresses that come in.
//!
//! `socket2`, `nix` and `rustix` offer no safe way to name an interface to a packet socket, so the four system calls are made here.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The longest frame that is read: claims are shorter.
pub(super) const FRAME: usize = 256;

const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

/// A packet socket (packet(7)) of all interfaces of the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct PacketSocket(OwnedFd);

/// The frames that a socket gets. What this node sends itself it does not get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gets {
    /// None: it only sends.
    Nothing,
    /// ARP replies, and ARP requests for the sender's own address.
    ArpClaims,
    /// Neighbour advertisements.
    Advertisements,
}

impl PacketSocket {
    /// Opens a socket. Needs CAP_NET_RAW. Reads wait for `patience` at most.
    pub(super) fn open(gets: Gets, patience: Duration) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers. Protocol 0 receives nothing until the socket is bound, by when it has its filter.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a descriptor that nobody else has.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let Some(protocol) = gets.protocol() else {
            return Ok(socket);
        };
        socket.set_patience(patience)?;
        socket.set_filter(&gets.filter())?;
        let address = address(0, protocol);
        // SAFETY: the pointer is to an address of this length, which the call only reads.
        let result = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                length_of(&address),
            )
        };
        check(result).map(|()| socket)
    }

    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        let time = libc::timeval {
            tv_sec: libc::time_t::try_from(patience.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_usec: patience.subsec_micros().into(),
        };
        self.set(libc::SO_RCVTIMEO, &time)
    }

    fn set_filter(&self, filter: &[libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).unwrap_or(0),
            filter: filter.as_ptr().cast_mut(),
        };
        self.set(libc::SO_ATTACH_FILTER, &program)
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the pointer is to a value of this length. The kernel reads it, and the filter that it may point to, which
        // outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                std::ptr::from_ref(value).cast(),
                length_of(value),
            )
        };
        check(result)
    }

    /// Sends a frame out of an interface, without waiting for room.
    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let ethertype = frame.get(12..14).unwrap_or(&[0, 0]);
        let protocol = u16::from_be_bytes([ethertype[0], ethertype[1]]);
        let address = address(ifindex, protocol);
        // SAFETY: both pointers are to memory of these lengths, which the call only reads.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                length_of(&address),
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits for a frame. Returns the interface that it came by, and its length; `None`: none came in time.
    pub(super) fn receive(&self, frame: &mut [u8]) -> io::Result<Option<(u32, usize)>> {
        // SAFETY: the struct is integers and arrays of them, for which zeros are values.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut from_length = length_of(&from);
        // SAFETY: the pointers are to memory of these lengths that nobody else uses during the call.
        let length = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_length,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        };
        let ifindex = u32::try_from(from.sll_ifindex).unwrap_or(0);
        Ok(Some((ifindex, length)))
    }
}

impl Gets {
    const fn protocol(self) -> Option<u16> {
        match self {
            Self::Nothing => None,
            Self::ArpClaims => Some(ETH_P_ARP),
            Self::Advertisements => Some(ETH_P_IPV6),
        }
    }

    /// A classic BPF program (kernel: Documentation/networking/filter.rst) that takes these frames only.
    fn filter(self) -> Vec<libc::sock_filter> {
        const BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
        const HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
        const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        const EQUAL_X: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_X;
        const TO_X: u32 = libc::BPF_MISC | libc::BPF_TAX;
        const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
        let step = |code: u32, k, jt, jf| libc::sock_filter {
            code: u16::try_from(code).unwrap_or(0),
            jt,
            jf,
            k,
        };
        let take = step(RETURN, 0xffff, 0, 0);
        let leave = step(RETURN, 0, 0, 0);
        match self {
            Self::Nothing => vec![leave],
            // Operation 2, or the sender's address is the target's.
            Self::ArpClaims => vec![
                step(HALF, 20, 0, 0),
                step(EQUAL, 2, 4, 0),
                step(WORD, 28, 0, 0),
                step(TO_X, 0, 0, 0),
                step(WORD, 38, 0, 0),
                step(EQUAL_X, 0, 0, 1),
                take,
                leave,
            ],
            // Next header 58, type 136.
            Self::Advertisements => vec![
                step(BYTE, 20, 0, 0),
                step(EQUAL, 58, 0, 3),
                step(BYTE, 54, 0, 0),
                step(EQUAL, 136, 0, 1),
                take,
                leave,
            ],
        }
    }
}

fn address(ifindex: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: the struct is integers and arrays of them, for which zeros are values.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(ifindex).unwrap_or(0);
    address
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    debug_assert_eq!(size_of_val(value), size_of::<T>());
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
