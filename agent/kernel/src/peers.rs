//! The destinations that the mesh knows, kept in step with the kernel's map.

use std::{collections::HashSet, net::IpAddr};

use sluice_abi::IpKey;

use crate::{Error, PeerFill, exempt::change_settings, table::Tables};

/// Value of every entry, which has no meaning yet: a key that is there is a peer.
const PRESENT: u32 = 1;

/// A copy of what the kernel's map holds, so a change writes only what differs.
#[derive(Debug)]
pub(crate) struct Peers {
    held: HashSet<IpKey>,
    capacity: usize,
}

impl Peers {
    /// Reads what the map holds.
    pub(crate) fn read(tables: &Tables, max_peers: u32) -> Result<Self, Error> {
        let held = tables.peers.keys()?.into_iter().collect();
        Ok(Self { held, capacity: usize::try_from(max_peers).unwrap_or(usize::MAX) })
    }

    /// Makes the map hold `wanted`. If not all fit, it holds as many as do, and everything is
    /// captured.
    pub(crate) fn set(
        &mut self,
        tables: &Tables,
        wanted: &HashSet<IpAddr>,
    ) -> Result<PeerFill, Error> {
        let wanted: HashSet<IpKey> = wanted.iter().map(|address| (*address).into()).collect();
        let overflow = wanted.len() > self.capacity;
        if overflow {
            // First of all: what does not fit is captured from here on.
            capture_all(tables, true)?;
        }
        for gone in self.held.difference(&wanted).copied().collect::<Vec<_>>() {
            tables.peers.remove(&gone)?;
            self.held.remove(&gone);
        }
        let room = self.capacity.saturating_sub(self.held.len());
        let new: Vec<IpKey> = wanted.difference(&self.held).copied().take(room).collect();
        for peer in new {
            tables.peers.insert(&peer, &PRESENT)?;
            self.held.insert(peer);
        }
        if !overflow {
            capture_all(tables, false)?;
        }
        Ok(PeerFill {
            wanted: wanted.len(),
            held: self.held.len(),
            capacity: self.capacity,
            capture_all: overflow,
        })
    }
}

fn capture_all(tables: &Tables, on: bool) -> Result<(), Error> {
    change_settings(tables, |settings| settings.with_capture_all(on))
}
