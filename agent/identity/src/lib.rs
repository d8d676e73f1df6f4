//! Where certificates and trust come from, when not from a CA within the agent.
#![forbid(unsafe_code)]

mod delivered;
mod istio_ca;
mod spire;
mod words;

pub use self::{
    delivered::Delivered,
    istio_ca::{AskError, IstioCa, IstioCaSettings},
    spire::{Spire, SpireError},
};
