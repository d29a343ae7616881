//! Container images, made without Docker and without a registry from what cargo built and what this machine has: each an
//! archive that a node imports with `ctr --namespace k8s.io images import`.

mod libraries;
mod oci;
mod tree;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{bpf, command};
use oci::{Name, Run};
use tree::Tree;

/// The programs in Sluice's image.
const PROGRAMS: [&str; 3] = ["sluice-agent", "sluice-operator", "kubectl-sluice"];

/// Root, and the user that the operator runs as.
const PASSWD: &str =
    "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
/// Names of hosts come from /etc/hosts first, as everywhere.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Certificate authorities, where Debian and its kin keep them.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

const DEFAULT_REPOSITORY: &str = "localhost/sluice";
const DEFAULT_TAG: &str = "dev";

/// Which images to write, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Repository of Sluice's image, with its registry.
    #[arg(long, default_value = DEFAULT_REPOSITORY)]
    repository: String,
    /// Tag of Sluice's image.
    #[arg(long, default_value = DEFAULT_TAG)]
    tag: String,
    /// Directory for sluice.tar, and for pause.tar and web.tar, which tests need [default: target/images].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Build optimised programs.
    #[arg(long)]
    release: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            repository: DEFAULT_REPOSITORY.to_owned(),
            tag: DEFAULT_TAG.to_owned(),
            out: None,
            release: false,
        }
    }
}

/// Builds the programs of the host and of BPF and writes the images. An archive whose content would be the same is left alone, so that its time
/// tells when it changed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let sluice = Name::new(&options.repository, &options.tag)?;
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| command::root().join("target/images"));
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    bpf::build(command::root())?;
    let programs = build(options.release)?;
    write(
        &out.join("sluice.tar"),
        &sluice,
        &sluice_tree(&programs)?,
        Run {
            user: "65532:65532",
            ..Run::default()
        },
    )?;
    write(
        &out.join("pause.tar"),
        &Name::new("localhost/pause", "1")?,
        &pause_tree()?,
        Run {
            entrypoint: &["/usr/bin/catatonit", "-P"],
            user: "65535:65535",
            ..Run::default()
        },
    )?;
    write(
        &out.join("web.tar"),
        &Name::new("localhost/web", "1")?,
        &web_tree()?,
        Run {
            // Debian's nginx has a log of its own before it has read its configuration.
            entrypoint: &["/usr/sbin/nginx", "-e", "stderr"],
            // The one that lets requests end.
            stop_signal: "SIGQUIT",
            ..Run::default()
        },
    )
}

/// Builds the programs and tells where they are, by name.
fn build(release: bool) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = command::cargo(["build", "--bins"]);
    if release {
        cargo.arg("--release");
        for program in PROGRAMS {
            cargo.args(["--package", program]);
        }
    } else {
        // As for tests: a choice of packages would choose other features, and build their dependencies a second time.
        cargo.arg("--workspace");
    }
    cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("cannot run {}", command::show(&cargo)))?;
    if !output.status.success() {
        bail!("{} failed ({})", command::show(&cargo), output.status);
    }
    let found: BTreeMap<_, _> = command::executables(&output.stdout)?
        .into_iter()
        .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)))
        .collect();
    for program in PROGRAMS {
        if !found.contains_key(program) {
            bail!("cargo built no {program}");
        }
    }
    Ok(found)
}

/// The files that every image has: places to mount file systems on, and the names of users.
fn base() -> Tree {
    let mut tree = Tree::default();
    for directory in ["dev", "proc", "run", "sys"] {
        tree.directory(directory, 0o755);
    }
    tree.directory("tmp", 0o1777);
    tree.file("etc/passwd", 0o644, PASSWD);
    tree.file("etc/group", 0o644, GROUP);
    tree.file("etc/nsswitch.conf", 0o644, NSSWITCH);
    tree
}

fn sluice_tree(programs: &BTreeMap<String, PathBuf>) -> Result<Tree> {
    let mut tree = base();
    for program in PROGRAMS {
        let path = &programs[program];
        tree.program(&format!("usr/bin/{program}"), path, stripped(path)?)?;
    }
    let object = command::root().join("target/bpf/sluice.o");
    tree.file("usr/lib/sluice/sluice.o", 0o644, read(&object)?);
    let certificates = Path::new(CERTIFICATES);
    if certificates.exists() {
        tree.copy(certificates)?;
    }
    Ok(tree)
}

fn pause_tree() -> Result<Tree> {
    let path = installed("catatonit", "catatonit")?;
    let mut tree = base();
    tree.program("usr/bin/catatonit", &path, read(&path)?)?;
    Ok(tree)
}

fn web_tree() -> Result<Tree> {
    let path = installed("nginx", "nginx-light")?;
    let mut tree = base();
    tree.program("usr/sbin/nginx", &path, read(&path)?)?;
    tree.file(
        "etc/nginx/nginx.conf",
        0o644,
        include_bytes!("nginx.conf").as_slice(),
    );
    Ok(tree)
}

fn installed(program: &str, package: &str) -> Result<PathBuf> {
    command::find_program(program)
        .or_else(|| command::find_system_program(program))
        .with_context(|| {
            format!("{program} is missing: `make setup` installs it (Debian package {package})")
        })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The executable without debugging information, which is most of it and which nobody reads on a node.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let partial = path.with_extension("stripped");
    let result = command::run(
        Command::new("strip")
            .args(["--strip-debug", "--enable-deterministic-archives", "-o"])
            .arg(&partial)
            .arg(path),
    )
    .context("strip comes with the linker: Debian package binutils")
    .and_then(|()| read(&partial));
    // Not there if strip failed.
    let _ = fs::remove_file(&partial);
    result
}

fn write(path: &Path, name: &Name, tree: &Tree, run: Run) -> Result<()> {
    let archive = oci::archive(name, tree, run)?;
    if command::write_if_changed(path, &archive)? {
        eprintln!(
            "images: wrote {name} to {} ({} MiB)",
            path.display(),
            archive.len().div_ceil(1 << 20)
        );
    } else {
        eprintln!("images: {name} in {} is as it was", path.display());
    }
    Ok(())
}
