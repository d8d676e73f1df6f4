//! The published gRPC interfaces that Sluice serves and calls, as generated code.
//!
//! The definitions are in `proto/`: in our own words, but with the names and numbers of the
//! originals. Both ends agree on those, so they change only when the originals do.
#![forbid(unsafe_code)]

pub mod istio_ca;
pub mod spire;

pub use prost_types::{Struct, Value, value::Kind};
