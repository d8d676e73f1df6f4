//! Why a snapshot cannot be made.

use std::net::IpAddr;

use crate::WorkloadUid;

/// Why a snapshot was refused; the one in force stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two pods claim one address, so neither can be trusted with it.
    #[error("address {address} belongs to both {first} and {second}: give each pod its own")]
    AddressClash {
        /// The address in question.
        address: IpAddr,
        /// The pod that had it first.
        first: WorkloadUid,
        /// The pod that claims it too.
        second: WorkloadUid,
    },
    /// Two pods carry the same unique name.
    #[error("{0} is listed twice: a pod's namespace and name are unique")]
    UidClash(WorkloadUid),
    /// A service claims an address that a pod or another service has.
    #[error("service {namespace}/{name} claims {address}, which is taken: give it its own address")]
    ServiceClash {
        /// The service's namespace.
        namespace: String,
        /// The service's name.
        name: String,
        /// The address in question.
        address: IpAddr,
    },
}
