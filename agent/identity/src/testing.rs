//! Authorities and certificates of the tests, valid now.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use sluice_tls::{CertRequest, CertificateDer};
use time::OffsetDateTime;

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";
pub(crate) const HOUR: i64 = 3600;

/// An authority that signs whatever it is told to.
pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn from_now(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::seconds(seconds)
}

impl Pki {
    pub(crate) fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(authority(name), key).unwrap() }
    }

    pub(crate) fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::signed_by(authority(name), key, &self.issuer).unwrap() }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// The certificate (PEM) of workload `id` for the key of the request `csr`, valid for `seconds` from now.
    pub(crate) fn certify(&self, csr: &str, id: &str, seconds: i64) -> String {
        let csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        self.leaf(&csr.public_key, id, seconds).pem()
    }

    /// A certificate of workload `id` (DER) with its key (PKCS #8).
    pub(crate) fn pair(&self, id: &str, seconds: i64) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        (self.leaf(&key, id, seconds).der().to_vec(), key.serialize_der())
    }

    fn leaf(&self, key: &impl PublicKeyData, id: &str, seconds: i64) -> rcgen::Certificate {
        let mut params = named("");
        params.distinguished_name = DistinguishedName::new();
        params.not_before = from_now(-2 * HOUR);
        params.not_after = from_now(seconds);
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.issuer).unwrap()
    }

    /// The certificate and key of a server called `names`, PEM.
    pub(crate) fn server(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = from_now(-HOUR);
        params.not_after = from_now(24 * HOUR);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A request for `id`, as the store makes them.
pub(crate) fn request(id: &str) -> CertRequest {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    CertRequest { id: id.parse().unwrap(), csr: csr.into(), ttl: Duration::from_hours(1) }
}
