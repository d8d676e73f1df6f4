//! The stream of one identity's certificates.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use sluice_grpc::spire::{
    Selector, SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse, X509svidWithKey,
    delegated_identity_client::DelegatedIdentityClient,
};
use sluice_spiffe::{SpiffeId, TrustDomain, WorkloadName};
use sluice_tls::{CertificateDer, IssueError, Issued, IssuedChain, MadeKey};
use tokio::{sync::watch, task::AbortHandle, time};
use tonic::{Code, Status, transport::Channel};
use zeroize::Zeroizing;

use super::{pause_after, trust_domain};
use crate::words::{one_line, with_causes};

/// The longest push that is read: certificates and keys of all entries that match; many times what
/// is usual.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// The stream of one identity's certificates, and what SPIRE last pushed on it. It is closed when
/// dropped.
#[derive(Debug)]
pub(super) struct Stream {
    state: watch::Receiver<State>,
    /// The serial number of the state that the store was last told.
    told: AtomicU64,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct State {
    /// Counts SPIRE's pushes.
    serial: u64,
    said: Option<Said>,
    /// Why the stream is closed; `None` while it is open.
    trouble: Option<Trouble>,
}

/// What SPIRE said last.
#[derive(Clone, Debug)]
enum Said {
    Has(Arc<Pair>),
    /// SPIRE has nothing for the identity; the text says why.
    HasNot(String),
}

#[derive(Clone, Debug)]
enum Trouble {
    Refused(String),
    Unreachable(String),
}

struct Pair {
    certificates: Vec<CertificateDer<'static>>,
    key: Zeroizing<Vec<u8>>,
    federates_with: BTreeSet<TrustDomain>,
}

// === impl Stream ===

impl Stream {
    /// Opens the stream for `id`, and keeps it open.
    pub(super) fn open(channel: Channel, id: SpiffeId, workload: &WorkloadName) -> Arc<Self> {
        let selector = |value| Selector { r#type: "k8s".to_owned(), value };
        let selectors = vec![
            selector(format!("ns:{}", workload.namespace)),
            selector(format!("sa:{}", workload.service_account)),
        ];
        let (sender, state) = watch::channel(State::default());
        let task = tokio::spawn(follow(channel, id, selectors, sender)).abort_handle();
        Arc::new(Self { state, told: AtomicU64::new(0), task })
    }

    /// Waits until SPIRE has pushed something that the store has not been told.
    pub(super) async fn newer(&self) {
        let told = |state: &State| state.serial != self.told.load(Ordering::Acquire);
        if self.state.clone().wait_for(told).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the stream is in trouble.
    pub(super) async fn fails(&self) {
        let fails = |state: &State| state.trouble.is_some();
        if self.state.clone().wait_for(fails).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns what SPIRE said last about `id`, or why the stream is in trouble. Waits until there
    /// is one or the other.
    pub(super) async fn take(&self, id: &SpiffeId) -> Result<Issued, IssueError> {
        let id = id.clone();
        let mut state = self.state.clone();
        let known = |state: &State| state.said.is_some() || state.trouble.is_some();
        let (said, trouble) = match state.wait_for(known).await {
            Ok(state) => {
                self.told.store(state.serial, Ordering::Release);
                (state.said.clone(), state.trouble.clone())
            }
            Err(closed) => return Err(IssueError::Unreachable { id, source: closed.into() }),
        };
        match (trouble, said) {
            (Some(Trouble::Refused(rule)), _) | (None, Some(Said::HasNot(rule))) => {
                Err(IssueError::Refused { id, rule })
            }
            (Some(Trouble::Unreachable(words)), _) => {
                Err(IssueError::Unreachable { id, source: words.into() })
            }
            (None, Some(Said::Has(pair))) => {
                let chain = IssuedChain { certificates: pair.certificates.clone() };
                let key = MadeKey::new(pair.key.to_vec());
                Ok(Issued::Made { chain, key, federates_with: pair.federates_with.clone() })
            }
            (None, None) => Err(IssueError::Unreachable { id, source: "BUG: no answer".into() }),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

async fn follow(
    channel: Channel,
    id: SpiffeId,
    selectors: Vec<Selector>,
    state: watch::Sender<State>,
) {
    let mut failures = 0;
    loop {
        let ended = listen(channel.clone(), &id, &selectors, &state, &mut failures).await;
        let words = with_causes(&format!("{:?}: {}", ended.code(), ended.message()), &ended);
        let pause = pause_after(failures);
        failures += 1;
        tracing::warn!(identity = %id, reason = words, retry_ms = pause.as_millis(), "the SPIRE agent's stream ended");
        let refused = matches!(
            ended.code(),
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument
        );
        state.send_modify(|state| {
            state.trouble =
                Some(if refused { Trouble::Refused(words) } else { Trouble::Unreachable(words) });
        });
        time::sleep(pause).await;
    }
}

/// Takes over what is pushed until the stream ends.
async fn listen(
    channel: Channel,
    id: &SpiffeId,
    selectors: &[Selector],
    state: &watch::Sender<State>,
    failures: &mut u32,
) -> Status {
    let mut client =
        DelegatedIdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let request = SubscribeToX509sviDsRequest { selectors: selectors.to_vec(), pid: 0 };
    let mut stream = match client.subscribe_to_x509svi_ds(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                *failures = 0;
                let said = choose(message, id);
                state.send_modify(|state| {
                    state.serial += 1;
                    state.said = Some(said);
                    state.trouble = None;
                });
            }
            Ok(None) => return Status::unavailable("the SPIRE agent closed the stream"),
            Err(status) => return status,
        }
    }
}

/// Picks the certificate of exactly `id`; the others that match the selectors are for somebody
/// else.
fn choose(message: SubscribeToX509sviDsResponse, id: &SpiffeId) -> Said {
    // Whoever runs as this service account is described by the same selectors, so this is about `id` too.
    let federates_with: BTreeSet<TrustDomain> =
        message.federates_with.iter().filter_map(|name| trust_domain(name).ok()).collect();
    let mut others = Vec::new();
    let mut chosen = None;
    for X509svidWithKey { x509_svid, x509_svid_key } in message.x509_svids {
        let key = Zeroizing::new(x509_svid_key);
        let Some(svid) = x509_svid else { continue };
        let name = svid.id.map_or_else(String::new, |name| {
            format!("spiffe://{}{}", name.trust_domain, name.path)
        });
        if name != id.as_str() {
            others.push(name);
        } else if chosen.is_none() {
            let certificates = svid.cert_chain.into_iter().map(CertificateDer::from).collect();
            let federates_with = federates_with.clone();
            chosen = Some(Arc::new(Pair { certificates, key, federates_with }));
        }
    }
    match chosen {
        Some(pair) => Said::Has(pair),
        None if others.is_empty() => Said::HasNot(
            "SPIRE has no entry for its namespace and service account: register one".to_owned(),
        ),
        None => Said::HasNot(format!(
            "SPIRE's entries for its namespace and service account are for {} only",
            one_line(&others.join(", "))
        )),
    }
}
