//! The operator's view: what agents know, asked over their Unix sockets.
//!
//! The protocol is HTTP/1.1 with JSON: `curl --unix-socket` works where no `sluice` is at hand. The agent writes the
//! same types that the commands read. From outside a cluster each command runs itself in the agents' containers and
//! merges what it prints there.

mod ask;
mod certs;
pub(crate) mod client;
pub(crate) mod fleet;
mod flows;
pub(crate) mod model;
mod policies;
pub(crate) mod server;
pub(crate) mod status;
pub(crate) mod table;

use std::process::ExitCode;

use serde::{Serialize, de::DeserializeOwned};

pub(crate) use self::ask::{Route, route};
use self::fleet::{Told, Trouble};
use crate::{
    args::{Output, ViewOptions},
    logging::print,
};

/// The outcome of a command, which decides its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    /// All is well.
    Well,
    /// Something is wrong in the mesh.
    Wrong,
    /// Somebody could not be asked, so the state is not known.
    Unknown,
}

/// An answer of agents, and how to print it.
pub(crate) trait View: Serialize + DeserializeOwned {
    /// The command that prints it.
    const COMMAND: &'static str;
    /// The HTTP path of the answer on an agent's socket.
    const PATH: &'static str;

    /// Returns what the answer shows to be wrong, each with its cause.
    fn troubles(&self) -> Vec<String>;

    /// Renders the answers for people.
    fn text(shown: &Shown<'_, Self>) -> String;
}

/// Answers that are to be printed.
pub(crate) struct Shown<'a, T> {
    /// The answers, each with its node.
    pub(crate) answers: Vec<(&'a str, &'a T)>,
    /// Whether the answers are of a cluster's nodes, which then have a column.
    pub(crate) is_merged: bool,
}

/// Asks, prints the answers and returns the exit code.
pub(crate) fn show<T: View>(options: &ViewOptions) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let health = runtime.block_on(async {
        match route(options).await? {
            Route::Local(socket) => show_one::<T>(&socket, options.output).await,
            Route::Cluster(operator) => {
                let mut fleet = fleet::Fleet::find(operator, options).await?;
                let answers = fleet.ask::<T>().await;
                show_all(&answers, fleet.troubles(), options.output)
            }
        }
    })?;
    Ok(health.into())
}

async fn show_one<T: View>(socket: &std::path::Path, output: Output) -> anyhow::Result<Health> {
    let body = client::get(socket, T::PATH).await?;
    let answer: T = serde_json::from_slice(&body)?;
    let troubles: Vec<Trouble> = answer.troubles().into_iter().map(Trouble::here).collect();
    match output {
        // Printed as it came: fields that this version does not know are passed on too.
        Output::Json => {
            let value: serde_json::Value = serde_json::from_slice(&body)?;
            print(&format!("{}\n", serde_json::to_string_pretty(&value)?))?;
        }
        Output::Table => {
            let shown = Shown { answers: vec![("", &answer)], is_merged: false };
            print(&(T::text(&shown) + &fleet::troubles_text(&troubles)))?;
        }
    }
    Ok(fleet::health(&troubles))
}

/// The JSON output for several nodes.
#[derive(Serialize)]
struct Merged<'a, T> {
    nodes: &'a [Told<T>],
    troubles: &'a [Trouble],
}

fn show_all<T: View>(
    answers: &[Told<T>],
    mut troubles: Vec<Trouble>,
    output: Output,
) -> anyhow::Result<Health> {
    for answer in answers {
        let wrong = answer.answer.iter().flat_map(T::troubles);
        troubles.extend(wrong.map(|what| Trouble::wrong(Some(&answer.node), what)));
    }
    match output {
        Output::Json => {
            let merged = Merged { nodes: answers, troubles: &troubles };
            print(&format!("{}\n", serde_json::to_string_pretty(&merged)?))?;
        }
        Output::Table => {
            let known =
                answers.iter().filter_map(|one| Some((one.node.as_str(), one.answer.as_ref()?)));
            let shown = Shown { answers: known.collect(), is_merged: true };
            // Empty tables would claim that the mesh is empty.
            let text = match shown.answers.as_slice() {
                [] => "no agent has answered\n".to_owned(),
                _ => T::text(&shown),
            };
            print(&(text + &fleet::troubles_text(&troubles)))?;
        }
    }
    Ok(fleet::health(&troubles))
}

// === impl Health ===

impl From<Health> for ExitCode {
    fn from(health: Health) -> Self {
        match health {
            Health::Well => Self::SUCCESS,
            Health::Wrong => Self::from(1),
            Health::Unknown => Self::from(2),
        }
    }
}

/// Renders a value that may be missing.
fn shown(value: Option<&String>) -> String {
    value.map_or_else(|| "-".to_owned(), Clone::clone)
}
