//! The published gRPC interfaces that Sluice serves and calls, as generated code.
#![forbid(unsafe_code)]
