//! The benchmark of health checks measures what it says: short and untimed.
//!
//! Needs root.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

#[test]
fn figures_are_those_of_the_checks() -> Result<()> {
    let json = env::temp_dir().join(format!("bench-checks-{}.json", std::process::id()));
    let status = Command::new(env!("CARGO_BIN_EXE_bench_checks"))
        .args(["--servers=600", "--interval=2", "--seconds=4", "--json"])
        .arg(&json)
        .status()?;
    ensure!(status.success(), "{status}");
    let text = fs::read_to_string(&json)?;
    fs::remove_file(&json)?;
    let figures: Value = serde_json::from_str(&text)?;
    let figure = |name: &str| {
        figures[name]
            .as_f64()
            .with_context(|| format!("{name}: {text}"))
    };
    // 600 servers every 2 s.
    let checks = figure("checks_per_second")?;
    assert!((270.0..330.0).contains(&checks), "{text}");
    // In a short run of a build without optimisation sweeps and what is left of the start weigh more than checks.
    assert!(
        figure("cores")? > 0.0 && figure("cores_without_checks")? > 0.0,
        "{text}"
    );
    assert!(
        figure("memory_mb")? > 1.0 && figure("burst")? >= 1.0,
        "{text}"
    );
    Ok(())
}
