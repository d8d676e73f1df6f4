//! `sluice agent`: puts the parts together and keeps them in step with the state of the mesh.
//!
//! ```text
//!       source --snapshot--> control loop --> PodManager --> kernel hooks
//!                                 |               +--------> Proxy (workers)
//!                                 +--> certificates wanted, policy re-checked
//! ```

mod control;
mod diagnostics;
mod expiry;
mod facts;
mod kubelet;
mod operator;
mod policies;
mod source;
mod trust;

use std::sync::{Arc, Mutex};

use anyhow::Context;
use sluice_identity::Trust;
use sluice_kernel::{Datapath, LogLevel, Settings};
use sluice_mesh::Snapshot;
use sluice_pods::{PodManager, Workers};
use sluice_proxy::{Proxy, Shared};
use sluice_source::AgentConfig;
use sluice_tls::{CertStore, Clock, Issuer, SystemClock};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    control::Control,
    operator::{Operator, Parts},
};
use crate::{
    args::AgentOptions,
    authority, cni,
    datapath::find_cgroup,
    logging,
    metrics::{self, Exporter},
    view::server,
};

/// Runs the agent until it is told to stop. Captured pods stay captured afterwards: without an agent
/// their connections into the mesh are refused.
pub(crate) fn run(options: &AgentOptions) -> anyhow::Result<()> {
    let config = AgentConfig::load(&options.config)?;
    logging::start(&config.log_level)?;
    let descriptors = sluice_sys::limits::raise_nofile().context("raising the descriptor limit")?;
    // The first thread stays in the node's namespace; remember it before any thread wanders.
    sluice_sys::nomad::home().context("opening the node's network namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tracing::info!(node = %config.node, instance = %config.instance, descriptors, "starting");
    runtime.block_on(serve(config))
}

async fn serve(config: AgentConfig) -> anyhow::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let authority::Authority { issuer, delivered } = authority::open(&config, &clock)?;
    let trust = Arc::new(trust::follow(&config, &delivered, Arc::clone(&clock))?);
    let certificates = Arc::new(certificates(&config, issuer, &trust, &clock));
    let passed_on = trust::pass_on(Arc::clone(&trust), delivered, Arc::clone(&certificates));
    tokio::spawn(passed_on);
    let settings = kernel_settings(&config)?;
    let datapath = Arc::new(Datapath::open(&settings)?);
    let empty = Arc::new(Snapshot::empty(config.trust_domain.clone()));
    let workers = config.workers;
    let shared = Arc::new(Shared::new(empty, certificates, datapath.sockets(), workers));
    let proxy = Arc::new(Proxy::start(Arc::clone(&shared), workers)?);
    tokio::spawn(expiry::watch(Arc::clone(&shared)));
    tokio::spawn(trust::enforce(Arc::clone(&shared), Arc::clone(&proxy)));
    let served: Arc<dyn Workers> = Arc::clone(&proxy) as _;
    if settings.log != LogLevel::Off {
        tokio::spawn(diagnostics::pass_on(Arc::clone(&datapath)));
    }
    let pods = Arc::new(Mutex::new({
        let manager = PodManager::new(Arc::clone(&datapath), served, workers);
        manager.with_processes(config.proc.clone())
    }));
    let source::Started { snapshots, status, announced, reports } =
        source::start(&config, &shared).await?;
    let parts = Parts {
        shared: Arc::clone(&shared),
        pods: Arc::clone(&pods),
        datapath: Arc::clone(&datapath),
        source: status,
        trust: Arc::clone(&trust),
    };
    let operator = Arc::new(Operator::new(&config, settings.clone(), parts));
    tokio::spawn(server::serve(server::bind(&config.socket)?, Arc::clone(&operator) as _));
    if let Some(address) = config.metrics {
        let exporter = Exporter { shared: Arc::clone(&shared), answers: operator };
        tokio::spawn(metrics::serve(metrics::bind(address).await?, Arc::new(exporter)));
    }
    let places = kubelet::Places {
        proc: config.proc.clone(),
        cgroups: settings.cgroup.clone(),
        named: config.kubelet_cgroup.clone(),
    };
    tokio::spawn(kubelet::follow(places, Arc::clone(&datapath)));
    let asked = Arc::clone(&pods);
    let control = Control::new(config.node, shared, pods, datapath).telling(reports);
    let desk = Arc::new(cni::Desk::new(announced, asked, control.turns()));
    tokio::spawn(cni::serve(server::bind(&config.cni_socket)?, desk));
    tokio::select! {
        () = control.run(snapshots) => anyhow::bail!("BUG: the source of the mesh's state ended"),
        _ = stop.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; captured pods stay captured and are refused until an agent is back");
    Ok(())
}

fn certificates(
    config: &AgentConfig,
    issuer: Arc<dyn Issuer>,
    trust: &Trust,
    clock: &Arc<dyn Clock>,
) -> CertStore {
    let mut settings = sluice_tls::Settings::default();
    if let Some(ttl) = config.certificate_ttl {
        settings.ttl = ttl;
    }
    let bundle = (**trust.bundles().borrow()).clone();
    CertStore::new(settings, issuer, bundle, Arc::clone(clock))
}

fn kernel_settings(config: &AgentConfig) -> anyhow::Result<Settings> {
    let cgroup = find_cgroup(config.cgroup.as_deref())?;
    let log = if tracing::enabled!(target: "sluice_kernel", tracing::Level::DEBUG) {
        LogLevel::Debug
    } else {
        LogLevel::Off
    };
    Ok(Settings {
        bpffs: config.bpffs.clone(),
        cgroup,
        log,
        ..Settings::new(config.instance.as_str())
    })
}
