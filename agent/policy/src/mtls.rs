//! Resolves which transport a port accepts: `PeerAuthentication` from the mesh down to the port.

use std::collections::BTreeMap;

use crate::object::PeerAuthentication;

/// Which transport a port accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsMode {
    /// Only mutual TLS.
    Strict,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Only plaintext.
    Disable,
}

/// The modes of one workload's ports.
#[derive(Debug)]
pub(crate) struct PortModes {
    default: MtlsMode,
    exceptions: BTreeMap<u16, MtlsMode>,
}

// === impl PortModes ===

impl Default for PortModes {
    /// Returns Istio's default, which holds where no object sets a mode.
    fn default() -> Self {
        Self { default: MtlsMode::Permissive, exceptions: BTreeMap::new() }
    }
}

impl PortModes {
    /// Resolves the modes. Each level overrides the wider ones where it sets a mode. Only a workload's own object
    /// names ports; a port that it leaves unset takes the workload's mode.
    pub(crate) fn resolve(
        mesh: Option<&PeerAuthentication>,
        namespace: Option<&PeerAuthentication>,
        workload: Option<&PeerAuthentication>,
    ) -> Self {
        let default = [workload, namespace, mesh]
            .into_iter()
            .flatten()
            .find_map(|level| level.mode)
            .unwrap_or(MtlsMode::Permissive);
        let exceptions = workload
            .into_iter()
            .flat_map(|level| &level.ports)
            .map(|(port, mode)| (*port, mode.unwrap_or(default)))
            .collect();
        Self { default, exceptions }
    }

    pub(crate) fn mode(&self, port: u16) -> MtlsMode {
        self.exceptions.get(&port).copied().unwrap_or(self.default)
    }
}
