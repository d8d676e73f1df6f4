//! Everything that talks to the Kubernetes API.
#![forbid(unsafe_code)]
