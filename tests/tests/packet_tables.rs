//! The packet tables, on the host and in the running kernel.

use sluice_tests::packet::{cases, kernel::Kernel, suite::play};

#[test]
fn the_verifier_accepts_the_programs_as_the_agent_loads_them() {
    Kernel::accepts_agents_programs().unwrap();
}

#[test]
fn packet_tables() {
    let mut kernel = Kernel::load().unwrap();
    let cases = cases::all();
    let failures = play(&cases, &mut kernel);
    println!("{} cases", cases.len());
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}
