//! Who calls: how an agent proves which node it serves.

mod tokens;

use crate::{Pending, Refusal};

pub use self::tokens::{TokenError, TokenFile};

/// A caller that has proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The node whose pods it may ask for.
    pub node: String,
    /// Who it is, for logs and for its share of the rate.
    pub name: String,
}

/// Judges bearer tokens.
///
/// Anybody who reaches the port can have any text judged. So an implementation that asks somebody else limits its
/// questions and remembers the answers. A token must not be written anywhere.
pub trait Callers: Send + Sync {
    /// Returns who the owner of `bearer` is.
    fn authenticate<'a>(&'a self, bearer: &'a str) -> Pending<'a, Result<Caller, Refusal>>;
}
