//! `sluice controller`: the certificate authority of a mesh, for the agents of all its nodes.

use std::sync::Arc;

use anyhow::{Context, bail};
use sluice_controller::{
    CaFiles, CaMaterial, CaPlace, Callers, CallersConfig, ControllerConfig, Limits, Parts,
    Placement, PodsConfig, Settings, SnapshotPlacement, TokenFile, serve,
};
use sluice_source::FileSource;
use sluice_tls::SystemClock;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{args::ControllerOptions, logging};

/// Serves until it is told to stop. Agents keep what they were issued; they ask again when it is half over.
pub(crate) fn run(options: &ControllerOptions) -> anyhow::Result<()> {
    let config = ControllerConfig::load(&options.config)?;
    logging::start(&config.log_level)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_until_stopped(config))
}

async fn run_until_stopped(config: ControllerConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let parts = Parts {
        callers: callers(&config.callers)?,
        placement: placement(&config)?,
        material: material(&config.ca),
        clock: Arc::new(SystemClock),
    };
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
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
    Ok(serve(listener, settings, parts, stop).await?)
}

fn callers(config: &CallersConfig) -> anyhow::Result<Arc<dyn Callers>> {
    match config {
        CallersConfig::Tokens(file) => Ok(Arc::new(TokenFile::open(file)?)),
        CallersConfig::Kubernetes { .. } => {
            bail!("callers.kubernetes: this build cannot ask a Kubernetes API; use callers.tokens")
        }
    }
}

fn placement(config: &ControllerConfig) -> anyhow::Result<Arc<dyn Placement>> {
    match &config.pods {
        PodsConfig::Mesh(file) => {
            let FileSource { snapshots, .. } = FileSource::watch_mesh(file, &config.trust_domain)?;
            Ok(Arc::new(SnapshotPlacement(snapshots)))
        }
        PodsConfig::Kubernetes => {
            bail!("pods.kubernetes: this build cannot ask a Kubernetes API; use pods.mesh")
        }
    }
}

fn material(place: &CaPlace) -> Arc<dyn CaMaterial> {
    Arc::new(match place {
        CaPlace::Embedded(directory) => CaFiles::embedded(directory),
        CaPlace::CertManager(directory) => CaFiles::cert_manager(directory),
    })
}
