//! Single values: names, texts with wildcards, addresses, ports, actions.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_saphyr::Spanned;

use super::{Problem, ReadError, document::Values, object::Context};
use crate::{
    Severity,
    finding::Meaning,
    matching::{Pattern, ServiceAccount, Terms, canonical_block},
    object::Action,
};

/// Longest name of an object (RFC 1123 subdomain), also taken as the limit for namespaces.
const MAX_NAME_BYTES: usize = 253;

/// Reads an action. Absent means ALLOW, as in Istio.
pub(super) fn action(
    context: &Context,
    action: Option<&Spanned<String>>,
) -> Result<Action, ReadError> {
    match action.map(|action| (action, action.value.as_str())) {
        None | Some((_, "ALLOW")) => Ok(Action::Allow),
        Some((_, "DENY")) => Ok(Action::Deny),
        Some((action, other)) => {
            Err(context.refuse(action.referenced, "spec.action", Problem::Action(other.to_owned())))
        }
    }
}

pub(super) fn is_name(text: &str, dots: bool) -> bool {
    let part = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(inner)
    };
    text.len() <= MAX_NAME_BYTES && if dots { text.split('.').all(part) } else { part(text) }
}

/// Reads the two lists of one attribute: its values and its exclusions.
pub(super) fn terms<T>(
    context: &mut Context,
    path: &str,
    (any_name, any): (&str, &Values),
    (none_name, none): (&str, &Values),
    parse: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Terms<T>, ReadError> {
    let any = list(context, &format!("{path}.{any_name}"), any, &parse)?;
    let none = list(context, &format!("{path}.{none_name}"), none, &parse)?;
    Ok(Terms { any, none })
}

fn list<T>(
    context: &mut Context,
    field: &str,
    values: &Values,
    parse: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Box<[T]>, ReadError> {
    let Some(values) = values else { return Ok(Box::default()) };
    if values.value.is_empty() {
        context.remark(values.referenced, field, Severity::Notice, Meaning::EmptyList);
    }
    let one = |value: &Spanned<String>| {
        let parsed =
            if value.value.is_empty() { Err(Problem::EmptyValue) } else { parse(&value.value) };
        parsed.map_err(|problem| context.refuse(value.referenced, field, problem))
    };
    values.value.iter().map(one).collect()
}

pub(super) fn pattern(text: &str) -> Result<Pattern, Problem> {
    let (first, last) = (text.strip_prefix('*'), text.strip_suffix('*'));
    let (rest, pattern): (&str, fn(Box<str>) -> Pattern) = match (first, last) {
        _ if text == "*" => return Ok(Pattern::Present),
        (Some(rest), _) => (rest, Pattern::Suffix),
        (None, Some(rest)) => (rest, Pattern::Prefix),
        (None, None) => (text, Pattern::Exact),
    };
    if rest.contains('*') {
        return Err(Problem::Wildcard(text.to_owned()));
    }
    Ok(pattern(rest.into()))
}

pub(super) fn principal(text: &str) -> Result<Pattern, Problem> {
    // A suffix such as "*://a/b" is just as wrong but not caught: that is not worth a parser.
    if text.trim_start_matches('*').starts_with("spiffe:") {
        return Err(Problem::SpiffeScheme(text.to_owned()));
    }
    pattern(text)
}

pub(super) fn trust_domain(text: &str) -> Result<Pattern, Problem> {
    if text.contains('/') {
        return Err(Problem::TrustDomain(text.to_owned()));
    }
    pattern(text)
}

/// Reads `name`, for an account in the policy's own namespace, or `namespace/name`.
pub(super) fn service_account(text: &str, namespace: &str) -> Result<ServiceAccount, Problem> {
    if text.contains('*') {
        return Err(Problem::NoWildcard(text.to_owned()));
    }
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(Problem::ServiceAccount(text.to_owned()));
    }
    Ok(ServiceAccount { namespace: namespace.into(), name: name.into() })
}

pub(super) fn block(text: &str) -> Result<IpNet, Problem> {
    let block = if text.contains('/') {
        text.parse().ok()
    } else {
        text.parse::<IpAddr>().ok().map(IpNet::from)
    };
    block.map(canonical_block).ok_or_else(|| Problem::Address(text.to_owned()))
}

pub(super) fn port(text: &str) -> Result<u16, Problem> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        Ok(_) | Err(_) => Err(Problem::Port(text.to_owned())),
    }
}
