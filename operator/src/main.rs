//! Placeholder for the first commit.
fn main() {}
