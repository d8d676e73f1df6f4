//! Places with a pair of addresses each, and the pods that follow one another there.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Lab, NodeName, Pod, PodEntry,
    mesh::{BypassEntry, MODE, NAMESPACE},
    policies,
    traffic::{Server, Service},
};

use crate::views::Views;

/// The port of the pods' servers.
pub(crate) const PORT: u16 = 7000;
/// The identities of the mesh's pods.
pub(crate) const ACCOUNTS: [&str; 5] = ["red", "orange", "yellow", "green", "blue"];
/// The account of pods that are outside the mesh.
pub(crate) const OUTSIDE: &str = "outside";
/// The number of places on each node.
const PLACES: usize = 6;
/// The number of the first place's addresses.
const FIRST: usize = 100;
/// The longest time, in milliseconds, until the other node's agent hears of a move.
const MOST_DELAY: u64 = 1_500;
const CAPTURE: Duration = Duration::from_secs(20);
/// The number of ports that a pod's own connections leave from. No earlier pod at the same place had these ports.
const SOURCE_PORTS: usize = 400;

/// A pod that lives at a place, or did.
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) account: &'static str,
    pub(crate) pod: Pod,
    /// The lines that its callers have said.
    pub(crate) guests: Arc<Mutex<Vec<String>>>,
    server: Mutex<Option<Server>>,
}

struct Place {
    node: NodeName,
    number: u8,
    moves: AtomicUsize,
    tenant: Mutex<Option<Arc<Tenant>>>,
}

/// All places, and everybody who ever lived there.
pub(crate) struct Houses<'a> {
    lab: &'a Lab,
    views: &'a Views<'a>,
    places: Vec<Place>,
    built: AtomicUsize,
    everybody: Mutex<BTreeMap<String, Arc<Tenant>>>,
}

/// A source of numbers that look random (`SplitMix64`).
pub(crate) struct Dice(pub u64);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether the policies of the test let one account of the mesh call another.
pub(crate) fn may_call(client: &str, server: &str) -> bool {
    let position = |account| ACCOUNTS.iter().position(|known| *known == account);
    let next = position(server).and_then(|at| ACCOUNTS.get((at + 1) % ACCOUNTS.len()));
    client == server || next.is_some_and(|next| *next == client)
}

// === impl Tenant ===

impl Tenant {
    pub(crate) fn in_mesh(&self) -> bool {
        self.account != OUTSIDE
    }

    pub(crate) fn identity(&self) -> String {
        format!("spiffe://{}", policies::principal(self.account))
    }

    /// Returns whether a connection from `self` to `server` is one that the mesh lets through.
    pub(crate) fn may_reach(&self, server: &Self) -> bool {
        !server.in_mesh() || self.in_mesh() && may_call(self.account, server.account)
    }

    fn entry(&self) -> PodEntry {
        let mut labels = BTreeMap::from([("app".to_owned(), self.account.to_owned())]);
        if self.in_mesh() {
            labels.insert(MODE.to_owned(), "ambient".to_owned());
        }
        PodEntry {
            namespace: NAMESPACE.to_owned(),
            name: self.name.clone(),
            service_account: self.account.to_owned(),
            labels,
            addresses: self.pod.addresses.clone(),
            node: self.pod.node.as_str().to_owned(),
            netns: self.pod.netns.path(),
            ready: true,
            probe_ports: Vec::new(),
            bypass: BypassEntry::default(),
        }
    }
}

// === impl Houses ===

impl<'a> Houses<'a> {
    pub(crate) fn new(lab: &'a Lab, views: &'a Views<'a>) -> Self {
        let place = |(node, index): (NodeName, usize)| Place {
            node,
            number: u8::try_from(FIRST + index).unwrap_or(u8::MAX),
            moves: AtomicUsize::new(0),
            tenant: Mutex::new(None),
        };
        let places =
            NodeName::BOTH.into_iter().flat_map(|node| (0..PLACES).map(move |i| (node, i)));
        let places = places.map(place).collect();
        Self { lab, views, places, built: AtomicUsize::new(0), everybody: Mutex::default() }
    }

    pub(crate) fn count(&self) -> usize {
        self.places.len()
    }

    /// Returns whether two places are on different nodes.
    pub(crate) fn are_apart(&self, one: usize, other: usize) -> bool {
        let node = |place: usize| self.places.get(place).map(|place| place.node);
        node(one) != node(other)
    }

    /// Returns who lives at a place now; `None` while somebody moves.
    pub(crate) fn tenant(&self, place: usize) -> Option<Arc<Tenant>> {
        lock(&self.places.get(place)?.tenant).clone()
    }

    /// Returns everybody who ever lived at a place, by name.
    pub(crate) fn everybody(&self) -> BTreeMap<String, Arc<Tenant>> {
        lock(&self.everybody).clone()
    }

    /// Gives the addresses of a place to a new pod, with another identity than the pod before.
    pub(crate) fn pass_on(&self, place: usize, dice: &mut Dice) -> Result<()> {
        let at = self.places.get(place).context("no such place")?;
        let before = lock(&at.tenant).take();
        if let Some(before) = &before {
            drop(lock(&before.server).take());
            self.lab.world.move_out(&before.pod)?;
        }
        let others: Vec<&str> = ACCOUNTS
            .into_iter()
            .chain([OUTSIDE])
            .filter(|account| before.as_ref().is_none_or(|before| before.account != *account))
            .collect();
        let account = *others.get(dice.below(others.len())).context("no account")?;
        let tenant = self.build(at, account)?;
        let other = if at.node == NodeName::A { NodeName::B } else { NodeName::A };
        let mut delay = || Duration::from_millis(dice.next() % MOST_DELAY);
        self.views.tell_later(other, place, None, delay());
        self.views.tell_later(other, place, Some(tenant.entry()), delay());
        self.views.tell(at.node, place, Some(tenant.entry()))?;
        self.wait_until_captured(at.node, &tenant)?;
        let service =
            Service::Guestbook { name: tenant.name.clone(), guests: Arc::clone(&tenant.guests) };
        *lock(&tenant.server) = Some(Server::on_port(&tenant.pod.netns, PORT, service)?);
        *lock(&at.tenant) = Some(tenant);
        Ok(())
    }

    fn build(&self, at: &Place, account: &'static str) -> Result<Arc<Tenant>> {
        let name = format!("p{}", self.built.fetch_add(1, Ordering::Relaxed));
        let pod = self.lab.world.move_in(&name, at.node, at.number)?;
        let moves = at.moves.fetch_add(1, Ordering::Relaxed);
        let first = 10_000 + moves * SOURCE_PORTS;
        let range = format!("{first} {}", first + SOURCE_PORTS - 1);
        pod.netns.sysctl("net/ipv4/ip_local_port_range", &range)?;
        let (guests, server) = (Arc::default(), Mutex::default());
        let tenant = Arc::new(Tenant { name, account, pod, guests, server });
        lock(&self.everybody).insert(tenant.name.clone(), Arc::clone(&tenant));
        Ok(tenant)
    }

    fn wait_until_captured(&self, node: NodeName, tenant: &Tenant) -> Result<()> {
        let start = Instant::now();
        while tenant.in_mesh() && !self.lab.captured_on(node)?.contains(&tenant.name) {
            ensure!(start.elapsed() < CAPTURE, "{} is not captured", tenant.name);
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Tells both agents who really lives where.
    pub(crate) fn tell_truth(&self) -> Result<()> {
        for (place, _) in self.places.iter().enumerate() {
            let tenant = self.tenant(place).map(|tenant| tenant.entry());
            NodeName::BOTH
                .into_iter()
                .try_for_each(|node| self.views.tell(node, place, tenant.clone()))?;
        }
        Ok(())
    }
}

// === impl Dice ===

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % (count.max(1) as u64)).unwrap_or_default()
    }
}
