//! Services of type LoadBalancer: what they say to Sluice beside their fields, and the names of the objects made for them.

/// `spec.loadBalancerClass` of the Services that Sluice serves.
pub const SERVICE_CLASS: &str = "sluice.dev/sluice";
/// Annotation of a Service: the forwarding mode, as [`crate::Forwarding`] has it.
pub const MODE_ANNOTATION: &str = "sluice.dev/mode";
/// Annotation of a Service: the AddressPool that its addresses come from.
pub const ADDRESS_POOL_ANNOTATION: &str = "sluice.dev/address-pool";
/// Annotation of a Service: the addresses that it asks for, one for each family, separated by commas.
pub const ADDRESSES_ANNOTATION: &str = "sluice.dev/addresses";
/// Annotation of a Service: another Service of its namespace, whose addresses it shares.
pub const SHARE_ANNOTATION: &str = "sluice.dev/share-addresses-with";
/// Type of the condition of a Service that says whether it is served.
pub const SERVICE_CONDITION: &str = "sluice.dev/Ready";
/// The names of virtual servers and pools that the operator makes for Services end with this; the chart's admission policy keeps
/// others from making such objects. Names of Services have no dots.
pub const SERVICE_SUFFIX: &str = ".service.sluice.dev";

/// The name of the virtual server, and of the pool, that the operator makes for a Service.
pub fn name_for_service(service: &str) -> String {
    format!("{service}{SERVICE_SUFFIX}")
}

/// The Service that an object of this name would be made for.
pub fn service_of_name(name: &str) -> Option<&str> {
    name.strip_suffix(SERVICE_SUFFIX)
}
