//! Writes or checks the files generated from the API types.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use sluice_api::generate;

fn main() -> ExitCode {
    let write = match std::env::args().nth(1).as_deref() {
        Some("--write") => true,
        Some("--check") => false,
        _ => {
            eprintln!("usage: generate-crds --write | --check (in the root of the repository)");
            return ExitCode::from(2);
        }
    };
    match run(write) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(drifted) => {
            eprintln!("{drifted} files differ from the types: run `cargo xtask generate`");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many files differ and were left so.
fn run(write: bool) -> Result<usize, Box<dyn std::error::Error>> {
    let mut drifted = 0;
    for file in generate::all()? {
        let path = Path::new(&file.path);
        if std::fs::read_to_string(path).is_ok_and(|found| found == file.content) {
            continue;
        }
        if write {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, &file.content)?;
            println!("wrote {}", file.path);
        } else {
            eprintln!("{} differs", file.path);
            drifted += 1;
        }
    }
    Ok(drifted)
}
