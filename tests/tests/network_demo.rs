//! The demo: with Kubernetes to its end, and interrupted.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_tests::net::{expect_no_remains, until};

/// Ends the demo if the test fails.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        // It has ended already unless the test fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ctrl_c_cleans_up() {
    let child = Command::new(env!("CARGO_BIN_EXE_demo"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut demo = Demo(child);
    let id = demo.0.id();
    // Interrupted while daemons run and clients ask.
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    let in_the_midst = lines.any(|line| line.unwrap().contains("examples/demo/nat.yaml"));
    assert!(in_the_midst, "the demo ended by itself");
    kill(Pid::from_raw(i32::try_from(id).unwrap()), Signal::SIGINT).unwrap();
    let drain = std::thread::spawn(move || lines.count());
    let mut status = None;
    until("the demo to end", Duration::from_secs(30), || {
        status = demo.0.try_wait().unwrap();
        status.is_some()
    })
    .unwrap();
    drain.join().unwrap();
    assert_eq!(status.unwrap().code(), Some(1));
    expect_no_remains(&format!("sluice-run-{id}-0")).unwrap();
}

#[test]
fn all_checks_pass_on_a_real_api_server() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .arg("--kubernetes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("kube-apiserver") && said.contains("checks passed"));
}
