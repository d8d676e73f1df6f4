//! Files: follows those that others write ([`Follower`], or [`Stamp`] for whoever asks from time to time), and writes
//! our own whole ([`replace`]).
//!
//! Nothing here knows what the files hold.
#![forbid(unsafe_code)]

mod directories;
mod follower;
mod replace;
mod stamp;

pub use follower::{Followed, Follower, Messages, News};
pub use replace::replace;
pub use stamp::Stamp;
