//! Why a pod is not captured, in words for its operator.

use std::{io, net::IpAddr};

use sluice_mesh::WorkloadUid;

/// Why a pod could not be enrolled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the mesh does not say where its network namespace is (`netns`), and no process on this node is in \
         a cgroup of this pod and a namespace with its addresses"
    )]
    NoNamespace,
    #[error("it was not looked for: {0}")]
    Search(String),
    #[error("the mesh gives it no address")]
    NoAddress,
    #[error("its network namespace is that of pod {0}: each pod has its own")]
    Taken(WorkloadUid),
    #[error(
        "its address {declared} is not in its network namespace, which has {}: this may be another \
         pod's namespace",
        list(found)
    )]
    ForeignNamespace { declared: IpAddr, found: Vec<IpAddr> },
    #[error("its network namespace has no veth pair to this node, so nothing can guard it")]
    NoVeth,
    #[error("cannot listen on {address} inside it: {source}; is its loopback interface up?")]
    Listen { address: IpAddr, source: io::Error },
    #[error("cannot share its listeners with the kernel: {0}")]
    Listeners(#[source] io::Error),
    #[error(transparent)]
    System(#[from] sluice_sys::Error),
    #[error(transparent)]
    Hooks(#[from] sluice_kernel::Error),
}

fn list(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
