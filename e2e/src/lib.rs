//! Sluice on a real Kubernetes of three nodes: installed with helm, driven by kubectl, asked by clients outside the cluster.
#![forbid(unsafe_code)]

pub mod quick_start;
pub mod stage;
pub mod traffic;
