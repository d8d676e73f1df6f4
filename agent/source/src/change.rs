//! Describes what a new state changes, for the log.

use std::{collections::BTreeMap, fmt};

use sluice_policy::PolicyObject;

use crate::mesh_file::MeshState;

/// How many names of each sort a log line lists; the others are counted.
const MAX_NAMES: usize = 8;

/// The differences between two states, by sort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pods: Names,
    services: Names,
    policies: Names,
}

/// Names, with `+` for what came, `-` for what went and `~` for what has changed.
type Names = Vec<String>;

type Side<'a> = (&'a MeshState, &'a [PolicyObject]);

impl Change {
    pub(crate) fn between(old: Side<'_>, new: Side<'_>) -> Self {
        let pods = |(mesh, _): Side<'_>| {
            mesh.workloads.iter().map(|pod| (pod.uid.to_string(), pod.clone())).collect()
        };
        let services = |(mesh, _): Side<'_>| {
            let name =
                |service: &sluice_mesh::Service| format!("{}/{}", service.namespace, service.name);
            mesh.services.iter().map(|service| (name(service), service.clone())).collect()
        };
        let policies = |(_, policies): Side<'_>| {
            policies.iter().map(|policy| (policy.id().to_string(), policy.clone())).collect()
        };
        Self {
            pods: names(&pods(old), &pods(new), PartialEq::eq),
            services: names(&services(old), &services(new), PartialEq::eq),
            policies: names(&policies(old), &policies(new), PolicyObject::says_the_same_as),
        }
    }
}

fn names<T>(
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    same: impl Fn(&T, &T) -> bool,
) -> Names {
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("-{name}"));
    let here = new.iter().filter_map(|(name, now)| match old.get(name) {
        None => Some(format!("+{name}")),
        Some(before) if !same(before, now) => Some(format!("~{name}")),
        Some(_) => None,
    });
    gone.chain(here).collect()
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pods, services, policies } = self;
        let mut separator = "";
        for (sort, names) in [("pods", pods), ("services", services), ("policies", policies)] {
            if names.is_empty() {
                continue;
            }
            write!(f, "{separator}{sort}:")?;
            separator = "; ";
            for name in names.iter().take(MAX_NAMES) {
                write!(f, " {name}")?;
            }
            if let Some(more @ 1..) = names.len().checked_sub(MAX_NAMES) {
                write!(f, " and {more} more")?;
            }
        }
        if separator.is_empty() { f.write_str("only wording") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn policies(names: &[(&str, &str)]) -> Vec<PolicyObject> {
        let mut text = String::new();
        for (name, spec) in names {
            writeln!(
                text,
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: {name}, namespace: a}}\nspec: {spec}"
            )
            .unwrap();
        }
        sluice_policy::read("p", &text).unwrap()
    }

    fn change(old: &[(&str, &str)], new: &[(&str, &str)]) -> String {
        let mesh = MeshState::default();
        Change::between((&mesh, &policies(old)), (&mesh, &policies(new))).to_string()
    }

    #[test]
    fn what_came_went_and_differs_is_named() {
        let old = [("gone", "{}"), ("same", "{}"), ("other", "{}")];
        let new = [("new", "{}"), ("same", "{action: ALLOW}"), ("other", "{action: DENY}")];
        assert_eq!(
            change(&old, &new),
            "policies: -AuthorizationPolicy a/gone +AuthorizationPolicy a/new ~AuthorizationPolicy a/other"
        );
        assert_eq!(change(&old, &old), "only wording");
    }

    #[test]
    fn many_names_are_counted() {
        let names: Vec<String> = (0..10).map(|number| format!("p{number}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "{}")).collect();
        assert!(change(&[], &many).ends_with(" and 2 more"));
    }
}
