//! Pods and selectors by label, so that neither is compared with all of its namespace.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{LabelSelector, ObjectKey};

use crate::sets::remove;

/// Labels of a pod.
type Labels = BTreeMap<String, String>;
/// Namespace, label, value.
type Label = (String, String, String);

/// Pods by their labels, and pools by a label that they require.
#[derive(Debug, Default)]
pub(super) struct ByLabel {
    pods: BTreeMap<Label, BTreeSet<String>>,
    pools: BTreeMap<Label, BTreeSet<ObjectKey>>,
    /// Pools whose selectors require no label to have a certain value.
    unlabelled: BTreeMap<String, BTreeSet<ObjectKey>>,
}

impl ByLabel {
    /// Takes a pod's labels.
    pub(super) fn pod(&mut self, pod: &ObjectKey, before: Option<&Labels>, now: Option<&Labels>) {
        if before == now {
            return;
        }
        for (name, value) in before.into_iter().flatten() {
            remove(
                &mut self.pods,
                &label(&pod.namespace, name, value),
                &pod.name,
            );
        }
        for (name, value) in now.into_iter().flatten() {
            let pods = self.pods.entry(label(&pod.namespace, name, value));
            pods.or_default().insert(pod.name.clone());
        }
    }

    /// Takes a pool's selector.
    pub(super) fn pool(
        &mut self,
        pool: &ObjectKey,
        before: Option<&LabelSelector>,
        now: Option<&LabelSelector>,
    ) {
        if let Some(selector) = before {
            match selector.match_labels.first_key_value() {
                Some((name, value)) => {
                    remove(&mut self.pools, &label(&pool.namespace, name, value), pool);
                }
                None => remove(&mut self.unlabelled, &pool.namespace, pool),
            }
        }
        if let Some(selector) = now {
            let pools = match selector.match_labels.first_key_value() {
                Some((name, value)) => self
                    .pools
                    .entry(label(&pool.namespace, name, value))
                    .or_default(),
                None => self.unlabelled.entry(pool.namespace.clone()).or_default(),
            };
            pools.insert(pool.clone());
        }
    }

    /// The pools that may select a pod with these labels.
    pub(super) fn pools<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        let labels = labels.iter();
        let pools =
            labels.filter_map(|(name, value)| self.pools.get(&label(namespace, name, value)));
        pools.chain(self.unlabelled.get(namespace)).flatten()
    }

    /// The names of the pods that may have what a selector requires; `None`: any pod of the namespace may.
    pub(super) fn pods(
        &self,
        namespace: &str,
        selector: &LabelSelector,
    ) -> Option<&BTreeSet<String>> {
        const NONE: &BTreeSet<String> = &BTreeSet::new();
        let required = selector.match_labels.iter();
        let pods = required.map(|(name, value)| {
            let pods = self.pods.get(&label(namespace, name, value));
            pods.unwrap_or(NONE)
        });
        pods.min_by_key(|pods| pods.len())
    }
}

fn label(namespace: &str, name: &str, value: &str) -> Label {
    (namespace.to_owned(), name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
        LabelSelector {
            match_labels: labels(pairs),
            match_expressions: Vec::new(),
        }
    }

    #[test]
    fn pods_and_pools_are_found_by_their_labels() {
        let mut known = ByLabel::default();
        let pod = |name: &str| ObjectKey::new("shop", name);
        known.pod(
            &pod("a"),
            None,
            Some(&labels(&[("app", "web"), ("v", "1")])),
        );
        known.pod(
            &pod("b"),
            None,
            Some(&labels(&[("app", "web"), ("v", "2")])),
        );
        let (web, any) = (selector(&[("app", "web"), ("v", "2")]), selector(&[]));
        known.pool(&pod("web"), None, Some(&web));
        known.pool(&pod("any"), None, Some(&any));
        let pods = |known: &ByLabel, selector| known.pods("shop", selector).cloned();
        assert_eq!(
            pods(&known, &web),
            Some(["b".to_owned()].into()),
            "the fewest"
        );
        assert_eq!(pods(&known, &any), None);
        assert_eq!(known.pods("other", &web), Some(&BTreeSet::new()));
        let web_pod = labels(&[("app", "web")]);
        let pools: Vec<_> = known.pools("shop", &web_pod).cloned().collect();
        assert_eq!(pools, [pod("web"), pod("any")]);
        assert_eq!(known.pools("other", &web_pod).count(), 0);

        known.pod(
            &pod("b"),
            Some(&labels(&[("app", "web"), ("v", "2")])),
            None,
        );
        known.pool(&pod("web"), Some(&web), None);
        known.pool(&pod("any"), Some(&any), None);
        assert_eq!(pods(&known, &web), Some(BTreeSet::new()));
        assert_eq!(known.pools("shop", &web_pod).count(), 0);
        known.pod(
            &pod("a"),
            Some(&labels(&[("app", "web"), ("v", "1")])),
            None,
        );
        assert!(known.pods.is_empty() && known.pools.is_empty() && known.unlabelled.is_empty());
    }
}
