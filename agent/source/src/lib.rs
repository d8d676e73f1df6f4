//! Fills the mesh state from a file and a directory of policies, and follows their changes.
//!
//! ```text
//!  mesh.yaml ----> mesh_file --+
//!                              +--> Snapshot --> watch channel --> the agent
//!  policies/*.yaml -> policies-+
//!       ^                      +--> SourceStatus --> `sluice status`, logs
//!       | last good copies, under the state directory
//! ```
//!
//! **Invariant: a fault never admits more.** A file that cannot be read or understood leaves its last good version in
//! force, from memory or from the copy on disk. If no good version is known of the mesh, there is no state at all; if
//! none is known of a policy, every connection that it could be about is denied. Policies go only with a file that is
//! gone from a directory that can be read.
#![forbid(unsafe_code)]

mod change;
mod config;
mod error;
mod files;
mod last_good;
mod mesh_file;
mod names;
mod policies;
mod state;
mod status;
mod watch;
pub mod yaml;

pub use config::{
    AgentConfig, CaConfig, IstioConfig, KubernetesConfig, SourceConfig, StaleCrls, TrustConfig,
};
pub use error::{FileError, Problem};
pub use status::{Consequence, SourceError, SourceStatus, StatusHandle};
pub use watch::{FileSource, StartError};
