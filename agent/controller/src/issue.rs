//! One request: who asks, for whom, with which key; then the answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sluice_grpc::{
    Kind, Struct,
    istio_ca::{
        IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::IstioCertificateService,
    },
};
use sluice_spiffe::SpiffeId;
use sluice_tls::{MIN_TTL, Svid, ca::SigningRequest};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{
    Caller, Callers, Placed, Placement, Refusal, Standing, authority::Authority, door::Door,
    listener::Client, places::network, rate::Buckets,
};

/// The longest SPIFFE ID (SPIFFE-ID section 2.3). Checked before the text is parsed, because an
/// error repeats it.
const MAX_ID_BYTES: usize = 2048;
/// The longest token that is judged; projected service-account tokens are about 1 KiB.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The certificate service.
pub(crate) struct CertificateService {
    pub(crate) authority: Arc<Authority>,
    pub(crate) callers: Arc<dyn Callers>,
    pub(crate) placement: Arc<dyn Placement>,
    pub(crate) ttl: Duration,
    pub(crate) granted: Buckets,
    pub(crate) door: Door,
    /// How often refusals of unknown callers are logged, for each address.
    pub(crate) told: Buckets,
    pub(crate) standing: Arc<Standing>,
}

/// What is known of a request when it is refused.
#[derive(Default)]
struct Seen {
    caller: Option<Caller>,
    id: Option<SpiffeId>,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let client = request.extensions().get::<Client>().cloned();
        let mut seen = Seen::default();
        match self.issue(request, client.as_ref(), &mut seen).await {
            Ok(cert_chain) => {
                self.standing.count_issued();
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refusal) => {
                self.standing.count_refused(&refusal);
                self.log(&refusal, &seen, client.as_ref());
                Err(refusal.status())
            }
        }
    }
}

// === impl CertificateService ===

impl CertificateService {
    async fn issue(
        &self,
        request: Request<IstioCertificateRequest>,
        client: Option<&Client>,
        seen: &mut Seen,
    ) -> Result<Vec<String>, Refusal> {
        let caller = self.caller(bearer(request.metadata())?, client).await?;
        let caller = &*seen.caller.insert(caller);
        if !self.granted.take(&caller.name, Instant::now()) {
            let per_second = self.granted.rate().per_second;
            return Err(Refusal::TooOften { caller: caller.name.clone(), per_second });
        }
        let request = request.into_inner();
        let id = &*seen.id.insert(self.identity(request.metadata.as_ref())?);
        let ttl = self.lifetime(request.validity_duration)?;
        let signing = SigningRequest::from_pem(request.csr.as_bytes())?;
        if !signing.agrees_with(id) {
            return Err(Refusal::OtherName { id: id.clone() });
        }
        self.check_placed(id, &caller.node).await?;
        let authority = self.authority.current();
        if self.authority.has_expired(&authority) {
            return Err(Refusal::Expired);
        }
        let chain = authority
            .sign_for(id, &signing, ttl)
            .map_err(|error| Refusal::Signing { reason: error.to_string() })?;
        if let Some(svid) = chain.certificates.first().and_then(|leaf| Svid::read(leaf).ok()) {
            tracing::info!(
                identity = %id,
                caller = caller.name,
                node = caller.node,
                serial = svid.serial,
                not_after = svid.not_after.as_secs(),
                "issued",
            );
        }
        Ok(authority.answer(&chain))
    }

    /// Who calls, if its address may still ask for that.
    async fn caller(&self, bearer: &str, client: Option<&Client>) -> Result<Caller, Refusal> {
        let address = address(client);
        let Some(admitted) = self.door.admit(&address, bearer, Instant::now()) else {
            return Err(Refusal::Flooded { address, per_second: self.door.rate().per_second });
        };
        let caller = self.callers.authenticate(bearer).await;
        match &caller {
            Ok(_) => {
                self.door.proved(&address, &admitted, Instant::now());
                if let Some(client) = client {
                    client.proof.give();
                }
            }
            Err(Refusal::BadToken { .. }) => self.door.disproved(&admitted),
            Err(_) => {}
        }
        caller
    }

    fn identity(&self, metadata: Option<&Struct>) -> Result<SpiffeId, Refusal> {
        let value = metadata.and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
        let Some(Kind::StringValue(text)) = value.and_then(|value| value.kind.as_ref()) else {
            return Err(Refusal::NoIdentity);
        };
        if text.len() > MAX_ID_BYTES {
            return Err(Refusal::TooLong(text.len()));
        }
        let id: SpiffeId = text.parse().map_err(Refusal::NotSpiffe)?;
        let domain = self.authority.domain();
        if !id.is_in(domain) || id.path().is_empty() {
            return Err(Refusal::NotOurs { id, domain: domain.clone() });
        }
        Ok(id)
    }

    /// Returns the lifetime that is asked for, at most the configured one. Zero asks for the
    /// configured one, as with istiod.
    fn lifetime(&self, seconds: i64) -> Result<Duration, Refusal> {
        if seconds == 0 {
            return Ok(self.ttl);
        }
        let asked = u64::try_from(seconds).map(Duration::from_secs);
        match asked {
            Ok(asked) if asked >= MIN_TTL => Ok(asked.min(self.ttl)),
            Ok(_) | Err(_) => Err(Refusal::TooShort(seconds)),
        }
    }

    async fn check_placed(&self, id: &SpiffeId, node: &str) -> Result<(), Refusal> {
        let (id_, node_) = (id.clone(), node.to_owned());
        Err(match self.placement.runs_on(id, node).await {
            Placed::Here => return Ok(()),
            Placed::Elsewhere => Refusal::Elsewhere { id: id_, node: node_ },
            Placed::Nowhere => Refusal::Nowhere { id: id_, node: node_ },
            Placed::UnknownNode => Refusal::UnknownNode { id: id_, node: node_ },
            Placed::Unknown => {
                Refusal::PlacementUnknown { reason: "nothing is known of the mesh yet".to_owned() }
            }
        })
    }

    fn log(&self, refusal: &Refusal, seen: &Seen, client: Option<&Client>) {
        let address = address(client);
        let peer = client.map_or_else(String::new, |client| client.address.to_string());
        if seen.caller.is_none() && !self.told.take(&address, Instant::now()) {
            tracing::debug!(peer, rule = refusal.rule(), "refused; said often enough");
            return;
        }
        let (caller, node) =
            seen.caller.as_ref().map_or(("", ""), |caller| (&caller.name, &caller.node));
        tracing::warn!(
            peer,
            caller,
            node,
            identity = seen.id.as_ref().map(tracing::field::display),
            rule = refusal.rule(),
            reason = %refusal,
            "refused a certificate",
        );
    }
}

/// What is counted as one address.
fn address(client: Option<&Client>) -> String {
    client.map_or_else(String::new, |client| network(client.address.ip()).to_string())
}

/// Returns the only bearer token among the request's metadata (RFC 6750 section 2.1).
fn bearer(metadata: &MetadataMap) -> Result<&str, Refusal> {
    let mut values = metadata.get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Refusal::NoToken) };
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() => {
            if token.len() > MAX_TOKEN_BYTES {
                return Err(Refusal::BadToken { reason: "it is too long".to_owned() });
            }
            Ok(token)
        }
        _ => Err(Refusal::NoToken),
    }
}
