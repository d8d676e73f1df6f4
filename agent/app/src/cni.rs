//! Answers the CNI plugin: a pod that belongs to the mesh starts once the kernel has it captured.

mod announce;
mod departure;
mod desk;
mod server;

pub(crate) use self::{
    announce::{Announce, Deciding, Decision, FilePods},
    departure::Departure,
    desk::Desk,
    server::serve,
};
