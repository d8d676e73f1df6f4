//! The part of a pod's traffic that the mesh leaves alone, as declared and as the hooks take it.

use std::{collections::HashSet, net::SocketAddr};

use sluice_kernel::PodExemptions;
use sluice_mesh::{Bypass, Snapshot, Workload};
use sluice_sys::diag::Connection;

/// Opt-outs and probe ports of one pod, which change while the pod stays enrolled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exempt {
    bypass: Bypass,
    hooks: PodExemptions,
}

impl Exempt {
    pub(crate) fn of(workload: &Workload) -> Self {
        let bypass = workload.bypass.clone();
        let networks = bypass.outbound_networks.iter();
        let hooks = PodExemptions {
            inbound_ports: bypass.inbound_ports.clone(),
            outbound_ports: bypass.outbound_ports.clone(),
            outbound_networks: networks.map(|net| (net.addr(), net.prefix_len())).collect(),
            probe_ports: workload.probe_ports.clone(),
        };
        Self { bypass, hooks }
    }

    /// Returns the exemptions as the hooks take them.
    pub(crate) fn hooks(&self) -> &PodExemptions {
        &self.hooks
    }

    /// Whether the hooks leave a connection of the pod alone, whichever end opened it.
    pub(crate) fn leaves(&self, connection: &Connection) -> bool {
        let Connection { local, remote, .. } = connection;
        self.bypass.inbound_ports.contains(&local.port()) || self.bypass.leaves_outbound(*remote)
    }
}

/// Returns the destinations that every pod of a node reaches without the mesh: those that a rule
/// names, and the ports that mesh pods keep out of it, where nobody would answer mesh TLS.
pub(crate) fn direct(snapshot: &Snapshot) -> HashSet<SocketAddr> {
    let exempt = snapshot.members().iter().map(|member| &member.workload).flat_map(|workload| {
        let ports = workload.bypass.inbound_ports.iter();
        ports.flat_map(|port| workload.addresses.iter().map(|address| (*address, *port).into()))
    });
    snapshot.direct_destinations().chain(exempt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::workload;

    #[test]
    fn connections_are_left_alone_by_the_end_that_is_exempt() {
        let bypass = Bypass {
            inbound_ports: [9000].into(),
            outbound_ports: [5432].into(),
            outbound_networks: vec!["10.9.0.0/16".parse().unwrap()],
        };
        let probe_ports = [8080].into();
        let exempt = Exempt::of(&Workload { bypass, probe_ports, ..workload("web", 2, None) });
        let leaves = |local: &str, remote: &str| {
            let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
            exempt.leaves(&Connection { local, remote, inode: 1, cookie: 1 })
        };
        assert!(leaves("10.0.0.1:9000", "10.0.0.2:40000"));
        assert!(leaves("10.0.0.1:40000", "10.0.0.2:5432"));
        assert!(leaves("[::ffff:10.0.0.1]:40000", "[::ffff:10.9.1.2]:80"));
        assert!(!leaves("10.0.0.1:40000", "10.0.0.2:9000"));
        assert!(!leaves("10.0.0.1:8080", "10.0.0.2:40000"), "a port that is only probed");
        assert!(!leaves("[fd00::1]:40000", "[fd00::2]:80"));
    }
}
