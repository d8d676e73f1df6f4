//! The lab's authorities and trust files: what an agent issues from, which roots it trusts, revocation lists.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::mesh::replace;

/// A self-signed authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A directory of trust files that both agents of a lab follow.
#[derive(Clone, Debug)]
pub struct TrustFiles {
    directory: std::path::PathBuf,
}

// === impl Authority ===

impl Authority {
    /// Makes an authority that is valid for a year.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(365);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Returns the authority's certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Returns the authority's key, PKCS #8 in PEM.
    pub fn key_pem(&self) -> String {
        self.0.key().serialize_pem()
    }

    /// Returns a revocation list with these serial numbers, given in hexadecimal.
    pub fn crl(&self, number: u64, serials: &[&str]) -> Result<String> {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &&str| {
            let odd = if serial.len() % 2 == 1 { "0" } else { "" };
            let digits = format!("{odd}{serial}");
            let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2).unwrap_or("?"), 16);
            let bytes: Vec<u8> =
                (0..digits.len()).step_by(2).map(byte).collect::<Result<_, _>>()?;
            Ok::<_, anyhow::Error>(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            })
        };
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::days(1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.0)?.pem()?)
    }
}

// === impl TrustFiles ===

impl TrustFiles {
    /// Creates the trust files of a world: `authority` issues and is the only root, and nobody is denied or revoked.
    pub fn create(world: &Path, authority: &Authority) -> Result<Self> {
        let files = Self { directory: world.join("trust") };
        fs::create_dir_all(&files.directory).context("create the directory of trust files")?;
        files.issue_from(authority)?;
        files.believe(&[authority])?;
        files.deny(&[])?;
        files.revoke(&authority.crl(1, &[])?)?;
        Ok(files)
    }

    /// Returns the configuration of an agent that follows these files, with certificates of the shortest lifetime.
    pub fn config(&self) -> String {
        let at = |name: &str| self.directory.join(name).display().to_string();
        format!(
            "ca: {{ mode: pem, ttl: 1m, certificate: {}, key: {}, roots: {} }}\n\
             trust: {{ denied: {}, crls: [{}] }}\n\
             metrics: 127.0.0.1:15020\n",
            at("ca.crt"),
            at("ca.key"),
            at("roots.pem"),
            at("denied.yaml"),
            at("list.crl"),
        )
    }

    /// Lets `authority` issue from now on.
    pub fn issue_from(&self, authority: &Authority) -> Result<()> {
        replace(&self.directory.join("ca.crt"), &authority.pem())?;
        replace(&self.directory.join("ca.key"), &authority.key_pem())
    }

    /// Makes these authorities the roots.
    pub fn believe(&self, roots: &[&Authority]) -> Result<()> {
        let text: String = roots.iter().map(|root| root.pem()).collect();
        replace(&self.directory.join("roots.pem"), &text)
    }

    /// Makes these the denied identities.
    pub fn deny(&self, identities: &[&str]) -> Result<()> {
        replace(&self.directory.join("denied.yaml"), &serde_json::to_string(identities)?)
    }

    /// Makes this the revocation list.
    pub fn revoke(&self, list: &str) -> Result<()> {
        replace(&self.directory.join("list.crl"), list)
    }
}
