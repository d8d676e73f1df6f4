//! The kinds that are followed.

use kube::{api::ApiResource, core::GroupVersionKind};

/// A kind of object, and what it means if it is not available.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resource {
    group: &'static str,
    /// The versions that we read, the newest first.
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    /// Whether the cluster may not know the kind at all.
    pub(crate) is_custom: bool,
    /// Whether nothing may be published before the kind was listed, because its objects can narrow access.
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
/// Needed only for zones: without nodes, every endpoint is as near as any other.
pub(crate) const NODES: Resource = Resource { is_essential: false, ..core("Node", "nodes") };
pub(crate) const ENDPOINT_SLICES: Resource =
    Resource { group: "discovery.k8s.io", ..core("EndpointSlice", "endpointslices") };
pub(crate) const AUTHORIZATION_POLICIES: Resource =
    custom("security.istio.io", "AuthorizationPolicy", "authorizationpolicies");
pub(crate) const PEER_AUTHENTICATIONS: Resource =
    custom("security.istio.io", "PeerAuthentication", "peerauthentications");
/// These only take destinations out of the mesh: without them, more goes through it.
pub(crate) const DESTINATION_RULES: Resource = Resource {
    is_essential: false,
    ..custom("networking.istio.io", "DestinationRule", "destinationrules")
};

// === impl Resource ===

impl Resource {
    /// Returns the kind in one of its versions, which take turns by attempt.
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

    /// Returns the kind's name in RBAC.
    pub(crate) fn name(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}
