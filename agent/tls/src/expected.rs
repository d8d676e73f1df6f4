//! The identity that a client expects, encoded as a server name.
//!
//! rustls keys its session cache by server name. Putting the expected identity there makes it
//! impossible to resume a session with a server that was believed to be somebody else. The name is a
//! hash because an identity may be longer than a DNS name; it is never sent (no SNI).

use std::{fmt::Write as _, net::IpAddr};

use rustls_pki_types::{DnsName, ServerName};
use sha2::{Digest, Sha256};
use sluice_spiffe::SpiffeId;

/// Returns the server name for `id` at `place`: `<32 hex digits>.<32>.<32>.sluice`, where two labels are the identity's
/// hash and one is the address. A session ticket is good only with the agent that issued it, so workloads of one
/// identity on several nodes need a name each.
pub(crate) fn expected_name(id: &SpiffeId, place: IpAddr) -> ServerName<'static> {
    let mut name = prefix_of(id);
    let bits = match place {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    push(&mut name, format_args!("{bits:032x}.sluice"));
    dns_name(name)
}

/// Returns whether `name` was made for `id`, at any place.
pub(crate) fn is_name_of(name: &ServerName<'_>, id: &SpiffeId) -> bool {
    matches!(name, ServerName::DnsName(name) if name.as_ref().starts_with(&prefix_of(id)))
}

fn prefix_of(id: &SpiffeId) -> String {
    let digest = Sha256::digest(id.as_str().as_bytes());
    let (high, low) = digest.split_at(16);
    let mut name = String::with_capacity(105);
    for half in [high, low] {
        for byte in half {
            push(&mut name, format_args!("{byte:02x}"));
        }
        name.push('.');
    }
    name
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    text.write_fmt(more).unwrap_or_default();
}

fn dns_name(name: String) -> ServerName<'static> {
    // Labels of 32 hexadecimal digits always form a DNS name; the fallback matches no identity.
    DnsName::try_from(name)
        .map_or_else(|_| ServerName::IpAddress(IpAddr::from([0; 4]).into()), ServerName::DnsName)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_one_identity_at_any_place() {
        let [web, cart] = ["spiffe://a/web", "spiffe://a/cart"].map(|id| id.parse().unwrap());
        let here = expected_name(&web, "10.0.0.1".parse().unwrap());
        let there = expected_name(&web, "fd00::1".parse().unwrap());
        assert_ne!(here, there);
        for name in [here, there] {
            assert!(matches!(name, ServerName::DnsName(_)));
            assert!(is_name_of(&name, &web));
            assert!(!is_name_of(&name, &cart));
        }
    }

    #[test]
    fn the_longest_identity_has_a_name() {
        let id: SpiffeId = format!("spiffe://a/{}", "b".repeat(2037)).parse().unwrap();
        assert!(is_name_of(&expected_name(&id, IpAddr::from([0; 4])), &id));
    }

    #[test]
    fn an_address_stands_for_nobody() {
        let name = ServerName::IpAddress(IpAddr::from([0; 4]).into());
        assert!(!is_name_of(&name, &"spiffe://a/b".parse().unwrap()));
    }
}
