//! The cluster's one Deployment: it issues the nodes' certificates and reports on policies.
#![forbid(unsafe_code)]
