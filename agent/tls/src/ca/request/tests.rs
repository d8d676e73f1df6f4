//! Which requests are signed. Those that rcgen cannot make are files made by openssl.

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, KeyPair};

use super::*;
use crate::{
    DEFAULT_TTL,
    svid::{self, Svid},
    testing::{DOMAIN, WEB, test_clock, uri},
};

fn authority() -> (tempfile::TempDir, LocalCa) {
    let dir = tempfile::tempdir().unwrap();
    let domain = DOMAIN.parse().unwrap();
    let ca = LocalCa::embedded(&dir.path().join("ca"), &domain, test_clock()).unwrap();
    (dir, ca)
}

fn request(key: &KeyPair, names: &[&str], edit: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.iter().copied().map(uri).collect();
    edit(&mut params);
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn p256(names: &[&str]) -> String {
    request(&KeyPair::generate().unwrap(), names, |_| {})
}

#[test]
fn keys_on_p256_and_p384_are_signed_as_what_they_are() {
    let (_dir, ca) = authority();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let read = SigningRequest::from_pem(request(&key, &[WEB], |_| {}).as_bytes()).unwrap();
        let chain = ca.sign_for(&WEB.parse().unwrap(), &read, DEFAULT_TTL).unwrap();
        let leaf = svid::parse(&chain.certificates[0]).unwrap();
        assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    }
}

#[test]
fn keys_that_are_weak_or_of_another_kind_are_not() {
    let rsa = request(&KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap(), &[WEB], |_| {});
    let ed25519 = request(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(), &[WEB], |_| {});
    for pem in [
        rsa.as_str(),
        &ed25519,
        include_str!("rsa1024.csr"),
        include_str!("p224.csr"),
        include_str!("p256-sha384.csr"),
    ] {
        let error = SigningRequest::from_pem(pem.as_bytes()).unwrap_err();
        assert!(matches!(error, RequestError::Key { .. }), "{error}");
    }
}

#[test]
fn what_is_not_a_request_is_refused() {
    let pem = p256(&[WEB]);
    let cut = pem.replace("-----END CERTIFICATE REQUEST-----", "");
    for text in ["", "spiffe://cluster.local/ns/shop/sa/web", &cut, &pem.replace("REQUEST", "X")] {
        let error = SigningRequest::from_pem(text.as_bytes()).unwrap_err();
        assert!(matches!(error, RequestError::Pem(_)), "{text}: {error}");
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let read = |der: &[u8]| SigningRequest::from_der(&der.to_vec().into()).unwrap_err();
    assert!(matches!(read(&[der.as_slice(), &[0]].concat()), RequestError::Trailing));
    for end in 0..der.len() {
        read(&der[..end]);
    }
    // Outside the signed part the same thing can be encoded in two ways; what is signed stays the same.
    let whole = SigningRequest::from_pem(pem.as_bytes()).unwrap();
    for index in 0..der.len() {
        let mut other = der.clone();
        other[index] ^= 1;
        if let Ok(read) = SigningRequest::from_der(&other.into()) {
            assert_eq!(
                (read.public_key, read.names),
                (whole.public_key.clone(), whole.names.clone())
            );
            assert!(index >= der.len() - 90, "the signed part was changed at {index}");
        }
    }
}

#[test]
fn names_must_not_contradict_and_none_is_added() {
    let (_dir, ca) = authority();
    let id = WEB.parse().unwrap();
    let sign = |names: &[&str]| {
        ca.sign_for(&id, &SigningRequest::from_pem(p256(names).as_bytes()).unwrap(), DEFAULT_TTL)
    };
    for names in [[].as_slice(), &[WEB]] {
        let chain = sign(names).unwrap();
        assert_eq!(Svid::read(&chain.certificates[0]).unwrap().id, id);
    }
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    for names in [[other].as_slice(), &[WEB, other], &[other, WEB], &[WEB, WEB]] {
        let error = sign(names).unwrap_err().to_string();
        assert!(error.contains("the identity as its only name"), "{error}");
    }
}

#[test]
fn a_request_does_not_widen_what_is_issued() {
    let (_dir, ca) = authority();
    let pem = request(&KeyPair::generate().unwrap(), &[WEB], |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
    });
    // A request that asks to be an authority is signed as a workload's, and as nothing else.
    let read = SigningRequest::from_pem(pem.as_bytes()).unwrap();
    let chain = ca.sign_for(&WEB.parse().unwrap(), &read, DEFAULT_TTL).unwrap();
    let leaf = svid::parse(&chain.certificates[0]).unwrap();
    assert_eq!(Svid::read(&chain.certificates[0]).unwrap().id.as_str(), WEB);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.extended_key_usage().unwrap().unwrap().value.code_signing);
}
