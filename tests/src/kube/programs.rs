//! Where the programs of Kubernetes are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The path of etcd, helm, kubectl or one of the programs of Kubernetes.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = built("kube/bin").join(name);
    if !path.exists() {
        bail!(
            "{} is missing: `make setup` builds Kubernetes for tests",
            path.display()
        );
    }
    Ok(path)
}

/// The archive of a container image, such as `web`.
pub(super) fn image(name: &str) -> Result<PathBuf> {
    let path = built("images").join(name).with_extension("tar");
    if !path.exists() {
        bail!(
            "{} is missing: `cargo xtask images` writes it",
            path.display()
        );
    }
    Ok(path)
}

/// A program of the machine's.
pub(super) fn installed(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is missing: `make setup` installs it"))
}

/// The directory of the network plug-ins, where distributions put it.
pub(super) fn network_plugins() -> Result<PathBuf> {
    ["/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"]
        .into_iter()
        .map(PathBuf::from)
        .find(|directory| directory.join("bridge").exists())
        .context("no network plug-in `bridge` is installed: `make setup` installs it")
}

fn built(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target")
        .join(path)
}
