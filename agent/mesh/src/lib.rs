//! The mesh as one immutable snapshot: workloads, services and the policies that bind them.
//!
//! Sources build a [`Snapshot`] and publish it whole; the data path only ever reads one. Nothing here
//! does I/O, and nothing here fails on valid input.
#![forbid(unsafe_code)]

mod build_error;
mod bypass;
mod choice;
mod enrolment;
mod service;
mod snapshot;
mod workload;

pub use build_error::BuildError;
pub use bypass::Bypass;
pub use choice::{Client, Lack};
pub use enrolment::{DATAPLANE_MODE, Enrolment, EnrolmentRule, enrolment};
pub use service::{Endpoint, Endpoints, Prefer, Routing, Service, ServicePort};
pub use snapshot::{Destination, Member, Snapshot, SnapshotBuilder};
pub use workload::{Labels, Workload, WorkloadUid};
