//! The stream of trust bundles.

use std::collections::HashMap;

use sluice_grpc::spire::{
    SubscribeToX509BundlesRequest, delegated_identity_client::DelegatedIdentityClient,
};
use sluice_spiffe::TrustDomain;
use sluice_tls::certificates_of_der;
use tokio::{sync::watch, time};
use tonic::{Status, transport::Channel};

use super::{pause_after, trust_domain};
use crate::{
    Delivered,
    words::{one_line, with_causes},
};

/// The longest push that is read: all bundles of a node, with room for hundreds of trust domains.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Takes over every set of bundles that is pushed, until it is aborted.
pub(super) async fn follow(
    channel: Channel,
    domain: TrustDomain,
    delivered: watch::Sender<Delivered>,
) {
    let mut failures = 0;
    loop {
        let ended = listen(channel.clone(), &domain, &delivered, &mut failures).await;
        let reason = with_causes(&format!("{:?}: {}", ended.code(), ended.message()), &ended);
        let pause = pause_after(failures);
        failures += 1;
        tracing::warn!(
            reason,
            retry_ms = pause.as_millis(),
            known = !delivered.borrow().local.is_empty(),
            "the SPIRE agent's stream of bundles ended; the last ones stay in use"
        );
        time::sleep(pause).await;
    }
}

async fn listen(
    channel: Channel,
    domain: &TrustDomain,
    delivered: &watch::Sender<Delivered>,
    failures: &mut u32,
) -> Status {
    let mut client =
        DelegatedIdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let request = SubscribeToX509BundlesRequest {};
    let mut stream = match client.subscribe_to_x509_bundles(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                *failures = 0;
                let Some(new) = read(message.ca_certificates, domain) else { continue };
                delivered.send_if_modified(|known| {
                    let changed = *known != new;
                    *known = new;
                    changed
                });
            }
            Ok(None) => return Status::unavailable("the SPIRE agent closed the stream"),
            Err(status) => return status,
        }
    }
}

/// Returns the bundles of a push, or `None` if ours is not among them: what was known then stays. A federated bundle
/// that cannot be read is left out, so its domain is not believed.
fn read(bundles: HashMap<String, Vec<u8>>, domain: &TrustDomain) -> Option<Delivered> {
    let mut delivered = Delivered::default();
    for (name, der) in bundles {
        let of = match trust_domain(&name) {
            Ok(of) => of,
            Err(error) => {
                tracing::warn!(name = one_line(&name), %error, "SPIRE pushed a bundle without a trust domain");
                continue;
            }
        };
        match certificates_of_der(&der) {
            Ok(certificates) if of == *domain => delivered.local = certificates,
            Ok(certificates) if certificates.is_empty() => {}
            Ok(certificates) => drop(delivered.federated.insert(of, certificates)),
            Err(error) => {
                tracing::warn!(trust_domain = %of, %error, "SPIRE pushed a bundle that cannot be read");
            }
        }
    }
    if delivered.local.is_empty() {
        tracing::warn!(trust_domain = %domain, "SPIRE's bundles are not used: there are no roots of our trust domain among them");
        return None;
    }
    Some(delivered)
}
