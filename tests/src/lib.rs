//! The building blocks of Sluice's tests.
#![deny(unsafe_code)]

pub mod bench;
pub mod figures;
pub mod kube;
pub mod net;
pub mod packet;
