//! The oldest kernel that Sluice supports: Debian 12's 6.1, in qemu.

use std::{path::Path, time::Duration};

use sluice_tests::packet::{guest::Guest, kernel::object_path};

/// Booting takes seconds, the verifier and the cases some more in software emulation; a busy machine gets a multiple.
const LIMIT: Duration = Duration::from_mins(8);

#[test]
fn packet_tables_on_linux_6_1() {
    let guest = Guest::find("6.1.").unwrap();
    let program = env!("CARGO_BIN_EXE_packet_suite");
    let object = object_path();
    assert!(Path::new(program).is_absolute(), "{program}");
    let object = object.canonicalize().unwrap_or_else(|error| {
        panic!(
            "{}: {error}; `cargo xtask build-bpf` makes it",
            object.display()
        )
    });
    let object = object.to_str().unwrap();
    let finished = guest
        .run(&[program], &[("SLUICE_OBJECT", object)], LIMIT)
        .unwrap();
    println!(
        "{}\nguest ended after {:.1?}",
        finished.console, finished.took
    );
    assert_eq!(finished.status, 0, "{}", finished.console);
    assert!(
        finished.console.contains("Linux 6.1."),
        "{}",
        finished.console
    );
}
