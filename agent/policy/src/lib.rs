//! Istio's security policies at L4: read, compiled and evaluated without I/O.
//!
//! ```text
//! YAML --read()--> PolicyObject --PolicySet::compile()--> PolicySet --for_workload()--> WorkloadPolicy --decide()--> Verdict
//!                                                         + findings
//! ```
//!
//! The objects are `security.istio.io` `PeerAuthentication` and `AuthorizationPolicy`, and their meaning
//! is the one that Istio gives them at L4 (<https://istio.io/latest/docs/reference/config/security/>).
//! Where Istio leaves room, this crate takes the reading that admits less, and says so in a [`Finding`]:
//!
//! * An ALLOW rule that holds a condition on HTTP never matches, because L4 cannot check the condition.
//! * A DENY rule is enforced without its conditions on HTTP; one that has no others matches every
//!   connection to the workloads that it selects.
//! * What cannot be understood is refused when it is read, by file, line and field: unknown fields and
//!   kinds, the actions AUDIT and CUSTOM, `targetRefs` (they bind to gateways and waypoints, not to
//!   workloads). A caller that has an earlier version of a refused file keeps it. A caller that has none
//!   denies what the file could cover: [`coverage`] says what that is, and [`Withheld`] denies it.
//!
//! Nothing here uses regular expressions, clocks or files.
#![forbid(unsafe_code)]

mod compile;
mod decide;
mod finding;
mod foreign;
mod matching;
mod mtls;
mod object;
mod read;

pub use compile::{Compiled, PolicySet, Withheld};
pub use decide::{Connection, DenyReason, Verdict, WorkloadPolicy};
pub use finding::{Finding, Meaning, Severity};
pub use foreign::foreign_principals;
pub use mtls::MtlsMode;
pub use object::{ObjectId, ObjectKind, PolicyObject};
pub use read::{Coverage, Place, Problem, ReadError, coverage, read};
