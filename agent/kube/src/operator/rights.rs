//! What RBAC has to grant, and whether it does.

use std::fmt;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::{Api, api::PostParams};

use super::{AskError, Operator};

/// How many questions are asked at the same time.
const AT_ONCE: usize = 8;

/// Something that may be done with a kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// The verb, such as `list`.
    pub verb: &'static str,
    /// The API group; empty for the core's.
    pub group: &'static str,
    /// The resource, or a subresource such as `pods/exec`.
    pub resource: &'static str,
    /// Whether the right is needed in Sluice's namespace only, and not everywhere.
    pub is_local: bool,
}

const fn local(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { verb, group, resource, is_local: true }
}

const fn wide(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { verb, group, resource, is_local: false }
}

/// The rights that the operator's commands need.
pub const OPERATORS_NEED: [Right; 5] = [
    local("list", "", "pods"),
    // A WebSocket is opened by GET; from Kubernetes 1.35 on it needs `create` as well.
    local("get", "", "pods/exec"),
    local("create", "", "pods/exec"),
    local("list", "apps", "daemonsets"),
    local("list", "apps", "deployments"),
];

const SECURITY: &str = "security.istio.io";

/// The rights that the agents need.
pub const AGENTS_NEED: [Right; 11] = [
    wide("watch", "", "namespaces"),
    wide("watch", "", "nodes"),
    wide("watch", "", "pods"),
    wide("watch", "", "services"),
    wide("watch", "discovery.k8s.io", "endpointslices"),
    wide("watch", SECURITY, "authorizationpolicies"),
    wide("watch", SECURITY, "peerauthentications"),
    wide("watch", "networking.istio.io", "destinationrules"),
    wide("patch", "", "pods/status"),
    wide("create", "events.k8s.io", "events"),
    wide("patch", "events.k8s.io", "events"),
];

/// Describes a right in one namespace.
pub(super) fn in_namespace(right: &str, namespace: &str) -> String {
    format!("{right} in the namespace {namespace}")
}

impl Operator {
    /// Returns those of these rights that the operator does not have.
    pub async fn lacks(&self, rights: &[Right]) -> Result<Vec<Right>, AskError> {
        let asked = rights.iter().map(|right| async move {
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(self.attributes(right)),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
            let needs = "create selfsubjectaccessreviews.authorization.k8s.io";
            let reviewed = reviews.create(&PostParams::default(), &review).await;
            let reviewed = reviewed
                .map_err(|error| self.fault("asking for the operator's rights", needs, &error))?;
            Ok((*right, reviewed.status.is_some_and(|status| status.allowed)))
        });
        refused(stream::iter(asked).buffered(AT_ONCE).collect::<Vec<_>>().await)
    }

    /// Returns those of these rights that a service account of Sluice's namespace does not have.
    pub async fn account_lacks(
        &self,
        account: &str,
        rights: &[Right],
    ) -> Result<Vec<Right>, AskError> {
        let namespace = &self.namespace;
        let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned);
        let groups = groups.into_iter().chain([format!("system:serviceaccounts:{namespace}")]);
        let groups: Vec<String> = groups.collect();
        let asked = rights.iter().map(|right| {
            let groups = groups.clone();
            async move {
                let review = SubjectAccessReview {
                    spec: SubjectAccessReviewSpec {
                        resource_attributes: Some(self.attributes(right)),
                        user: Some(format!("system:serviceaccount:{namespace}:{account}")),
                        groups: Some(groups),
                        ..SubjectAccessReviewSpec::default()
                    },
                    ..SubjectAccessReview::default()
                };
                let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
                let needs = "create subjectaccessreviews.authorization.k8s.io";
                let reviewed = reviews.create(&PostParams::default(), &review).await;
                let reviewed = reviewed
                    .map_err(|error| self.fault("asking for the agents' rights", needs, &error))?;
                Ok((*right, reviewed.status.is_some_and(|status| status.allowed)))
            }
        });
        refused(stream::iter(asked).buffered(AT_ONCE).collect::<Vec<_>>().await)
    }

    fn attributes(&self, right: &Right) -> ResourceAttributes {
        let (resource, part) = match right.resource.split_once('/') {
            Some((resource, part)) => (resource, Some(part.to_owned())),
            None => (right.resource, None),
        };
        ResourceAttributes {
            verb: Some(right.verb.to_owned()),
            group: Some(right.group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: part,
            namespace: right.is_local.then(|| self.namespace.clone()),
            ..ResourceAttributes::default()
        }
    }
}

fn refused(asked: Vec<Result<(Right, bool), AskError>>) -> Result<Vec<Right>, AskError> {
    let asked: Vec<(Right, bool)> = asked.into_iter().collect::<Result<_, _>>()?;
    Ok(asked.into_iter().filter(|(_, allowed)| !allowed).map(|(right, _)| right).collect())
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource, is_local: _ } = self;
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let dot = if group.is_empty() { "" } else { "." };
        let slash = if part.is_empty() { "" } else { "/" };
        write!(f, "{verb} {resource}{dot}{group}{slash}{part}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_written_as_kubectl_takes_them() {
        assert_eq!(local("create", "", "pods/exec").to_string(), "create pods/exec");
        assert_eq!(wide("watch", "a.b", "cs").to_string(), "watch cs.a.b");
    }
}
