//! The running instance: what the rest of the agent talks to.

use std::{collections::HashSet, net::IpAddr, os::fd::BorrowedFd, path::Path};

use crate::{
    CaptureState, Enrolled, Error, PeerFill, PodCounters, PodHooks, Removed, Report, Settings,
    SocketTable,
};

/// One instance of the datapath, loaded and attached. Dropping it detaches nothing.
#[derive(Debug)]
pub struct Datapath;

impl Datapath {
    /// Loads the programs, adopts or creates the maps, and attaches the node-wide hooks.
    pub fn open(_settings: &Settings) -> Result<Self, Error> {
        Err(Error::NoBytecode)
    }

    /// Loads and verifies the programs, attaches nothing and leaves nothing behind.
    pub fn verify_only(_settings: &Settings) -> Result<Report, Error> {
        Err(Error::NoBytecode)
    }

    /// The programs, maps and fallbacks of this instance.
    pub fn report(&self) -> Result<Report, Error> {
        Err(Error::NoBytecode)
    }

    /// Enrols a pod, or moves an enrolled one to other sockets without a gap.
    pub fn enroll(&self, _pod: &PodHooks<'_>) -> Result<u32, Error> {
        Err(Error::NoBytecode)
    }

    /// Withdraws a pod: what it does from now on is its own business.
    pub fn withdraw(&self, _cookie: u64) -> Result<(), Error> {
        Err(Error::NoBytecode)
    }

    /// Pods that are enrolled, also those of the agent before this one.
    pub fn enrolled(&self) -> Result<Vec<Enrolled>, Error> {
        Err(Error::NoBytecode)
    }

    /// Sets the destinations that the mesh knows.
    pub fn set_peers(&self, _peers: &HashSet<IpAddr>) -> Result<PeerFill, Error> {
        Err(Error::NoBytecode)
    }

    /// The table of the agent's sockets.
    pub fn sockets(&self) -> SocketTable {
        SocketTable
    }

    /// What the kernel counted for a pod since it was enrolled.
    pub fn counters(&self, _cookie: u64) -> Result<PodCounters, Error> {
        Err(Error::NoBytecode)
    }

    /// Asks the kernel whether a pod is captured.
    pub fn audit(&self, _cookie: u64, _netns: BorrowedFd<'_>) -> Result<CaptureState, Error> {
        Err(Error::NoBytecode)
    }

    /// Takes down what older generations of this instance left, once every pod is enrolled here.
    pub fn retire_predecessors(&self) -> Result<Removed, Error> {
        Err(Error::NoBytecode)
    }

    /// Removes everything of an instance from the kernel.
    pub fn remove(_bpffs: &Path, _instance: &str) -> Result<Removed, Error> {
        Err(Error::NoBytecode)
    }
}
