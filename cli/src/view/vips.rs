//! The view of `kubectl sluice vips`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use sluice_api::{ObjectKey, parse_vip_group};

use super::groups::{AnnouncementView, Groups};
use super::{FORMAT_VERSION, Objects};

/// The output of `kubectl sluice vips`.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct VipsView {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// By pool, group and address; those that nobody is to announce are last.
    pub vips: Vec<VipView>,
}

/// An address that virtual servers are served at.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct VipView {
    /// Who announces it.
    #[serde(flatten)]
    pub announcement: AnnouncementView,
    /// The virtual servers at it, as `namespace/name`, by name.
    pub virtual_servers: Vec<String>,
}

/// The view of the virtual servers that were fetched.
pub fn vips(objects: &Objects) -> VipsView {
    let groups = Groups::new(objects);
    let mut vips: BTreeMap<IpAddr, VipView> = BTreeMap::new();
    for object in &objects.virtual_servers {
        let status = object.status.as_ref();
        let Some(decision) = status.and_then(|status| status.decision.as_ref()) else {
            continue;
        };
        for announcement in groups.announcements(&decision.content) {
            let vip = vips.entry(announcement.address).or_insert(VipView {
                announcement,
                virtual_servers: Vec::new(),
            });
            vip.virtual_servers.push(ObjectKey::of(object).to_string());
        }
    }
    let mut vips: Vec<VipView> = vips.into_values().collect();
    for vip in &mut vips {
        vip.virtual_servers.sort();
    }
    // Of one group they stay in the order of the map, by address.
    vips.sort_by(|a, b| order(a).cmp(&order(b)));
    VipsView {
        format_version: FORMAT_VERSION,
        vips,
    }
}

fn order(vip: &VipView) -> (bool, Option<(&str, u8)>) {
    let group = vip.announcement.group.as_deref();
    (group.is_none(), group.and_then(parse_vip_group))
}
