//! Whether the agent is ready.

use super::Exporter;
use crate::view::model::Status;

impl Exporter {
    /// Returns what is still missing before this agent can carry connections; nothing once it can.
    ///
    /// The hooks need no check: an agent whose hooks are not verified does not come this far.
    pub(super) fn missing(&self) -> Vec<String> {
        let status = self.answers.status();
        let mut missing: Vec<String> = state(&status).into_iter().collect();
        let certificates = &self.shared.certificates;
        let now = certificates.now();
        let statuses = certificates.status();
        let valid = |status: &sluice_tls::CertStatus| {
            status.certificate.as_ref().is_some_and(|svid| svid.is_valid_at(now))
        };
        // One certificate shows that the CA answers; the others follow, or fail on their own.
        if !statuses.is_empty() && !statuses.iter().any(valid) {
            let error = statuses.into_iter().find_map(|status| status.last_error);
            let error = error.unwrap_or_else(|| "the CA has not answered yet".to_owned());
            missing.push(format!("no valid certificate: {error}"));
        }
        missing
    }
}

fn state(status: &Status) -> Option<String> {
    if status.source.version > 0 {
        return None;
    }
    let error = status.source.errors.first().map_or_else(String::new, |error| format!(": {error}"));
    Some(format!("nothing is known of the mesh yet{error}"))
}
