//! The chained CNI plugin, its installer, and what they say to the agent.
#![forbid(unsafe_code)]
