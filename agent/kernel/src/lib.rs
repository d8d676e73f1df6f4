//! Loads, attaches, pins and reads the BPF programs; the only crate that names aya.
//!
//! One agent owns one *instance*: a directory `<bpffs>/sluice/<instance>/` with its pinned maps and
//! links. None of this depends on the agent being alive: when the agent dies, the pinned hooks go on
//! pointing enrolled pods at listeners that are no longer there, so their connections are refused and
//! never go out in plaintext. The next agent adopts the maps and swaps the programs under the links.
//!
//! ```text
//!  <bpffs>/sluice/<instance>/<generation>/map/PODS ...        one per map
//!                                        /hook/sluice_connect4 ... one link per node-wide hook
//!                                        /pod/<netns cookie>/inbound        sk_lookup link
//!                                        /pod/<netns cookie>/guard-<ifindex>  tcx link
//!                                        /pod/<netns cookie>/probe-<ifindex>  tcx link, if it is probed
//! ```
//!
//! The *generation* names the ABI version and the sizes of the maps. A generation of the same name
//! can be adopted; one of another name has another shape and is left alone until it is retired.
#![deny(unsafe_op_in_unsafe_fn)]
#![expect(unsafe_code, reason = "bpf(2), and mounting bpffs, have no safe wrapper")]

mod bytecode;
mod datapath;
mod diagnostics;
mod enrol;
mod error;
mod exempt;
mod features;
mod guard;
mod hooks;
mod instance;
mod load;
mod peers;
mod pins;
mod pod;
mod report;
mod settings;
mod sockets;
mod syscall;
mod table;

pub use datapath::Datapath;
pub use diagnostics::Diagnostics;
pub use error::Error;
pub use exempt::PodExemptions;
pub use pod::{
    CaptureState, Enrolled, GuardState, Kubelet, Placed, PodCounters, PodHooks, WorkerSockets,
};
pub use report::{DirectFill, Fallback, MapReport, PeerFill, ProgramReport, Removed, Report};
pub use settings::{Feature, LogLevel, Settings};
pub use sockets::SocketTable;
