//! The parts of the datapath, for the operator's eyes.

use std::path::PathBuf;

use crate::Feature;

/// The programs and maps of an instance, and the features that the kernel lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The programs.
    pub programs: Vec<ProgramReport>,
    /// The maps.
    pub maps: Vec<MapReport>,
    /// Missing features, and what is done instead.
    pub fallbacks: Vec<Fallback>,
}

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramReport {
    /// Its name.
    pub name: &'static str,
    /// Its id in the kernel.
    pub id: u32,
    /// Instructions that the verifier walked; 0 before Linux 5.16, which does not report them.
    pub verified_instructions: u32,
    /// Instructions that remain after the verifier has removed dead ones.
    pub instructions: u32,
    /// Where it is attached.
    pub attach_point: String,
    /// Where its link is pinned; `None` for a program that is only verified.
    pub pin: Option<PathBuf>,
}

/// A map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapReport {
    /// Its name.
    pub name: &'static str,
    /// Entries it has room for; 0 for a socket's storage, which grows with the sockets.
    pub entries: u32,
    /// Bytes of kernel memory that it holds now.
    pub bytes: u64,
}

/// A missing feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// What is missing.
    pub feature: Feature,
    /// What is done instead, and what that means to a user.
    pub instead: &'static str,
}

/// How full the peers' map is after it was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFill {
    /// Peers that were asked for.
    pub wanted: usize,
    /// Peers that the map holds.
    pub held: usize,
    /// Peers that the map has room for.
    pub capacity: usize,
    /// Whether every destination is captured because not all peers fit.
    pub capture_all: bool,
}

/// How full the map of direct destinations is after it was set. What does not fit is reached through
/// the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectFill {
    /// Destinations that were asked for.
    pub wanted: usize,
    /// Destinations that the map holds.
    pub held: usize,
    /// Destinations that the map has room for.
    pub capacity: usize,
}

impl PeerFill {
    /// Whether the wanted peers would fill at least 80 % of the map, which is time to warn.
    #[must_use]
    pub const fn nearly_full(&self) -> bool {
        self.wanted.saturating_mul(5) >= self.capacity.saturating_mul(4)
    }
}

/// What was removed with an instance or a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pods that were withdrawn.
    pub pods: usize,
    /// Links that were detached.
    pub links: usize,
    /// Maps that were unpinned.
    pub maps: usize,
}

impl Removed {
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            pods: self.pods.saturating_add(other.pods),
            links: self.links.saturating_add(other.links),
            maps: self.maps.saturating_add(other.maps),
        }
    }
}
