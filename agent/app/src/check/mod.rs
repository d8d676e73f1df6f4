//! `sluice check`: finds what can be found before somebody has to be woken up, and says what to do about it.
//!
//! On a node it judges what that node's agent says. From an operator's machine it runs in every agent's container,
//! merges the results, and adds what only the API server knows.

mod cluster;
mod node;

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::{
    args::{Output, ViewOptions},
    logging::print,
    view::{Health, Route, route, table::printable},
};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mark {
    Ok,
    /// Worth doing something about, although nothing fails because of it now.
    Warn,
    /// Something does not work, or is not protected.
    Fail,
}

/// One check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) result: Mark,
    /// What was checked, in a word.
    pub(crate) subject: String,
    /// The nodes with this result; none when it is not about nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) nodes: Vec<String>,
    pub(crate) says: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
    /// Whether the check could not be carried out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unanswered: bool,
}

/// What one node says about itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) node: String,
    /// The agent's version.
    pub(crate) version: String,
    /// The node's clock, in milliseconds since 1970.
    pub(crate) now_ms: u64,
    pub(crate) lines: Vec<Line>,
}

/// The JSON output for a whole cluster.
#[derive(Serialize)]
struct ClusterReport<'a> {
    result: Mark,
    lines: &'a [Line],
}

/// Runs the checks, prints their results and returns the exit code.
pub(crate) fn run(options: &ViewOptions) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let health = runtime.block_on(async {
        match route(options).await? {
            Route::Local(socket) => {
                let report = node::look(&socket).await?;
                match options.output {
                    Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
                    Output::Table => print(&text(&report.lines)),
                }?;
                anyhow::Ok(health(&report.lines))
            }
            Route::Cluster(operator) => {
                let lines = cluster::look(operator, options).await?;
                match options.output {
                    Output::Json => {
                        let report = ClusterReport { result: worst(&lines), lines: &lines };
                        print(&format!("{}\n", serde_json::to_string_pretty(&report)?))
                    }
                    Output::Table => print(&text(&lines)),
                }?;
                anyhow::Ok(health(&lines))
            }
        }
    })?;
    Ok(health.into())
}

fn worst(lines: &[Line]) -> Mark {
    lines.iter().map(|line| line.result).max().unwrap_or(Mark::Ok)
}

fn health(lines: &[Line]) -> Health {
    if lines.iter().any(|line| line.unanswered) {
        Health::Unknown
    } else if worst(lines) == Mark::Fail {
        Health::Wrong
    } else {
        Health::Well
    }
}

fn text(lines: &[Line]) -> String {
    let place = |line: &Line| match line.nodes.as_slice() {
        [] => String::new(),
        few @ ([_] | [_, _] | [_, _, _]) => few.join(","),
        many => format!("{} nodes", many.len()),
    };
    let width = |of: &dyn Fn(&Line) -> usize| lines.iter().map(of).max().unwrap_or(0);
    let subjects = width(&|line| line.subject.chars().count());
    let places = width(&|line| place(line).chars().count());
    let mut text = String::new();
    for line in lines {
        let mark = match line.result {
            Mark::Ok => "ok  ",
            Mark::Warn => "warn",
            Mark::Fail => "fail",
        };
        let (subject, place) = (&line.subject, place(line));
        let row = format!("{mark}  {subject:subjects$}  {place:places$}  {}", line.says);
        text.push_str(printable(&row).trim_end());
        text.push('\n');
        if let Some(advice) = &line.advice {
            text.push_str(&printable(&format!("      -> {advice}")));
            text.push('\n');
        }
    }
    let count = |mark| lines.iter().filter(|line| line.result == mark).count();
    let (ok, warn, fail) = (count(Mark::Ok), count(Mark::Warn), count(Mark::Fail));
    text + &format!("\n{ok} ok, {warn} to look at, {fail} failed\n")
}

// === impl Line ===

impl Line {
    pub(crate) fn ok(subject: &str, says: impl Into<String>) -> Self {
        Self {
            result: Mark::Ok,
            subject: subject.to_owned(),
            nodes: Vec::new(),
            says: says.into(),
            advice: None,
            unanswered: false,
        }
    }

    pub(crate) fn warn(subject: &str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { result: Mark::Warn, advice: Some(advice.into()), ..Self::ok(subject, says) }
    }

    pub(crate) fn fail(subject: &str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { result: Mark::Fail, advice: Some(advice.into()), ..Self::ok(subject, says) }
    }

    /// A check that nobody answered; the error says what to do.
    pub(crate) fn unanswered(subject: &str, error: impl Into<String>) -> Self {
        Self { result: Mark::Fail, unanswered: true, ..Self::ok(subject, error) }
    }

    pub(crate) fn of_node(self, node: &str) -> Self {
        Self { nodes: vec![node.to_owned()], ..self }
    }
}

/// Lists the first few names, and how many more there are.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_to_do_and_the_worst_one_counts() {
        let lines = [
            Line::ok("kernel", "Linux 6.1").of_node("n1"),
            Line::fail("policies", "refused", "correct it").of_node("n2"),
        ];
        let expected = "ok    kernel    n1  Linux 6.1\nfail  policies  n2  refused\n      -> correct it\n\n\
                        1 ok, 0 to look at, 1 failed\n";
        assert_eq!(text(&lines), expected);
        assert_eq!(health(&lines), Health::Wrong);
        assert_eq!(health(&[Line::warn("clock", "a bit", "sync")]), Health::Well);
        assert_eq!(health(&[Line::unanswered("agents", "gone")]), Health::Unknown);
    }
}
