//! Checks how many descriptors are left, where a connection begins. A connection that could not get its sockets is
//! refused at once, instead of waiting for an agent that cannot accept it.
//!
//! The kernel gives out the lowest free number, so the number of a new descriptor tells that at least as many are in
//! use.

use std::{io, os::fd::AsFd, os::fd::AsRawFd};

use rustix::{
    io::Errno,
    process::{Resource, getrlimit},
};

/// Why a connection got no descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent has {used} of its {limit} descriptors in use: raise its limit (nofile)")]
pub(crate) struct Shortage {
    used: u64,
    limit: u64,
}

/// Where a connection begins. This decides how many descriptors it must leave to connections that have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    /// At a pod of this agent: it needs up to three more descriptors, two of them after a handshake.
    Outbound,
    /// With a session that no connection waits for. Connections that come can do without it.
    Spare,
    /// At another agent, or at the outbound side of this one, which has let it through: it needs one more descriptor.
    Inbound,
}

impl Begins {
    /// Returns how much is kept back: one in this many descriptors.
    fn share(self) -> u64 {
        match self {
            Self::Spare => 4,
            Self::Outbound => 16,
            Self::Inbound => 64,
        }
    }
}

/// Checks whether what begins with this socket, which was just made, may go on.
pub(crate) fn check(socket: impl AsFd, begins: Begins) -> Result<(), Shortage> {
    let used = u64::try_from(socket.as_fd().as_raw_fd()).unwrap_or(0);
    // Asked each time, because it can be changed from outside (`prlimit`).
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    judge(used, limit, begins)
}

fn judge(used: u64, limit: u64, begins: Begins) -> Result<(), Shortage> {
    if used < limit - limit / begins.share() { Ok(()) } else { Err(Shortage { used, limit }) }
}

/// Returns whether a socket could not be made because the process or the machine is out of descriptors.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_stop_before_outbound_connections_and_these_before_inbound_ones() {
        for (used, spare, outbound, inbound) in [
            (14_999, true, true, true),
            (15_000, false, true, true),
            (18_749, false, true, true),
            (18_750, false, false, true),
            (19_688, false, false, false),
        ] {
            assert_eq!(judge(used, 20_000, Begins::Spare).is_ok(), spare, "{used}");
            assert_eq!(judge(used, 20_000, Begins::Outbound).is_ok(), outbound, "{used}");
            assert_eq!(judge(used, 20_000, Begins::Inbound).is_ok(), inbound, "{used}");
        }
        assert_eq!(judge(1 << 40, u64::MAX, Begins::Outbound), Ok(()));
    }

    #[test]
    fn the_reason_names_the_limit() {
        let shortage = judge(1000, 1000, Begins::Inbound).unwrap_err();
        assert!(shortage.to_string().contains("1000 of its 1000"), "{shortage}");
    }
}
