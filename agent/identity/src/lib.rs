//! Where certificates and trust come from, when not from a CA within the agent.
#![forbid(unsafe_code)]
