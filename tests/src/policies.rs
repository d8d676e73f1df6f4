//! The policies that the tests and the demo apply, written as an Istio user writes them.

use std::fmt::Write as _;

use crate::{agent::TRUST_DOMAIN, mesh::NAMESPACE};

/// Returns a policy of mutual TLS for the whole namespace, in this mode: `STRICT`, `PERMISSIVE` or `DISABLE`.
pub fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\n\
         kind: PeerAuthentication\n\
         metadata: {{ name: default, namespace: {NAMESPACE} }}\n\
         spec:\n  mtls: {{ mode: {mode} }}\n"
    )
}

/// Returns a policy by which only these service accounts of the namespace reach the pods labelled `app: <app>`.
pub fn allow(app: &str, accounts: &[&str]) -> String {
    authorization("ALLOW", app, accounts)
}

/// Returns a policy that keeps these service accounts of the namespace from the pods labelled `app: <app>`.
pub fn deny(app: &str, accounts: &[&str]) -> String {
    authorization("DENY", app, accounts)
}

fn authorization(action: &str, app: &str, accounts: &[&str]) -> String {
    let mut text = format!(
        "apiVersion: security.istio.io/v1\n\
         kind: AuthorizationPolicy\n\
         metadata: {{ name: {name}-{app}, namespace: {NAMESPACE} }}\n\
         spec:\n  selector: {{ matchLabels: {{ app: {app} }} }}\n  action: {action}\n  rules:\n  - from:\n    - source:\n        principals:\n",
        name = action.to_lowercase(),
    );
    for account in accounts {
        // Writing to a String cannot fail.
        writeln!(text, "        - {}", principal(account)).ok();
    }
    text
}

/// Returns the principal of a service account in the lab's namespace.
pub fn principal(account: &str) -> String {
    format!("{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{account}")
}
