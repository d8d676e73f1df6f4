//! What enrolment needs from the datapath.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use sluice_kernel::{
    CaptureState, Datapath, DirectFill, Enrolled, Error, PeerFill, Placed, PodCounters,
    PodExemptions, PodHooks, Removed, SocketTable,
};

/// The part of [`Datapath`] that enrolment uses, so that its decisions can be tested against a kernel
/// that fails on demand. Each method does what its namesake in [`Datapath`] or [`SocketTable`] does.
#[expect(missing_docs, reason = "Datapath documents each of these")]
pub trait Hooks {
    fn enroll(&self, pod: &PodHooks<'_>) -> Result<Placed, Error>;
    fn exempt(&self, cookie: u64, exemptions: &PodExemptions) -> Result<(), Error>;
    fn set_direct(&self, destinations: &[SocketAddr]) -> Result<DirectFill, Error>;
    fn withdraw(&self, cookie: u64) -> Result<(), Error>;
    fn enrolled(&self) -> Result<Vec<Enrolled>, Error>;
    fn predecessors(&self) -> Result<Vec<Enrolled>, Error>;
    fn retire_predecessors(&self, spared: &HashSet<u64>) -> Result<Removed, Error>;
    fn set_peers(&self, peers: &HashSet<IpAddr>) -> Result<PeerFill, Error>;
    fn counters(&self, cookie: u64) -> Result<PodCounters, Error>;
    fn audit(&self, cookie: u64, netns: BorrowedFd<'_>) -> Result<CaptureState, Error>;
    fn missing_hooks(&self) -> Result<Vec<&'static str>, Error>;
    fn reattach(&self) -> Result<(), Error>;
    fn mark_listener(&self, listener: BorrowedFd<'_>) -> Result<(), Error>;
}

impl Hooks for Arc<Datapath> {
    fn enroll(&self, pod: &PodHooks<'_>) -> Result<Placed, Error> {
        self.as_ref().enroll(pod)
    }

    fn exempt(&self, cookie: u64, exemptions: &PodExemptions) -> Result<(), Error> {
        self.as_ref().exempt(cookie, exemptions)
    }

    fn set_direct(&self, destinations: &[SocketAddr]) -> Result<DirectFill, Error> {
        self.as_ref().set_direct(destinations)
    }

    fn withdraw(&self, cookie: u64) -> Result<(), Error> {
        self.as_ref().withdraw(cookie)
    }

    fn enrolled(&self) -> Result<Vec<Enrolled>, Error> {
        self.as_ref().enrolled()
    }

    fn predecessors(&self) -> Result<Vec<Enrolled>, Error> {
        self.as_ref().predecessors()
    }

    fn retire_predecessors(&self, spared: &HashSet<u64>) -> Result<Removed, Error> {
        self.as_ref().retire_predecessors(spared)
    }

    fn set_peers(&self, peers: &HashSet<IpAddr>) -> Result<PeerFill, Error> {
        self.as_ref().set_peers(peers)
    }

    fn counters(&self, cookie: u64) -> Result<PodCounters, Error> {
        self.as_ref().counters(cookie)
    }

    fn audit(&self, cookie: u64, netns: BorrowedFd<'_>) -> Result<CaptureState, Error> {
        self.as_ref().audit(cookie, netns)
    }

    fn missing_hooks(&self) -> Result<Vec<&'static str>, Error> {
        self.as_ref().missing_hooks()
    }

    fn reattach(&self) -> Result<(), Error> {
        self.as_ref().reattach()
    }

    fn mark_listener(&self, listener: BorrowedFd<'_>) -> Result<(), Error> {
        let table: SocketTable = self.as_ref().sockets();
        table.mark_listener(listener.as_fd())
    }
}
