//! The rules of an `AuthorizationPolicy`, and what becomes of conditions that L4 cannot check.

use serde_saphyr::{Location, Spanned};

use super::{
    Place, Problem, ReadError,
    document::{Condition, From, Operation, Rule as Written, Source, To, Values},
    object::Context,
    value::{self, terms},
};
use crate::{
    Severity,
    finding::Meaning,
    matching::Match,
    object::{Action, Clause, Rule},
};

type List<T> = Spanned<Vec<Spanned<Option<T>>>>;

/// A rule that is being read: the clauses and the fields on HTTP found so far.
struct Draft {
    at: Location,
    path: String,
    clauses: Vec<Clause>,
    http: Vec<(Location, String)>,
}

pub(super) fn read_rules(
    context: &mut Context,
    rules: Option<List<Written>>,
    action: Action,
    object: &Place,
) -> Result<Box<[Rule]>, ReadError> {
    let mut read = Vec::new();
    let empty_at = rules.as_ref().map(|rules| rules.referenced);
    let rules = rules.map(|rules| rules.value).unwrap_or_default();
    if rules.is_empty() && action == Action::Deny {
        let mut finding_at = object.clone();
        if let Some(at) = empty_at {
            finding_at.line = at.line();
        }
        context.remark_at(finding_at, "spec.rules", Severity::Warning, Meaning::DenyWithoutRules);
    }
    for (position, rule) in rules.into_iter().enumerate() {
        let path = format!("spec.rules[{position}]");
        // A bare dash is never intended: read as {}, it would match everything.
        let written =
            rule.value.ok_or_else(|| context.refuse(rule.referenced, &path, Problem::Empty))?;
        let draft = read_rule(context, rule.referenced, path, &written)?;
        read.extend(draft.settle(context, action));
    }
    Ok(read.into())
}

fn read_rule(
    context: &mut Context,
    at: Location,
    path: String,
    rule: &Written,
) -> Result<Draft, ReadError> {
    let Written { from, to, when } = rule;
    let mut draft = Draft { at, path, clauses: Vec::new(), http: Vec::new() };
    if let Some(from) = from {
        let path = format!("{}.from", draft.path);
        draft.read_clause(context, &path, from, |draft, context, path, From { source }| {
            source
                .as_ref()
                .map(|source| draft.read_source(context, &format!("{path}.source"), source))
        })?;
    }
    if let Some(to) = to {
        let path = format!("{}.to", draft.path);
        draft.read_clause(context, &path, to, |draft, context, path, To { operation }| {
            let path = format!("{path}.operation");
            operation.as_ref().map(|operation| draft.read_operation(context, &path, operation))
        })?;
    }
    for (position, condition) in when.iter().flatten().enumerate() {
        let path = format!("{}.when[{position}]", draft.path);
        let written = condition.value.as_ref();
        let written =
            written.ok_or_else(|| context.refuse(condition.referenced, &path, Problem::Empty))?;
        draft.read_condition(context, &path, condition.referenced, written)?;
    }
    Ok(draft)
}

// === impl Draft ===

impl Draft {
    /// Reads the entries of `from` or `to` as one clause, which matches when one of them does.
    fn read_clause<T>(
        &mut self,
        context: &mut Context,
        path: &str,
        list: &List<T>,
        read: impl Fn(&mut Self, &mut Context, &str, &T) -> Option<Result<Option<Match>, ReadError>>,
    ) -> Result<(), ReadError> {
        let mut alternatives = Vec::new();
        for (position, entry) in list.value.iter().enumerate() {
            let path = format!("{path}[{position}]");
            let found = entry.value.as_ref().and_then(|entry| read(self, context, &path, entry));
            match found.transpose()?.flatten() {
                Some(found) => alternatives.push(found),
                None => return Err(context.refuse(entry.referenced, &path, Problem::Empty)),
            }
        }
        if alternatives.is_empty() {
            return Err(context.refuse(list.referenced, path, Problem::Empty));
        }
        self.clauses.push(Clause { alternatives: alternatives.into() });
        Ok(())
    }

    /// Reads a source. Returns `None` if it holds no value at all.
    fn read_source(
        &mut self,
        context: &mut Context,
        path: &str,
        source: &Source,
    ) -> Result<Option<Match>, ReadError> {
        let http = self.note_http(
            path,
            &[
                ("requestPrincipals", &source.request_principals),
                ("notRequestPrincipals", &source.not_request_principals),
                ("remoteIpBlocks", &source.remote_ip_blocks),
                ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
            ],
        );
        let Source { principals, not_principals, namespaces, not_namespaces, .. } = source;
        let Source { service_accounts, not_service_accounts, .. } = source;
        let beside =
            [principals, not_principals, namespaces, not_namespaces].into_iter().any(has_values);
        if let Some(accounts) =
            [service_accounts, not_service_accounts].into_iter().find(|list| has_values(list))
            && beside
        {
            let at = accounts.as_ref().map_or(Location::UNKNOWN, |list| list.referenced);
            return Err(context.refuse(at, path, Problem::ServiceAccountsBeside));
        }
        let found = Match {
            principals: terms(
                context,
                path,
                ("principals", principals),
                ("notPrincipals", not_principals),
                value::principal,
            )?,
            namespaces: terms(
                context,
                path,
                ("namespaces", namespaces),
                ("notNamespaces", not_namespaces),
                value::pattern,
            )?,
            service_accounts: read_accounts(
                context,
                path,
                ("serviceAccounts", service_accounts),
                ("notServiceAccounts", not_service_accounts),
            )?,
            trust_domains: terms(
                context,
                path,
                ("trustDomains", &source.trust_domains),
                ("notTrustDomains", &source.not_trust_domains),
                value::trust_domain,
            )?,
            sources: terms(
                context,
                path,
                ("ipBlocks", &source.ip_blocks),
                ("notIpBlocks", &source.not_ip_blocks),
                value::block,
            )?,
            ..Match::default()
        };
        Ok((http || !found.is_empty()).then_some(found))
    }

    /// Reads an operation. Returns `None` if it holds no value at all.
    fn read_operation(
        &mut self,
        context: &mut Context,
        path: &str,
        operation: &Operation,
    ) -> Result<Option<Match>, ReadError> {
        let Operation {
            hosts,
            not_hosts,
            ports,
            not_ports,
            methods,
            not_methods,
            paths,
            not_paths,
        } = operation;
        let http = self.note_http(
            path,
            &[
                ("hosts", hosts),
                ("notHosts", not_hosts),
                ("methods", methods),
                ("notMethods", not_methods),
                ("paths", paths),
                ("notPaths", not_paths),
            ],
        );
        let ports = terms(context, path, ("ports", ports), ("notPorts", not_ports), value::port)?;
        let found = Match { ports, ..Match::default() };
        Ok((http || !found.is_empty()).then_some(found))
    }

    fn read_condition(
        &mut self,
        context: &mut Context,
        path: &str,
        at: Location,
        condition: &Condition,
    ) -> Result<(), ReadError> {
        let Condition { key, values, not_values } = condition;
        let key = key
            .as_ref()
            .ok_or_else(|| context.refuse(at, &format!("{path}.key"), Problem::Missing))?;
        if !has_values(values) && !has_values(not_values) {
            return Err(context.refuse(at, path, Problem::Empty));
        }
        let (any, none) = (("values", values), ("notValues", not_values));
        let nothing = Match::default();
        let found = match key.value.as_str() {
            "source.principal" => {
                Match { principals: terms(context, path, any, none, value::principal)?, ..nothing }
            }
            "source.namespace" => {
                Match { namespaces: terms(context, path, any, none, value::pattern)?, ..nothing }
            }
            "source.trustDomain" => Match {
                trust_domains: terms(context, path, any, none, value::trust_domain)?,
                ..nothing
            },
            "source.serviceAccount" => {
                Match { service_accounts: read_accounts(context, path, any, none)?, ..nothing }
            }
            "source.ip" => {
                Match { sources: terms(context, path, any, none, value::block)?, ..nothing }
            }
            "destination.ip" => {
                Match { destinations: terms(context, path, any, none, value::block)?, ..nothing }
            }
            "destination.port" => {
                Match { ports: terms(context, path, any, none, value::port)?, ..nothing }
            }
            other if is_http_key(other) => {
                self.http.push((key.referenced, format!("{path}.key ({other})")));
                return Ok(());
            }
            other => {
                let problem = Problem::WhenKey(other.to_owned());
                return Err(context.refuse(key.referenced, &format!("{path}.key"), problem));
            }
        };
        self.clauses.push(Clause { alternatives: Box::new([found]) });
        Ok(())
    }

    /// Notes which of these fields hold values. Returns whether any does.
    fn note_http(&mut self, path: &str, fields: &[(&str, &Values)]) -> bool {
        let before = self.http.len();
        for (name, values) in fields {
            if let Some(values) = values.as_ref().filter(|values| !values.value.is_empty()) {
                self.http.push((values.referenced, format!("{path}.{name}")));
            }
        }
        self.http.len() > before
    }

    /// Returns the rule as it is enforced, or `None` for an ALLOW rule that can never match.
    fn settle(self, context: &mut Context, action: Action) -> Option<Rule> {
        let Self { at, path, clauses, http } = self;
        let unconditional =
            clauses.iter().all(|clause| clause.alternatives.iter().any(Match::is_empty));
        let meaning = match action {
            Action::Allow => Meaning::AllowRuleNeverMatches,
            Action::Deny if unconditional => Meaning::DenyRuleDeniesEverything,
            Action::Deny => Meaning::DenyRuleEnforcedWithout,
        };
        for (at, field) in &http {
            context.remark(*at, field, Severity::Warning, meaning.clone());
        }
        let excludes =
            |clause: &Clause| clause.alternatives.iter().any(Match::only_excludes_identities);
        let requires = |clause: &Clause| clause.alternatives.iter().all(Match::requires_identity);
        if action == Action::Allow {
            if !http.is_empty() {
                return None;
            }
            if clauses.iter().any(excludes) && !clauses.iter().any(requires) {
                let meaning = Meaning::ExclusionMatchesPlaintext;
                context.remark(at, &path, Severity::Notice, meaning);
            }
        }
        Some(Rule { clauses: clauses.into() })
    }
}

fn has_values(values: &Values) -> bool {
    values.as_ref().is_some_and(|values| !values.value.is_empty())
}

fn read_accounts(
    context: &mut Context,
    path: &str,
    any: (&str, &Values),
    none: (&str, &Values),
) -> Result<crate::matching::Terms<crate::matching::ServiceAccount>, ReadError> {
    let namespace = std::sync::Arc::clone(&context.id.namespace);
    terms(context, path, any, none, |text| value::service_account(text, &namespace))
}

/// Returns whether the key of `when` is one that Istio has and L4 cannot check
/// (<https://istio.io/latest/docs/reference/config/security/conditions/>).
fn is_http_key(key: &str) -> bool {
    const WHOLE: [&str; 5] = [
        "remote.ip",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "connection.sni",
    ];
    const BRACKETED: [&str; 3] =
        ["request.headers[", "request.auth.claims[", "experimental.envoy.filters."];
    WHOLE.contains(&key)
        || BRACKETED.iter().any(|start| key.starts_with(start) && key.ends_with(']'))
}
