//! The do-nothing XDP program for the far ends of links.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

use super::link::Port;

/// A veth end transmits XDP frames only if a program is attached at its peer too; without one they vanish silently.
/// This one passes every packet. It stays attached as long as this value lives.
#[derive(Debug)]
pub struct PassProgram {
    object: Ebpf,
}

impl PassProgram {
    /// Loads it from the build directory of the BPF objects.
    pub fn load() -> Result<Self> {
        let path = object_path("pass.o");
        let mut object = Ebpf::load_file(&path).with_context(|| {
            format!("load {}: `cargo xtask build-bpf` makes it", path.display())
        })?;
        program(&mut object)?.load()?;
        Ok(Self { object })
    }

    /// Attaches it to `port`, in the driver.
    pub fn attach(&mut self, port: Port<'_>) -> Result<()> {
        let program = program(&mut self.object)?;
        port.namespace
            .within(|| program.attach(port.name, XdpMode::Driver))?
            .with_context(|| format!("attach to {} in {}", port.name, port.namespace.label()))?;
        Ok(())
    }
}

fn program(object: &mut Ebpf) -> Result<&mut Xdp> {
    let program = object.program_mut("pass").context("no program `pass`")?;
    Ok(program.try_into()?)
}

/// Where the build puts a BPF object.
pub fn object_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/bpf")
        .join(name)
}
