//! The kubectl plugin of Sluice.
#![forbid(unsafe_code)]

fn main() {}
