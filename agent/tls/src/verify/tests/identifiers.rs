//! SPIFFE-ID section 2, each identifier in a certificate of its own.

use super::{assert_refused, judge};
use crate::testing::{Authority, DOMAIN, san_extension};

#[test]
fn every_well_formed_identifier_is_accepted() {
    let root = Authority::root("root");
    let longest = format!("spiffe://{DOMAIN}/{}", "a".repeat(2048 - 10 - DOMAIN.len()));
    assert_eq!(longest.len(), 2048);
    for id in [
        "spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/web",
        "spiffe://cluster.local/a/b/c/d/e/f/g/h",
        "spiffe://cluster.local/UPPER_lower-0.9",
        "spiffe://cluster.local/...",
        "spiffe://cluster.local/.hidden",
        "spiffe://cluster.local/a..b",
        "spiffe://cluster.local/9eebccd2-12bf-40a6-b262-65fe0487d453",
        &longest,
    ] {
        let svid = judge(&root.bundle(), &root.leaf(id).chain);
        assert_eq!(svid.unwrap().id.as_str(), id);
    }
}

#[test]
fn every_malformed_identifier_is_refused() {
    let root = Authority::root("root");
    let too_long = format!("spiffe://{DOMAIN}/{}", "a".repeat(2049 - 10 - DOMAIN.len()));
    assert_eq!(too_long.len(), 2049);
    let long_domain = format!("spiffe://{}/a", "d".repeat(256));
    for (id, reason) in [
        ("", "does not start with"),
        ("spiffe:", "does not start with"),
        ("spiffe:/cluster.local/web", "does not start with"),
        ("SPIFFE://cluster.local/web", "does not start with"),
        ("https://cluster.local/web", "does not start with"),
        (" spiffe://cluster.local/web", "does not start with"),
        ("spiffe://", "not a trust domain"),
        ("spiffe:///web", "not a trust domain"),
        ("spiffe://Cluster.local/web", "not a trust domain"),
        ("spiffe://cluster.local:443/web", "not a trust domain"),
        ("spiffe://user@cluster.local/web", "not a trust domain"),
        ("spiffe://user:word@cluster.local/web", "not a trust domain"),
        ("spiffe://cluster%2elocal/web", "not a trust domain"),
        ("spiffe://[::1]/web", "not a trust domain"),
        ("spiffe://cluster.local\\/web", "not a trust domain"),
        ("spiffe://cluster.local?a=b", "not a trust domain"),
        ("spiffe://cluster.local#web", "not a trust domain"),
        (&long_domain, "not a trust domain"),
        ("spiffe://cluster.local", "names a trust domain"),
        ("spiffe://cluster.local/", "not a SPIFFE path"),
        ("spiffe://cluster.local/web/", "not a SPIFFE path"),
        ("spiffe://cluster.local//web", "not a SPIFFE path"),
        ("spiffe://cluster.local/ns//sa", "not a SPIFFE path"),
        ("spiffe://cluster.local/.", "not a SPIFFE path"),
        ("spiffe://cluster.local/./web", "not a SPIFFE path"),
        ("spiffe://cluster.local/ns/..", "not a SPIFFE path"),
        ("spiffe://cluster.local/ns/../web", "not a SPIFFE path"),
        ("spiffe://cluster.local/%77eb", "not a SPIFFE path"),
        ("spiffe://cluster.local/web?a=b", "not a SPIFFE path"),
        ("spiffe://cluster.local/web#top", "not a SPIFFE path"),
        ("spiffe://cluster.local/we b", "not a SPIFFE path"),
        ("spiffe://cluster.local/web ", "not a SPIFFE path"),
        ("spiffe://cluster.local/web\n", "not a SPIFFE path"),
        ("spiffe://cluster.local/ns:shop", "not a SPIFFE path"),
        ("spiffe://cluster.local/a+b", "not a SPIFFE path"),
        ("spiffe://cluster.local/web\0", "not a SPIFFE path"),
        ("spiffe://cluster.local\0.evil.example/web", "not a trust domain"),
        (&too_long, "2049 bytes"),
        ("spiffe://cluster.local.evil.example/web", "is not of trust domain cluster.local"),
        ("spiffe://cluster/web", "is not of trust domain cluster.local"),
    ] {
        let name = san_extension(&[(6, id.as_bytes())]);
        let leaf = root.leaf_with(|params| {
            params.subject_alt_names.clear();
            params.custom_extensions.push(name);
        });
        assert_refused(id, &root.bundle(), &leaf.chain, reason);
    }
}
