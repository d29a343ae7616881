//! Configuration of a node's daemons.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::programs;
use crate::net::Dual;

/// All pods of all nodes.
pub(super) const POD_NETS: [&str; 2] = ["10.244.0.0/16", "2001:db8:244::/48"];

/// The largest packet of a pod, in bytes: that of the world outside. The nodes' own network has room for headers around it.
const POD_MTU: u16 = 1500;

/// Names the image of the container that holds a pod's namespaces.
const PAUSE: &str = "localhost/pause:1";

/// A bridge per node, addresses of both families from the node's own range, and no translation of addresses.
pub(super) fn cni(pods: Dual) -> String {
    let [v4, v6] = pods.prefixes(24, 64).map(|net| net.to_string());
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "mtu": POD_MTU,
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": v4 }], [{ "subnet": v6 }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    })
    .to_string()
}

/// For containerd 1.6, Debian's.
pub(super) fn containerd(directory: &Path) -> Result<String> {
    Ok(format!(
        "version = 2
root = '{directory}/containerd'
state = '/run/containerd'
disabled_plugins = [
  'io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.aufs', 'io.containerd.snapshotter.v1.btrfs',
  'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.zfs',
]

[debug]
  level = 'warn'
[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = '{PAUSE}'
  disable_apparmor = true
  # A machine may let even root only make itself likelier to be killed.
  restrict_oom_score_adj = true
[plugins.'io.containerd.grpc.v1.cri'.cni]
  bin_dir = '{plugins}'
  conf_dir = '{directory}/cni'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
  BinaryName = '{runc}'
  SystemdCgroup = false
",
        directory = directory.display(),
        plugins = programs::network_plugins()?.display(),
        runc = programs::installed("runc")?.display(),
    ))
}

pub(super) fn kubelet(authority: &Path, control_group: &str) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": authority },
        },
        "authorization": { "mode": "Webhook" },
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{control_group}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        "maxOpenFiles": 20000,
        "resolvConf": "",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // The machine's disk is not the node's own: how full it is says nothing about the node.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
    })
    .to_string()
}

pub(super) fn kube_proxy(node: &str, kubeconfig: &Path) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": kubeconfig },
        "hostnameOverride": node,
        "mode": "nftables",
        "clusterCIDR": POD_NETS.join(","),
        // These are the whole machine's.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    })
    .to_string()
}
