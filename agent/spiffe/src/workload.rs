//! Istio's mapping of a Kubernetes workload to an identity: `/ns/<namespace>/sa/<service account>`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{IdError, SpiffeId, TrustDomain};

/// The namespace and service account that an identity names. Certificates are issued for this pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes service account.
    pub service_account: String,
}

impl WorkloadName {
    /// Returns the identity of this workload in `domain`.
    ///
    /// # Errors
    ///
    /// When a name holds a character that a SPIFFE path cannot.
    pub fn identity(&self, domain: &TrustDomain) -> Result<SpiffeId, IdError> {
        format!("spiffe://{domain}/ns/{}/sa/{}", self.namespace, self.service_account).parse()
    }

    /// Returns the workload that `id` names, or `None` if its path has another layout.
    pub fn of(id: &SpiffeId) -> Option<Self> {
        let mut segments = id.path().split('/');
        match (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) {
            (Some(""), Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) => {
                Some(Self {
                    namespace: namespace.to_owned(),
                    service_account: service_account.to_owned(),
                })
            }
            _ => None,
        }
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_reads_back_what_it_wrote() {
        let name = WorkloadName { namespace: "shop".into(), service_account: "cart".into() };
        let id = name.identity(&"cluster.local".parse().unwrap()).unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(WorkloadName::of(&id), Some(name));
    }

    #[test]
    fn other_layouts_have_no_workload_name() {
        for text in
            ["spiffe://a", "spiffe://a/ns/b", "spiffe://a/ns/b/sa/c/d", "spiffe://a/xx/b/sa/c"]
        {
            assert_eq!(WorkloadName::of(&text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn a_name_that_a_path_cannot_hold_is_refused() {
        let name = WorkloadName { namespace: "a/b".into(), service_account: "..".into() };
        assert!(name.identity(&"cluster.local".parse().unwrap()).is_err());
    }
}
