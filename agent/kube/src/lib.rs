//! Everything that talks to the Kubernetes API.
//!
//! ```text
//!  API server --watches--> follow (one task per kind) --> Cluster --> publish --> Snapshot, status
//!  CNI plugin ------------> Announcements --------------^                +------> copies on disk
//!  the agent -------------> Reports --> annotations and events of pods
//!
//!  API server --watch of pods--> PodPlaces <-- TokenJudge <--  `sluice controller`: who calls, what runs where
//!       |------ one object -----> CaSecret, publish_roots        its key, and whom to believe
//!       +------ policies -------> PolicyReports (one replica, by Election) --> status.conditions
//!
//!  an operator's kubeconfig --> Access --> Operator --exec--> the agents' own commands, on every node
//! ```
//!
//! **Invariant: a fault never admits more.** Until every essential kind was listed once, nothing is published but what
//! an earlier run remembered, marked as provisional. A watch that fails leaves in force what it told before.
#![forbid(unsafe_code)]

mod announce;
mod ca_secret;
mod client;
mod conditions;
mod config;
mod disk;
mod election;
mod events;
mod follow;
mod hub;
mod judgement;
mod leaving;
mod operator;
mod own_pod;
mod places;
mod publish;
mod report;
mod resource;
mod roots;
mod source;
mod status;
mod tokens;
mod uninstall;
mod watched;

pub use announce::{AnnounceError, Announcement, Announcements, Decision};
pub use ca_secret::{CaSecret, CaTexts, SecretError};
pub use client::{ApiFault, ApiServer, ConnectError};
pub use conditions::PolicyReports;
pub use config::{Installation, KubeConfig};
pub use election::{Election, Lead};
pub use operator::{
    AGENTS_NEED, Access, AgentPod, AgentState, AskError, Controllers, OPERATORS_NEED, Operator,
    Ran, Right, Roster, ServerFacts, apart,
};
pub use own_pod::OwnPod;
pub use places::{Place, PodPlaces};
pub use report::{Capture, Reports};
pub use roots::publish_roots;
pub use source::KubeSource;
pub use status::{KubeError, KubeStatus, StatusHandle};
pub use tokens::{AgentToken, TokenFault, TokenJudge};
pub use uninstall::{UninstallError, Uninstallation};
