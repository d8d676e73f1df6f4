//! Opens the certificate authority that the configuration names.

use std::sync::Arc;

use sluice_source::{AgentConfig, CaConfig};
use sluice_tls::{
    SystemClock,
    ca::{LocalCa, PemFiles},
};

/// The authority of this agent, made on first start when it is the embedded one.
pub(crate) fn open(config: &AgentConfig) -> anyhow::Result<LocalCa> {
    let clock = Arc::new(SystemClock);
    let authority = match &config.ca {
        CaConfig::Embedded { dir } => LocalCa::embedded(dir, &config.trust_domain, clock)?,
        CaConfig::Pem { certificate, key, roots } => {
            let files = PemFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                roots: Some(roots.clone()),
            };
            LocalCa::from_pem(&files, &config.trust_domain, clock)?
        }
    };
    Ok(authority)
}
