//! The chained CNI plugin, its installer, and what the plugin says to the agent.
//!
//! ```text
//!  kubelet -> container runtime -> main plugin -> ... -> sluice-cni --Unix socket--> agent
//!                    |                                       ^
//!                    +-- /etc/cni/net.d/*.conflist           | copied, and entered in the list, by
//!                             ^                              | `sluice-cni install` and `watch`
//!                             +------------------------------+
//! ```
#![forbid(unsafe_code)]

pub mod client;
pub mod install;
mod json;
pub mod plugin;
pub mod protocol;

/// Name of the binary, which a list names as the plugin's `type`.
pub const PLUGIN: &str = "sluice-cni";
/// Where the agent listens for the plugin unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/sluice/cni.sock";
