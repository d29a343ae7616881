//! The benchmark of rollbacks does what its cases say: one of them, untimed.
//!
//! Needs root and the binaries of Kubernetes.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

#[test]
fn a_case_has_its_figures() -> Result<()> {
    let json = env::temp_dir().join(format!("bench-rollback-{}.json", std::process::id()));
    let status = Command::new(env!("CARGO_BIN_EXE_bench_rollback"))
        .args(["--batch=2", "--case=DR pause resets", "--json"])
        .arg(&json)
        .status()?;
    ensure!(status.success(), "{status}");
    let text = fs::read_to_string(&json)?;
    fs::remove_file(&json)?;
    let lines: Vec<Value> = serde_json::from_str(&text)?;
    assert_eq!(lines.len(), 1, "{text}");
    let line = &lines[0];
    assert_eq!(line["detector"], "failures", "{text}");
    assert_eq!(
        (&line["runs"], &line["load"]),
        (&json!(2), &json!(5)),
        "{text}"
    );
    assert!(line["seconds"]["max"].as_f64() > Some(0.0), "{text}");
    Ok(())
}
