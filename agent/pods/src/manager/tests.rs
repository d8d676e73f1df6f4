//! Enrolment of real namespaces, against hooks that record their calls and fail on demand, and
//! against the kernel itself.

mod audits;
mod cuts;
mod enrolments;
mod exemptions;
mod fake;
mod inheritance;
mod kernel;
mod located;
