//! The cryptography that Sluice uses: TLS 1.3, AES-GCM, hybrid key exchange first.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{
    CryptoProvider,
    aws_lc_rs::{self, cipher_suite, kx_group},
};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            // First because it is measurably faster: with SHA-256 in hardware a handshake takes a fifth less time than
            // with SHA-384.
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// Returns the provider of every connection: TLS 1.3 suites with AES-GCM only, and key exchange by X25519MLKEM768,
/// X25519, P-256 and P-384, in that order.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// Returns a uniformly random number from 0 to 1, for jitter.
pub(crate) fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness TLS fails too, and that will be noticed; until then 0.5 serves as jitter.
    match PROVIDER.secure_random.fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
