//! `sluice controller`: the certificate authority of a mesh, for the agents of all its nodes.

mod cluster;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use sluice_controller::{
    CaFiles, CaMaterial, CaPlace, Callers, CallersConfig, ControllerConfig, Limits, Parts,
    Placement, PodsConfig, PublishConfig, PublishedRoots, Settings, SnapshotPlacement, TokenFile,
    serve,
};
use sluice_source::FileSource;
use sluice_spiffe::TrustDomain;
use sluice_tls::{Clock, SystemClock, ca::CaError};
use tokio::signal::unix::{SignalKind, signal};

use self::cluster::Kubernetes;
use crate::{
    args::ControllerOptions,
    listen, logging,
    metrics::{self, AuthorityExporter},
};

/// How often a replica that cannot issue yet looks again.
const LOOK: Duration = Duration::from_millis(200);

/// Serves until it is told to stop. Agents keep the certificates that they were issued, and ask for new ones at half
/// life.
pub(crate) fn run(options: &ControllerOptions) -> anyhow::Result<()> {
    let config = ControllerConfig::load(&options.config)?;
    logging::start(&config.log_level)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_until_stopped(config))
}

async fn run_until_stopped(config: ControllerConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let kubernetes = Kubernetes::open(&config).await?;
    let kubernetes = kubernetes.as_ref();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let parts = Parts {
        callers: callers(&config.callers, kubernetes)?,
        placement: placement(&config, kubernetes)?,
        material: material(&config, kubernetes)?,
        clock: Arc::clone(&clock),
        standing: Arc::default(),
    };
    if let Some(address) = config.metrics {
        let exporter = AuthorityExporter {
            standing: Arc::clone(&parts.standing),
            placement: Arc::clone(&parts.placement),
            clock: Arc::clone(&clock),
        };
        tokio::spawn(metrics::serve(metrics::bind(address)?, Arc::new(exporter)));
    }
    // Opened before the port is: a replica that cannot issue is not ready.
    tokio::select! {
        opened = await_authority(parts.material.as_ref(), &config.trust_domain, &clock) => opened?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    let reports = config.policy_status.as_ref().zip(kubernetes);
    let election =
        reports.map(|(status, kubernetes)| kubernetes.report(status, &config.trust_domain));
    let listener =
        listen::on(config.listen).with_context(|| format!("cannot listen on {}", config.listen))?;
    tracing::info!(
        listen = %listener.local_addr()?,
        trust_domain = %config.trust_domain,
        ttl_seconds = config.ttl.as_secs(),
        "serving certificates",
    );
    let settings = Settings {
        trust_domain: config.trust_domain,
        ttl: config.ttl,
        server_names: config.server_names,
        limits: Limits::default(),
    };
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    let served = serve(listener, settings, parts, stop).await;
    if let Some(election) = election {
        election.leave().await;
    }
    Ok(served?)
}

/// Waits until the authority is there, and agents know its root. A replica that starts with one that was never published
/// leaves the work to those that run until then.
async fn await_authority(
    material: &dyn CaMaterial,
    domain: &TrustDomain,
    clock: &Arc<dyn Clock>,
) -> Result<(), CaError> {
    let mut authority = material.open(domain, Arc::clone(clock)).await?;
    let mut said = false;
    loop {
        match material.are_roots_known(&authority) {
            Some(true) => return Ok(()),
            Some(false) if !said => {
                tracing::warn!(
                    "agents do not know the CA's root yet: this replica serves once they had time to learn of it"
                );
                said = true;
            }
            Some(false) | None => {}
        }
        tokio::select! {
            () = material.changed() => authority = material.open(domain, Arc::clone(clock)).await?,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn callers(
    config: &CallersConfig,
    kubernetes: Option<&Kubernetes>,
) -> anyhow::Result<Arc<dyn Callers>> {
    match config {
        CallersConfig::Tokens(file) => Ok(Arc::new(TokenFile::open(file)?)),
        CallersConfig::Kubernetes { audience, agents } => kubernetes
            .and_then(|kubernetes| kubernetes.callers(audience, agents))
            .context("callers.kubernetes: no API server"),
    }
}

fn placement(
    config: &ControllerConfig,
    kubernetes: Option<&Kubernetes>,
) -> anyhow::Result<Arc<dyn Placement>> {
    match &config.pods {
        PodsConfig::Mesh(file) => {
            let FileSource { snapshots, .. } = FileSource::watch_mesh(file, &config.trust_domain)?;
            Ok(Arc::new(SnapshotPlacement(snapshots)))
        }
        PodsConfig::Kubernetes => {
            kubernetes.and_then(Kubernetes::placement).context("pods: no API server")
        }
    }
}

fn material(
    config: &ControllerConfig,
    kubernetes: Option<&Kubernetes>,
) -> anyhow::Result<Arc<dyn CaMaterial>> {
    let material: Arc<dyn CaMaterial> = match &config.ca {
        CaPlace::Embedded(directory) => Arc::new(CaFiles::embedded(directory)),
        CaPlace::CertManager(directory) => Arc::new(CaFiles::cert_manager(directory)),
        CaPlace::Secret(name) => kubernetes.context("ca: no API server")?.secret(name),
    };
    Ok(match &config.publish_roots {
        Some(PublishConfig { config_map, new_root_delay }) => {
            let roots =
                PublishedRoots::new(config.trust_domain.clone(), config.ttl, *new_root_delay);
            kubernetes.context("ca: no API server")?.published(material, config_map, roots)
        }
        None => material,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use sluice_controller::Pending;
    use sluice_tls::ca::LocalCa;

    use super::*;

    /// Files whose roots agents know once this is said.
    struct Announced {
        files: CaFiles,
        is_known: AtomicBool,
    }

    impl CaMaterial for Announced {
        fn open<'a>(
            &'a self,
            domain: &'a TrustDomain,
            clock: Arc<dyn Clock>,
        ) -> Pending<'a, Result<LocalCa, CaError>> {
            self.files.open(domain, clock)
        }

        fn changed(&self) -> Pending<'_, ()> {
            self.files.changed()
        }

        fn are_roots_known(&self, _authority: &LocalCa) -> Option<bool> {
            Some(self.is_known.load(Ordering::Relaxed))
        }
    }

    #[tokio::test]
    async fn a_replica_does_not_serve_before_agents_know_its_root() {
        let directory = tempfile::tempdir().unwrap();
        let files = CaFiles::embedded(&directory.path().join("ca"));
        let material = Announced { files, is_known: AtomicBool::new(false) };
        let (domain, clock): (_, Arc<dyn Clock>) =
            ("cluster.local".parse().unwrap(), Arc::new(SystemClock));
        let mut waiting = Box::pin(await_authority(&material, &domain, &clock));
        let early = tokio::time::timeout(LOOK * 5, &mut waiting).await;
        assert!(early.is_err(), "it does not wait");
        material.is_known.store(true, Ordering::Relaxed);
        waiting.await.unwrap();
    }
}
