//! The code that needs `unsafe`: bpf(2) where aya has no call for it, shared memory of maps, and membarrier(2).
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64};

use sluice_abi::{
    AnnouncedKey, AnnouncedWord, Head, LocalKey, MacKey, PortKey, PrefixKey, RingWord,
    ServerCounters, ServerRecord, ServerWord, SourceKey, VipWord,
};

/// A type whose value is its bytes.
///
/// # Safety
/// Every bit pattern is a value, and no byte of it is padding.
pub(super) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => { $(
        // SAFETY: integers, or structs of integers and byte arrays whose size assertions leave no padding.
        unsafe impl Plain for $type {}
    )* };
}
plain!(
    u32,
    u64,
    PortKey<4>,
    PortKey<16>,
    LocalKey<4>,
    LocalKey<16>,
    PrefixKey<4>,
    PrefixKey<16>,
    SourceKey<4>,
    SourceKey<16>,
    MacKey,
    AnnouncedKey<4>,
    AnnouncedKey<16>,
    AnnouncedWord,
    VipWord,
    Head,
    RingWord,
    ServerWord,
    ServerRecord,
    ServerCounters,
);

/// The bytes of a value.
pub(super) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain`: all bytes are initialised; the lifetime is the value's.
    unsafe { slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value whose bytes these are; `None` if there are too few of them. Further bytes are ignored.
pub(super) fn read_plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: `Plain`: any bytes are a value; they need no alignment here.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `bpf_attr` of map element commands. Pointers are 64 bits wide on every architecture.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// The kernel's description of a map: the front of `bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct MapInfo {
    pub(super) map_type: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) map_flags: u32,
}
// SAFETY: six integers.
unsafe impl Plain for MapInfo {}

/// The kernel's description of an XDP or tcx link: the front of `bpf_link_info`, whose union both begin with the interface.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) prog_id: u32,
    pad: u32,
    /// 0 when the interface is gone.
    pub(super) ifindex: u32,
    /// tcx only.
    pub(super) attach_type: u32,
}
// SAFETY: six integers.
unsafe impl Plain for LinkInfo {}

/// A bpf(2) call. The result is a file descriptor for commands that make one.
///
/// # Safety
/// `attr` is what `command` expects, and every pointer in it covers as much memory as the command reads or writes.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise; the size tells the kernel how much of `attr` there is.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of_val(attr),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(of: &T) -> u64 {
    std::ptr::from_ref(of).cast::<u8>() as u64
}

fn address_mut<T: ?Sized>(of: &mut T) -> u64 {
    std::ptr::from_mut(of).cast::<u8>() as u64
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A map with its sizes as the kernel knows them, so that no call can read or write beyond a buffer.
#[derive(Debug)]
pub(super) struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes that a look-up writes: per-CPU maps give one rounded value per possible CPU.
    lookup_size: usize,
}

const PER_CPU_TYPES: [u32; 3] = [5, 6, 10];

impl RawMap {
    /// Takes over a map's descriptor.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        let value_size = info.value_size as usize;
        let lookup_size = if PER_CPU_TYPES.contains(&info.map_type) {
            value_size.next_multiple_of(8) * possible_cpus()?
        } else {
            value_size
        };
        Ok(Self {
            fd,
            info,
            lookup_size,
        })
    }

    pub(super) fn info(&self) -> &MapInfo {
        &self.info
    }

    pub(super) fn lookup_size(&self) -> usize {
        self.lookup_size
    }

    fn check(expected: usize, found: usize) -> io::Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the map holds {expected} bytes here, not {found}"
        )))
    }

    /// `false`: no such key.
    pub(super) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        Self::check(self.info.key_size as usize, key.len())?;
        Self::check(self.lookup_size, value.len())?;
        let mut attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            key: address(key),
            value_or_next_key: address_mut(value),
            ..ElementAttr::default()
        };
        // SAFETY: both buffers have the sizes that the kernel uses.
        found(unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) })
    }

    pub(super) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        Self::check(self.info.key_size as usize, key.len())?;
        Self::check(self.lookup_size, value.len())?;
        let mut attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            key: address(key),
            value_or_next_key: address(value),
            ..ElementAttr::default()
        };
        // SAFETY: both buffers have the sizes that the kernel uses.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// `false`: there was no such key.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        Self::check(self.info.key_size as usize, key.len())?;
        let mut attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            key: address(key),
            ..ElementAttr::default()
        };
        // SAFETY: the key has the size that the kernel uses.
        found(unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) })
    }

    /// The key after `key`, or the first one; `false`: there is none.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        let size = self.info.key_size as usize;
        Self::check(size, next.len())?;
        if let Some(key) = key {
            Self::check(size, key.len())?;
        }
        let mut attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            key: key.map_or(0, address),
            value_or_next_key: address_mut(next),
            ..ElementAttr::default()
        };
        // SAFETY: both buffers have the key's size; no key is a null pointer.
        found(unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) })
    }

    /// Maps an array with BPF_F_MMAPABLE into memory.
    pub(super) fn memory(&self) -> io::Result<Memory> {
        let stride = (self.info.value_size as usize).next_multiple_of(8);
        Memory::map(
            self.fd.as_fd(),
            stride,
            stride * self.info.max_entries as usize,
        )
    }
}

/// Turns ENOENT into `false`.
fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn object_info<T: Plain + Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr {
        bpf_fd: raw(fd),
        info_len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: address_mut(&mut info),
    };
    // SAFETY: the kernel writes at most `info_len` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Asks the kernel for its description of a map.
pub(super) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    object_info(fd)
}

/// Asks the kernel for its description of a link.
pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    object_info(fd)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Pins a map, link or program.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: raw(fd),
        file_flags: 0,
    };
    // SAFETY: a C string that outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at `path`; `None` if nothing is.
pub(super) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: path.as_ptr() as u64,
        ..ObjectAttr::default()
    };
    // SAFETY: a C string that outlives the call.
    match unsafe { bpf(BPF_OBJ_GET, &mut attr) } {
        Ok(fd) => owned(fd).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where a link attaches a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum LinkHook {
    Xdp = 37,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// Attaches a program to an interface by a link.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    ifindex: u32,
    hook: LinkHook,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target_ifindex: ifindex,
        attach_type: hook as u32,
        flags,
        ..LinkCreateAttr::default()
    };
    // SAFETY: no pointers.
    owned(unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?)
}

/// Replaces the program of a live link: no packet meets none.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: raw(link),
        new_prog_fd: raw(program),
        ..LinkUpdateAttr::default()
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the program of a link off its interface; the link is dead afterwards. It may be dead already. Kernel 5.9.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut link_fd = raw(link);
    // SAFETY: no pointers; `bpf_attr.link_detach` is the descriptor alone.
    unsafe { bpf(BPF_LINK_DETACH, &mut link_fd) }.map(drop)
}

/// A program that says what `bpf_jiffies64` says (Linux 5.6).
#[derive(Debug)]
pub(super) struct JiffiesProgram(OwnedFd);

impl JiffiesProgram {
    /// Bytes of the frame that it writes jiffies to the front of: as many as the kernel wants at least.
    const FRAME: usize = 14;
    /// `struct bpf_insn`, each as `opcode:8 | target:4 | source:4 | offset:16 | immediate:32`, low bits first.
    const INSTRUCTIONS: [u64; 9] = [
        // r6 = r1, the context; r0 = bpf_jiffies64()
        0x0000_0000_0000_16bf,
        118 << 32 | 0x85,
        // r2 = data, r3 = data_end
        0x0000_0000_0000_6261,
        0x0000_0000_0004_6361,
        // r4 = r2 + 8; return if that is beyond the end
        0x0000_0000_0000_24bf,
        8 << 32 | 0x0407,
        0x0000_0000_0001_342d,
        // *(u64 *)r2 = r0
        0x0000_0000_0000_027b,
        0x95,
    ];

    pub(super) fn load() -> io::Result<Self> {
        const BPF_PROG_TYPE_XDP: u32 = 6;
        let mut attr = LoadAttr {
            prog_type: BPF_PROG_TYPE_XDP,
            insn_cnt: u32::try_from(Self::INSTRUCTIONS.len()).map_err(io::Error::other)?,
            insns: address(&Self::INSTRUCTIONS),
            license: c"Dual MIT/GPL".as_ptr() as u64,
        };
        // SAFETY: as many instructions as the count says, and a C string.
        owned(unsafe { bpf(BPF_PROG_LOAD, &mut attr) }?).map(Self)
    }

    pub(super) fn run(&self) -> io::Result<u64> {
        let frame = [0_u8; Self::FRAME];
        let mut answer = [0_u8; Self::FRAME];
        let size = u32::try_from(Self::FRAME).map_err(io::Error::other)?;
        let mut attr = TestRunAttr {
            prog_fd: raw(self.0.as_fd()),
            data_size_in: size,
            data_size_out: size,
            data_in: address(&frame),
            data_out: address_mut(&mut answer),
            repeat: 1,
            ..TestRunAttr::default()
        };
        // SAFETY: both buffers have the sizes that the attributes say.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
        read_plain(&answer).ok_or_else(|| io::Error::other("a short answer"))
    }
}

/// Number of CPUs that can ever be online, as the kernel lays out per-CPU values.
pub(super) fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, error)| error)
}

/// Waits until every program run that began before the call has ended: MEMBARRIER_CMD_GLOBAL waits for an RCU grace
/// period, and programs run inside RCU read-side sections.
pub(super) fn membarrier() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes two integers besides the command.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The memory of an array map, shared with the programs.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<libc::c_void>,
    length: usize,
    stride: usize,
}
// SAFETY: the memory is only reached by atomic operations.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn map(fd: BorrowedFd<'_>, stride: usize, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping wherever the kernel likes.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self {
            start,
            length,
            stride,
        })
    }

    /// Bytes between two values.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// All of it as 8-byte words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, mapped as long as `self` lives, and only ever reached by atomics on this side.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 8) }
    }

    /// All of it as 4-byte words.
    pub(super) fn half_words(&self) -> &[AtomicU32] {
        // SAFETY: as in `words`.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 4) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}
