//! Authorities and leaves made by rcgen; what it refuses to make is written as raw DER.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, CertifiedIssuer, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime,
};
use time::OffsetDateTime;

use crate::{
    Identity, Svid, TestClock, TrustBundle, identity::Trust, issuer::Certified, provider::provider,
};

/// The trust domain of most tests.
pub(crate) const DOMAIN: &str = "cluster.local";
/// The workload of most tests.
pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// When the tests take place: 2030-01-01.
pub(crate) const NOW: u64 = 1_893_456_000;

/// An authority that signs whatever it is told to.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Certificates between this one and the root, this one first.
    intermediates: Vec<CertificateDer<'static>>,
}

/// A leaf with its chain and key.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    /// The first of `chain` as PEM.
    pub(crate) pem: String,
}

/// The time `seconds` after [`NOW`], or before it if negative.
pub(crate) fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW.checked_add_signed(seconds).unwrap()))
}

/// A clock that shows [`NOW`].
pub(crate) fn test_clock() -> Arc<TestClock> {
    TestClock::at(at(0))
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A subject alternative name extension of raw (tag number, content) names.
pub(crate) fn san_extension(names: &[(u8, &[u8])]) -> CustomExtension {
    let names: Vec<u8> = names.iter().flat_map(|(tag, text)| der(0x80 | tag, text)).collect();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], der(0x30, &names))
}

/// One DER element of at most 65535 bytes.
pub(crate) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut element = vec![tag];
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    match content.len() {
        0..0x80 => element.push(low),
        0x80..0x100 => element.extend([0x81, low]),
        _ => element.extend([0x82, high, low]),
    }
    element.extend(content);
    element
}

fn date(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at(seconds).as_secs().try_into().unwrap()).unwrap()
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date(-86_400);
    params.not_after = date(86_400 * 365);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(-60);
    params.not_after = date(3600);
    params.subject_alt_names = vec![uri(WEB)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

// === impl Authority ===

impl Authority {
    /// A root named `name`.
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    pub(crate) fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority_params(name);
        change(&mut params);
        Self::self_signed(params, KeyPair::generate().unwrap())
    }

    /// A root with a key of any kind.
    pub(crate) fn root_of(name: &str, key: KeyPair) -> Self {
        Self::self_signed(authority_params(name), key)
    }

    fn self_signed(params: CertificateParams, key: KeyPair) -> Self {
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Self { issuer, intermediates: Vec::new() }
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(name, |_| {})
    }

    pub(crate) fn intermediate_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = authority_params(name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let mut intermediates = vec![issuer.der().clone()];
        intermediates.extend(self.intermediates.iter().cloned());
        Self { issuer, intermediates }
    }

    /// A certificate by this authority for the key of `other`, the authority `name`, good for `seconds`
    /// after [`NOW`].
    pub(crate) fn cross_signed(
        &self,
        other: &Self,
        name: &str,
        seconds: i64,
    ) -> CertificateDer<'static> {
        let mut params = authority_params(name);
        params.not_after = date(seconds);
        params.signed_by(other.issuer.key(), &self.issuer).unwrap().into()
    }

    /// Sets the validity of `params` in seconds relative to [`NOW`].
    pub(crate) fn validity(params: &mut CertificateParams, from: i64, until: i64) {
        params.not_before = date(from);
        params.not_after = date(until);
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A revocation list in PEM that holds the serial numbers `revoked` and is good for `seconds`
    /// after [`NOW`].
    pub(crate) fn crl_pem(&self, number: u64, revoked: &[u64], seconds: i64) -> String {
        self.crl_part_pem(None, number, revoked, seconds)
    }

    /// As [`Self::crl_pem`], about the certificates that name `point` alone.
    pub(crate) fn crl_part_pem(
        &self,
        point: Option<&str>,
        number: u64,
        revoked: &[u64],
        seconds: i64,
    ) -> String {
        let uris = |point: &str| CrlDistributionPoint { uris: vec![point.to_owned()] };
        let issuing =
            |point| CrlIssuingDistributionPoint { distribution_point: uris(point), scope: None };
        let revoked_certs = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date(-60),
            reason_code: None,
            invalidity_date: None,
        });
        CertificateRevocationListParams {
            this_update: date(-60),
            next_update: date(seconds),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: point.map(issuing),
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .unwrap()
        .pem()
        .unwrap()
    }

    /// The PEM text of the certificate and of its key.
    pub(crate) fn pem(&self) -> (String, String) {
        (self.issuer.pem(), self.issuer.key().serialize_pem())
    }

    /// A bundle that trusts this root alone for [`DOMAIN`].
    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(DOMAIN.parse().unwrap(), [self.der()]).unwrap()
    }

    /// A good leaf for `id` with the key of `csr`, whatever else the request asks for.
    pub(crate) fn certify(
        &self,
        csr: &CertificateSigningRequestDer<'_>,
        id: &str,
    ) -> CertificateDer<'static> {
        let csr = CertificateSigningRequestParams::from_der(csr).unwrap();
        let mut params = leaf_params();
        params.subject_alt_names = vec![uri(id)];
        params.signed_by(&csr.public_key, &self.issuer).unwrap().into()
    }

    /// A good leaf for `id`.
    pub(crate) fn leaf(&self, id: &str) -> Leaf {
        self.leaf_with(|params| params.subject_alt_names = vec![uri(id)])
    }

    /// A good leaf for [`WEB`] after `change`.
    pub(crate) fn leaf_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = leaf_params();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let pem = leaf.pem();
        let mut chain = vec![leaf.into()];
        chain.extend(self.intermediates.iter().cloned());
        Leaf { chain, key, pem }
    }
}

// === impl Leaf ===

impl Leaf {
    /// The chain with its key, as rustls holds them.
    pub(crate) fn certified(self) -> Arc<CertifiedKey> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let key = provider().key_provider.load_private_key(key).unwrap();
        Arc::new(CertifiedKey::new(self.chain, key))
    }

    /// The identity that the store would make of it.
    pub(crate) fn identity(self, trust: Trust, predecessor: Option<&Identity>) -> Identity {
        let svid = Svid::read(&self.chain[0]).unwrap();
        let certified = Certified { key: self.certified(), federates_with: BTreeSet::new() };
        Identity::new(svid, certified, trust, predecessor).unwrap()
    }
}
