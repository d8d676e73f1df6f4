//! Limits of the process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Error, Result};

/// What we ask for: every proxied connection holds two descriptors, every pod some dozens. It is the
/// value of `fs.nr_open` that every distribution ships, above which the kernel refuses.
const WANTED: u64 = 1_048_576;

/// Raises the limit on open files as far as the process may, and says how far.
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
