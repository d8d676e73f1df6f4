//! The operator's view: what agents know, asked over their Unix sockets.
//!
//! HTTP/1.1 with JSON, so that `curl --unix-socket` works where no `sluice` is at hand. The same types are written by
//! the agent and read by the commands. From outside a cluster the commands run themselves in the agents' containers
//! and merge what they print.

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

/// What a command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    /// All is well.
    Well,
    /// Something is wrong in the mesh.
    Wrong,
    /// Somebody could not be asked, so nobody can say.
    Unknown,
}

/// Something that agents answer.
pub(crate) trait View: Serialize + DeserializeOwned {
    /// The command that prints it.
    const COMMAND: &'static str;
    /// Where an agent's socket has it.
    const PATH: &'static str;

    /// What of it is wrong, each with its cause.
    fn troubles(&self) -> Vec<String>;

    /// For people.
    fn text(shown: &Shown<'_, Self>) -> String;
}

/// Answers, to be printed.
pub(crate) struct Shown<'a, T> {
    /// Each with its node.
    pub(crate) answers: Vec<(&'a str, &'a T)>,
    /// Whether they are of several nodes, which have a column then.
    pub(crate) is_merged: bool,
}

/// Asks, prints, and says how it is.
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
        // As it came: what this version does not know is passed on too.
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

/// What programs get of several nodes.
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
            // Empty tables would say that there is nothing.
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

/// A value that may be missing.
fn shown(value: Option<&String>) -> String {
    value.map_or_else(|| "-".to_owned(), Clone::clone)
}
