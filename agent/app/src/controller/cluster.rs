//! What the controller asks of Kubernetes, as implementations of the controller's own traits.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sluice_controller::{
    CaMaterial, CaPlace, Caller, Callers, CallersConfig, ControllerConfig, ObjectName, Pending,
    Placed, Placement, PodsConfig, PolicyStatusConfig, PublishedRoots, Refusal,
};
use sluice_kube::{
    ApiServer, CaSecret, CaTexts, ConnectError, Election, Place, PodPlaces, PolicyReports,
    SecretError, TokenFault, TokenJudge, publish_roots,
};
use sluice_spiffe::{SpiffeId, TrustDomain, WorkloadName};
use sluice_tls::{
    Clock, SystemClock,
    ca::{CaError, LocalCa, NewRoot, PemTexts},
};
use tokio::sync::watch;

/// How often the Secret is asked for when the API server does not answer.
const RETRY: Duration = Duration::from_secs(2);

/// The API server, and the pods that are followed there, if they are needed.
pub(super) struct Kubernetes {
    server: ApiServer,
    places: Option<PodPlaces>,
}

// === impl Kubernetes ===

impl Kubernetes {
    /// Connects to the API server. Returns `None` if the configuration needs nothing of Kubernetes.
    pub(super) async fn open(config: &ControllerConfig) -> Result<Option<Self>, ConnectError> {
        let asks_for_pods = config.pods == PodsConfig::Kubernetes
            || matches!(config.callers, CallersConfig::Kubernetes { .. });
        let is_needed = asks_for_pods
            || matches!(config.ca, CaPlace::Secret(_))
            || config.publish_roots.is_some()
            || config.policy_status.is_some();
        if !is_needed {
            return Ok(None);
        }
        let server = ApiServer::open(config.kubeconfig.as_deref()).await?;
        let places = asks_for_pods.then(|| PodPlaces::follow(&server));
        Ok(Some(Self { server, places }))
    }

    pub(super) fn callers(
        &self,
        audience: &str,
        agents: &[(String, String)],
    ) -> Option<Arc<dyn Callers>> {
        let places = self.places.clone()?;
        let reviews = TokenJudge::new(&self.server, places, audience.to_owned(), agents);
        Some(Arc::new(Reviewed(reviews)))
    }

    pub(super) fn placement(&self) -> Option<Arc<dyn Placement>> {
        Some(Arc::new(Watched(self.places.clone()?)))
    }

    pub(super) fn secret(
        &self,
        ObjectName { namespace, name }: &ObjectName,
    ) -> Arc<dyn CaMaterial> {
        let secret = CaSecret::follow(&self.server, namespace, name);
        Arc::new(InSecret { secret, was_opened: AtomicBool::new(false) })
    }

    /// Returns the same material, but with its roots kept in a `ConfigMap` from now on.
    pub(super) fn published(
        &self,
        material: Arc<dyn CaMaterial>,
        ObjectName { namespace, name }: &ObjectName,
        roots: PublishedRoots,
    ) -> Arc<dyn CaMaterial> {
        let (ours, followed) = watch::channel(None);
        let published = Arc::new(Published {
            material,
            ours: Mutex::default(),
            all: ours,
            roots: Mutex::new(roots),
        });
        let asked = Arc::clone(&published);
        publish_roots(&self.server, namespace, name, followed, move |ours, published| {
            lock(&asked.roots).wanted(ours, published, (SystemClock.now(), Instant::now()))
        });
        published
    }

    /// Reports on policies whenever this replica is the one that does.
    pub(super) fn report(
        &self,
        PolicyStatusConfig { lease, root_namespace }: &PolicyStatusConfig,
        trust_domain: &TrustDomain,
    ) -> Election {
        let ObjectName { namespace, name } = lease;
        let election = Election::join(&self.server, namespace, name, identity());
        PolicyReports::start(&self.server, root_namespace, trust_domain, election.lead.clone());
        election
    }
}

/// Returns a name that no other replica has.
fn identity() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_not_in_a_pod| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}-{}", host.trim(), std::process::id())
    })
}

/// Authenticates callers by their service-account tokens.
struct Reviewed(TokenJudge);

impl Callers for Reviewed {
    fn authenticate<'a>(&'a self, bearer: &'a str) -> Pending<'a, Result<Caller, Refusal>> {
        Box::pin(async {
            match self.0.judge(bearer).await {
                Ok(owner) => Ok(Caller { node: owner.node, name: owner.name }),
                Err(TokenFault::Refused(reason)) => Err(Refusal::BadToken { reason }),
                Err(error) => Err(Refusal::CallersUnknown { reason: error.to_string() }),
            }
        })
    }
}

/// Looks up where pods run, as the API server says.
struct Watched(PodPlaces);

impl Placement for Watched {
    fn runs_on<'a>(&'a self, id: &'a SpiffeId, node: &'a str) -> Pending<'a, Placed> {
        Box::pin(async move {
            // Pods have identities of Istio's layout and no others.
            let Some(WorkloadName { namespace, service_account }) = WorkloadName::of(id) else {
                return Placed::Nowhere;
            };
            match self.0.find(&namespace, &service_account, node).await {
                Place::Here => Placed::Here,
                Place::Elsewhere => Placed::Elsewhere,
                Place::Nowhere => Placed::Nowhere,
                Place::UnknownNode => Placed::UnknownNode,
                Place::Unknown => Placed::Unknown,
            }
        })
    }

    fn is_known(&self) -> bool {
        self.0.is_known()
    }
}

/// An authority kept in a Secret, created by whichever replica comes first.
struct InSecret {
    secret: CaSecret,
    /// Whether it was ever opened: from then on the replica serves, and must not wait for the API server.
    was_opened: AtomicBool,
}

/// Why a Secret gives no authority.
enum Unusable {
    Secret(SecretError),
    Making(CaError),
}

impl InSecret {
    async fn texts(&self, domain: &TrustDomain, clock: &dyn Clock) -> Result<CaTexts, Unusable> {
        loop {
            if let Some(texts) = self.secret.read().await.map_err(Unusable::Secret)? {
                return Ok(texts);
            }
            let root = NewRoot::generate(domain, clock).map_err(Unusable::Making)?;
            let made = self.secret.create(&root.certificate, &root.key).await;
            if made.map_err(|fault| Unusable::Secret(fault.into()))? {
                tracing::info!(secret = self.secret.name(), trust_domain = %domain, "made a new root CA");
            }
            // Whichever replica made it, the Secret's content counts: read it.
        }
    }
}

impl CaMaterial for InSecret {
    fn open<'a>(
        &'a self,
        domain: &'a TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Pending<'a, Result<LocalCa, CaError>> {
        Box::pin(async move {
            let origin = format!("Secret {}", self.secret.name());
            let mut said = false;
            let texts = loop {
                match self.texts(domain, clock.as_ref()).await {
                    Ok(texts) => break texts,
                    Err(Unusable::Secret(SecretError::Api(fault)))
                        if fault.passes() && !self.was_opened.load(Ordering::Relaxed) =>
                    {
                        if !said {
                            tracing::warn!(%fault, "the CA's Secret cannot be read; trying again");
                            said = true;
                        }
                        tokio::time::sleep(RETRY).await;
                    }
                    Err(Unusable::Making(error)) => return Err(error),
                    Err(Unusable::Secret(error)) => {
                        let (path, source) = (origin.into(), io::Error::other(error));
                        return Err(CaError::File { action: "use", path, source });
                    }
                }
            };
            let CaTexts { certificate, key, roots } = &texts;
            let origin = Path::new(&origin);
            let texts = PemTexts { origin, certificate, key, roots: roots.as_deref() };
            let opened = LocalCa::from_texts(&texts, domain, clock)?;
            self.was_opened.store(true, Ordering::Relaxed);
            Ok(opened)
        })
    }

    fn changed(&self) -> Pending<'_, ()> {
        Box::pin(self.secret.changed())
    }
}

/// Publishes the roots of the authority whenever it is opened, and of the one that issues.
struct Published {
    material: Arc<dyn CaMaterial>,
    ours: Mutex<Ours>,
    /// The roots of both.
    all: watch::Sender<Option<String>>,
    roots: Mutex<PublishedRoots>,
}

/// The authority's roots as PEM.
#[derive(Default)]
struct Ours {
    newest: String,
    issuing: String,
}

impl Published {
    fn publish(&self, change: impl FnOnce(&mut Ours)) {
        let mut ours = lock(&self.ours);
        change(&mut ours);
        self.all.send_replace(Some(format!("{}{}", ours.newest, ours.issuing)));
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CaMaterial for Published {
    fn open<'a>(
        &'a self,
        domain: &'a TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Pending<'a, Result<LocalCa, CaError>> {
        Box::pin(async move {
            let opened = self.material.open(domain, clock).await?;
            self.publish(|ours| ours.newest = opened.roots_pem());
            Ok(opened)
        })
    }

    fn changed(&self) -> Pending<'_, ()> {
        self.material.changed()
    }

    fn are_roots_known(&self, authority: &LocalCa) -> Option<bool> {
        lock(&self.roots).are_known(authority, Instant::now())
    }

    fn issues(&self, authority: &LocalCa) {
        self.publish(|ours| ours.issuing = authority.roots_pem());
    }
}
