//! The shared libraries of an executable.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Paths of the libraries and of the dynamic loader that the executable needs, as `ldd` finds them; none if it is static.
pub(super) fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run ldd, which comes with the C library")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        bail!("ldd {} failed: {}", program.display(), errors.trim());
    }
    parse(&text).with_context(|| format!("{} cannot run here", program.display()))
}

/// Reads lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f…)` and `/lib64/ld-linux-x86-64.so.2 (0x7f…)`.
/// Lines that name no file, such as that of the kernel's own vdso, are left out.
fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let place = match line.split_once(" => ") {
            Some((name, "not found")) => bail!("its library {name} is missing"),
            Some((_, place)) => place,
            None => line,
        };
        if place.starts_with('/') {
            let path = place.rsplit_once(" (").map_or(place, |(path, _)| path);
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f62)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f63)\n";
        let paths = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse(text).unwrap(), paths.map(PathBuf::from));
        assert_eq!(
            parse("\tstatically linked\n").unwrap(),
            Vec::<PathBuf>::new()
        );
        let message = parse("\tlibx.so.1 => not found\n").unwrap_err().to_string();
        assert!(message.contains("libx.so.1"), "{message}");
    }

    #[test]
    fn this_program_has_a_c_library() {
        let libraries = of(&std::env::current_exe().unwrap()).unwrap();
        assert!(libraries.iter().all(|path| path.exists()), "{libraries:?}");
        assert!(
            libraries
                .iter()
                .any(|path| path.to_string_lossy().contains("libc.so")),
            "{libraries:?}"
        );
    }
}
