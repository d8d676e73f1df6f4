//! What a pod's entry keeps out of the mesh: `bypass`, and the ports that may be probed.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::Deserialize;
use serde_saphyr::Spanned;
use sluice_mesh::Bypass;

use super::Checker;
use crate::{FileError, Problem, yaml};

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenBypass {
    #[serde(default)]
    inbound_ports: Vec<Spanned<u16>>,
    #[serde(default)]
    outbound_ports: Vec<Spanned<u16>>,
    #[serde(default)]
    outbound_networks: Vec<IpNet>,
}

impl Checker<'_> {
    pub(super) fn bypass(&self, path: &str, written: WrittenBypass) -> Result<Bypass, FileError> {
        let WrittenBypass { inbound_ports, outbound_ports, outbound_networks } = written;
        Ok(Bypass {
            inbound_ports: self.ports(&format!("{path}.inboundPorts"), &inbound_ports)?,
            outbound_ports: self.ports(&format!("{path}.outboundPorts"), &outbound_ports)?,
            outbound_networks,
        })
    }

    pub(super) fn ports(
        &self,
        field: &str,
        written: &[Spanned<u16>],
    ) -> Result<BTreeSet<u16>, FileError> {
        if let Some(zero) = written.iter().find(|port| port.value == 0) {
            return Err(yaml::content(self.file, zero.referenced, field, Problem::PortZero));
        }
        Ok(written.iter().map(|port| port.value).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluice_mesh::Workload;

    use super::*;

    fn pod(exempt: &str) -> Result<Workload, FileError> {
        let text = format!(
            "pods:\n- {{ namespace: shop, name: web, addresses: [10.1.0.2], node: a, {exempt} }}\n"
        );
        let state =
            super::super::parse(Path::new("mesh.yaml"), &text, &"cluster.local".parse().unwrap())?;
        Ok(state.workloads.into_iter().next().unwrap())
    }

    #[test]
    fn ports_and_networks_are_read() {
        let web = pod(
            "probePorts: [8080, 8081, 8080], bypass: { inboundPorts: [9000], outboundPorts: [5432], \
             outboundNetworks: [10.9.0.0/16, 'fd00:9::/32'] }",
        )
        .unwrap();
        assert_eq!(web.probe_ports, [8080, 8081].into());
        assert_eq!(web.bypass.inbound_ports, [9000].into());
        assert_eq!(web.bypass.outbound_ports, [5432].into());
        assert_eq!(web.bypass.outbound_networks.len(), 2);
        assert!(pod("probePorts: []").unwrap().bypass.is_empty());
    }

    #[test]
    fn faults_are_named() {
        for (written, words) in [
            ("probePorts: [0]", "pods[0].probePorts: 0 is not a port"),
            ("bypass: { outboundPorts: [80, 0] }", "pods[0].bypass.outboundPorts: 0 is not a port"),
            ("bypass: { outboundNetworks: [10.0.0.0] }", "mesh.yaml:2:"),
            ("bypass: { outboundNetworks: [10.0.0.0/33] }", "mesh.yaml:2:"),
            ("bypass: { ports: [80] }", "unknown field `ports`"),
            ("probePorts: [70000]", "mesh.yaml:2:"),
        ] {
            let error = pod(written).unwrap_err().to_string();
            assert!(error.contains(words), "{written}: {error}");
        }
    }
}
