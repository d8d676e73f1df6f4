//! What the hooks decide, without touching the kernel.

pub mod guard;
pub mod inbound;
pub mod mesh;
pub mod outbound;
pub mod packet;
pub mod probe;
