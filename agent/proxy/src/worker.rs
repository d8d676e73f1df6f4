//! The worker threads: each runs its own share of every pod's connections.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sluice_mesh::WorkloadUid;
use sluice_pods::{LocalPod, WorkerListeners, Workers};
use sluice_sys::{
    nomad,
    tcp::{TcpListener, TcpStream},
};
use sluice_wire::ResetReason;
use tokio::sync::{mpsc, oneshot};

use crate::{
    accept::accept_all,
    crew::{Crew, Share},
    inbound,
    live::{Facts, Listed},
    outbound,
    pod::Pod,
    pool::{Key, Pool},
    retirement::Retirement,
    returning::Returning,
    session::Session,
    shared::Shared,
    spares::Spares,
};

/// How often the pool is searched for idle sessions to close.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A worker, as the connections that it runs see it.
#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    pub(crate) shared: Arc<Shared>,
    /// One pool for each worker, this one's at `index`.
    pools: Arc<[Mutex<Pool>]>,
    pub(crate) returning: Arc<Returning>,
    pub(crate) spares: Arc<Spares>,
    crew: Arc<Crew>,
    retirement: Retirement,
}

/// All workers of the agent. Their threads last as long as the process.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    crew: Arc<Crew>,
    /// Tells those who serve a pod that it has gone.
    departures: Mutex<HashMap<WorkloadUid, Arc<Retirement>>>,
}

/// Why the workers could not be started.
#[derive(Debug, thiserror::Error)]
#[error("starting worker {worker}: {source}")]
pub struct StartError {
    worker: usize,
    source: std::io::Error,
}

/// Keeps one listener accepting until this is dropped.
type Accepting = oneshot::Sender<()>;

/// What a worker is told to do.
#[derive(Debug)]
pub(crate) enum Command {
    Add(Arc<Pod>, WorkerListeners),
    Remove(Arc<LocalPod>),
    /// A connection that another worker has accepted.
    Serve(Arrival, std::net::TcpStream, Share),
    ForgetSessions,
    Retire,
}

/// A connection that has reached one of a pod's listeners.
#[derive(Debug)]
pub(crate) struct Arrival {
    side: Side,
    pod: Arc<Pod>,
    peer: SocketAddr,
}

/// Where a listener's connections come from.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// The pod's own application.
    Outbound,
    /// Outside the pod.
    Inbound,
}

// === impl Worker ===

impl Worker {
    /// Takes an idle session for `key`: one of this worker's own, or else another worker's. To take over another's
    /// costs two system calls, far less than a handshake.
    pub(crate) fn take_session(&self, key: &Key) -> Option<Session> {
        let own = lock(self.pools.get(self.index)?).take(key);
        if own.is_some() {
            return own;
        }
        let mut others = self.pools.iter().enumerate().filter(|(index, _)| *index != self.index);
        let taken = others.find_map(|(_, pool)| lock(pool).take(key))?;
        taken.rehome().ok()
    }

    /// Takes an idle session as [`Worker::take_session`] does, or else waits for one that is about to become idle.
    pub(crate) async fn session(&self, key: &Key) -> Option<Session> {
        match self.take_session(key) {
            Some(session) => Some(session),
            None => self.returning.wait(key, || self.take_session(key)).await,
        }
    }

    /// Returns how many idle sessions all workers have for `key`.
    pub(crate) fn idle_sessions(&self, key: &Key) -> usize {
        self.pools.iter().map(|pool| lock(pool).idle(key)).sum()
    }

    /// Puts a session of a pod away for the next stream, if there can be one.
    pub(crate) fn put_session(&self, pod: &Pod, key: Key, session: Session) {
        if self.has_retired() || pod.has_gone() || session.is_far_ahead() {
            return session.close();
        }
        self.with_pool(|pool| pool.put(key, session));
    }

    fn with_pool(&self, work: impl FnOnce(&mut Pool)) {
        if let Some(pool) = self.pools.get(self.index) {
            work(&mut lock(pool));
        }
    }

    /// Serves a connection that this worker has accepted, or passes it on if this worker has too many.
    fn admit(self: &Arc<Self>, arrival: Arrival, stream: TcpStream) {
        let share = self.crew.assign(self.index);
        let worker = share.worker();
        if worker == self.index {
            return self.serve(arrival, stream, share);
        }
        self.crew.tell(worker, Command::Serve(arrival, stream.into_std(), share));
    }

    fn serve(self: &Arc<Self>, arrival: Arrival, stream: TcpStream, share: Share) {
        let Arrival { side, pod, peer } = arrival;
        let worker = Arc::clone(self);
        // Two kinds of task: one for both sides would always reserve the space of the larger.
        match side {
            Side::Outbound => tokio::spawn(async move {
                outbound::serve(worker, pod, stream, peer).await;
                drop(share);
            }),
            Side::Inbound => tokio::spawn(async move {
                inbound::serve(worker, pod, stream, peer).await;
                drop(share);
            }),
        };
    }

    /// Whether this worker takes nothing new any more.
    pub(crate) fn has_retired(&self) -> bool {
        self.retirement.has_begun()
    }

    /// Waits until this worker takes nothing new any more, not even another stream of an open session.
    pub(crate) async fn retired(&self) {
        self.retirement.begun().await;
    }

    /// Lists an open connection of a pod.
    pub(crate) fn list(&self, pod: &Pod, facts: Facts) -> Listed {
        let live = self.shared.list(self.index, facts);
        // Whoever removes a pod cuts what is listed by then.
        if pod.has_gone() {
            live.cut(ResetReason::Draining);
        }
        live
    }
}

// === impl Proxy ===

impl Proxy {
    /// Starts `count` worker threads.
    ///
    /// # Errors
    ///
    /// When a thread or its runtime cannot be made.
    pub fn start(shared: Arc<Shared>, count: usize) -> Result<Self, StartError> {
        let pools: Arc<[Mutex<Pool>]> = (0..count).map(|_| Mutex::default()).collect();
        let returning = Arc::new(Returning::default());
        let spares = Arc::new(Spares::default());
        let (doors, queues): (Vec<_>, Vec<_>) =
            (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let crew = Arc::new(Crew::new(doors));
        let start = |(index, queue)| {
            let worker = Worker {
                index,
                shared: Arc::clone(&shared),
                pools: Arc::clone(&pools),
                returning: Arc::clone(&returning),
                spares: Arc::clone(&spares),
                crew: Arc::clone(&crew),
                retirement: Retirement::default(),
            };
            start_worker(worker, queue).map_err(|source| StartError { worker: index, source })
        };
        queues.into_iter().enumerate().try_for_each(start)?;
        Ok(Self { shared, crew, departures: Mutex::default() })
    }

    /// Closes the idle sessions of all workers. To be called when the roots or an identity have changed.
    pub fn forget_sessions(&self) {
        self.crew.tell_all(|| Command::ForgetSessions);
    }

    /// Makes the workers take nothing new any more. What waits in the listeners is accepted before they close. Idle
    /// sessions are closed at once, others when their stream has ended. Open connections go on.
    pub fn retire(&self) {
        self.crew.tell_all(|| Command::Retire);
    }

    /// Makes all open connections end soon, by a reset. Returns how many there are.
    pub fn cut_all(&self) -> usize {
        let open = self.shared.live.all();
        for live in &open {
            live.cut(ResetReason::Draining);
        }
        open.len()
    }

    /// Returns how many connections are being served, from accept to close, including sessions that wait for a
    /// stream.
    pub fn connections(&self) -> usize {
        self.crew.connections()
    }
}

impl Workers for Proxy {
    fn add(&self, pod: Arc<LocalPod>, listeners: Vec<WorkerListeners>) {
        let departure = Arc::clone(lock(&self.departures).entry(pod.uid.clone()).or_default());
        let stats = self.shared.stats.of(&pod.uid);
        let pod = Arc::new(Pod::new(pod, stats, departure));
        for (worker, listeners) in listeners.into_iter().enumerate() {
            self.crew.tell(worker, Command::Add(Arc::clone(&pod), listeners));
        }
    }

    fn remove(&self, pod: &Arc<LocalPod>) {
        let departure = lock(&self.departures).remove(&pod.uid);
        // From here on nothing enters its namespace; then each worker leaves it.
        if let Some(departure) = departure {
            departure.begin();
        }
        self.shared.stats.forget(&pod.uid);
        self.crew.tell_all(|| Command::Remove(Arc::clone(pod)));
        for live in self.shared.live.all() {
            if live.facts.pod == pod.uid {
                live.cut(ResetReason::Draining);
            }
        }
    }
}

/// Held for the time of a look-up; only a worker that has none of its own looks into another's pool.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_worker(worker: Worker, queue: mpsc::UnboundedReceiver<Command>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let index = worker.index;
    let worker = Arc::new(worker);
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || runtime.block_on(run(&worker, queue)))?;
    Ok(())
}

async fn run(worker: &Arc<Worker>, mut queue: mpsc::UnboundedReceiver<Command>) {
    let mut pods: HashMap<WorkloadUid, Vec<Accepting>> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tokio::select! {
            Some(command) = queue.recv() => match command {
                Command::Add(pod, listeners) => {
                    let uid = pod.uid.clone();
                    // Drops what the pod had before, which ends accepting there.
                    pods.insert(uid, serve_pod(worker, &pod, listeners));
                }
                Command::Remove(pod) => {
                    pods.remove(&pod.uid);
                    worker.with_pool(|pool| pool.forget_pod(&pod.uid));
                    if let Err(error) = nomad::leave(&pod.netns) {
                        tracing::error!(pod = %pod.uid, %error, "leaving the namespace of a pod that has gone");
                    }
                }
                Command::Serve(arrival, stream, share) => match TcpStream::from_std(stream) {
                    Ok(stream) => worker.serve(arrival, stream, share),
                    Err(error) => {
                        tracing::warn!(%error, "a connection that another worker accepted cannot be watched");
                    }
                },
                Command::ForgetSessions => worker.with_pool(Pool::clear),
                Command::Retire => {
                    worker.retirement.begin();
                    pods.clear();
                    worker.with_pool(Pool::clear);
                }
            },
            _ = sweep.tick() => worker.with_pool(|pool| pool.sweep(Instant::now())),
        }
    }
}

fn serve_pod(worker: &Arc<Worker>, pod: &Arc<Pod>, listeners: WorkerListeners) -> Vec<Accepting> {
    let WorkerListeners { outbound, inbound } = listeners;
    let outbound = outbound.into_iter().map(|listener| (Side::Outbound, listener));
    let inbound = inbound.into_iter().map(|listener| (Side::Inbound, listener));
    let accept = |(side, listener)| {
        let (worker, pod) = (Arc::clone(worker), Arc::clone(pod));
        accepting(listener, move |stream, peer| {
            worker.admit(Arrival { side, pod: Arc::clone(&pod), peer }, stream);
        })
    };
    outbound.chain(inbound).filter_map(accept).collect()
}

fn accepting(
    listener: std::net::TcpListener,
    serve: impl Fn(TcpStream, SocketAddr) + Send + 'static,
) -> Option<Accepting> {
    match TcpListener::from_std(listener) {
        Ok(listener) => {
            let (accepting, stop) = oneshot::channel();
            tokio::spawn(accept_all(listener, stop, serve));
            Some(accepting)
        }
        Err(error) => {
            tracing::error!(%error, "a pod's listener cannot be watched: its connections will be refused");
            None
        }
    }
}
