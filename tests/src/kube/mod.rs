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
//!
//! A [`Cluster`] has nodes besides, with kubelet, containerd, pod networks of both families and kube-proxy, and a client
//! outside. Three nodes are ready after about ten seconds.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use sluice_tests::kube::{Cluster, ClusterSpec};
//!
//! let cluster = Cluster::build(&ClusterSpec::new(3).image("sluice"))?;
//! cluster.admin().kubectl(["create", "deployment", "web", "--image=localhost/web:1"])?;
//! let pods = cluster.await_pods("default", "app=web", 1, Duration::from_secs(30))?;
//! let answer = cluster.client().run(&format!("curl http://{}:8080/", pods[0].address.v4))?;
//! assert_eq!(answer.trim(), pods[0].name);
//! # Ok(())
//! # }
//! ```
//!
//! Pods and all that is not in the cluster's own namespaces stay in the nodes' mount, process and network namespaces, and
//! end with them. What is machine-wide has the run's name: network namespaces and control groups.

mod account;
pub mod audit;
mod bpf;
pub mod chart;
mod cluster;
mod control;
mod definitions;
pub mod departure;
mod flags;
mod fleet;
mod kubeconfig;
mod node;
mod node_files;
mod operated;
mod pki;
mod played;
mod pod;
mod pools;
mod programs;
mod rights;
mod spec;

pub use account::{Account, finish, has_condition};
pub use bpf::BpfObjects;
pub use cluster::Cluster;
pub use control::{API_PORT, ControlPlane, Part};
pub use flags::SERVICE_NET;
pub use fleet::PlayedFleet;
pub use kubeconfig::{Credentials, Kubeconfig};
pub use node::Node;
pub use operated::{CHANGE_TIMEOUT, Operated, condition};
pub use pki::{KeyedCertificate, Pki};
pub use played::PlayedAgent;
pub use pod::Pod;
pub use pools::{EVERY_ADDRESS, every_address, pools_argument};
pub use programs::program;
pub use rights::rights;
pub use spec::ClusterSpec;
