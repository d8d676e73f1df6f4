//! Where certificates and trust come from, when not from a CA within the agent.
#![forbid(unsafe_code)]

mod delivered;
mod istio_ca;
mod spire;
#[cfg(test)]
mod testing;
mod trust;
mod words;

pub use self::{
    delivered::Delivered,
    istio_ca::{AskError, IstioCa, IstioCaSettings},
    spire::{Spire, SpireError},
    trust::{Trust, TrustError, TrustFault, TrustFiles},
};
