//! Automation that the Makefile calls: `cargo xtask <verb>`.
//!
//! `xtask/setup.sh` installs the tools; this crate needs only cargo.
#![forbid(unsafe_code)]

mod base;
mod bpf;
mod command;
mod generate;
mod images;
mod length;
mod lint;
mod suites;
mod summary;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// Sluice's build automation.
#[derive(Parser)]
enum Verb {
    /// Build the BPF programs into target/bpf/.
    BuildBpf,
    /// Build the BPF programs and the benchmark of another commit into target/base/, for `bench --base`.
    BuildBase {
        /// The commit.
        commit: String,
    },
    /// Build the programs and the container images and run all tests; arguments go to cargo test.
    Test {
        /// Build nothing before, and run the tests that need neither root nor the programs nor Kubernetes.
        #[arg(long)]
        unit: bool,
        /// Arguments for cargo test, such as `-p sluice-tests`; the whole workspace when there are none.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Write container images of Sluice and of what its tests run to target/images/.
    Images(images::Options),
    /// Check format, lints, licences and generated files.
    Lint,
    /// Format the code.
    Fmt,
    /// Write the generated files.
    Generate {
        /// Change nothing; fail when a file differs from what would be generated.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let result = match Verb::parse() {
        Verb::BuildBpf => bpf::build(command::root()),
        Verb::BuildBase { commit } => base::build(&commit),
        Verb::Test { unit, arguments } => test::run(test::Scope::of(unit), &arguments),
        Verb::Images(options) => images::run(&options),
        Verb::Lint => lint::run(),
        Verb::Fmt => lint::format(),
        Verb::Generate { check } => generate::run(check),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
