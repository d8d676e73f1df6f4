//! What the mesh leaves alone: opt-outs and probe ports of pods, and destinations of the whole node.
//!
//! Narrowing comes first: what is no longer exempt is removed before anything new is exempted, and if a
//! step fails, less is exempt than was asked for, never more. Each pod has its own room in the maps, so
//! no pod can use up another's.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use sluice_abi::{DirectKey, Exemptions, NetworkKey, PortKey, PortUse, Settings};

use crate::{DirectFill, Error, table::Tables};

/// Largest number of exempt ports of one pod, probe ports included.
pub(crate) const PORTS_PER_POD: u32 = 64;
/// Largest number of exempt networks of one pod.
pub(crate) const NETWORKS_PER_POD: u32 = 16;
/// Largest number of destinations that the whole node reaches without the mesh.
pub(crate) const DIRECT: u32 = 16_384;

/// Value of every entry in these maps, which has no meaning: a key that is there is exempt.
const PRESENT: u32 = 1;
/// Key of the only entry in the settings' map.
const SETTINGS: u32 = 0;

/// Traffic of a pod that the mesh leaves alone. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodExemptions {
    /// Ports whose connections are left to the application, as if the pod were outside the mesh.
    pub inbound_ports: BTreeSet<u16>,
    /// Ports, of any destination, that the pod reaches without the mesh.
    pub outbound_ports: BTreeSet<u16>,
    /// Networks, by address and prefix length, that the pod reaches without the mesh.
    pub outbound_networks: Vec<(IpAddr, u8)>,
    /// Ports that the kubelet may probe in plaintext.
    pub probe_ports: BTreeSet<u16>,
}

/// A copy of what the kernel's maps hold, so a change writes only what differs.
#[derive(Debug)]
pub(crate) struct Exempt {
    pods: HashMap<u32, Held>,
    direct: HashSet<DirectKey>,
}

/// The entries of one slot.
#[derive(Debug, Default)]
struct Held {
    ports: HashSet<PortKey>,
    networks: HashSet<NetworkKey>,
}

// === impl PodExemptions ===

impl PodExemptions {
    /// The kinds of exemption that the pod has.
    pub(crate) fn kinds(&self) -> Exemptions {
        Exemptions::NONE
            .with(Exemptions::INBOUND_PORTS, !self.inbound_ports.is_empty())
            .with(Exemptions::OUTBOUND_PORTS, !self.outbound_ports.is_empty())
            .with(Exemptions::OUTBOUND_NETWORKS, !self.outbound_networks.is_empty())
            .with(Exemptions::PROBES, !self.probe_ports.is_empty())
    }

    fn entries(&self, slot: u32) -> Result<Held, Error> {
        let kinds = [
            (&self.inbound_ports, PortUse::Inbound),
            (&self.outbound_ports, PortUse::Outbound),
            (&self.probe_ports, PortUse::Probe),
        ];
        let mut held = Held::default();
        for (ports, port_use) in kinds {
            let key = |port: &u16| PortKey::new(slot, port_use, port.to_be_bytes());
            held.ports.extend(ports.iter().map(key));
        }
        for (address, length) in &self.outbound_networks {
            let key = NetworkKey::new(slot, (*address).into(), *length)
                .ok_or(Error::Network { address: *address, length: *length })?;
            held.networks.insert(key);
        }
        let fits = |count: usize, room: u32| u32::try_from(count).is_ok_and(|count| count <= room);
        if !fits(held.ports.len(), PORTS_PER_POD) {
            return Err(Error::TooManyExempt { what: "ports", room: PORTS_PER_POD });
        }
        if !fits(held.networks.len(), NETWORKS_PER_POD) {
            return Err(Error::TooManyExempt { what: "networks", room: NETWORKS_PER_POD });
        }
        Ok(held)
    }
}

// === impl Exempt ===

impl Exempt {
    /// Reads what the maps hold.
    pub(crate) fn read(tables: &Tables) -> Result<Self, Error> {
        let mut pods: HashMap<u32, Held> = HashMap::new();
        for key in tables.ports.keys()? {
            pods.entry(key.slot()).or_default().ports.insert(key);
        }
        for key in tables.networks.keys()? {
            pods.entry(key.slot()).or_default().networks.insert(key);
        }
        Ok(Self { pods, direct: tables.direct.keys()?.into_iter().collect() })
    }

    /// Checks that a pod's exemptions can be met.
    pub(crate) fn check(wanted: &PodExemptions) -> Result<(), Error> {
        wanted.entries(0).map(drop)
    }

    /// Removes the entries of a slot that are not wanted. They go one by one: hooks must already
    /// have stopped looking them up, or may see some gone before others.
    pub(crate) fn narrow(
        &mut self,
        tables: &Tables,
        slot: u32,
        wanted: &PodExemptions,
    ) -> Result<(), Error> {
        let wanted = wanted.entries(slot)?;
        let Some(held) = self.pods.get_mut(&slot) else { return Ok(()) };
        for gone in held.ports.difference(&wanted.ports).copied().collect::<Vec<_>>() {
            tables.ports.remove(&gone)?;
            held.ports.remove(&gone);
        }
        for gone in held.networks.difference(&wanted.networks).copied().collect::<Vec<_>>() {
            tables.networks.remove(&gone)?;
            held.networks.remove(&gone);
        }
        Ok(())
    }

    /// Adds the wanted entries of a slot that are missing.
    pub(crate) fn widen(
        &mut self,
        tables: &Tables,
        slot: u32,
        wanted: &PodExemptions,
    ) -> Result<(), Error> {
        let wanted = wanted.entries(slot)?;
        let held = self.pods.entry(slot).or_default();
        for new in wanted.ports.difference(&held.ports).copied().collect::<Vec<_>>() {
            tables.ports.insert(&new, &PRESENT)?;
            held.ports.insert(new);
        }
        for new in wanted.networks.difference(&held.networks).copied().collect::<Vec<_>>() {
            tables.networks.insert(&new, &PRESENT)?;
            held.networks.insert(new);
        }
        Ok(())
    }

    /// Removes every entry of a slot that no longer belongs to a pod.
    pub(crate) fn forget(&mut self, tables: &Tables, slot: u32) -> Result<(), Error> {
        self.narrow(tables, slot, &PodExemptions::default())?;
        self.pods.remove(&slot);
        Ok(())
    }

    /// Removes the entries of slots that are not among `taken`.
    pub(crate) fn sweep(&mut self, tables: &Tables, taken: &HashSet<u32>) -> Result<(), Error> {
        let free: Vec<u32> =
            self.pods.keys().filter(|slot| !taken.contains(slot)).copied().collect();
        free.into_iter().try_for_each(|slot| self.forget(tables, slot))
    }

    /// Makes the node reach `wanted` without the mesh, or as many of these destinations as fit.
    pub(crate) fn set_direct(
        &mut self,
        tables: &Tables,
        wanted: &[SocketAddr],
    ) -> Result<DirectFill, Error> {
        let key = |to: &SocketAddr| {
            DirectKey::new(to.ip().to_canonical().into(), to.port().to_be_bytes())
        };
        let wanted: HashSet<DirectKey> = wanted.iter().map(key).collect();
        for gone in self.direct.difference(&wanted).copied().collect::<Vec<_>>() {
            tables.direct.remove(&gone)?;
            self.direct.remove(&gone);
        }
        let capacity = usize::try_from(DIRECT).unwrap_or(usize::MAX);
        let room = capacity.saturating_sub(self.direct.len());
        let new: Vec<DirectKey> = wanted.difference(&self.direct).copied().take(room).collect();
        for destination in new {
            tables.direct.insert(&destination, &PRESENT)?;
            self.direct.insert(destination);
        }
        change_settings(tables, |settings| settings.with_direct(!self.direct.is_empty()))?;
        Ok(DirectFill { wanted: wanted.len(), held: self.direct.len(), capacity })
    }
}

/// Changes the node's settings, and writes them only if they differ.
pub(crate) fn change_settings(
    tables: &Tables,
    change: impl FnOnce(Settings) -> Settings,
) -> Result<(), Error> {
    let settings = tables.settings.get(&SETTINGS)?.unwrap_or_default();
    let changed = change(settings);
    if changed == settings { Ok(()) } else { tables.settings.insert(&SETTINGS, &changed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_room_of_its_own_and_no_more() {
        let ports =
            |count| PodExemptions { probe_ports: (1..=count).collect(), ..Default::default() };
        assert!(Exempt::check(&ports(64)).is_ok());
        let error = Exempt::check(&ports(65)).unwrap_err().to_string();
        assert!(error.contains("64 ports"), "{error}");
        let networks = |count| PodExemptions {
            outbound_networks: (0..count).map(|n| (IpAddr::from([10, n, 0, 0]), 16)).collect(),
            ..Default::default()
        };
        assert!(Exempt::check(&networks(16)).is_ok());
        assert!(Exempt::check(&networks(17)).is_err());
    }

    #[test]
    fn a_prefix_longer_than_its_address_is_refused() {
        let exemptions = PodExemptions {
            outbound_networks: vec![([10, 0, 0, 0].into(), 33)],
            ..Default::default()
        };
        let error = Exempt::check(&exemptions).unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/33"), "{error}");
    }
}
