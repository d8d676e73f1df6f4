//! Opens the certificate authority that the configuration names.

use std::sync::Arc;

use sluice_identity::{Delivered, IstioCa, IstioCaSettings, Spire};
use sluice_source::{AgentConfig, CaConfig};
use sluice_tls::{
    Clock, Issuer,
    ca::{LocalCa, PemFiles},
};
use tokio::sync::watch;

/// Who issues certificates, and whom it says to believe.
pub(crate) struct Authority {
    pub(crate) issuer: Arc<dyn Issuer>,
    pub(crate) delivered: watch::Receiver<Delivered>,
}

/// The authority of this agent, made on first start when it is the embedded one.
pub(crate) fn open(config: &AgentConfig, clock: &Arc<dyn Clock>) -> anyhow::Result<Authority> {
    let domain = &config.trust_domain;
    let clock = Arc::clone(clock);
    match &config.ca {
        CaConfig::Embedded { dir } => Ok(local(LocalCa::embedded(dir, domain, clock)?)),
        CaConfig::Pem { certificate, key, roots } => {
            let files = PemFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                roots: Some(roots.clone()),
            };
            Ok(local(LocalCa::from_pem(&files, domain, clock)?))
        }
        CaConfig::Istio(ca) => {
            let settings = IstioCaSettings {
                address: ca.address.clone(),
                server_name: ca.server_name.clone(),
                root_cert: ca.root_cert.clone(),
                token: ca.token.clone(),
                cluster_id: ca.cluster_id.clone(),
                impersonate: ca.impersonate,
                believe_roots: ca.roots_from_ca,
            };
            let ca = IstioCa::new(settings, clock)?;
            Ok(Authority { delivered: ca.delivered(), issuer: Arc::new(ca) })
        }
        CaConfig::Spire { socket } => {
            let spire = Spire::start(socket, domain.clone())?;
            Ok(Authority { delivered: spire.delivered(), issuer: Arc::new(spire) })
        }
    }
}

fn local(ca: LocalCa) -> Authority {
    let delivered = Delivered { local: ca.roots().to_vec(), ..Delivered::default() };
    Authority { issuer: Arc::new(ca), delivered: watch::channel(delivered).1 }
}
