//! `sluice policy`: what each node makes of the policies.

use super::{
    Shown, View,
    model::{Policies, Policy, PolicyState},
    table::Table,
};

/// The text shown when there is no policy.
pub(super) const NONE: &str = "none: every connection is allowed, mutual TLS is PERMISSIVE";

impl View for Policies {
    const COMMAND: &'static str = "policy";
    const PATH: &'static str = "/policies";

    fn troubles(&self) -> Vec<String> {
        refused(&self.0)
    }

    fn text(all: &Shown<'_, Self>) -> String {
        table(
            all.is_merged,
            all.answers.iter().map(|(node, policies)| (*node, policies.0.as_slice())),
        )
    }
}

/// Describes each policy that is not in force.
pub(super) fn refused(policies: &[Policy]) -> Vec<String> {
    let refused = policies.iter().filter(|policy| policy.state == PolicyState::Refused);
    let said = refused.map(|Policy { kind, namespace, name, findings, .. }| {
        format!("{kind} {namespace}/{name} is refused: {}", findings.join("; "))
    });
    said.collect()
}

/// Renders the policies as a table, sorted by policy: the nodes' rows of one are together.
pub(super) fn table<'a>(
    is_merged: bool,
    nodes: impl Iterator<Item = (&'a str, &'a [Policy])>,
) -> String {
    let mut table =
        Table::of_nodes(is_merged, &["KIND", "NAMESPACE", "NAME", "VERSION", "STATE", "FINDINGS"]);
    let all = nodes.flat_map(|(node, policies)| policies.iter().map(move |policy| (node, policy)));
    let mut all: Vec<(&str, &Policy)> = all.collect();
    all.sort_by_key(|(node, policy)| (&policy.kind, &policy.namespace, &policy.name, *node));
    for (node, policy) in all {
        let findings =
            if policy.findings.is_empty() { "-".to_owned() } else { policy.findings.join("; ") };
        let version = policy.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        table.row_of(
            node,
            vec![
                policy.kind.clone(),
                policy.namespace.clone(),
                policy.name.clone(),
                version,
                policy.state.to_string(),
                findings,
            ],
        );
    }
    table.render(NONE)
}
