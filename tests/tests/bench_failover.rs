//! The benchmark of takeovers does what its cases say: each once, untimed.
//!
//! Needs root and the binaries of Kubernetes.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

#[test]
fn every_case_has_its_figures() -> Result<()> {
    let json = env::temp_dir().join(format!("bench-failover-{}.json", std::process::id()));
    let status = Command::new(env!("CARGO_BIN_EXE_bench_failover"))
        .args([
            "--repetitions=1",
            "--killed=1",
            "--planned=1",
            "--slow=1",
            "--away=9",
            "--json",
        ])
        .arg(&json)
        .status()?;
    ensure!(status.success(), "{status}");
    let text = fs::read_to_string(&json)?;
    fs::remove_file(&json)?;
    let lines: Vec<Value> = serde_json::from_str(&text)?;
    // 14 cases, four modes, two families.
    assert_eq!(lines.len(), 112, "{text}");
    for line in &lines {
        let outage = &line["outage_ms"];
        let longest = outage["max"].as_f64().context("a number")?;
        assert!(longest > 0.0 && outage["min"] == outage["max"], "{line}");
        let case = line["case"].as_str().context("a name")?;
        if line["mode"] == "DR" || line["mode"] == "TUN" {
            // Every director chooses the same server for them.
            assert_eq!(line["broken_long_connections"], 0, "{line}");
        }
        assert!(line["repetitions"] == 1, "{case}: {line}");
    }
    Ok(())
}
