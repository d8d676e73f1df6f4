//! Annotations by which a pod's owner keeps traffic out of the mesh.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use sluice_mesh::Bypass;

use crate::{Meaning, facts::Complaint};

/// Istio's name and ours for each annotation; where both are present, both count.
const INBOUND_PORTS: [&str; 2] =
    ["traffic.sidecar.istio.io/excludeInboundPorts", "sluice.dev/exclude-inbound-ports"];
const OUTBOUND_PORTS: [&str; 2] =
    ["traffic.sidecar.istio.io/excludeOutboundPorts", "sluice.dev/exclude-outbound-ports"];
const OUTBOUND_NETWORKS: [&str; 2] =
    ["traffic.sidecar.istio.io/excludeOutboundIPRanges", "sluice.dev/exclude-outbound-ip-ranges"];

/// Reads the annotations. A wrong item of a list exempts nothing; the others still count.
pub(crate) fn bypass(
    annotations: &BTreeMap<String, String>,
    complaints: &mut Vec<Complaint>,
) -> Bypass {
    let mut bypass = Bypass::default();
    let mut each = |names: [&str; 2], take: &mut dyn FnMut(&str) -> Result<(), Meaning>| {
        for name in names {
            let items = annotations.get(name).map(String::as_str).unwrap_or_default().split(',');
            for item in items.map(str::trim).filter(|item| !item.is_empty()) {
                if let Err(meaning) = take(item) {
                    complaints.push(Complaint { field: field(name), meaning });
                }
            }
        }
    };
    each(INBOUND_PORTS, &mut |item| {
        bypass.inbound_ports.insert(port(item)?);
        Ok(())
    });
    each(OUTBOUND_PORTS, &mut |item| {
        bypass.outbound_ports.insert(port(item)?);
        Ok(())
    });
    each(OUTBOUND_NETWORKS, &mut |item| {
        let network = network(item)?;
        if !bypass.outbound_networks.contains(&network) {
            bypass.outbound_networks.push(network);
        }
        Ok(())
    });
    if let Some(all) = bypass.outbound_networks.iter().find(|network| network.prefix_len() == 0) {
        let meaning = Meaning::ExemptsEverything(all.to_string());
        complaints.push(Complaint { field: field(OUTBOUND_NETWORKS[0]), meaning });
    }
    bypass
}

/// What a finding calls an annotation.
pub(crate) fn field(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

fn port(item: &str) -> Result<u16, Meaning> {
    item.parse().ok().filter(|port| *port != 0).ok_or_else(|| Meaning::NotAPort(item.to_owned()))
}

/// Reads a network. A bare address is a network of one, as in Istio.
fn network(item: &str) -> Result<IpNet, Meaning> {
    let network = item.parse::<IpNet>().ok();
    network
        .or_else(|| item.parse::<IpAddr>().ok().map(Into::into))
        .map(|network| network.trunc())
        .ok_or_else(|| Meaning::NotANetwork(item.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_item_by_item() {
        let annotations = [
            ("traffic.sidecar.istio.io/excludeInboundPorts", "80, 443,,0,http,70000"),
            ("sluice.dev/exclude-inbound-ports", "9000"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "5432"),
            (
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                "10.1.2.3/16,192.0.2.7,fd00::/8,10.1.0.0/33,*",
            ),
        ];
        let annotations =
            annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut complaints = Vec::new();
        let bypass = bypass(&annotations, &mut complaints);
        assert_eq!(bypass.inbound_ports, [80, 443, 9000].into());
        assert_eq!(bypass.outbound_ports, [5432].into());
        let networks: Vec<_> = bypass.outbound_networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.1.0.0/16", "192.0.2.7/32", "fd00::/8"]);
        let meanings: Vec<_> = complaints.into_iter().map(|complaint| complaint.meaning).collect();
        let port = |item: &str| Meaning::NotAPort(item.to_owned());
        let network = |item: &str| Meaning::NotANetwork(item.to_owned());
        assert_eq!(
            meanings,
            [port("0"), port("http"), port("70000"), network("10.1.0.0/33"), network("*")]
        );
    }

    #[test]
    fn an_exemption_of_everything_is_said() {
        let annotations = [(OUTBOUND_NETWORKS[1].to_owned(), "0.0.0.0/0".to_owned())].into();
        let mut complaints = Vec::new();
        assert!(!bypass(&annotations, &mut complaints).is_empty());
        assert_eq!(complaints.len(), 1);
    }
}
