//! Which pods run on which node, as the API server tells.

use std::sync::Arc;

use sluice_cluster::Cluster;
use sluice_controller::{Pending, Placed, Placement};
use sluice_spiffe::{SpiffeId, TrustDomain, WorkloadName};

use crate::hub::Hub;

/// Answers from what is followed. A pod counts from the moment that it is bound to a node, before it has an
/// address: its node asks for its certificate while it is set up. It counts no more once it has ended.
#[derive(Clone, Debug)]
pub struct PodPlacement {
    hub: Arc<Hub>,
    trust_domain: TrustDomain,
}

// === impl PodPlacement ===

impl PodPlacement {
    pub(crate) fn new(hub: &Arc<Hub>, trust_domain: TrustDomain) -> Self {
        Self { hub: Arc::clone(hub), trust_domain }
    }

    fn look(&self, id: &SpiffeId, node: &str) -> Placed {
        if !self.hub.is_complete() {
            return Placed::Unknown;
        }
        let named = WorkloadName::of(id);
        match named.filter(|_| id.trust_domain() == self.trust_domain.as_str()) {
            Some(named) => placed(&self.hub.cluster(), &named, node),
            None => Placed::Nowhere,
        }
    }
}

fn placed(cluster: &Cluster, named: &WorkloadName, node: &str) -> Placed {
    let (mut node_known, mut elsewhere) = (false, false);
    for (namespace, account, at) in cluster.bound() {
        let on_node = at == node;
        let same = namespace == named.namespace && account == named.service_account;
        if on_node && same {
            return Placed::Here;
        }
        node_known |= on_node;
        elsewhere |= same;
    }
    match (elsewhere, node_known) {
        (true, _) => Placed::Elsewhere,
        (false, true) => Placed::Nowhere,
        (false, false) => Placed::UnknownNode,
    }
}

impl Placement for PodPlacement {
    fn runs_on<'a>(&'a self, id: &'a SpiffeId, node: &'a str) -> Pending<'a, Placed> {
        Box::pin(std::future::ready(self.look(id, node)))
    }
}
