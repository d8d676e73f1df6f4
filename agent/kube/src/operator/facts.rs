//! What the API server says of itself, and of the parts of Sluice other than agents.

use std::time::{Duration, SystemTime};

use k8s_openapi::{
    api::apps::v1::Deployment,
    jiff::{Timestamp, fmt::rfc2822},
};
use kube::{Api, api::ListParams, client::Body};

use super::{AskError, OURS, Operator, makes, rights};

const CONTROLLER: &str = "controller";

/// What the API server says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerFacts {
    /// Its version, such as `v1.36.0`.
    pub version: String,
    /// How many seconds its clock is ahead of ours; negative when it is behind. A difference that the precision of a
    /// `Date` header and the time to the server can explain counts as 0. `None` when the server tells no time.
    pub ahead: Option<f64>,
}

/// The controller's replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controllers {
    /// How many there should be.
    pub wanted: i32,
    /// How many are ready.
    pub ready: i32,
}

impl Operator {
    /// Asks for the server's version and time.
    pub async fn server_facts(&self) -> Result<ServerFacts, AskError> {
        let failed =
            |error: kube::Error| self.fault("asking for the version", "get /version", &error);
        let version = self.client.apiserver_version().await.map_err(failed)?.git_version;
        // Asked again for the header: the connection is open now, so the time to the server is short.
        let request = http::Request::get("/version").body(Body::empty());
        let request = request.map_err(|error| failed(kube::Error::HttpError(error)))?;
        let before = SystemTime::now();
        let answer = self.client.send(request).await.map_err(failed)?;
        let after = SystemTime::now();
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| rfc2822::parse(date).ok()).map(|date| date.timestamp());
        // The header counts whole seconds: it may have been written at any time of the second that it names.
        let ahead = date.map(|date| {
            let date = seconds(date);
            apart((date, date + 1.0), (since_epoch(before), since_epoch(after)))
        });
        Ok(ServerFacts { version, ahead })
    }

    /// Returns the kinds of this API group that the server serves in none of these versions.
    pub async fn missing_kinds(
        &self,
        group: &str,
        versions: &[&str],
        kinds: &[&str],
    ) -> Result<Vec<String>, AskError> {
        let mut missing: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        for version in versions {
            match self.client.list_api_group_resources(&format!("{group}/{version}")).await {
                Ok(list) => {
                    missing.retain(|kind| !list.resources.iter().any(|known| known.name == *kind));
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    let needs = format!("get /apis/{group}/{version}");
                    return Err(self.fault("asking for the kinds that there are", &needs, &error));
                }
            }
        }
        Ok(missing.into_iter().map(|kind| format!("{kind}.{group}")).collect())
    }

    /// Returns the controller's replicas, or `None` when there is no controller.
    pub async fn controllers(&self) -> Result<Option<Controllers>, AskError> {
        let all: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let needs = rights::in_namespace("list deployments.apps", &self.namespace);
        let listed = all.list(&ListParams::default().labels(OURS)).await;
        let listed =
            listed.map_err(|error| self.fault("listing the controller", &needs, &error))?;
        let is_controller = |deployment: &&Deployment| {
            deployment.spec.as_ref().is_some_and(|spec| makes(&spec.template, CONTROLLER))
        };
        let found = listed.items.iter().find(is_controller).map(|deployment| Controllers {
            wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
            ready: deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0),
        });
        Ok(found)
    }
}

/// Returns how many seconds another clock is ahead of ours, if it showed a time within `theirs` at a moment within
/// `ours`; 0 when the two can be the same moment.
pub fn apart(theirs: (f64, f64), ours: (f64, f64)) -> f64 {
    if theirs.0 > ours.1 {
        theirs.0 - ours.1
    } else if theirs.1 < ours.0 {
        theirs.1 - ours.0
    } else {
        0.0
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64()
}

fn since_epoch(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_way_can_explain_is_no_difference() {
        assert_eq!(apart((100.0, 101.0), (100.4, 100.6)).to_bits(), 0.0_f64.to_bits());
        assert!((apart((100.0, 101.0), (97.0, 98.0)) - 2.0).abs() < 1e-9);
        assert!((apart((100.0, 101.0), (110.0, 110.5)) + 9.0).abs() < 1e-9);
    }

    #[test]
    fn the_date_of_an_http_answer_is_read() {
        let date = rfc2822::parse("Sun, 06 Nov 1994 08:49:37 GMT").unwrap().timestamp();
        assert!((seconds(date) - 784_111_777.0).abs() < 1e-9);
    }
}
