//! Limits of the process.

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{Error, Result};

/// The limit that the agent asks for: every proxied connection holds two descriptors, every pod some
/// dozens. It equals `fs.nr_open` as every distribution ships it, above which the kernel refuses.
const WANTED: u64 = 1_048_576;

/// Descriptors that the process has room for from its start: 256 KiB of the kernel's memory.
const ROOM: u64 = 32_768;

/// Raises the limit on open files as far as the process may, and returns the new limit.
pub fn raise_nofile() -> Result<u64> {
    let present = getrlimit(Resource::Nofile);
    let hard = present.maximum.unwrap_or(WANTED);
    let above_hard = Rlimit { current: Some(WANTED), maximum: Some(WANTED.max(hard)) };
    if setrlimit(Resource::Nofile, above_hard).is_ok() {
        return Ok(WANTED);
    }
    let up_to_hard = Rlimit { current: Some(hard), maximum: present.maximum };
    setrlimit(Resource::Nofile, up_to_hard).map_err(|error| Error::OpenFiles(error.into()))?;
    Ok(hard)
}

/// Lets the kernel's table of this process's descriptors grow now, to hold as many of `limit` as an agent commonly
/// needs. It doubles whenever it is full, and if threads share it, no thread gets a descriptor meanwhile: Linux waits
/// for all readers (RCU), some 10 ms in the middle of a burst of connections.
pub fn make_room(limit: u64) -> Result<()> {
    let last = i32::try_from(ROOM.min(limit).saturating_sub(1)).unwrap_or(0);
    fcntl_dupfd_cloexec(std::io::stderr(), last)
        .map(drop)
        .map_err(|error| Error::OpenFiles(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_rises_to_what_is_reported() {
        let reported = raise_nofile().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(reported));
        assert!(reported >= 1024);
    }

    #[test]
    fn the_table_of_descriptors_is_as_large_as_asked_for() {
        let limit = raise_nofile().unwrap();
        make_room(limit).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        let size: u64 = size.trim().parse().unwrap();
        assert!(size >= ROOM.min(limit), "{size}");
    }
}
