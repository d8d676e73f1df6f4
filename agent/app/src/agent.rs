//! `sluice agent`: puts the parts together and keeps them in step with the state of the mesh.
//!
//! ```text
//!       source --snapshot--> control loop --> PodManager --> kernel hooks
//!                                 |               +--------> Proxy (workers)
//!                                 +--> certificates wanted, policy re-checked
//! ```

mod control;
mod diagnostics;
mod ending;
mod expiry;
mod facts;
mod fronts;
mod handover;
mod kubelet;
mod operator;
mod policies;
mod source;
mod trust;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use anyhow::{Context, bail};
use sluice_identity::Trust;
use sluice_kernel::{Datapath, LogLevel, Settings};
use sluice_kube::OwnPod;
use sluice_mesh::Snapshot;
use sluice_pods::{PodManager, Workers};
use sluice_proxy::{Proxy, Shared};
use sluice_source::AgentConfig;
use sluice_tls::{CertStore, Clock, Issuer, SystemClock};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use self::{
    control::{Control, Ended, Farewell, Parts, Pods},
    fronts::Fronts,
    handover::{Keeper, Predecessor, Stage},
    operator::Operator,
};
use crate::{args::AgentOptions, authority, cni, datapath::find_cgroup, logging, view::server};

/// Runs the agent until it is told to stop. Captured pods stay captured afterwards: without an agent
/// their connections into the mesh are refused.
pub(crate) fn run(options: &AgentOptions) -> anyhow::Result<()> {
    let config = AgentConfig::load(&options.config)?;
    logging::start(&config.log_level)?;
    let descriptors = sluice_sys::limits::raise_nofile().context("raising the descriptor limit")?;
    sluice_sys::limits::make_room(descriptors).context("making room for descriptors")?;
    // The first thread stays in the node's namespace; remember it before any thread wanders.
    sluice_sys::nomad::home().context("opening the node's network namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tracing::info!(node = %config.node, instance = %config.instance, descriptors, "starting");
    runtime.block_on(serve(config))
}

async fn serve(config: AgentConfig) -> anyhow::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stopped = async move || {
        tokio::select! {
            _ = stop.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let Some(mut agent) = (tokio::select! {
        started = start(&config) => Some(started?),
        () = stopped() => None,
    }) else {
        return Ok(());
    };
    tokio::select! {
        ended = &mut agent.control => bail!("{}", ended?),
        failed = &mut agent.takes_over => failed??,
        _ = agent.stage.wait_for(|stage| *stage == Stage::Abandoned) => {
            bail!("the agent that had taken over has gone: this one starts anew");
        }
        () = stopped() => {}
    }
    tracing::info!("stopping; captured pods stay captured and are refused until an agent is back");
    let is_superseded = *agent.stage.borrow() >= Stage::Superseded;
    let retired = is_superseded.then_some(agent.retires);
    tokio::select! {
        () = ending::drain(&agent.proxy, &agent.shared, retired, config.drain) => {}
        () = stopped() => tracing::warn!("told twice to stop: open connections end now"),
    }
    ending::cut(&agent.proxy, &agent.shared).await;
    Ok(())
}

/// The tasks and the shared state of a running agent.
struct Agent {
    shared: Arc<Shared>,
    proxy: Arc<Proxy>,
    stage: watch::Receiver<Stage>,
    /// The control loop.
    control: JoinHandle<Ended>,
    /// The task of `Succession`, which ends only with an error.
    takes_over: JoinHandle<anyhow::Result<()>>,
    /// Ends once a successor serves the node and this agent accepts nothing new.
    retires: JoinHandle<()>,
}

async fn start(config: &AgentConfig) -> anyhow::Result<Agent> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let authority::Authority { issuer, delivered } = authority::open(config, &clock)?;
    let trust = Arc::new(trust::follow(config, &delivered, Arc::clone(&clock))?);
    let certificates = Arc::new(certificates(config, issuer, &trust, &clock));
    let passed_on = trust::pass_on(Arc::clone(&trust), delivered, Arc::clone(&certificates));
    tokio::spawn(passed_on);
    let (settings, place) = (kernel_settings(config)?, handover::place(&config.socket));
    let mut source = source::start(config).await?;
    let mut wanted = HashSet::new();
    if handover::is_served(&place).await {
        Datapath::verify_only(&settings)?;
        let snapshots = &mut source.snapshots;
        wanted = handover::prepare(&config.node, snapshots, &certificates, &place).await?;
        source.snapshots.mark_changed();
    }
    let predecessor = handover::freeze(&place).await?;
    let datapath = Arc::new(Datapath::open(&settings)?);
    let empty = Arc::new(Snapshot::empty(config.trust_domain.clone()));
    let shared = Arc::new(Shared::new(empty, certificates, datapath.sockets(), config.workers));
    let proxy = Arc::new(Proxy::start(Arc::clone(&shared), config.workers)?);
    tokio::spawn(expiry::watch(Arc::clone(&shared)));
    tokio::spawn(trust::enforce(Arc::clone(&shared), Arc::clone(&proxy)));
    let pods = Arc::new(Mutex::new(manager(config, &datapath, &proxy)));
    let (stage, stages) = watch::channel(Stage::Serving);
    follow_node(config, &settings, &datapath, &stages);
    let source::Started { snapshots, status, announced, reports, own_pod, has_plugin } = source;
    let parts = Parts {
        shared: Arc::clone(&shared),
        pods: Arc::clone(&pods),
        datapath: Arc::clone(&datapath),
    };
    let operator = Arc::new(Operator::new(config, settings, parts.clone(), status, trust));
    let control = Control::new(config.node.clone(), parts, wanted)
        .telling(reports)
        .leaving(Farewell::new(own_pod.clone(), has_plugin));
    let departure = control.departure();
    let announced = announced.by(&shared, &config.node);
    let desk =
        cni::Desk::new(announced, Arc::clone(&pods), control.turns(), Arc::clone(&departure));
    let fronts = Fronts::new(config, &shared, operator, desk);
    let opened = watch::Sender::new(None);
    let takes_over = Succession {
        fronts,
        opened: opened.clone(),
        place,
        keeper: Keeper { pods, datapath, departure, stage },
        own_pod,
        turns: control.turns(),
    };
    Ok(Agent {
        control: tokio::spawn(control.run(snapshots, stages.clone())),
        takes_over: tokio::spawn(takes_over.run(predecessor)),
        retires: tokio::spawn(ending::retire(Arc::clone(&proxy), stages.clone(), opened)),
        shared,
        proxy,
        stage: stages,
    })
}

/// The task that makes this agent the node's agent and then offers to hand over to a successor.
struct Succession {
    fronts: Fronts,
    opened: watch::Sender<Option<fronts::Open>>,
    place: PathBuf,
    keeper: Keeper,
    own_pod: Option<OwnPod>,
    turns: watch::Receiver<u64>,
}

impl Succession {
    /// Returns only on an error.
    async fn run(mut self, mut predecessor: Option<Predecessor>) -> anyhow::Result<()> {
        if predecessor.is_none() {
            self.opened.send_replace(Some(self.fronts.open().await?));
        }
        // The pods are served once the first state of the mesh is in force.
        self.turns.wait_for(|turns| *turns > 0).await.context("BUG: no control loop")?;
        if let Some(predecessor) = &mut predecessor {
            predecessor.dismiss().await?;
            self.opened.send_replace(Some(self.fronts.open().await?));
        }
        sluice_sys::program::drop_read_only_pages();
        let listener = server::bind(&self.place)?;
        if let Some(own_pod) = self.own_pod {
            tokio::spawn(async move { own_pod.serves().await });
        }
        self.keeper.offer(listener).await;
        std::future::pending().await
    }
}

fn manager(config: &AgentConfig, datapath: &Arc<Datapath>, proxy: &Arc<Proxy>) -> Pods {
    let served = Arc::clone(proxy) as Arc<dyn Workers>;
    let manager = PodManager::new(Arc::clone(datapath), served, config.workers);
    manager.with_processes(config.proc.clone())
}

fn follow_node(
    config: &AgentConfig,
    settings: &Settings,
    datapath: &Arc<Datapath>,
    stages: &watch::Receiver<Stage>,
) {
    if settings.log != LogLevel::Off {
        tokio::spawn(diagnostics::pass_on(Arc::clone(datapath)));
    }
    let places = kubelet::Places {
        proc: config.proc.clone(),
        cgroups: settings.cgroup.clone(),
        named: config.kubelet_cgroup.clone(),
    };
    tokio::spawn(kubelet::follow(places, Arc::clone(datapath), stages.clone()));
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
