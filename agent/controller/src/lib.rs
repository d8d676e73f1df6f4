//! The cluster's one Deployment: the certificate authority of its nodes' agents.
//!
//! ```text
//!  agent ──TLS──> server ──> issue ── who calls?            Callers     static tokens, or TokenReview
//!                              │   └─ does the pod run      Placement   the state of the mesh
//!                              │      on the caller's node?
//!                              └───── sign                  Authority <── CaMaterial: directory, PEM files
//! ```
//! It serves `istio.v1.auth.IstioCertificateService`. A caller obtains the identity of a pod that runs on its own
//! node now, and no other: **a stolen node holds the identities of its own pods and nothing more.** Whatever is
//! not known (no state of the mesh yet, callers that cannot be verified) is refused. Every refusal names its rule,
//! in the answer and in the log.
//!
//! Several replicas may serve at once: they share nothing but the authority's key.
#![forbid(unsafe_code)]

mod authority;
mod callers;
mod config;
mod door;
mod issue;
mod listener;
mod material;
mod placement;
mod places;
mod rate;
mod refusal;
mod roots;
mod server;
mod standing;

use std::{future::Future, pin::Pin};

pub use self::{
    authority::OpenError,
    callers::{Caller, Callers, TokenError, TokenFile},
    config::{
        CaPlace, CallersConfig, ConfigError, ConfigProblem, ControllerConfig, ObjectName,
        PodsConfig, PolicyStatusConfig, PublishConfig,
    },
    material::{CaFiles, CaMaterial},
    placement::{Placed, Placement, SnapshotPlacement},
    rate::Rate,
    refusal::Refusal,
    roots::PublishedRoots,
    server::{Limits, Parts, ServeError, Settings, serve},
    standing::Standing,
};

/// An answer that may take a while. It may be dropped when nobody waits for it any more.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
