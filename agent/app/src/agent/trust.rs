//! Keeps trust in force: what files and the CA say reaches certificates, sessions and open connections.

use std::sync::Arc;

use sluice_identity::{Delivered, Trust, TrustFiles};
use sluice_proxy::{Proxy, Shared};
use sluice_source::{AgentConfig, CaConfig, StaleCrls};
use sluice_tls::{CertStore, Clock, CrlPolicy};
use tokio::sync::watch;

/// Follows the trust files of the configuration.
pub(super) fn follow(
    config: &AgentConfig,
    delivered: &watch::Receiver<Delivered>,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Trust> {
    let trust = &config.trust;
    let (own_roots, delivered_too) = match (&trust.roots, &config.ca) {
        (Some(roots), _) | (None, CaConfig::Pem { roots, .. }) => (Some(roots.clone()), false),
        (None, CaConfig::Istio(ca)) => (Some(ca.root_cert.clone()), ca.roots_from_ca),
        (None, CaConfig::Embedded { .. } | CaConfig::Spire { .. }) => (None, false),
    };
    let files = TrustFiles {
        roots: own_roots,
        delivered_too,
        federated: trust.federated.clone(),
        crls: trust.crls.clone(),
        denied: trust.denied.clone(),
        crl_policy: match trust.crl_policy {
            StaleCrls::KeepLastGood => CrlPolicy::KeepLastGood,
            StaleCrls::Refuse => CrlPolicy::Refuse,
        },
    };
    let delivered = delivered.borrow().clone();
    Ok(Trust::follow(files, config.trust_domain.clone(), delivered, clock)?)
}

/// Passes on what the CA delivers and what the files say, for as long as the agent runs.
pub(super) async fn pass_on(
    trust: Arc<Trust>,
    mut delivered: watch::Receiver<Delivered>,
    certificates: Arc<CertStore>,
) {
    let mut bundles = trust.bundles();
    let mut delivers = true;
    loop {
        tokio::select! {
            changed = bundles.changed() => {
                if changed.is_err() {
                    return tracing::error!("BUG: nobody follows the trust files any more");
                }
                let bundle = bundles.borrow_and_update().clone();
                certificates.set_roots((*bundle).clone());
            }
            changed = delivered.changed(), if delivers => match changed {
                Ok(()) => trust.deliver(delivered.borrow_and_update().clone()),
                // A CA within the agent delivers once and never again.
                Err(_) => delivers = false,
            },
        }
    }
}

/// After each change of trust, forgets all sessions and cuts the open connections that the new trust does not support.
/// Runs apart from the control loop, which may be busy enrolling pods.
pub(super) async fn enforce(shared: Arc<Shared>, proxy: Arc<Proxy>) {
    let mut changes = shared.certificates.roots_changed();
    while changes.changed().await.is_ok() {
        let generation = *changes.borrow_and_update();
        proxy.forget_sessions();
        let connections_cut = shared.recheck_trust();
        tracing::info!(generation, connections_cut, "a change of trust is in force");
    }
}
