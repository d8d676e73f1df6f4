//! X509-SVID sections 2, 3.1 and 4: names, basic constraints, key usage and purposes of a leaf.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose as Purpose, IsCa, KeyUsagePurpose as Usage, SanType,
};

use super::{assert_refused, judge};
use crate::{
    PeerRole,
    testing::{Authority, WEB, at, san_extension, uri},
    verify_chain,
};

type Change = fn(&mut CertificateParams);

/// Replaces the names by raw ones: (tag number, content).
fn names(params: &mut CertificateParams, names: &[(u8, &[u8])]) {
    params.subject_alt_names.clear();
    params.custom_extensions.push(san_extension(names));
}

#[test]
fn what_a_leaf_may_be() {
    let root = Authority::root("root");
    let vectors: [(&str, Change); 9] = [
        ("as we issue it", |_| {}),
        ("explicitly no CA", |params| params.is_ca = IsCa::ExplicitNoCa),
        ("a subject that lies", |params| {
            params.distinguished_name.push(DnType::CommonName, "spiffe://other/root");
        }),
        ("DNS, mail and address names beside the URI", |params| {
            params.subject_alt_names.extend([
                SanType::DnsName("web.shop".try_into().unwrap()),
                SanType::Rfc822Name("a@b".try_into().unwrap()),
                SanType::IpAddress([10, 0, 0, 1].into()),
            ]);
        }),
        ("an other name beside the URI", |params| {
            params.subject_alt_names.push(SanType::OtherName((
                vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3],
                rcgen::OtherNameValue::Utf8String("spiffe://cluster.local/other".into()),
            )));
        }),
        ("a registered id beside the URI", |params| {
            names(params, &[(8, &[0x2a, 0x03, 0x04]), (6, WEB.as_bytes())]);
        }),
        ("no extended key usage", |params| params.extended_key_usages.clear()),
        ("keyEncipherment and keyAgreement too", |params| {
            params.key_usages.extend([Usage::KeyEncipherment, Usage::KeyAgreement]);
        }),
        ("an unknown extension that is not critical", |params| {
            let extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            params.custom_extensions.push(extension);
        }),
    ];
    for (name, change) in vectors {
        let svid = judge(&root.bundle(), &root.leaf_with(change).chain);
        assert_eq!(svid.map(|svid| svid.id.to_string()), Ok(WEB.to_owned()), "{name}");
    }
}

#[test]
fn what_a_leaf_must_not_be_called() {
    let root = Authority::root("root");
    let vectors: [(&str, Change, &str); 10] = [
        ("no name at all", |params| params.subject_alt_names.clear(), "no URI name"),
        ("a DNS name alone", |params| names(params, &[(2, b"web.shop")]), "no URI name"),
        (
            "the identity as a DNS name",
            |params| names(params, &[(2, WEB.as_bytes())]),
            "no URI name",
        ),
        (
            "the identity as common name",
            |params| {
                params.subject_alt_names.clear();
                params.distinguished_name.push(DnType::CommonName, WEB);
            },
            "no URI name",
        ),
        (
            "two identities",
            |params| params.subject_alt_names.push(uri("spiffe://cluster.local/other")),
            "holds 2 URI names",
        ),
        (
            "the same identity twice",
            |params| params.subject_alt_names.push(uri(WEB)),
            "holds 2 URI names",
        ),
        (
            "an identity and a web address",
            |params| params.subject_alt_names.push(uri("https://example.org")),
            "holds 2 URI names",
        ),
        (
            "a URI that is not UTF-8",
            |params| names(params, &[(6, b"spiffe://cluster.local/w\xffb")]),
            "not well formed",
        ),
        (
            "a good URI and one that is not UTF-8",
            |params| names(params, &[(6, WEB.as_bytes()), (6, b"\xff")]),
            "not well formed",
        ),
        (
            "two extensions of names",
            |params| {
                let extension = san_extension(&[(6, b"spiffe://cluster.local/other")]);
                params.custom_extensions.push(extension);
            },
            "cannot be read",
        ),
    ];
    for (name, change, reason) in vectors {
        assert_refused(name, &root.bundle(), &root.leaf_with(change).chain, reason);
    }
}

#[test]
fn what_a_leaf_must_not_be_allowed() {
    let root = Authority::root("root");
    let vectors: [(&str, Change, &str); 9] = [
        (
            "a CA",
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "is a CA certificate",
        ),
        (
            "a CA of no depth",
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            "is a CA certificate",
        ),
        ("keyCertSign", |params| params.key_usages.push(Usage::KeyCertSign), "keyCertSign"),
        ("cRLSign", |params| params.key_usages.push(Usage::CrlSign), "cRLSign"),
        ("no key usage", |params| params.key_usages.clear(), "has no key usage"),
        (
            "no digitalSignature",
            |params| params.key_usages = vec![Usage::KeyAgreement],
            "digitalSignature",
        ),
        (
            "only for signing code",
            |params| params.extended_key_usages = vec![Purpose::CodeSigning],
            "RequiredEkuNotFound",
        ),
        (
            "only for any purpose",
            |params| params.extended_key_usages = vec![Purpose::Any],
            "RequiredEkuNotFound",
        ),
        (
            "an unknown critical extension",
            |params| {
                let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                extension.set_criticality(true);
                params.custom_extensions.push(extension);
            },
            "UnsupportedCriticalExtension",
        ),
    ];
    for (name, change, reason) in vectors {
        let chain = root.leaf_with(change).chain;
        if reason.starts_with("RequiredEku") {
            for role in [PeerRole::Client, PeerRole::Server] {
                let error = verify_chain(&root.bundle(), &chain, role, at(0)).unwrap_err();
                assert!(error.to_string().contains(reason), "{name}: {error}");
            }
        } else {
            assert_refused(name, &root.bundle(), &chain, reason);
        }
    }
}

#[test]
fn a_purpose_of_one_side_is_no_purpose_of_the_other() {
    let root = Authority::root("root");
    for (purpose, fit, unfit) in [
        (Purpose::ServerAuth, PeerRole::Server, PeerRole::Client),
        (Purpose::ClientAuth, PeerRole::Client, PeerRole::Server),
    ] {
        let leaf = root.leaf_with(|params| params.extended_key_usages = vec![purpose]);
        assert!(verify_chain(&root.bundle(), &leaf.chain, fit, at(0)).is_ok());
        let error = verify_chain(&root.bundle(), &leaf.chain, unfit, at(0)).unwrap_err();
        assert!(error.to_string().contains("RequiredEkuNotFound"), "{error}");
        let again = super::super::verify_in_any_role(&root.bundle(), &leaf.chain, at(0));
        assert_eq!(again.unwrap().svid.id.as_str(), WEB);
    }
}

#[test]
fn what_is_not_a_certificate_is_refused() {
    let root = Authority::root("root");
    let good = root.leaf(WEB).chain.remove(0);
    let mut longer = good.to_vec();
    longer.push(0);
    let shorter = good[..good.len() - 1].to_vec();
    let mut altered = good.to_vec();
    let middle = altered.windows(3).position(|window| window == b"web").unwrap();
    altered[middle] = b'v';
    for (name, bytes, reason) in [
        ("empty", Vec::new(), "cannot be read"),
        ("text", b"-----BEGIN CERTIFICATE-----".to_vec(), "cannot be read"),
        ("a byte too many", longer, "cannot be read"),
        ("a byte too few", shorter, "cannot be read"),
        ("another name under the same signature", altered, "InvalidSignature"),
    ] {
        assert_refused(name, &root.bundle(), &[bytes.into()], reason);
    }
    assert_refused("no certificate", &root.bundle(), &[], "no certificate was presented");
}
