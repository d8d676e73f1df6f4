//! What each agent is told of the mesh: of its own node at once, of the other late and in any order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use sluice_tests::{
    Lab, MeshFile, NodeName, PodEntry,
    agent::view_path,
    mesh::{NAMESPACE, NamespaceEntry},
};

/// The interval at which news that is due is delivered.
const TICK: Duration = Duration::from_millis(10);

/// The mesh files of the two agents.
pub(crate) struct Views<'a> {
    lab: &'a Lab,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The tenant that an agent believes to live at a place.
    known: BTreeMap<(NodeName, usize), PodEntry>,
    underway: Vec<News>,
}

/// The message that a place has this tenant, or none.
struct News {
    due: Instant,
    to: NodeName,
    place: usize,
    tenant: Option<PodEntry>,
}

impl<'a> Views<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        Self { lab, state: Mutex::default() }
    }

    /// Tells one agent at once who lives at a place.
    pub(crate) fn tell(&self, to: NodeName, place: usize, tenant: Option<PodEntry>) -> Result<()> {
        let mut state = self.state();
        state.believe(to, place, tenant);
        self.write(&state, to)
    }

    /// Tells one agent after a while who lives at a place. What it hears before or after that counts as much.
    pub(crate) fn tell_later(
        &self,
        to: NodeName,
        place: usize,
        tenant: Option<PodEntry>,
        delay: Duration,
    ) {
        let due = Instant::now() + delay;
        self.state().underway.push(News { due, to, place, tenant });
    }

    /// Delivers news when it is due, until `over`. News that is not due by then is lost.
    pub(crate) fn deliver(&self, over: &AtomicBool) -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            let now = Instant::now();
            let mut state = self.state();
            let (due, later) = std::mem::take(&mut state.underway)
                .into_iter()
                .partition(|news: &News| news.due <= now);
            state.underway = later;
            let mut told = BTreeSet::new();
            for News { to, place, tenant, .. } in due {
                state.believe(to, place, tenant);
                told.insert(to);
            }
            told.into_iter().try_for_each(|to| self.write(&state, to))?;
            drop(state);
            thread::sleep(TICK);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &State, to: NodeName) -> Result<()> {
        let theirs = state.known.iter().filter(|((whose, _), _)| *whose == to);
        let mesh = MeshFile {
            namespaces: vec![NamespaceEntry {
                name: NAMESPACE.to_owned(),
                labels: BTreeMap::new(),
            }],
            pods: theirs.map(|(_, tenant)| tenant.clone()).collect(),
            services: Vec::new(),
        };
        mesh.write(&view_path(&self.lab.world, to))
    }
}

impl State {
    fn believe(&mut self, who: NodeName, place: usize, tenant: Option<PodEntry>) {
        match tenant {
            Some(tenant) => drop(self.known.insert((who, place), tenant)),
            None => drop(self.known.remove(&(who, place))),
        }
    }
}
