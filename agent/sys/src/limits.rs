//! Limits of the process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Error, Result};

/// The limit that the agent asks for: every proxied connection holds two descriptors, every pod some
/// dozens. It equals `fs.nr_open` as every distribution ships it, above which the kernel refuses.
const WANTED: u64 = 1_048_576;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_rises_to_what_is_reported() {
        let reported = raise_nofile().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(reported));
        assert!(reported >= 1024);
    }
}
