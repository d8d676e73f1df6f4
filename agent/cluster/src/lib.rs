//! Turns Kubernetes objects into the state of the mesh, without I/O.
//!
//! ```text
//!  objects --> facts (what matters of one object) --> Cluster --> Snapshot
//!                                                        +------> findings
//! ```
//!
//! [`object`] reads only the fields that matter; whatever else an object carries is dropped while it is parsed.
//! [`Cluster`] keeps the facts by kind and makes snapshots of them. What did not change from one snapshot to the next
//! is shared between the two.
//!
//! **Invariant: one bad object harms itself alone.** What is wrong in an object becomes a [`Finding`] and widens
//! nothing. An address that two pods claim is given to nobody. A policy that cannot be read keeps its last good version
//! in force; if it never had one, it closes its namespace.
#![forbid(unsafe_code)]

mod annotation;
mod facts;
mod finding;
mod intern;
pub mod object;
mod probe;
mod settings;
mod standing;
mod state;

pub use facts::Marks;
pub use finding::{Finding, Meaning, ObjectName};
pub use settings::Settings;
pub use standing::{Outside, Standing};
pub use state::{Announced, Cluster, Kept, PodRecord, PolicyStanding, RestoreError, View};
