//! The plugin: one command of a container runtime, carried out or failed as the CNI specification 1.1.0
//! says (<https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md>).
//!
//! The plugin has no state and no credentials; it asks the node's agent for whatever has to be known or done. It must
//! not let a pod start that nobody has decided on: ADD without an answer is a failure that the runtime repeats (code
//! 11). Nor must it stand in the way of a pod's end: DEL runs before the plugins that free the pod's address, and
//! succeeds with or without an agent.

mod config;
mod failure;
mod variables;

use std::{io::Read, time::Duration};

use serde_json::json;

pub(crate) use self::variables::is_name as is_network_name;
use self::{
    config::Config,
    variables::{Command, Target},
};
pub use self::{
    failure::{Code, Failure},
    variables::Variables,
};
use crate::{
    client::{Unanswered, ask},
    protocol::{Answer, Attachment, Request},
};

/// The versions that the tests cover, oldest first.
pub const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
pub(crate) const NEWEST: &str = "1.1.0";

/// How much of standard input is read at most, in bytes.
const MAX_INPUT: u64 = 16 << 20;
/// How long ADD, CHECK and GC may take. The agent gives up a little earlier, and then says why.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long STATUS and DEL may hold up a runtime: it asks STATUS every few seconds, and DEL only tells the agent what
/// it would find out by itself.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);

/// What goes to standard output, and whether the exit code says success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Nothing, or one JSON object.
    pub output: Option<String>,
    /// Whether the command succeeded.
    pub success: bool,
}

/// Carries out the command that the variables name. A `retired` plugin is one that has been uninstalled
/// and is kept because runtimes remember it: it asks nobody and stands in nobody's way.
pub fn run(variables: Variables<'_>, input: &mut dyn Read, retired: bool) -> Outcome {
    let mut text = String::new();
    let read = input.take(MAX_INPUT).read_to_string(&mut text);
    let result = Command::read(variables).and_then(|command| {
        if command == Command::Version {
            return Ok(Some(version(&text)));
        }
        read.map_err(|error| Failure::new(Code::Io, "standard input cannot be read", error))?;
        Call { command, variables, config: Config::parse(&text)?, retired }.run()
    });
    match result {
        Ok(output) => Outcome { output, success: true },
        Err(failure) => {
            let version = config::version_in(&text);
            Outcome { output: Some(failure.to_json(version.as_deref())), success: false }
        }
    }
}

/// Answers VERSION, in the version that was asked for if one was.
fn version(text: &str) -> String {
    let asked = config::version_in(text).unwrap_or_else(|| NEWEST.to_owned());
    json!({ "cniVersion": asked, "supportedVersions": SUPPORTED }).to_string()
}

/// One command, with everything that the plugin was given for it.
struct Call<'a> {
    command: Command,
    variables: Variables<'a>,
    config: Config<'a>,
    retired: bool,
}

impl Call<'_> {
    fn run(&self) -> Result<Option<String>, Failure> {
        match self.command {
            Command::Add => self.add().map(Some),
            Command::Del => self.del().map(|()| None),
            Command::Check => self.check().map(|()| None),
            Command::Status => self.status().map(|()| None),
            Command::Gc => self.gc().map(|()| None),
            Command::Version => Ok(None),
        }
    }

    fn add(&self) -> Result<String, Failure> {
        let target = Target::read(self.command, self.variables)?;
        let result = self.config.previous_result()?;
        if self.is_exempt(&target) {
            return Ok(result);
        }
        match self.ask(&Request::Add(self.attachment(target)), PATIENCE) {
            Ok(Answer::Captured | Answer::Outside) => Ok(result),
            Ok(
                Answer::TryAgain { reason }
                | Answer::Amiss { reason }
                | Answer::NotUnderstood { reason },
            ) => Err(undecided(reason)),
            Ok(Answer::Done) => Err(undecided("the agent gave an answer that is not one to ADD")),
            Err(error) => Err(undecided(error)),
        }
    }

    fn del(&self) -> Result<(), Failure> {
        let target = Target::read(self.command, self.variables)?;
        if !self.is_exempt(&target) {
            // An agent that is away finds out when it is back that the namespace has gone.
            drop(self.ask(&Request::Del(self.attachment(target)), SHORT_PATIENCE));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        self.config.require("0.4.0", "CHECK")?;
        let target = Target::read(self.command, self.variables)?;
        self.config.previous_result()?;
        if self.is_exempt(&target) {
            return Ok(());
        }
        match self.ask(&Request::Check(self.attachment(target)), PATIENCE) {
            Ok(Answer::Captured | Answer::Outside) => Ok(()),
            Ok(Answer::Amiss { reason }) => {
                Err(Failure::new(Code::NotCaptured, "the pod is not captured", reason))
            }
            Ok(Answer::TryAgain { reason } | Answer::NotUnderstood { reason }) => {
                Err(undecided(reason))
            }
            Ok(Answer::Done) => Err(undecided("the agent gave an answer that is not one to CHECK")),
            Err(error) => Err(undecided(error)),
        }
    }

    fn status(&self) -> Result<(), Failure> {
        self.config.require("1.1.0", "STATUS")?;
        if self.retired {
            return Ok(());
        }
        match self.ask(&Request::Status, SHORT_PATIENCE) {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::TryAgain { reason } | Answer::NotUnderstood { reason }) => {
                Err(Failure::new(Code::Unavailable, "the agent cannot add pods yet", reason))
            }
            Ok(Answer::Amiss { reason }) => {
                Err(Failure::new(Code::UnavailableAndLimited, "the agent is impaired", reason))
            }
            Ok(Answer::Captured | Answer::Outside) => Err(Failure::new(
                Code::Unavailable,
                "the agent cannot add pods yet",
                "it gave an answer that is not one to STATUS",
            )),
            // Pods that are in the mesh are refused their connections while there is no agent.
            Err(error) => {
                Err(Failure::new(Code::UnavailableAndLimited, "the agent is away", error))
            }
        }
    }

    fn gc(&self) -> Result<(), Failure> {
        self.config.require("1.1.0", "GC")?;
        let valid = self.config.valid_attachments()?;
        if self.retired {
            return Ok(());
        }
        let request = Request::Gc { network: self.config.network.clone(), valid };
        match self.ask(&request, PATIENCE) {
            Ok(Answer::Done) => Ok(()),
            Ok(
                Answer::TryAgain { reason }
                | Answer::Amiss { reason }
                | Answer::NotUnderstood { reason },
            ) => Err(undecided(reason)),
            Ok(Answer::Captured | Answer::Outside) => {
                Err(undecided("the agent gave an answer that is not one to GC"))
            }
            Err(error) => Err(undecided(error)),
        }
    }

    fn is_exempt(&self, target: &Target) -> bool {
        let named = target.pod.as_ref();
        self.retired || named.is_some_and(|pod| self.config.exempts(&pod.namespace, &pod.name))
    }

    fn attachment(&self, Target { id, netns, pod }: Target) -> Attachment {
        let addresses = self.config.addresses();
        Attachment { network: self.config.network.clone(), id, netns, addresses, pod }
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<Answer, Unanswered> {
        ask(&self.config.socket, request, patience)
    }
}

fn undecided(why: impl std::fmt::Display) -> Failure {
    Failure::new(Code::TryAgain, "the agent has not decided on this pod yet", why)
}

#[cfg(test)]
mod tests;
