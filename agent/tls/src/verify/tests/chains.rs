//! Who vouches, and when: paths, authorities, trust domains, validity.

use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyUsagePurpose as Usage};
use rustls_pki_types::CertificateDer;

use super::{assert_refused, judge};
use crate::{
    PeerRole, TrustBundle,
    testing::{Authority, DOMAIN, WEB, at, der, uri},
    verify_chain,
};

type Change = fn(&mut CertificateParams);

/// A name constraint on URIs: `tag` 0 permits, 1 excludes.
fn uri_constraint(tag: u8, host: &str) -> CustomExtension {
    let subtree = der(0x30, &der(0x86, host.as_bytes()));
    let content = der(0x30, &der(0xa0 | tag, &subtree));
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    extension
}

/// Judges a leaf below an intermediate made by `change`.
fn below(root: &Authority, change: Change) -> Result<(), String> {
    let intermediate = root.intermediate_with("intermediate", change);
    judge(&root.bundle(), &intermediate.leaf(WEB).chain).map(|_| ())
}

#[test]
fn a_path_may_be_longer_and_hold_more_than_it_needs() {
    let root = Authority::root("root");
    let upper = root.intermediate("upper");
    let lower = upper.intermediate("lower");
    let mut chain = lower.leaf(WEB).chain;
    assert!(judge(&root.bundle(), &chain).is_ok());
    chain.swap(1, 2);
    assert!(judge(&root.bundle(), &chain).is_ok(), "intermediates in another order");
    chain.push(root.der());
    assert!(judge(&root.bundle(), &chain).is_ok(), "with the root");
    chain.push(Authority::root("unrelated").der());
    assert!(judge(&root.bundle(), &chain).is_ok(), "with something unrelated");
    chain.remove(1);
    assert_refused("without an intermediate", &root.bundle(), &chain, "UnknownIssuer");
}

#[test]
fn an_authority_is_shaped_as_one() {
    let root = Authority::root("root");
    assert_eq!(below(&root, |_| {}), Ok(()));
    let vectors: [(&str, Change, &str); 12] = [
        ("no CA", |params| params.is_ca = IsCa::ExplicitNoCa, "EndEntityUsedAsCa"),
        ("no basic constraints", |params| params.is_ca = IsCa::NoCa, "EndEntityUsedAsCa"),
        ("no keyCertSign", |params| params.key_usages = vec![Usage::CrlSign], "keyCertSign"),
        ("no key usage", |params| params.key_usages.clear(), "keyCertSign"),
        (
            "a workload's identity",
            |params| params.subject_alt_names = vec![uri(WEB)],
            "bears a workload's identity",
        ),
        (
            "another trust domain's identity",
            |params| params.subject_alt_names = vec![uri("spiffe://other.example")],
            "belongs to another trust domain",
        ),
        (
            "a malformed identity",
            |params| params.subject_alt_names = vec![uri("spiffe://Cluster.local")],
            "malformed SPIFFE identity",
        ),
        (
            "two identities",
            |params| {
                params.subject_alt_names =
                    vec![uri("spiffe://cluster.local"), uri("spiffe://other.example")];
            },
            "several URI names",
        ),
        ("expired", |params| Authority::validity(params, -100, -1), "CertExpired"),
        ("not valid yet", |params| Authority::validity(params, 1, 100), "CertNotValidYet"),
        (
            "names of another domain only",
            |params| params.custom_extensions.push(uri_constraint(0, "other.example")),
            "NameConstraintViolation",
        ),
        (
            "our names excluded",
            |params| params.custom_extensions.push(uri_constraint(1, DOMAIN)),
            "NameConstraintViolation",
        ),
    ];
    for (name, change, reason) in vectors {
        let error = below(&root, change).expect_err(name);
        assert!(error.contains(reason), "{name}: refused for {error:?}");
    }
}

#[test]
fn an_authority_may_bear_the_trust_domain_or_no_spiffe_name() {
    let root = Authority::root("root");
    for name in ["spiffe://cluster.local", "https://ca.example"] {
        let intermediate = root.intermediate_with("intermediate", |params| {
            params.subject_alt_names = vec![uri(name)];
        });
        assert!(judge(&root.bundle(), &intermediate.leaf(WEB).chain).is_ok(), "{name}");
    }
    // Section 3.2: an authority may sign an authority of another trust domain.
    let upper = root.intermediate_with("upper", |params| {
        params.subject_alt_names = vec![uri("spiffe://other.example")];
    });
    let lower = upper.intermediate_with("lower", |params| {
        params.subject_alt_names = vec![uri("spiffe://cluster.local")];
    });
    assert!(judge(&root.bundle(), &lower.leaf(WEB).chain).is_ok());
}

#[test]
fn a_path_is_no_longer_than_its_authorities_allow() {
    let root = Authority::root("root");
    let last = root.intermediate_with("last", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    assert!(judge(&root.bundle(), &last.leaf(WEB).chain).is_ok());
    let one_more = last.intermediate("one more").leaf(WEB);
    assert_refused("beyond", &root.bundle(), &one_more.chain, "PathLenConstraintViolated");
    let mut deep = root.intermediate("0");
    for depth in 1..12 {
        deep = deep.intermediate(&depth.to_string());
    }
    assert_refused("too deep", &root.bundle(), &deep.leaf(WEB).chain, "MaximumPathDepthExceeded");
}

#[test]
fn a_leaf_cannot_issue() {
    let root = Authority::root("root");
    let workload = root.intermediate_with("workload", |params| {
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![Usage::DigitalSignature];
        params.subject_alt_names = vec![uri(WEB)];
    });
    let forged = workload.leaf("spiffe://cluster.local/ns/kube-system/sa/admin");
    assert_refused("signed by a workload", &root.bundle(), &forged.chain, "EndEntityUsedAsCa");
}

#[test]
fn many_authorities_of_one_name_end_in_a_refusal_soon() {
    let root = Authority::root("root");
    let stranger = Authority::root("same");
    let mut chain = stranger.leaf(WEB).chain;
    chain.extend((0..7).map(|_| stranger.intermediate("same").der()));
    chain.extend((0..7).map(|_| Authority::root("same").intermediate("same").der()));
    let started = std::time::Instant::now();
    assert!(judge(&root.bundle(), &chain).is_err());
    assert!(started.elapsed().as_secs() < 5, "took {:?}", started.elapsed());
}

#[test]
fn a_chain_is_bounded_in_number_and_length() {
    let root = Authority::root("root");
    let mut chain = root.leaf(WEB).chain;
    let unrelated = Authority::root("unrelated").der();
    chain.resize(16, unrelated.clone());
    assert!(judge(&root.bundle(), &chain).is_ok());
    chain.push(unrelated);
    assert_refused("too many", &root.bundle(), &chain, "17 certificates of ");
    chain.truncate(1);
    chain.push(CertificateDer::from(vec![0; 12 * 1024 - chain[0].len()]));
    assert!(judge(&root.bundle(), &chain).is_ok());
    chain.push(CertificateDer::from(vec![0]));
    assert_refused("too long", &root.bundle(), &chain, "3 certificates of 12289 bytes");
}

#[test]
fn only_the_roots_of_the_named_trust_domain_vouch_for_it() {
    let (ours, theirs) = (Authority::root("root"), Authority::root("root"));
    let foreign = theirs.leaf(WEB);
    // The names are the same but the key is another: webpki tries the root, and the signature does
    // not fit.
    assert_refused("foreign root", &ours.bundle(), &foreign.chain, "InvalidSignature");
    let elsewhere = theirs.leaf("spiffe://other.example/web");
    assert_refused("foreign domain", &ours.bundle(), &elsewhere.chain, "is not of trust domain");
    let federated =
        ours.bundle().federated("other.example".parse().unwrap(), [theirs.der()]).unwrap();
    assert!(judge(&federated, &elsewhere.chain).is_ok());
    assert!(judge(&federated, &ours.leaf(WEB).chain).is_ok());
    assert_refused("their root, our name", &federated, &foreign.chain, "InvalidSignature");
    let borrowed = ours.leaf("spiffe://other.example/web");
    assert_refused("our root, their name", &federated, &borrowed.chain, "InvalidSignature");
    let below = ours.intermediate("intermediate").leaf("spiffe://other.example/web");
    assert_refused("our intermediate, their name", &federated, &below.chain, "InvalidSignature");
}

#[test]
fn several_roots_vouch_at_once() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let domain = || DOMAIN.parse().unwrap();
    let both = TrustBundle::new(domain(), [old.der(), new.der()]).unwrap();
    assert!(judge(&both, &old.leaf(WEB).chain).is_ok());
    assert!(judge(&both, &new.leaf(WEB).chain).is_ok());
    assert_refused("removed", &new.bundle(), &old.leaf(WEB).chain, "UnknownIssuer");
    let swapped = TrustBundle::new(domain(), [new.der(), old.der(), new.der()]).unwrap();
    assert_eq!(both, swapped);
}

#[test]
fn validity_includes_both_its_ends_and_nothing_more() {
    let root = Authority::root("root");
    let leaf = root.leaf_with(|params| Authority::validity(params, -10, 10));
    for (seconds, valid) in [(-11, false), (-10, true), (0, true), (10, true), (11, false)] {
        for role in [PeerRole::Client, PeerRole::Server] {
            let verdict = verify_chain(&root.bundle(), &leaf.chain, role, at(seconds));
            assert_eq!(verdict.is_ok(), valid, "{seconds}: {verdict:?}");
        }
    }
}

#[test]
fn a_root_outside_its_validity_vouches_for_nobody() {
    for (from, until) in [(-100, -1), (1, 100)] {
        let root = Authority::root_with("root", |params| Authority::validity(params, from, until));
        let reason = "outside its own period of validity";
        assert_refused("root", &root.bundle(), &root.leaf(WEB).chain, reason);
    }
}

#[test]
fn a_bundle_holds_authorities_only() {
    let root = Authority::root("root");
    let domain = || DOMAIN.parse().unwrap();
    let garbage = CertificateDer::from(b"garbage".to_vec());
    for (roots, reason) in [
        (vec![], "there is no root certificate for trust domain cluster.local"),
        (vec![garbage], "is not usable"),
        (vec![root.der(), root.leaf(WEB).chain.remove(0)], "is not a CA certificate"),
    ] {
        let error = TrustBundle::new(domain(), roots).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
