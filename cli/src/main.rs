//! The kubectl plugin of Sluice.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use kubectl_sluice::args::Args;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match kubectl_sluice::run(Args::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(kubectl_sluice::EXIT_ERROR)
        }
    }
}
