//! What the objects of a cluster mean: YAML in, mesh state out.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails says where"
)]

mod addresses;
mod churn;
mod enrolment;
mod exemptions;
mod policies;
mod saved;
mod scale;
mod services;
mod world;
