//! Which endpoint is in which slice.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use super::MAX_SLICE_ENDPOINTS;
use crate::kube::facts::NamedPort;

/// The address family and ports that all endpoints of a slice share.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Group {
    ipv6: bool,
    ports: Vec<NamedPort>,
}

impl Group {
    pub(super) fn new(ipv6: bool, ports: Vec<NamedPort>) -> Self {
        Self { ipv6, ports }
    }

    /// The group of a slice; `None` if it is none of ours.
    fn of(slice: &EndpointSlice) -> Option<Self> {
        let ipv6 = match slice.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            _ => return None,
        };
        let port = |port: &EndpointPort| {
            Some(NamedPort {
                name: port.name.clone()?,
                number: u16::try_from(port.port?).ok()?,
                protocol: port.protocol.clone()?,
            })
        };
        let ports: Option<Vec<NamedPort>> = slice.ports.iter().flatten().map(port).collect();
        Some(Self {
            ipv6,
            ports: ports?,
        })
    }

    pub(super) fn address_type(&self) -> &'static str {
        if self.ipv6 { "IPv6" } else { "IPv4" }
    }

    pub(super) fn ports(&self) -> Vec<EndpointPort> {
        let port = |port: &NamedPort| EndpointPort {
            app_protocol: None,
            name: Some(port.name.clone()),
            port: Some(i32::from(port.number)),
            protocol: Some(port.protocol.clone()),
        };
        self.ports.iter().map(port).collect()
    }
}

/// The pod and address of an endpoint.
type Place = (String, String);

fn place(endpoint: &Endpoint) -> Option<Place> {
    let pod = endpoint.target_ref.as_ref()?.name.clone()?;
    Some((pod, endpoint.addresses.first()?.clone()))
}

/// A slice as it is filled.
#[derive(Debug)]
struct Slot {
    name: String,
    /// As they were, emptied where the endpoint is gone.
    places: Vec<(Place, Option<Endpoint>)>,
    new: Vec<Endpoint>,
}

impl Slot {
    fn len(&self) -> usize {
        let kept = self.places.iter().filter(|(_, e)| e.is_some()).count();
        kept + self.new.len()
    }

    fn take(&mut self) -> Vec<Endpoint> {
        let kept = self.places.drain(..).filter_map(|(_, endpoint)| endpoint);
        kept.chain(self.new.drain(..)).collect()
    }
}

/// The slices that there are, and the endpoints that there should be.
#[derive(Debug)]
pub(super) struct Groups {
    slots: BTreeMap<Group, Vec<Slot>>,
    /// Where each endpoint is: slot and place in it.
    index: BTreeMap<Group, BTreeMap<Place, (usize, usize)>>,
    homeless: BTreeMap<Group, Vec<Endpoint>>,
}

impl Groups {
    pub(super) fn new(own: &BTreeMap<&str, &EndpointSlice>) -> Self {
        let mut slots: BTreeMap<Group, Vec<Slot>> = BTreeMap::new();
        let mut index: BTreeMap<Group, BTreeMap<Place, (usize, usize)>> = BTreeMap::new();
        for (name, slice) in own {
            let Some(group) = Group::of(slice) else {
                continue;
            };
            let of_group = slots.entry(group.clone()).or_default();
            let known = index.entry(group).or_default();
            let mut places = Vec::new();
            for place in slice.endpoints.iter().flatten().filter_map(place) {
                if places.len() < MAX_SLICE_ENDPOINTS && !known.contains_key(&place) {
                    known.insert(place.clone(), (of_group.len(), places.len()));
                    places.push((place, None));
                }
            }
            of_group.push(Slot {
                name: (*name).to_owned(),
                places,
                new: Vec::new(),
            });
        }
        Self {
            slots,
            index,
            homeless: BTreeMap::new(),
        }
    }

    /// Puts an endpoint where it was.
    pub(super) fn add(&mut self, group: Group, endpoint: Endpoint) {
        let found = place(&endpoint).and_then(|place| {
            let (slot, at) = *self.index.get(&group)?.get(&place)?;
            Some(
                &mut self
                    .slots
                    .get_mut(&group)?
                    .get_mut(slot)?
                    .places
                    .get_mut(at)?
                    .1,
            )
        });
        match found {
            Some(known) => *known = Some(endpoint),
            None => self.homeless.entry(group).or_default().push(endpoint),
        }
    }

    /// Finds a place for every other endpoint. `name` gives the name of a new slice by family and number, or `None` if it is
    /// in use.
    pub(super) fn arrange(
        mut self,
        name: impl Fn(bool, usize) -> Option<String>,
    ) -> Vec<(String, Group, Vec<Endpoint>)> {
        let mut numbers = [0_usize; 2];
        let mut result = Vec::new();
        for group in self.homeless.keys() {
            self.slots.entry(group.clone()).or_default();
        }
        for (group, mut slots) in self.slots {
            let mut homeless = self.homeless.remove(&group).unwrap_or_default();
            slots.retain(|slot| slot.len() > 0);
            merge(&mut slots, &mut homeless);
            fill(&mut slots, &mut homeless);
            while !homeless.is_empty() {
                let number = &mut numbers[usize::from(group.ipv6)];
                let new = loop {
                    *number += 1;
                    if let Some(new) = name(group.ipv6, *number) {
                        break new;
                    }
                };
                let rest = homeless.split_off(homeless.len().min(MAX_SLICE_ENDPOINTS));
                slots.push(Slot {
                    name: new,
                    places: Vec::new(),
                    new: std::mem::replace(&mut homeless, rest),
                });
            }
            for mut slot in slots {
                let endpoints = slot.take();
                result.push((slot.name, group.clone(), endpoints));
            }
        }
        result
    }
}

/// Gives up the emptiest slices while there are more than twice as many as needed.
fn merge(slots: &mut Vec<Slot>, homeless: &mut Vec<Endpoint>) {
    let total = slots.iter().map(Slot::len).sum::<usize>() + homeless.len();
    let enough = 2 * total.div_ceil(MAX_SLICE_ENDPOINTS);
    while slots.len() > enough {
        let emptiest = (0..slots.len()).min_by_key(|&i| slots[i].len());
        let Some(emptiest) = emptiest else { return };
        homeless.extend(slots.remove(emptiest).take());
    }
}

/// Fills the fullest slices first.
fn fill(slots: &mut [Slot], homeless: &mut Vec<Endpoint>) {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(slots[i].len()));
    for i in order {
        let room = MAX_SLICE_ENDPOINTS - slots[i].len();
        let rest = homeless.split_off(homeless.len().min(room));
        slots[i].new.extend(std::mem::replace(homeless, rest));
    }
}
