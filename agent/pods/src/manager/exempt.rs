//! Keeps the hooks' exemptions as declared, while pods stay enrolled.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
};

use sluice_mesh::WorkloadUid;

use super::PodManager;
use crate::{Hooks, PodEvent, declared::Declared, exempt::Exempt};

impl<H: Hooks> PodManager<H> {
    /// Takes new declarations in, and makes records of new pods.
    pub(super) fn declare(&mut self, mut declared: BTreeMap<WorkloadUid, (Declared, Exempt)>) {
        for (uid, record) in &mut self.pods {
            if let Some(declared) = declared.remove(uid) {
                record.declare(declared);
            }
        }
        let new = declared.into_iter();
        self.pods.extend(new.map(|(uid, new)| (uid, super::Record::new(new))));
    }

    /// Changes the exemptions of every captured pod where they are not as declared, and destroys
    /// connections that are no longer exempt.
    pub(super) fn exempt_changed(&mut self) {
        let changed = |(uid, record): (&WorkloadUid, &super::Record)| {
            let wanted = record.is_exempt_otherwise().then(|| record.exempt.clone())?;
            Some((uid.clone(), record.captured.as_ref()?.pod.cookie, wanted))
        };
        let changed: Vec<_> = self.pods.iter().filter_map(changed).collect();
        for (uid, cookie, wanted) in changed {
            if let Err(error) = self.hooks.exempt(cookie, wanted.hooks()) {
                self.troubled(&uid, error.to_string());
                continue;
            }
            if let Some(captured) =
                self.pods.get_mut(&uid).and_then(|record| record.captured.as_mut())
            {
                captured.exempt = Some(wanted);
            }
            let destroyed = self.cut_unexempt(&uid);
            self.events.push(PodEvent::Exempted { pod: uid, destroyed });
        }
    }

    /// Tells the kernel which destinations every pod reaches without the mesh, and destroys
    /// connections to those that are no longer among them.
    pub(super) fn set_direct(&mut self) {
        let Some(wanted) = self.wanted_direct.clone() else { return };
        if self.known_direct.as_ref() == Some(&wanted) {
            return;
        }
        // Sorted, so the same ones fit each time.
        let mut all: Vec<SocketAddr> = wanted.iter().copied().collect();
        all.sort_unstable();
        match self.hooks.set_direct(&all) {
            Ok(fill) => {
                if fill.held < fill.wanted {
                    self.events.push(PodEvent::DirectOverflow(fill));
                }
                let gone = self.known_direct.replace(wanted);
                let is_narrower = |before: HashSet<SocketAddr>| {
                    self.known_direct.as_ref().is_some_and(|now| !before.is_subset(now))
                };
                if gone.is_some_and(is_narrower) {
                    for pod in self.pods.keys().cloned().collect::<Vec<_>>() {
                        let connections = self.cut_unexempt(&pod);
                        if connections > 0 {
                            self.events.push(PodEvent::Cut { pod, connections });
                        }
                    }
                }
            }
            Err(error) => self.events.push(PodEvent::DirectFailed { reason: error.to_string() }),
        }
    }
}
