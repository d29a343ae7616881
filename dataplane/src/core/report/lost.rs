//! Replies that are lost: the program that takes them is not attached to the interface behind which their servers are.

use std::collections::{BTreeMap, BTreeSet};

use sluice_abi::Path;
use sluice_planner::{ObjectKind, Problem, Reason, ServerInfo};

use crate::core::network::Network;
use crate::core::program::Program;

/// One problem for each pool that has a server behind such an interface.
pub(super) fn problems(network: &Network, program: &Program) -> Vec<Problem> {
    let failed = program.attachments.bridge_problems().iter();
    let failed: BTreeMap<u32, String> = failed
        .filter_map(|(name, error)| {
            let (ifindex, _) = network.table().link_by_name(name)?;
            let message = format!("replies of servers behind {name} are lost: {error}");
            Some((ifindex, message))
        })
        .collect();
    if failed.is_empty() {
        return Vec::new();
    }
    let planner = program.tables.planner().read();
    let image = planner.image();
    let problem = |server: ServerInfo<'_>| {
        let word = image.servers.get(&server.id)?;
        let record = image.records.get(&word.slot())?;
        let message = failed.get(&record.ifindex)?;
        (word.path() == Path::Tc).then(|| Problem {
            kind: ObjectKind::RealServerPool,
            object: server.virtual_server.sibling(server.pool),
            reason: Reason::AttachFailed,
            message: message.clone(),
            exception: true,
        })
    };
    let problems: BTreeSet<Problem> = planner.servers().filter_map(problem).collect();
    problems.into_iter().collect()
}
