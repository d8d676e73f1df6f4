//! Opens the certificate authority that the configuration names.

use std::sync::Arc;

use sluice_identity::{Delivered, IstioCa, IstioCaSettings, Spire};
use sluice_source::{AgentConfig, CaConfig};
use sluice_tls::{
    CertificateDer, Clock, Issuer,
    ca::{FollowedCa, LocalCa, PemFiles},
};
use tokio::sync::watch;

/// The issuer of certificates, and the trust that it delivers.
pub(crate) struct Authority {
    pub(crate) issuer: Arc<dyn Issuer>,
    pub(crate) delivered: watch::Receiver<Delivered>,
}

/// Opens this agent's authority. An embedded one is created on first start.
pub(crate) fn open(config: &AgentConfig, clock: &Arc<dyn Clock>) -> anyhow::Result<Authority> {
    let domain = &config.trust_domain;
    let clock = Arc::clone(clock);
    match &config.ca {
        CaConfig::Embedded { dir } => {
            let ca = LocalCa::embedded(dir, domain, clock)?;
            Ok(local(ca.roots().to_vec(), Arc::new(ca)))
        }
        CaConfig::Pem { certificate, key, roots } => {
            let files = PemFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                roots: Some(roots.clone()),
            };
            let ca = FollowedCa::open(files, domain, clock)?;
            Ok(local(ca.current().roots().to_vec(), Arc::new(ca)))
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

fn local(roots: Vec<CertificateDer<'static>>, issuer: Arc<dyn Issuer>) -> Authority {
    let delivered = Delivered { local: roots, ..Delivered::default() };
    Authority { issuer, delivered: watch::channel(delivered).1 }
}
