//! What the tests of this crate share: certificates of every shape, and connections in memory.

mod pki;
mod wire;

pub(crate) use self::{
    pki::{Authority, DOMAIN, Leaf, WEB, at, der, san_extension, test_clock, uri},
    wire::Link,
};
