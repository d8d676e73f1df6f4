//! Kubernetes objects in, mesh state out: a pure mapping.
#![forbid(unsafe_code)]
