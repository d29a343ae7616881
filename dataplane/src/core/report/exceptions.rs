//! The exceptions that a node names beside the revisions that it acknowledges.

use std::collections::BTreeMap;

use sluice_api::{
    ExceptionKind, MAX_EXCEPTIONS, MAX_MESSAGE_LENGTH, MAX_UNLISTED_EXCEPTIONS, NodeException,
    ObjectKey,
};
use sluice_planner::{ObjectKind, Problem};

/// Characters that a message needs to say that there is more.
const ROOM_FOR_MORE: usize = 24;

/// One exception an object, in the order in which objects come first. Problems of the node itself are none.
pub(super) fn exceptions<'a>(
    problems: impl IntoIterator<Item = &'a Problem>,
) -> Vec<NodeException> {
    let mut objects = Vec::new();
    let mut by_object: BTreeMap<(ExceptionKind, &ObjectKey), Vec<&Problem>> = BTreeMap::new();
    for problem in problems {
        let kind = match problem.kind {
            ObjectKind::VirtualServer => ExceptionKind::VirtualServer,
            ObjectKind::RealServerPool => ExceptionKind::RealServerPool,
            ObjectKind::LoadBalancerNode => continue,
        };
        let object = (kind, &problem.object);
        let of_object = by_object.entry(object).or_insert_with(|| {
            objects.push(object);
            Vec::new()
        });
        of_object.push(problem);
    }
    let exception = |object| {
        let (first, others) = by_object.get(&object)?.split_first()?;
        let (kind, name) = object;
        Some(NodeException {
            kind,
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            reason: first.reason.as_str().to_owned(),
            message: joined(first, others),
        })
    };
    objects.into_iter().filter_map(exception).collect()
}

/// The exceptions beyond those that a status lists, by the numbers of their objects.
pub(super) fn unlisted(exceptions: &[NodeException]) -> Vec<u32> {
    let more = exceptions.iter().skip(MAX_EXCEPTIONS);
    let mut numbers: Vec<u32> = more
        .map(|exception| {
            let object = ObjectKey::new(&exception.namespace, &exception.name);
            exception.kind.hash_of(&object)
        })
        .collect();
    numbers.sort_unstable();
    numbers.truncate(MAX_UNLISTED_EXCEPTIONS);
    numbers
}

/// All that is wrong with one object, of which the first reason is told beside it; where there is no room for all, how much
/// more there is.
fn joined(first: &Problem, others: &[&Problem]) -> String {
    let mut message = first.message.clone();
    for (told, other) in others.iter().enumerate() {
        let part = if other.reason == first.reason {
            format!("; {}", other.message)
        } else {
            format!("; {}: {}", other.reason.as_str(), other.message)
        };
        let length = message.chars().count() + part.chars().count();
        if length + ROOM_FOR_MORE > MAX_MESSAGE_LENGTH {
            let more = others.len() - told;
            message = format!("{message}; and {more} more");
            break;
        }
        message.push_str(&part);
    }
    message.chars().take(MAX_MESSAGE_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use sluice_planner::Reason;

    use super::*;

    fn problem(kind: ObjectKind, name: &str, reason: Reason, message: &str) -> Problem {
        Problem {
            kind,
            object: ObjectKey::new("shop", name),
            reason,
            message: message.to_owned(),
            exception: true,
        }
    }

    fn no_servers(pool: &str, message: &str) -> Problem {
        problem(ObjectKind::RealServerPool, pool, Reason::NoServers, message)
    }

    #[test]
    fn an_object_is_one_exception() {
        let web = ObjectKind::VirtualServer;
        let pool = ObjectKind::RealServerPool;
        let problems = [
            problem(web, "v1", Reason::LimitExceeded, "no room"),
            no_servers("v1", "no IPv4 server for web"),
            no_servers("v1", "no IPv6 server for web"),
            problem(pool, "v1", Reason::RingNotInPlace, "not decided"),
            problem(
                ObjectKind::LoadBalancerNode,
                "",
                Reason::LimitExceeded,
                "full",
            ),
            no_servers("v2", "no IPv4 server for web"),
        ];
        let found: Vec<String> = exceptions(&problems)
            .into_iter()
            .map(|e| format!("{:?} {} {}: {}", e.kind, e.name, e.reason, e.message))
            .collect();
        let expected = [
            "VirtualServer v1 LimitExceeded: no room",
            "RealServerPool v1 NoServers: no IPv4 server for web; no IPv6 server for web; RingNotInPlace: not decided",
            "RealServerPool v2 NoServers: no IPv4 server for web",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_message_says_how_much_it_leaves_out() {
        let part = "x".repeat(MAX_MESSAGE_LENGTH / 4);
        let problems: Vec<Problem> = (0..9).map(|_| no_servers("v1", &part)).collect();
        let [exception] = &exceptions(&problems)[..] else {
            unreachable!()
        };
        assert!(exception.message.chars().count() <= MAX_MESSAGE_LENGTH);
        assert!(exception.message.ends_with("; and 6 more"));
        let long = no_servers("v1", &"é".repeat(2 * MAX_MESSAGE_LENGTH));
        let message = &exceptions([&long])[0].message;
        assert_eq!(message.chars().count(), MAX_MESSAGE_LENGTH);
    }

    #[test]
    fn what_a_list_has_no_room_for_is_told_by_number() {
        let count = MAX_EXCEPTIONS + 3;
        let problems: Vec<Problem> = (0..count)
            .map(|number| {
                let name = format!("v{number:04}");
                problem(
                    ObjectKind::VirtualServer,
                    &name,
                    Reason::EndpointConflict,
                    "x",
                )
            })
            .collect();
        let all = exceptions(&problems);
        let status = sluice_api::LoadBalancerNodeStatus {
            exception_count: u32::try_from(count).expect("few"),
            exceptions: all[..MAX_EXCEPTIONS].to_vec(),
            unlisted_exceptions: unlisted(&all),
            ..sluice_api::LoadBalancerNodeStatus::default()
        };
        let told = |exception: &NodeException| {
            let object = ObjectKey::new(&exception.namespace, &exception.name);
            status.has_unlisted(exception.kind, &object)
        };
        assert_eq!(all.iter().filter(|exception| told(exception)).count(), 3);
        assert!(all[MAX_EXCEPTIONS..].iter().all(told));
    }
}
