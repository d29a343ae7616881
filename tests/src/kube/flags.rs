//! The command lines of the control plane's programs.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::pki::Pki;
use crate::net::Dual;

/// Where etcd listens, in its own namespace.
pub(super) const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";

/// The audit policy that logs all requests of the ServiceAccounts of Sluice's namespace, without their bodies.
pub(super) const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: ['system:serviceaccounts:sluice-system']
  - level: None
";
/// The same of everybody's requests.
pub(super) const AUDIT_POLICY_OF_ALL: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
";
pub(super) const AUDIT_POLICY_FILE: &str = "audit-policy.yaml";
pub(super) const AUDIT_LOG: &str = "audit.log";

/// The addresses of Services.
pub const SERVICE_NET: Dual = Dual {
    v4: Ipv4Addr::new(10, 96, 0, 0),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x96, 0, 0, 0, 0, 0),
};

/// The Service `kubernetes`.
pub(super) const API_SERVICE: Dual = SERVICE_NET.host(1);

pub(super) fn etcd(data: &Path) -> Vec<String> {
    vec![
        format!("--data-dir={}", data.display()),
        // Kill -9 loses nothing that the kernel has; only a power cut would.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={ETCD_PEER}"),
        format!("--initial-advertise-peer-urls={ETCD_PEER}"),
        format!("--initial-cluster=default={ETCD_PEER}"),
    ]
}

pub(super) fn api_server(pki: &Pki, directory: &Path, address: Dual, port: u16) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.file(name).display());
    let [services_v4, services_v6] = SERVICE_NET.prefixes(16, 112);
    vec![
        format!("--etcd-servers={ETCD}"),
        "--bind-address=::".into(),
        format!("--advertise-address={}", address.v4),
        format!("--secure-port={port}"),
        format!("--service-cluster-ip-range={services_v4},{services_v6}"),
        "--allow-privileged=true".into(),
        // Webhooks in pods are reached at the pods: no kube-proxy runs beside the API server.
        "--enable-aggregator-routing=true".into(),
        format!(
            "--audit-policy-file={}",
            directory.join(AUDIT_POLICY_FILE).display()
        ),
        format!("--audit-log-path={}", directory.join(AUDIT_LOG).display()),
        "--audit-log-mode=blocking".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        file("client-ca-file", "ca.crt"),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        file("service-account-key-file", "service-account.pub"),
        file("service-account-signing-key-file", "service-account.key"),
        file("kubelet-client-certificate", "kubelet-client.crt"),
        file("kubelet-client-key", "kubelet-client.key"),
        "--kubelet-preferred-address-types=InternalIP".into(),
        file("requestheader-client-ca-file", "front-proxy-ca.crt"),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        file("proxy-client-cert-file", "front-proxy-client.crt"),
        file("proxy-client-key-file", "front-proxy-client.key"),
    ]
}

pub(super) fn controllers(pki: &Pki) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.file(name).display());
    vec![
        "--use-service-account-credentials=true".into(),
        file("service-account-private-key-file", "service-account.key"),
        file("root-ca-file", "ca.crt"),
        file("cluster-signing-cert-file", "ca.crt"),
        file("cluster-signing-key-file", "ca.key"),
        // A lost node is noticed in half the usual time: kubelets report every 4 s.
        "--node-monitor-grace-period=20s".into(),
        "--node-monitor-period=2s".into(),
    ]
}

pub(super) fn scheduler() -> Vec<String> {
    Vec::new()
}

/// The flags that controllers and scheduler have in common.
pub(super) fn client(kubeconfig: &Path, directory: &Path) -> Vec<String> {
    let path = kubeconfig.display();
    vec![
        format!("--kubeconfig={path}"),
        format!("--authentication-kubeconfig={path}"),
        format!("--authorization-kubeconfig={path}"),
        format!("--cert-dir={}", directory.display()),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        // The default makes controllers wait for themselves while a cluster comes up.
        "--kube-api-qps=500".into(),
        "--kube-api-burst=1000".into(),
    ]
}
