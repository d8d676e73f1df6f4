//! Access to maps by key.

use std::{
    fs, io,
    mem::{MaybeUninit, size_of},
    os::fd::BorrowedFd,
};

use super::{Attribute, address, bpf, raw};

const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;
const NEXT_KEY: u32 = 4;

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
// SAFETY: the anonymous struct of `BPF_MAP_*_ELEM`, 32 bytes.
unsafe impl Attribute for Element {}

/// A number that the kernel tells of a map, by its name in `/proc/<pid>/fdinfo`.
pub(crate) fn info(map: BorrowedFd<'_>, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", raw(map)))?;
    let number = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(number.and_then(|number| number.trim().parse().ok()).unwrap_or_default())
}

/// The value at `key`; `None` if there is none. The map must have keys and values of these types.
pub(crate) fn lookup<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let found = lookup_into(map, key, value.as_mut_ptr())?;
    // SAFETY: the kernel has written the whole value, and a `Pod` may have any bits.
    Ok(found.then(|| unsafe { value.assume_init() }))
}

/// Returns the value of every CPU at `key`. Values must be multiples of 8 bytes, to which the
/// kernel pads them.
pub(crate) fn lookup_per_cpu<K: aya::Pod, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    key: &K,
    cpus: usize,
) -> io::Result<Vec<V>> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let mut values = vec![V::default(); cpus];
    if lookup_into(map, key, values.as_mut_ptr())? { Ok(values) } else { Ok(Vec::new()) }
}

fn lookup_into<K: aya::Pod, V>(map: BorrowedFd<'_>, key: &K, value: *mut V) -> io::Result<bool> {
    let mut element =
        Element { map: raw(map), padding: 0, key: address(key), value: address(value), flags: 0 };
    match bpf(LOOKUP, &mut element) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets the value at `key`, whether or not there is one already.
pub(crate) fn update<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()> {
    update_from(map, key, value)
}

/// Sets the value of every CPU at `key`.
pub(crate) fn update_per_cpu<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    values: &[V],
) -> io::Result<()> {
    update_from(map, key, values.as_ptr())
}

fn update_from<K: aya::Pod, V>(map: BorrowedFd<'_>, key: &K, value: *const V) -> io::Result<()> {
    let mut element =
        Element { map: raw(map), padding: 0, key: address(key), value: address(value), flags: 0 };
    bpf(UPDATE, &mut element).map(drop)
}

/// Removes the entry at `key`. Returns whether there was one.
pub(crate) fn delete<K: aya::Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut element = Element { map: raw(map), padding: 0, key: address(key), value: 0, flags: 0 };
    match bpf(DELETE, &mut element) {
        Ok(_) => Ok(true),
        // A map of sockets says EINVAL where others say ENOENT.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Returns the key after `key`, or without one the first key; `None` at the end.
pub(crate) fn next_key<K: aya::Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::uninit();
    let mut element = Element {
        map: raw(map),
        padding: 0,
        key: key.map_or(0, |key| address(key)),
        value: address(next.as_mut_ptr()),
        flags: 0,
    };
    match bpf(NEXT_KEY, &mut element) {
        // SAFETY: the kernel has written the whole key, and a `Pod` may have any bits.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a hash map with keys and values of these sizes.
#[cfg(test)]
pub(crate) fn create(key_size: u32, value_size: u32) -> io::Result<std::os::fd::OwnedFd> {
    const CREATE: u32 = 0;
    const HASH: u32 = 1;
    #[repr(C)]
    struct Map {
        kind: u32,
        key_size: u32,
        value_size: u32,
        entries: u32,
    }
    // SAFETY: the first four words of the anonymous struct of `BPF_MAP_CREATE`.
    unsafe impl Attribute for Map {}
    super::owned(bpf(CREATE, &mut Map { kind: HASH, key_size, value_size, entries: 4 })?)
}
