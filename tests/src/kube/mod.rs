//! A real Kubernetes in namespaces.
//!
//! A [`ControlPlane`] is etcd and the API server, and controllers and scheduler where a test wants them, as child
//! processes in one namespace of a [`Run`](crate::net::Run): many can live side by side. With etcd and API server alone
//! it is up in a few seconds, which serves everything that is about objects.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use sluice_tests::{kube::ControlPlane, net::Run};
//!
//! let run = Run::start()?;
//! let control = ControlPlane::api(&run, "control")?;
//! control.admin().kubectl(["create", "namespace", "shop"])?;
//! let version = control
//!     .admin()
//!     .with_client(async |client| Ok(client.apiserver_version().await?))?;
//! # drop(version);
//! # Ok(())
//! # }
//! ```

mod account;
mod bpf;
pub mod chart;
mod cluster;
mod control;
mod definitions;
mod flags;
mod kubeconfig;
mod node;
mod node_files;
mod pki;
mod programs;

pub use account::{Account, has_condition};
pub use bpf::BpfObjects;
pub use cluster::{Cluster, ClusterSpec, Pod};
pub use control::{API_PORT, ControlPlane, Part};
pub use flags::SERVICE_NET;
pub use kubeconfig::{Credentials, Kubeconfig};
pub use node::Node;
pub use pki::{KeyedCertificate, Pki};
pub use programs::program;
