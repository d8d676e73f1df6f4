//! Everything that talks to the Kubernetes API.
//!
//! ```text
//!  API server --watches--> follow (one task per kind) --> Cluster --> publish --> Snapshot, status
//!  CNI plugin ------------> Announcements --------------^                +------> copies on disk
//!  the agent -------------> Reports --> annotations and events of pods
//! ```
//!
//! **Invariant: a fault never admits more.** Until every kind was listed once, nothing is published, or what
//! an earlier run remembered, marked as provisional. A watch that fails leaves what it told in force.
#![forbid(unsafe_code)]

mod announce;
mod callers;
mod client;
mod config;
mod disk;
mod follow;
mod hub;
mod placement;
mod publish;
mod report;
mod resource;
mod source;
mod status;
mod watched;

pub use announce::{AnnounceError, Announcement, Announcements, Decision};
pub use callers::TokenReviews;
pub use client::ConnectError;
pub use config::KubeConfig;
pub use placement::PodPlacement;
pub use report::{Capture, Reports};
pub use source::KubeSource;
pub use status::{KubeError, KubeStatus, StatusHandle};
