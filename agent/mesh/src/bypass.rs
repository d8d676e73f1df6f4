//! Traffic that a pod's owner keeps out of the mesh.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Traffic of a pod that the mesh leaves alone, as its annotations say. Empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypass {
    /// Ports of the pod that take whatever arrives, as if the pod were outside the mesh.
    pub inbound_ports: BTreeSet<u16>,
    /// Ports, of any destination, that the pod reaches without the mesh.
    pub outbound_ports: BTreeSet<u16>,
    /// Networks that the pod reaches without the mesh.
    pub outbound_networks: Vec<IpNet>,
}

// === impl Bypass ===

impl Bypass {
    /// Returns whether the mesh leaves nothing alone.
    pub fn is_empty(&self) -> bool {
        self.inbound_ports.is_empty()
            && self.outbound_ports.is_empty()
            && self.outbound_networks.is_empty()
    }

    /// Returns whether the mesh leaves the pod's own connections to `target` alone.
    pub fn leaves_outbound(&self, target: SocketAddr) -> bool {
        self.outbound_ports.contains(&target.port()) || self.covers(target.ip())
    }

    fn covers(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.outbound_networks.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_networks_are_left_alone_and_nothing_else() {
        let bypass = Bypass {
            outbound_ports: [5432].into(),
            outbound_networks: vec!["10.9.0.0/16".parse().unwrap()],
            ..Bypass::default()
        };
        for (target, expected) in [
            ("10.0.0.1:5432", true),
            ("10.9.1.1:80", true),
            ("[::ffff:10.9.1.1]:80", true),
            ("10.0.0.1:80", false),
            ("[fd00::1]:80", false),
        ] {
            assert_eq!(bypass.leaves_outbound(target.parse().unwrap()), expected, "{target}");
        }
        assert!(Bypass::default().is_empty() && !bypass.is_empty());
    }
}
