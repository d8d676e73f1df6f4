//! Vectors with real certificates: what X509-SVID and SPIFFE-ID demand, one row each.

mod chains;
mod identifiers;
mod shapes;

use rustls_pki_types::CertificateDer;

use super::{PeerRole, verify_chain};
use crate::{Svid, TrustBundle, testing::at};

/// Judges `chain` in both roles, whose verdicts must agree.
fn judge(bundle: &TrustBundle, chain: &[CertificateDer<'_>]) -> Result<Svid, String> {
    let as_client = verify_chain(bundle, chain, PeerRole::Client, at(0));
    let as_server = verify_chain(bundle, chain, PeerRole::Server, at(0));
    assert_eq!(as_client, as_server);
    as_client.map_err(|error| error.to_string())
}

/// Fails unless `chain` is refused with a message that holds `reason`.
fn assert_refused(name: &str, bundle: &TrustBundle, chain: &[CertificateDer<'_>], reason: &str) {
    match judge(bundle, chain) {
        Ok(svid) => panic!("{name}: accepted as {}", svid.id),
        Err(error) => assert!(error.contains(reason), "{name}: refused for {error:?}"),
    }
}
