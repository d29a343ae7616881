//! Placeholder for the first commit.
#![forbid(unsafe_code)]
