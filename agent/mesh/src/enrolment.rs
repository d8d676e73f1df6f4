//! Decides whether a pod belongs to the mesh, in one place for every component.

use std::collections::BTreeMap;

/// The label that Istio's ambient users already have on their namespaces and pods.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The value of [`DATAPLANE_MODE`] that enrols.
const AMBIENT: &str = "ambient";

/// Whether a pod belongs to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Captured: the mesh carries the pod's connections.
    Enrolled,
    /// Left alone by the mesh.
    Outside,
}

/// The label and the value of it by which namespaces and pods join the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolmentRule {
    /// Name of the label; [`DATAPLANE_MODE`] by default.
    pub label: String,
    /// The value that enrols; `ambient` by default.
    pub value: String,
}

// === impl EnrolmentRule ===

impl Default for EnrolmentRule {
    fn default() -> Self {
        Self { label: DATAPLANE_MODE.to_owned(), value: AMBIENT.to_owned() }
    }
}

impl EnrolmentRule {
    /// Decides for one pod. Its own label wins over its namespace's. Any value but the enrolling one, such as `none`
    /// or the name of somebody else's data plane, keeps the pod outside.
    pub fn decide(
        &self,
        namespace_labels: &BTreeMap<String, String>,
        pod_labels: &BTreeMap<String, String>,
    ) -> Enrolment {
        decide(&self.label, &self.value, namespace_labels, pod_labels)
    }
}

/// Decides by Istio's own label, as the default [`EnrolmentRule`] does.
pub fn enrolment(
    namespace_labels: &BTreeMap<String, String>,
    pod_labels: &BTreeMap<String, String>,
) -> Enrolment {
    decide(DATAPLANE_MODE, AMBIENT, namespace_labels, pod_labels)
}

fn decide(
    label: &str,
    value: &str,
    namespace_labels: &BTreeMap<String, String>,
    pod_labels: &BTreeMap<String, String>,
) -> Enrolment {
    let mode = pod_labels.get(label).or_else(|| namespace_labels.get(label));
    if mode.is_some_and(|mode| mode == value) { Enrolment::Enrolled } else { Enrolment::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(mode: Option<&str>) -> BTreeMap<String, String> {
        mode.map(|mode| (DATAPLANE_MODE.to_owned(), mode.to_owned())).into_iter().collect()
    }

    #[test]
    fn the_pod_wins_over_its_namespace() {
        for (namespace, pod, expected) in [
            (None, None, Enrolment::Outside),
            (Some("ambient"), None, Enrolment::Enrolled),
            (Some("ambient"), Some("none"), Enrolment::Outside),
            (None, Some("ambient"), Enrolment::Enrolled),
            (Some("none"), Some("ambient"), Enrolment::Enrolled),
            (Some("kmesh"), None, Enrolment::Outside),
        ] {
            assert_eq!(
                enrolment(&labels(namespace), &labels(pod)),
                expected,
                "{namespace:?} {pod:?}"
            );
        }
    }
}
