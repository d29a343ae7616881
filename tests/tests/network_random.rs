//! A run under traffic with random edits, kills and outages. `SEED` and `MINUTES` choose another one; see
//! [`sluice_tests::net::random`].

use std::process::ExitCode;

use sluice_tests::net::random::{self, Settings};
use sluice_tests::net::suite::Suite;

fn main() -> ExitCode {
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut suite = Suite::new();
    suite.check(
        "connections live through edits, kills and outages",
        move |lab| random::run(lab, settings),
    );
    suite.main(random::build)
}
