//! The status files of all kinds, as they stand written.

use sluice_api::{
    Kind, ObjectKey, RealServerPool, RealServerPoolStatus, RolloutPolicy, RolloutPolicyStatus,
    VirtualServer, VirtualServerStatus,
};
use sluice_directory::{Directory, DirectoryError, Mirror};

use super::store::Store;
use crate::order::{Numbers, Object, Stands, Status, Written};

/// All kinds whose status the operator writes.
pub(super) struct Files<'a> {
    pub(super) directory: &'a Directory,
    pub(super) mirror: &'a mut Mirror,
    pub(super) virtual_servers: &'a mut Store<VirtualServer>,
    pub(super) pools: &'a mut Store<RealServerPool>,
    pub(super) policies: &'a mut Store<RolloutPolicy>,
}

impl Files<'_> {
    /// Whether there is a file for this object.
    pub(super) fn has(&self, object: &Object) -> bool {
        let (kind, key) = object;
        match kind {
            Kind::VirtualServer => self.virtual_servers.status(key).is_some(),
            Kind::RealServerPool => self.pools.status(key).is_some(),
            Kind::RolloutPolicy => self.policies.status(key).is_some(),
            Kind::LoadBalancerNode | Kind::AddressPool => false,
        }
    }

    /// Writes a status.
    pub(super) fn write(&mut self, key: &ObjectKey, status: Status) -> Result<(), DirectoryError> {
        let (directory, mirror) = (self.directory, &mut *self.mirror);
        match status {
            Status::VirtualServer(status) => {
                self.virtual_servers.write(directory, mirror, key, status)
            }
            Status::Pool(status) => self.pools.write(directory, mirror, key, status),
            Status::Policy(status) => self.policies.write(directory, mirror, key, status),
        }
    }
}

impl Written for Files<'_> {
    fn virtual_server(&self, key: &ObjectKey) -> Stands<'_, VirtualServerStatus> {
        let status = self.virtual_servers.status(key);
        status.map_or(Stands::Nowhere, Stands::Written)
    }

    fn pool(&self, key: &ObjectKey) -> Stands<'_, RealServerPoolStatus> {
        let status = self.pools.status(key);
        status.map_or(Stands::Nowhere, Stands::Written)
    }

    fn policy(&self, key: &ObjectKey) -> Stands<'_, RolloutPolicyStatus> {
        let status = self.policies.status(key);
        status.map_or(Stands::Nowhere, Stands::Written)
    }

    /// A manifest that changes is decided anew in any case.
    fn version(&self, _: &Object) -> u64 {
        0
    }

    fn decided(&self, kind: Kind) -> Vec<(&ObjectKey, Numbers)> {
        match kind {
            Kind::VirtualServer => {
                let all = self.virtual_servers.statuses();
                all.filter_map(|(key, status)| Some((key, status.decision.as_ref()?.into())))
                    .collect()
            }
            Kind::RealServerPool => {
                let all = self.pools.statuses();
                all.filter_map(|(key, status)| Some((key, status.decision.as_ref()?.into())))
                    .collect()
            }
            Kind::RolloutPolicy | Kind::LoadBalancerNode | Kind::AddressPool => Vec::new(),
        }
    }

    /// There are no slices.
    fn slices_are_ahead(&self, _: &ObjectKey, _: &RealServerPoolStatus) -> bool {
        false
    }
}
