//! Ordinary clients and servers that know nothing of the mesh: what applications in pods do.
//!
//! They run on threads inside the pods' namespaces, where the data path treats their sockets as it treats any
//! program's, and a test can compare what both ends saw. `sluice-lab` offers the same as separate programs.

pub mod bytes;
pub mod flood;
pub mod pair;
mod pattern;
pub mod probe;
pub mod server;
pub mod steady;

pub use bytes::{Ending, Exchange, Tally};
pub use flood::{FloodResult, flood};
pub use pair::Pair;
pub use probe::{Probe, Refusal};
pub use server::{Accepted, Server, Service};
pub use steady::Load;
