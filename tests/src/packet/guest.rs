//! Another kernel, booted in qemu's software emulation, for running programs of this machine on it.
//!
//! The guest's first file system is made of busybox and the kernel's own modules; it mounts this machine's root over 9p,
//! read-only, and runs one command in it. Nothing is installed: the kernel is a Debian package unpacked under
//! `target/kernels`.

use std::{
    fmt::Write as _,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Kernel modules that mounting the host's root takes, in the order of loading.
const MODULES: [&str; 10] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "fs/netfs/netfs.ko",
    "fs/fscache/fscache.ko",
    "net/9p/9pnet.ko",
    "net/9p/9pnet_virtio.ko",
    "fs/9p/9p.ko",
];

/// The line by which the guest tells how the command ended.
const EXIT: &str = "sluice-guest: exit ";

/// A kernel that can be booted.
#[derive(Debug)]
pub struct Guest {
    image: PathBuf,
    modules: PathBuf,
}

/// Result of a command in a guest.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: i32,
    /// Everything the guest printed.
    pub console: String,
    /// From power-on to the end.
    pub took: Duration,
}

impl Guest {
    /// The newest unpacked kernel package whose version begins with `version`, such as `6.1.`.
    pub fn find(version: &str) -> Result<Self> {
        let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kernels");
        let mut found = Vec::new();
        for package in fs::read_dir(&packages).into_iter().flatten() {
            let package = package?.path();
            for image in fs::read_dir(package.join("boot")).into_iter().flatten() {
                let image = image?;
                let name = image.file_name().to_string_lossy().into_owned();
                if let Some(release) = name.strip_prefix("vmlinuz-")
                    && release.starts_with(version)
                {
                    let modules = package.join("lib/modules").join(release).join("kernel");
                    found.push((image.metadata()?.modified()?, image.path(), modules));
                }
            }
        }
        found.sort();
        let (_, image, modules) = found.pop().with_context(|| {
            format!(
                "no kernel {version} is unpacked in {}: `make setup` does it",
                packages.display()
            )
        })?;
        Ok(Self { image, modules })
    }

    /// Boots, runs `command` with this environment as root on the host's files, and powers off, all within `limit`.
    pub fn run(
        &self,
        command: &[&str],
        environment: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Finished> {
        let initramfs = Temporary::new(&self.initramfs(command, environment)?)?;
        let began = Instant::now();
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "1024",
            ])
            .args([
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
                "-serial",
                "stdio",
            ])
            .arg("-kernel")
            .arg(&self.image)
            .arg("-initrd")
            .arg(&initramfs.0)
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .args([
                "-fsdev",
                "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            ])
            .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=host"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let console = watch(&mut qemu, began + limit);
        let took = began.elapsed();
        let (ended, console) = console?;
        ensure!(ended, "the guest did not end within {limit:?}:\n{console}");
        let status = console
            .lines()
            .find_map(|line| line.trim().strip_prefix(EXIT))
            .with_context(|| format!("the guest broke down:\n{console}"))?;
        Ok(Finished {
            status: status.parse()?,
            console,
            took,
        })
    }

    fn initramfs(&self, command: &[&str], environment: &[(&str, &str)]) -> Result<Vec<u8>> {
        let busybox = ["/usr/bin/busybox", "/bin/busybox"]
            .iter()
            .find_map(|path| fs::read(path).ok())
            .context("there is no busybox: `make setup` installs busybox-static")?;
        let mut archive = Archive::default();
        for directory in ["bin", "host", "dev", "modules"] {
            archive.directory(directory);
        }
        archive.file("bin/busybox", &busybox);
        let mut script = String::from("#!/bin/busybox sh\nb=/bin/busybox\n");
        for (number, module) in (0..).zip(MODULES) {
            let path = self.modules.join(module);
            let bytes = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
            archive.file(&format!("modules/{number}.ko"), &bytes);
            writeln!(
                script,
                "$b insmod /modules/{number}.ko || echo 'not loaded: {module}'"
            )?;
        }
        script.push_str(
            "$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /host\n\
             $b mount -t devtmpfs none /host/dev\n\
             $b mount -t proc none /host/proc\n\
             $b mount -t sysfs none /host/sys\n\
             $b mount -t bpf none /host/sys/fs/bpf\n\
             $b ifconfig lo up\n\
             $b chroot /host /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        );
        for (name, value) in environment {
            write!(script, " {}", quoted(&format!("{name}={value}"))?)?;
        }
        for word in command {
            write!(script, " {}", quoted(word)?)?;
        }
        writeln!(script, "\necho \"{EXIT}$?\"\n$b reboot -f")?;
        archive.file("init", script.as_bytes());
        Ok(archive.finish())
    }
}

fn quoted(word: &str) -> Result<String> {
    ensure!(!word.contains('\''), "a quote in {word}");
    Ok(format!("'{word}'"))
}

/// Reads what qemu prints until it ends or the deadline comes; then it is ended. Returns whether it ended by itself.
fn watch(qemu: &mut Child, deadline: Instant) -> Result<(bool, String)> {
    let mut output = qemu.stdout.take().context("qemu has no output")?;
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut console = Vec::new();
    let ended = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(bytes) => console.extend(bytes),
            Err(mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                qemu.kill().context("cannot end qemu")?;
                break false;
            }
        }
    };
    qemu.wait().context("cannot wait for qemu")?;
    if reader.join().is_err() {
        bail!("reading qemu's output failed");
    }
    Ok((ended, String::from_utf8_lossy(&console).into_owned()))
}

/// A file that is removed again.
struct Temporary(PathBuf);

impl Temporary {
    fn new(bytes: &[u8]) -> Result<Self> {
        let name = format!("sluice-initramfs-{}", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        fs::write(&file.0, bytes).with_context(|| format!("cannot write {}", file.0.display()))?;
        Ok(file)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Without the file there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// An archive in cpio's "newc" format, as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        self.bytes.extend(b"070701");
        let fields = [
            self.inode as usize,
            mode as usize,
            0, // owner
            0, // group
            1, // links
            0, // time
            content.len(),
            0, // device
            0,
            0, // device that it stands for
            0,
            name.len() + 1,
            0, // checksum
        ];
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
