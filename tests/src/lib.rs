//! What the tests of Sluice are made of.
#![deny(unsafe_code)]

pub mod bench;
pub mod kube;
pub mod net;
pub mod packet;
