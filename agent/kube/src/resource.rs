//! The kinds that are followed.

use kube::{api::ApiResource, core::GroupVersionKind};

/// A kind, and what it means when it is not to be had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resource {
    group: &'static str,
    /// The newest that we read first.
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    /// Whether the cluster may not know the kind at all.
    pub(crate) is_custom: bool,
    /// Whether nothing may be published before it was listed: what it says can narrow.
    pub(crate) is_essential: bool,
}

const fn core(kind: &'static str, plural: &'static str) -> Resource {
    Resource { group: "", versions: &["v1"], kind, plural, is_custom: false, is_essential: true }
}

const fn custom(group: &'static str, kind: &'static str, plural: &'static str) -> Resource {
    Resource {
        group,
        versions: &["v1", "v1beta1"],
        kind,
        plural,
        is_custom: true,
        is_essential: true,
    }
}

pub(crate) const NAMESPACES: Resource = core("Namespace", "namespaces");
pub(crate) const PODS: Resource = core("Pod", "pods");
pub(crate) const SERVICES: Resource = core("Service", "services");
/// Only for zones: without it, every endpoint is as near as any other.
pub(crate) const NODES: Resource = Resource { is_essential: false, ..core("Node", "nodes") };
pub(crate) const ENDPOINT_SLICES: Resource =
    Resource { group: "discovery.k8s.io", ..core("EndpointSlice", "endpointslices") };
pub(crate) const AUTHORIZATION_POLICIES: Resource =
    custom("security.istio.io", "AuthorizationPolicy", "authorizationpolicies");
pub(crate) const PEER_AUTHENTICATIONS: Resource =
    custom("security.istio.io", "PeerAuthentication", "peerauthentications");
/// It only takes destinations out of the mesh: without it, more goes through.
pub(crate) const DESTINATION_RULES: Resource = Resource {
    is_essential: false,
    ..custom("networking.istio.io", "DestinationRule", "destinationrules")
};

// === impl Resource ===

impl Resource {
    /// The kind in one of its versions; they take turns.
    pub(crate) fn api(&self, attempt: usize) -> ApiResource {
        let version = attempt
            .checked_rem(self.versions.len())
            .and_then(|index| self.versions.get(index))
            .unwrap_or(&"v1");
        let kind = GroupVersionKind::gvk(self.group, version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }

    pub(crate) fn version_count(&self) -> usize {
        self.versions.len()
    }

    /// As RBAC names it.
    pub(crate) fn name(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}
