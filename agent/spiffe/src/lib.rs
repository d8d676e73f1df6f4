//! SPIFFE identities: trust domains and workload names, parsed strictly, compared by value.
//!
//! The rules are those of the SPIFFE-ID standard, sections 2.1 to 2.4
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>). An identity that is not exactly well formed
//! is refused: there is no lenient mode.
#![forbid(unsafe_code)]

mod id;
mod workload;

pub use id::{IdError, SpiffeId, TrustDomain};
pub use workload::WorkloadName;
