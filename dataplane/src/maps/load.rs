//! Loading the object, and adopting what an earlier agent pinned.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::{Program, ProgramError, ProgramFd, RawTracePoint, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use sluice_abi::{ABI_VERSION, ConfigWord, HALF_OPEN_NS, MapName, Timeouts};
use tracing::info;

use super::btf;
use super::clock::Tick;
use super::hook::Hook;
use super::pins::PinLock;
use super::spec::{self, Spec};
use super::sys::{map_info, open_pin};
use super::{Error, Maps, Sizes, map_error, system_error};
use std::os::fd::AsFd;

/// After so many time units (1.07 s) the stack sends the next reply to a next hop.
const NEXT_HOP_REFRESH: u64 = 1;

/// The part of FullNAT's slots that new flows of one VIP port may take at once, and once more in as long as a half-open flow
/// holds one: so a quarter of the slots is the most that unconfirmed flows of one VIP port hold.
const NEW_FLOW_SHARE: u32 = 8;

/// The program that counts redirects which a device refuses.
const REDIRECT_REFUSED: &str = "sluice_redirect_refused";

/// The loaded programs.
#[derive(Debug)]
pub struct Programs {
    object: Ebpf,
}

impl Programs {
    pub(super) fn fd(&self, hook: Hook) -> Result<&ProgramFd, Error> {
        let program = self.object.program(hook.program());
        let missing = || not_in_object(hook.program());
        program
            .ok_or_else(missing)?
            .fd()
            .map_err(|error| failed(&error))
    }

    pub(super) fn classifier(&mut self, hook: Hook) -> Result<&mut SchedClassifier, Error> {
        self.program(hook.program())
    }

    fn xdp(&mut self) -> Result<&mut Xdp, Error> {
        self.program(Hook::Xdp.program())
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, Error>
    where
        &'a mut P: TryFrom<&'a mut Program>,
    {
        self.object
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| not_in_object(name))
    }

    fn load(&mut self) -> Result<(), Error> {
        self.xdp()?.load().map_err(|error| failed(&error))?;
        for hook in [Hook::Ingress, Hook::Egress] {
            self.classifier(hook)?
                .load()
                .map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Has the kernel tell of redirects that fail. As long as this process lives: nothing of it is pinned.
    fn count_refused_redirects(&mut self, maps: &Maps) -> Result<(), Error> {
        let id = self.xdp()?.info().map_err(|error| failed(&error))?.id();
        maps.set_config(ConfigWord::XdpProgram, u64::from(id))?;
        let program: &mut RawTracePoint = self.program(REDIRECT_REFUSED)?;
        program.load().map_err(|error| failed(&error))?;
        program
            .attach("xdp_redirect_err")
            .map_err(|error| failed(&error))?;
        Ok(())
    }
}

fn not_in_object(program: &str) -> Error {
    Error::Load {
        message: format!("the object has no program {program}"),
    }
}

fn failed(error: &ProgramError) -> Error {
    Error::Load {
        message: chain(error),
    }
}

/// An error with all its causes: aya keeps the verifier's words in them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The maps and programs that [`open`] found or made.
#[derive(Debug)]
pub struct Opened {
    /// The maps.
    pub maps: Maps,
    /// The programs, loaded and attached nowhere.
    pub programs: Programs,
    /// Whether the maps were there already.
    pub adopted: bool,
}

/// Loads the object at `path` over the maps pinned in `pins`, which are adopted if they are what it declares and made if
/// they are missing.
pub fn open(path: &Path, pins: &PinLock, sizes: &Sizes) -> Result<Opened, Error> {
    let object = fs::read(path).map_err(|error| Error::Object {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    let specs = spec::expected(&object, path, sizes)?;
    // Maps of an unfinished start are not compared: they go.
    let is_finished = is_finished(pins)?;
    let mut pinned = 0;
    for (name, expected) in &specs {
        let pin = pins.directory().join(name);
        let action = || format!("open {}", pin.display());
        if let Some(fd) = open_pin(&pin).map_err(|error| system_error(action())(error))? {
            let info = map_info(fd.as_fd()).map_err(|error| system_error(action())(error))?;
            if is_finished {
                spec::check(name, pin, expected, &Spec::from(&info))?;
            }
            pinned += 1;
        }
    }
    let adopted = pinned > 0 && is_finished;
    if pinned > 0 && !adopted {
        info!("removing the maps of an earlier start that did not come to its end");
        pins.remove_maps()?;
    }
    let seed = seed(pins, adopted)?;
    let offsets = program_offsets();
    let mut programs = load(&object, pins, sizes, seed, offsets.unwrap_or_default())?;
    let maps = Maps::open(pins.directory())?;
    prepare(&maps, sizes, seed)?;
    if adopted {
        info!(pins = %pins.directory().display(), "adopted the pinned maps");
    }
    programs.load()?;
    let counted = match offsets {
        Some(_) => programs.count_refused_redirects(&maps),
        None => Err(unknown_kernel()),
    };
    if let Err(error) = counted {
        info!(%error, "redirects that a device refuses are not counted");
    }
    Ok(Opened {
        maps,
        programs,
        adopted,
    })
}

/// A word of the pinned `CONFIG`; `None` if there is none.
fn pinned_config(pins: &PinLock, word: ConfigWord) -> Result<Option<u64>, Error> {
    let read = || -> io::Result<Option<u64>> {
        let Some(fd) = open_pin(&pins.map(MapName::Config))? else {
            return Ok(None);
        };
        let config = super::Array::<u64>::new(super::RawMap::new(fd)?)?;
        config.get(word as u32).map(Some)
    };
    read().map_err(map_error(MapName::Config, "read it"))
}

/// The flow tables' seed, which stays as long as they do.
fn seed(pins: &PinLock, adopted: bool) -> Result<u64, Error> {
    if adopted && let Some(seed) = pinned_config(pins, ConfigWord::FlowSeed)? {
        return Ok(seed);
    }
    getrandom::u64().map_err(|error| Error::System {
        action: "draw a random seed".to_owned(),
        source: io::Error::other(error),
    })
}

/// Where this kernel keeps a program's id: offsets in two structures.
fn program_offsets() -> Option<(u32, u32)> {
    let btf = fs::read(btf::VMLINUX).ok()?;
    let aux = btf::member_offset(&btf, "bpf_prog", "aux")?;
    Some((aux, btf::member_offset(&btf, "bpf_prog_aux", "id")?))
}

fn unknown_kernel() -> Error {
    Error::Load {
        message: format!(
            "{} does not tell where the kernel keeps a program's id",
            btf::VMLINUX
        ),
    }
}

/// Ticks of length 0 have the programs ask the kernel for the time.
fn tick() -> Tick {
    Tick::measure().unwrap_or_else(|error| {
        info!(%error, "programs take the time by a call for each packet");
        Tick { ns: 0, offset: 0 }
    })
}

/// Whether the pinned maps were made completely: the version is written last.
fn is_finished(pins: &PinLock) -> Result<bool, Error> {
    let pin = pins.map(MapName::Config);
    match pinned_config(pins, ConfigWord::AbiVersion)? {
        None | Some(0) => Ok(false),
        Some(ABI_VERSION) => Ok(true),
        Some(found) => Err(Error::AbiDiffers {
            pin,
            expected: ABI_VERSION,
            found,
        }),
    }
}

fn load(
    object: &[u8],
    pins: &PinLock,
    sizes: &Sizes,
    seed: u64,
    (aux, id): (u32, u32),
) -> Result<Programs, Error> {
    let flow_mask = sizes.flow_buckets - 1;
    let half_mask = sizes.half_open_buckets - 1;
    let fullnat_mask = sizes.fullnat_slots - 1;
    let tick = tick();
    let mut loader = EbpfLoader::new();
    loader
        .override_global("FLOW_SEED", &seed, true)
        .override_global("TICK_NS", &tick.ns, true)
        .override_global("TICK_OFFSET", &tick.offset, true)
        .override_global("BPF_PROG_AUX", &aux, true)
        .override_global("BPF_PROG_AUX_ID", &id, true)
        .override_global("FLOWS4_MASK", &flow_mask, true)
        .override_global("FLOWS6_MASK", &flow_mask, true)
        .override_global("HALF4_MASK", &half_mask, true)
        .override_global("HALF6_MASK", &half_mask, true)
        .override_global("FULLNAT4_MASK", &fullnat_mask, true)
        .override_global("FULLNAT6_MASK", &fullnat_mask, true);
    for map in MapName::ALL {
        if let Some(entries) = sizes.max_entries(map) {
            loader.map_max_entries(map.as_str(), entries);
        }
        loader.map_pin_path(map.as_str(), pins.map(map));
    }
    let object = loader.load(object).map_err(|error| Error::Load {
        message: chain(&error),
    })?;
    Ok(Programs { object })
}

/// Writes the words that programs need before the first packet; the version comes last.
fn prepare(maps: &Maps, sizes: &Sizes, seed: u64) -> Result<(), Error> {
    let share = u64::from(sizes.fullnat_slots / NEW_FLOW_SHARE);
    maps.set_config(ConfigWord::NewFlowInterval, HALF_OPEN_NS / share)?;
    maps.set_config(ConfigWord::HalfOpenTimeouts, Timeouts::HALF_OPEN.0)?;
    maps.set_config(ConfigWord::EstablishedTimeouts, Timeouts::ESTABLISHED.0)?;
    maps.set_config(ConfigWord::NextHopRefresh, NEXT_HOP_REFRESH)?;
    maps.set_config(ConfigWord::FlowSeed, seed)?;
    maps.set_config(ConfigWord::AbiVersion, ABI_VERSION)
}
