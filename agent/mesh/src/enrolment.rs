//! Whether a pod belongs to the mesh, decided in one place for every component.

use std::collections::BTreeMap;

/// The label that Istio's ambient users already have on their namespaces and pods.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// The outcome for one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Captured: its connections are carried by the mesh.
    Enrolled,
    /// Left alone.
    Outside,
}

/// A pod's own label wins over its namespace's; `none` opts out, `ambient` opts in, and any other
/// value is somebody else's data plane.
pub fn enrolment(
    namespace_labels: &BTreeMap<String, String>,
    pod_labels: &BTreeMap<String, String>,
) -> Enrolment {
    let mode = pod_labels.get(DATAPLANE_MODE).or_else(|| namespace_labels.get(DATAPLANE_MODE));
    if mode.is_some_and(|mode| mode == "ambient") {
        Enrolment::Enrolled
    } else {
        Enrolment::Outside
    }
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
