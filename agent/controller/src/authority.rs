//! The authority that issues now, and the certificate that the server itself shows: both are replaced while it
//! serves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use sluice_spiffe::TrustDomain;
use sluice_tls::{
    Clock, UnixTime,
    ca::{CaError, Endpoint, EndpointError, LocalCa},
};

use crate::{CaMaterial, Standing, server::Settings};

/// gRPC is spoken over HTTP/2 (RFC 9113 section 3.2).
const ALPN: &[u8] = b"h2";
/// How often the server's certificate is checked for renewal. The clock may jump, so one long sleep will not do.
const TICK: Duration = Duration::from_secs(1);
/// How long material that was refused is left alone unless it changes: time alone may make it good.
const RETRY: Duration = Duration::from_secs(10);
/// How long before the authority's expiry warnings begin, and how often they are repeated.
const EXPIRY_NOTICE: Duration = Duration::from_hours(24 * 7);
const EXPIRY_REMINDER: Duration = Duration::from_hours(1);

/// Why the controller cannot start to issue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The authority cannot be opened.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The server has no certificate.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

pub(crate) struct Authority {
    domain: TrustDomain,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    material: Arc<dyn CaMaterial>,
    current: ArcSwap<LocalCa>,
    endpoint: Endpoint,
    first: Validity,
    standing: Arc<Standing>,
}

/// When the server's certificate was made, and its last second.
#[derive(Debug, Clone, Copy)]
struct Validity {
    made: UnixTime,
    last: UnixTime,
}

// === impl Authority ===

impl Authority {
    pub(crate) async fn open(
        settings: &Settings,
        material: Arc<dyn CaMaterial>,
        clock: Arc<dyn Clock>,
        standing: Arc<Standing>,
    ) -> Result<Self, OpenError> {
        let domain = settings.trust_domain.clone();
        let current = material.open(&domain, Arc::clone(&clock)).await?;
        let made = clock.now();
        let names = &settings.server_names;
        let (endpoint, last) = Endpoint::open(&current, names, ALPN, settings.ttl)?;
        let first = Validity { made, last };
        standing.authority_is(current.not_after());
        standing.server_is(last);
        material.issues(&current);
        let ttl = settings.ttl;
        let current = ArcSwap::from_pointee(current);
        Ok(Self { domain, ttl, clock, material, current, endpoint, first, standing })
    }

    pub(crate) fn current(&self) -> Arc<LocalCa> {
        self.current.load_full()
    }

    pub(crate) fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns whether `authority` has expired, and may not issue any more.
    pub(crate) fn has_expired(&self, authority: &LocalCa) -> bool {
        authority.not_after() <= self.clock.now()
    }

    /// Follows the material and renews the server's certificate, for ever.
    pub(crate) async fn follow(&self) {
        let (mut own, mut coming) = (self.first, None);
        let (mut retry, mut said, mut reminded) = (None::<Instant>, String::new(), None::<Instant>);
        loop {
            let changed = tokio::select! {
                () = self.material.changed() => true,
                () = tokio::time::sleep(TICK) => false,
            };
            let again = retry.is_some_and(|at| at <= Instant::now());
            let mut reloaded = false;
            if changed || again {
                match self.reload(&mut coming).await {
                    Ok(issues) => (reloaded, retry) = (issues, None),
                    Err(error) => {
                        retry = Some(Instant::now() + RETRY);
                        let text = error.to_string();
                        if text != said {
                            tracing::error!(error = %text, "the CA stays as it was before");
                        }
                        said = text;
                    }
                }
            }
            if let Some(new) = coming.take_if(|new| self.may_issue(new)) {
                self.issue_with(new);
                reloaded = true;
            }
            if reloaded || own.is_due(self.clock.now()) {
                own = self.renew().unwrap_or(own);
            }
            self.remind(&mut reminded);
        }
    }

    /// Reads the authority as it is now. Returns whether it issues already; otherwise it is `coming`.
    async fn reload(&self, coming: &mut Option<LocalCa>) -> Result<bool, CaError> {
        let new = self.material.open(&self.domain, Arc::clone(&self.clock)).await?;
        *coming = None;
        if self.may_issue(&new) {
            self.issue_with(new);
            return Ok(true);
        }
        tracing::info!("the CA has a new root: it issues once agents have had time to learn of it");
        *coming = Some(new);
        Ok(false)
    }

    /// Returns whether agents know the root of `new`, or have no use for what is issued until then.
    fn may_issue(&self, new: &LocalCa) -> bool {
        let current = self.current();
        self.material.are_roots_known(new) == Some(true)
            || !current.is_believed_under(current.roots())
    }

    fn issue_with(&self, new: LocalCa) {
        let not_after = new.not_after().as_secs();
        tracing::info!(trust_domain = %self.domain, not_after, "issuing with the CA as it is now");
        self.standing.authority_is(new.not_after());
        self.material.issues(&new);
        self.current.store(Arc::new(new));
    }

    fn renew(&self) -> Option<Validity> {
        let made = self.clock.now();
        match self.endpoint.renew(&self.current(), self.ttl) {
            Ok(last) => {
                self.standing.server_is(last);
                tracing::info!(not_after = last.as_secs(), "renewed the server's certificate");
                Some(Validity { made, last })
            }
            Err(error) => {
                tracing::error!(%error, "the server's certificate cannot be renewed");
                None
            }
        }
    }

    fn remind(&self, reminded: &mut Option<Instant>) {
        let left = self.current().not_after().as_secs().saturating_sub(self.clock.now().as_secs());
        if left > EXPIRY_NOTICE.as_secs()
            || reminded.is_some_and(|at| at.elapsed() < EXPIRY_REMINDER)
        {
            return;
        }
        *reminded = Some(Instant::now());
        tracing::warn!(seconds_left = left, "the CA's own certificate expires soon: renew it");
    }
}

// === impl Validity ===

impl Validity {
    /// Returns whether half of the certificate's life is over, or the clock has gone back to before it.
    fn is_due(self, now: UnixTime) -> bool {
        let (made, last, now) = (self.made.as_secs(), self.last.as_secs(), now.as_secs());
        now >= made + last.saturating_sub(made) / 2 || now + 60 < made
    }
}
