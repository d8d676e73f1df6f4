//! Carries connections: capture to mTLS, mTLS to application.
//!
//! ```text
//!   application --lo--> outbound -- sluice/1 in mutual TLS --> inbound --lo--> application
//!                        (client's agent)                    (server's agent)
//! ```
//!
//! Each worker is one thread with a runtime of its own. A connection stays, from accept to close, on the worker that
//! it is assigned to; on the byte path nothing is handed to another thread. Worker threads are namespace nomads (see
//! `sluice_sys::nomad`): every socket they make belongs to a pod's namespace.
#![forbid(unsafe_code)]

mod accept;
mod access;
mod closing;
mod crew;
mod deadline;
mod delivery;
mod descriptors;
mod inbound;
mod live;
mod local;
mod outbound;
mod plain;
mod pod;
mod pool;
mod preamble;
mod recheck;
mod relay;
mod retirement;
mod returning;
mod scratch;
mod series;
mod session;
mod shared;
mod spares;
mod stats;
#[cfg(test)]
mod testing;
mod turns;
mod worker;

pub use live::{Direction, Facts, Live, LiveTable, Transport};
pub use series::{End, Flags, Labels, Series, SeriesTable, Sums};
pub use session::Broken;
pub use shared::Shared;
pub use stats::{Counter, PodStats, StatsTable};
pub use worker::{Proxy, StartError};
