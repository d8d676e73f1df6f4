//! What is known of the mesh: the versions in force, and the snapshot made of them.

use std::{path::PathBuf, sync::Arc};

use sluice_mesh::{Snapshot, SnapshotBuilder};
use sluice_policy::{Compiled, Finding, PolicyObject, PolicySet, foreign_principals};
use sluice_spiffe::TrustDomain;

use crate::{
    Consequence, FileError, SourceError,
    change::Change,
    files::{Contents, Files},
    last_good::LastGood,
    mesh_file::{self, MeshState},
    policies::PolicyFiles,
};

/// The namespace whose policies are those of the whole mesh; Istio's default.
const ROOT_NAMESPACE: &str = "istio-system";

/// The versions in force.
#[derive(Debug)]
pub(crate) struct State {
    trust_domain: TrustDomain,
    mesh_path: PathBuf,
    last_good: LastGood,
    mesh: Option<Mesh>,
    policies: PolicyFiles,
    /// What the last snapshot was made of, to tell what a new one changes.
    published: Option<Published>,
}

#[derive(Clone, Debug)]
struct Mesh {
    text: String,
    state: MeshState,
}

#[derive(Debug)]
struct Published {
    mesh: MeshState,
    policies: Vec<PolicyObject>,
}

/// The result of taking over new contents.
#[derive(Debug)]
pub(crate) struct Taken {
    /// A new snapshot and what it changes, if anything did.
    pub(crate) snapshot: Option<(Arc<Snapshot>, Change)>,
    pub(crate) errors: Vec<SourceError>,
    pub(crate) findings: Vec<Finding>,
}

// === impl State ===

impl State {
    /// Starts from the copies of an earlier run, if there are any. Nothing is published yet: the files
    /// have the first word.
    pub(crate) fn restore(trust_domain: &TrustDomain, last_good: LastGood, files: &Files) -> Self {
        let mesh = last_good.mesh().and_then(|text| {
            let state = mesh_file::parse(&files.mesh, &text, trust_domain).ok()?;
            Some(Mesh { text, state })
        });
        let policies = match &files.policies {
            Some(directory) => PolicyFiles::restore(directory, last_good.policies()),
            None => PolicyFiles::default(),
        };
        Self {
            trust_domain: trust_domain.clone(),
            mesh_path: files.mesh.clone(),
            last_good,
            mesh,
            policies,
            published: None,
        }
    }

    /// Takes over whatever of `contents` is sound.
    pub(crate) fn take(&mut self, contents: Contents) -> Taken {
        let mut errors = Vec::new();
        let mut changed = self.published.is_none();
        if let Some(directory) = contents.policies {
            let swept = self.policies.update(directory);
            errors.extend(swept.errors);
            changed |= swept.changed;
        }
        let objects = self.policies.objects();
        let Compiled { set, mut findings } =
            PolicySet::compile(&objects, self.policies.withheld(), ROOT_NAMESPACE);
        findings.extend(foreign_principals(&objects, &self.trust_domain));
        let mut snapshot = None;
        match self.read_mesh(contents.mesh, &set) {
            Ok(new) => {
                changed |= self.mesh.as_ref().is_none_or(|mesh| mesh.text != new.0.text);
                self.mesh = Some(new.0);
                snapshot = Some(new.1);
            }
            Err(error) => {
                let consequence = match self.mesh {
                    Some(_) => Consequence::LastGoodStays,
                    None => Consequence::NoState,
                };
                errors.push(SourceError { error, consequence });
            }
        }
        if snapshot.is_none() && changed {
            // The mesh was built before, so it can be built again: only the policies differ.
            snapshot = self.mesh.as_ref().and_then(|mesh| self.build(&mesh.state, &set).ok());
        }
        let snapshot = snapshot.filter(|_| changed).map(|snapshot| self.publish(snapshot, objects));
        Taken { snapshot, errors, findings }
    }

    fn read_mesh(
        &self,
        text: Result<String, FileError>,
        policies: &PolicySet,
    ) -> Result<(Mesh, Snapshot), FileError> {
        let text = text?;
        let state = match self.mesh.as_ref().filter(|mesh| mesh.text == text) {
            Some(mesh) => mesh.state.clone(),
            None => mesh_file::parse(&self.mesh_path, &text, &self.trust_domain)?,
        };
        let snapshot = self.build(&state, policies)?;
        Ok((Mesh { text, state }, snapshot))
    }

    fn build(&self, state: &MeshState, policies: &PolicySet) -> Result<Snapshot, FileError> {
        let MeshState { workloads, services } = state.clone();
        let services = services.into_iter().map(Arc::new).collect();
        SnapshotBuilder { workloads, services, policies: policies.clone(), ..Default::default() }
            .build(self.trust_domain.clone())
            .map_err(|error| FileError::Contradiction { file: self.mesh_path.clone(), error })
    }

    fn publish(
        &mut self,
        snapshot: Snapshot,
        policies: Vec<PolicyObject>,
    ) -> (Arc<Snapshot>, Change) {
        let mesh = self.mesh.as_ref().map(|mesh| mesh.state.clone()).unwrap_or_default();
        let (old_mesh, old_policies) = match &self.published {
            Some(published) => (&published.mesh, published.policies.as_slice()),
            None => (&MeshState::default(), [].as_slice()),
        };
        let change = Change::between((old_mesh, old_policies), (&mesh, &policies));
        if let Some(mesh) = &self.mesh {
            self.last_good.keep_mesh(&mesh.text);
        }
        if self.policies.are_known() {
            self.last_good.keep_policies(self.policies.texts());
        }
        self.published = Some(Published { mesh, policies });
        (Arc::new(snapshot), change)
    }
}
