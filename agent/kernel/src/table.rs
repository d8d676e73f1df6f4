//! Typed access to maps by key; every call is one `bpf(2)`.

use std::{
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use sluice_abi::{
    AgentSocket, Counters, DirectKey, Endpoint, Guarded, IpKey, Local, NetworkKey, Pod, PortKey,
    Probe, ProbeKey, Settings, map,
};

use crate::{Error, pins::Pins, syscall};

/// An open map. One of another generation may have other types: then it seems to hold no keys or no values, for the
/// kernel would write what it has over what is behind ours.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    fd: OwnedFd,
    name: &'static str,
    has_our_keys: bool,
    has_our_values: bool,
    types: PhantomData<fn(K) -> V>,
}

impl<K: aya::Pod, V: aya::Pod> Table<K, V> {
    fn new(name: &'static str, fd: OwnedFd) -> Result<Self, Error> {
        let has = |size: &str, ours: usize| {
            let size = syscall::map::info(fd.as_fd(), size);
            let size = size.map_err(Error::kernel("inspect map", name))?;
            Ok::<_, Error>(usize::try_from(size).is_ok_and(|size| size == ours))
        };
        let has_our_keys = has("key_size", size_of::<K>())?;
        let has_our_values = has("value_size", size_of::<V>())?;
        Ok(Self { fd, name, has_our_keys, has_our_values, types: PhantomData })
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, Error> {
        if !(self.has_our_keys && self.has_our_values) {
            return Ok(None);
        }
        syscall::map::lookup(self.fd.as_fd(), key).map_err(Error::kernel("read map", self.name))
    }

    pub(crate) fn insert(&self, key: &K, value: &V) -> Result<(), Error> {
        syscall::map::update(self.fd.as_fd(), key, value)
            .map_err(Error::kernel("write map", self.name))
    }

    /// Removes the entry at `key`. Returns whether there was one.
    pub(crate) fn remove(&self, key: &K) -> Result<bool, Error> {
        if !self.has_our_keys {
            return Ok(false);
        }
        syscall::map::delete(self.fd.as_fd(), key)
            .map_err(Error::kernel("delete from map", self.name))
    }

    /// Returns all keys. A concurrent change may show one twice or not at all, but nobody else
    /// writes our maps while the datapath's lock is held.
    pub(crate) fn keys(&self) -> Result<Vec<K>, Error> {
        let next = |key: Option<&K>| {
            syscall::map::next_key(self.fd.as_fd(), key)
                .map_err(Error::kernel("list map", self.name))
        };
        let mut keys = Vec::new();
        while self.has_our_keys
            && let Some(key) = next(keys.last())?
        {
            keys.push(key);
        }
        Ok(keys)
    }

    /// Returns all keys for whose value `wanted` is true.
    pub(crate) fn keys_where(&self, wanted: impl Fn(&V) -> bool) -> Result<Vec<K>, Error> {
        let mut found = Vec::new();
        for key in self.keys()? {
            if self.get(&key)?.is_some_and(|value| wanted(&value)) {
                found.push(key);
            }
        }
        Ok(found)
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The maps that the agent reads and writes by key.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) pods: Table<u64, Pod>,
    pub(crate) peers: Table<IpKey, u32>,
    pub(crate) local: Table<IpKey, Local>,
    pub(crate) guarded: Table<u32, Guarded>,
    pub(crate) ports: Table<PortKey, u32>,
    pub(crate) networks: Table<NetworkKey, u32>,
    pub(crate) direct: Table<DirectKey, u32>,
    /// Listening sockets. Values are written as descriptors, and cannot be read back.
    pub(crate) listeners: Table<u32, u32>,
    pub(crate) settings: Table<u32, Settings>,
    counters: Table<u32, Counters>,
    cpus: usize,
}

impl Tables {
    /// Wraps the maps whose descriptors `take` returns.
    pub(crate) fn new(
        mut take: impl FnMut(&'static str) -> Result<OwnedFd, Error>,
    ) -> Result<Self, Error> {
        let cpus =
            aya::util::nr_cpus().map_err(|(path, source)| Error::path("read", path)(source))?;
        Ok(Self {
            pods: Table::new(map::PODS, take(map::PODS)?)?,
            peers: Table::new(map::PEERS, take(map::PEERS)?)?,
            local: Table::new(map::LOCAL, take(map::LOCAL)?)?,
            guarded: Table::new(map::GUARDED, take(map::GUARDED)?)?,
            ports: Table::new(map::PORTS, take(map::PORTS)?)?,
            networks: Table::new(map::NETWORKS, take(map::NETWORKS)?)?,
            direct: Table::new(map::DIRECT, take(map::DIRECT)?)?,
            listeners: Table::new(map::LISTENERS, take(map::LISTENERS)?)?,
            settings: Table::new(map::SETTINGS, take(map::SETTINGS)?)?,
            counters: Table::new(map::COUNTERS, take(map::COUNTERS)?)?,
            cpus,
        })
    }

    /// Opens the pinned maps. Returns `None` if not all are there.
    pub(crate) fn open(pins: &Pins) -> Result<Option<Self>, Error> {
        let opened = Self::new(|name| {
            let path = pins.map(name);
            let found = syscall::open_pin(&path).map_err(Error::path("open the pin", &path))?;
            found.ok_or_else(|| {
                Error::path("open the pin", path)(std::io::ErrorKind::NotFound.into())
            })
        });
        match opened {
            Err(Error::Path { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// Returns a slot's counts, summed over CPUs.
    pub(crate) fn counters(&self, slot: u32) -> Result<Counters, Error> {
        let per_cpu: Vec<Counters> =
            syscall::map::lookup_per_cpu(self.counters.as_fd(), &slot, self.cpus)
                .map_err(Error::kernel("read map", map::COUNTERS))?;
        Ok(per_cpu.into_iter().fold(Counters::default(), Counters::plus))
    }

    /// Resets a slot's counts.
    pub(crate) fn clear_counters(&self, slot: u32) -> Result<(), Error> {
        syscall::map::update_per_cpu(
            self.counters.as_fd(),
            &slot,
            &vec![Counters::default(); self.cpus],
        )
        .map_err(Error::kernel("write map", map::COUNTERS))
    }
}

/// Sizes of each map's keys and values, against which a map is checked before it is adopted.
pub(crate) fn sizes() -> [(&'static str, usize, usize); 14] {
    const fn of<K, V>(name: &'static str) -> (&'static str, usize, usize) {
        (name, size_of::<K>(), size_of::<V>())
    }
    [
        of::<u64, Pod>(map::PODS),
        of::<IpKey, u32>(map::PEERS),
        of::<IpKey, Local>(map::LOCAL),
        of::<u32, Guarded>(map::GUARDED),
        of::<PortKey, u32>(map::PORTS),
        of::<NetworkKey, u32>(map::NETWORKS),
        of::<DirectKey, u32>(map::DIRECT),
        of::<ProbeKey, Probe>(map::PROBES),
        of::<i32, Endpoint>(map::SK_ORIG),
        of::<i32, AgentSocket>(map::AGENT_SK),
        of::<sluice_abi::PendingKey, Endpoint>(map::PENDING),
        of::<u32, u32>(map::LISTENERS),
        of::<u32, Counters>(map::COUNTERS),
        of::<u32, Settings>(map::SETTINGS),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_other_types_is_not_read() {
        let map = || syscall::map::create(8, 128).unwrap();
        let wide = Table::<u64, [u8; 128]>::new("WIDE", map()).unwrap();
        wide.insert(&7, &[1; 128]).unwrap();
        assert_eq!(wide.get(&7).unwrap(), Some([1; 128]));
        let fd = wide.fd.try_clone().unwrap();
        let narrow = Table::<u64, u32>::new("WIDE", fd).unwrap();
        assert_eq!((narrow.keys().unwrap(), narrow.get(&7).unwrap()), (vec![7], None));
        assert!(narrow.remove(&7).unwrap());
        let other = Table::<u32, [u8; 128]>::new("WIDE", wide.fd.try_clone().unwrap()).unwrap();
        wide.insert(&7, &[1; 128]).unwrap();
        assert_eq!((other.keys().unwrap(), other.get(&7).unwrap()), (Vec::new(), None));
        assert!(!other.remove(&7).unwrap() && wide.get(&7).unwrap().is_some());
    }
}
