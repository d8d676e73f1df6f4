//! The agents of a cluster, asked all at once.

use serde::Serialize;
use sluice_kube::{AgentPod, AgentState, AskError, Operator, Ran, Roster};

use super::{Health, View};
use crate::args::ViewOptions;

/// The agent's own program, in its own image.
const PROGRAM: &str = "/usr/local/bin/sluice";
/// The agent's socket in its own container. Without the name, a program that finds nobody there would go on to ask a
/// cluster.
const SOCKET: &str = "/run/sluice/agent.sock";
/// The container that the agent runs in.
const CONTAINER: &str = "agent";

/// The agents that are to be asked, and the troubles found so far.
pub(crate) struct Fleet {
    operator: Operator,
    agents: Vec<AgentPod>,
    troubles: Vec<Trouble>,
    /// Whether it has been noted that RBAC forbids asking.
    is_forbidden: bool,
}

/// What one node's agent says.
#[derive(Debug, Serialize)]
pub(crate) struct Told<T> {
    pub(crate) node: String,
    /// The agent's pod.
    pub(crate) agent: String,
    /// Whether Kubernetes says that the agent is ready.
    pub(crate) ready: bool,
    /// What the same command prints on the node; null when it could not be asked.
    pub(crate) answer: Option<T>,
}

/// Something that is wrong.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Trouble {
    /// The node concerned, if it is a single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    /// Whether nothing more is known because somebody could not be asked.
    pub(crate) unanswered: bool,
    pub(crate) what: String,
}

// === impl Fleet ===

impl Fleet {
    /// Finds the agents of the nodes that are asked for.
    pub(crate) async fn find(operator: Operator, options: &ViewOptions) -> anyhow::Result<Self> {
        let Roster { agents, wanted } = operator.roster().await?.on(&options.node)?;
        let mut troubles = Vec::new();
        match wanted {
            Ok(wanted) if wanted > agents.len() => {
                let text = format!(
                    "{} of {wanted} nodes that should have an agent have none: see `kubectl -n {} describe daemonsets`",
                    wanted - agents.len(),
                    operator.namespace()
                );
                troubles.push(Trouble::wrong(None, text));
            }
            Ok(_) => {}
            Err(error) => troubles.push(Trouble::unanswered(None, error.to_string())),
        }
        for agent in &agents {
            let see =
                format!("see `kubectl -n {} describe pod {}`", operator.namespace(), agent.name);
            match &agent.state {
                AgentState::Ready => {}
                AgentState::NotReady(reason) => {
                    let text = format!("the agent is not ready: {reason}; {see}");
                    troubles.push(Trouble::wrong(Some(&agent.node), text));
                }
                AgentState::Down(reason) => {
                    let text = format!("the agent does not run: {reason}; {see}");
                    troubles.push(Trouble::wrong(Some(&agent.node), text));
                }
            }
        }
        Ok(Self { operator, agents, troubles, is_forbidden: false })
    }

    /// Returns the agents, including those that do not run.
    pub(crate) fn agents(&self) -> &[AgentPod] {
        &self.agents
    }

    pub(crate) fn operator(&self) -> &Operator {
        &self.operator
    }

    /// Asks every running agent. Failures are added to the troubles.
    pub(crate) async fn ask<T: View>(&mut self) -> Vec<Told<T>> {
        let mut answers = Vec::new();
        for (agent, outcome) in self.run(T::COMMAND).await {
            let answer = match outcome {
                None => None,
                Some(Err(error)) => {
                    self.unasked(&agent.node, &error);
                    None
                }
                Some(Ok(ran)) => match serde_json::from_str(&ran.output) {
                    Ok(answer) => Some(answer),
                    Err(error) => {
                        let text = unreadable(&ran, T::COMMAND, &error);
                        self.troubles.push(Trouble::unanswered(Some(&agent.node), text));
                        None
                    }
                },
            };
            let ready = agent.state == AgentState::Ready;
            answers.push(Told { node: agent.node, agent: agent.name, ready, answer });
        }
        answers
    }

    /// Runs `sluice COMMAND` in every agent's container; `None` for agents that do not run.
    pub(crate) async fn run(
        &self,
        command: &str,
    ) -> Vec<(AgentPod, Option<Result<Ran, AskError>>)> {
        let arguments = [PROGRAM, command, "--output", "json", "--socket", SOCKET];
        let runs = |agent: &&AgentPod| !matches!(agent.state, AgentState::Down(_));
        let asked: Vec<AgentPod> = self.agents.iter().filter(runs).cloned().collect();
        let mut outcomes = self.operator.run(&asked, CONTAINER, &arguments).await.into_iter();
        let agents = self.agents.iter().cloned();
        agents
            .map(|agent| {
                let outcome = if runs(&&agent) { outcomes.next() } else { None };
                (agent, outcome)
            })
            .collect()
    }

    /// Notes that an agent could not be asked. What RBAC forbids says nothing about the node, and is noted once.
    fn unasked(&mut self, node: &str, error: &AskError) {
        if !matches!(error, AskError::Forbidden { .. }) {
            self.troubles.push(Trouble::unanswered(Some(node), error.to_string()));
        } else if !std::mem::replace(&mut self.is_forbidden, true) {
            self.troubles.push(Trouble::unanswered(None, error.to_string()));
        }
    }

    /// Returns the troubles found so far.
    pub(crate) fn troubles(self) -> Vec<Trouble> {
        self.troubles
    }
}

/// Returns why an answer cannot be read. What the program itself complained of says more than the parser.
pub(crate) fn unreadable(ran: &Ran, command: &str, error: &serde_json::Error) -> String {
    let complaint = ran.errors.lines().find(|line| !line.trim().is_empty());
    match complaint {
        Some(complaint) => format!("`sluice {command}` failed there: {complaint}"),
        None => format!(
            "`sluice {command}` answered what this version does not understand ({error}): use the `sluice` of the agents' version"
        ),
    }
}

// === impl Trouble ===

impl Trouble {
    pub(crate) fn here(what: String) -> Self {
        Self::wrong(None, what)
    }

    pub(crate) fn wrong(node: Option<&str>, what: String) -> Self {
        Self { node: node.map(str::to_owned), unanswered: false, what }
    }

    pub(crate) fn unanswered(node: Option<&str>, what: String) -> Self {
        Self { node: node.map(str::to_owned), unanswered: true, what }
    }
}

/// Returns the overall health: that of the worst trouble.
pub(crate) fn health(troubles: &[Trouble]) -> Health {
    let of = |trouble: &Trouble| if trouble.unanswered { Health::Unknown } else { Health::Wrong };
    troubles.iter().map(of).max().unwrap_or(Health::Well)
}

/// Renders the troubles for people.
pub(crate) fn troubles_text(troubles: &[Trouble]) -> String {
    let mut text = String::new();
    for Trouble { node, unanswered, what } in troubles {
        let kind = if *unanswered { "NO ANSWER" } else { "WRONG" };
        let place = node.as_ref().map(|node| format!("{node}: ")).unwrap_or_default();
        let line = format!("{kind}: {place}{what}");
        text.push_str(if text.is_empty() { "\n" } else { "" });
        text.push_str(&super::table::printable(&line));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_asked_outweighs_what_is_wrong() {
        let wrong = Trouble::wrong(Some("n1"), "a pod".to_owned());
        let silent = Trouble::unanswered(Some("n2"), "gone".to_owned());
        assert_eq!(health(&[]), Health::Well);
        assert_eq!(health(&[wrong]), Health::Wrong);
        let wrong = Trouble::wrong(None, "a pod".to_owned());
        assert_eq!(health(&[silent, wrong]), Health::Unknown);
    }

    #[test]
    fn what_others_wrote_cannot_move_the_cursor() {
        let text = troubles_text(&[Trouble::here("a\u{1b}[2Jb\nc".to_owned())]);
        assert_eq!(text, "\nWRONG: a?[2Jb c\n");
    }
}
