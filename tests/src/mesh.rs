//! The agent's mesh file, as the lab writes it: pods and services of a [`World`], editable live.
//!
//! Each entry is one line of JSON below a YAML key, which is both valid YAML and easy to read.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::World;

/// The namespace that the lab's pods live in unless a test says otherwise.
pub const NAMESPACE: &str = "shop";
/// The label that enrols a pod or a namespace.
pub const MODE: &str = "istio.io/dataplane-mode";

/// The content of `mesh.yaml`.
#[derive(Clone, Debug, Default)]
pub struct MeshFile {
    /// Namespaces with their labels.
    pub namespaces: Vec<NamespaceEntry>,
    /// Pods of both nodes.
    pub pods: Vec<PodEntry>,
    /// Services.
    pub services: Vec<ServiceEntry>,
}

/// One namespace.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceEntry {
    /// The namespace's name.
    pub name: String,
    /// The namespace's labels.
    pub labels: BTreeMap<String, String>,
}

/// One pod.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodEntry {
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The service account: the last part of the pod's identity.
    pub service_account: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's addresses, primary ones first.
    pub addresses: Vec<IpAddr>,
    /// The name of the pod's node.
    pub node: String,
    /// The path of the pod's network namespace.
    pub netns: PathBuf,
    /// Whether services may lead to the pod.
    pub ready: bool,
    /// Ports that the kubelet may probe.
    pub probe_ports: Vec<u16>,
    /// Which of the pod's traffic stays out of the mesh.
    pub bypass: BypassEntry,
}

/// The part of a pod's traffic that stays out of the mesh.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BypassEntry {
    /// The pod's own ports.
    pub inbound_ports: Vec<u16>,
    /// Ports that the pod connects to.
    pub outbound_ports: Vec<u16>,
    /// Networks that the pod connects to, as `address/prefix`.
    pub outbound_networks: Vec<String>,
}

/// One service.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// The service's Kubernetes namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// The service's virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// The service's ports.
    pub ports: Vec<PortEntry>,
    /// The labels of the service's endpoints.
    pub selector: BTreeMap<String, String>,
}

/// One port of a service.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortEntry {
    /// The port of the virtual address.
    pub port: u16,
    /// The port of the endpoint.
    pub target_port: u16,
}

impl MeshFile {
    /// Describes every pod of `world`, with a service account of the pod's name. None is enrolled.
    pub fn of(world: &World) -> Self {
        let pods = world.pods().map(|pod| PodEntry {
            namespace: NAMESPACE.to_owned(),
            name: pod.name.clone(),
            service_account: pod.name.clone(),
            labels: BTreeMap::from([("app".to_owned(), pod.name.clone())]),
            addresses: pod.addresses.clone(),
            node: pod.node.as_str().to_owned(),
            netns: pod.netns.path(),
            ready: true,
            probe_ports: Vec::new(),
            bypass: BypassEntry::default(),
        });
        let namespace = NamespaceEntry { name: NAMESPACE.to_owned(), labels: BTreeMap::new() };
        Self { namespaces: vec![namespace], pods: pods.collect(), services: Vec::new() }
    }

    /// Returns a pod by name.
    pub fn pod(&mut self, name: &str) -> Result<&mut PodEntry> {
        let found = self.pods.iter_mut().find(|pod| pod.name == name);
        found.with_context(|| format!("the mesh file has no pod {name:?}"))
    }

    /// Enrols a pod, or takes it out.
    pub fn enrol(&mut self, name: &str, enrolled: bool) -> Result<()> {
        let pod = self.pod(name)?;
        if enrolled {
            pod.labels.insert(MODE.to_owned(), "ambient".to_owned());
        } else {
            pod.labels.remove(MODE);
        }
        Ok(())
    }

    /// Returns the names of the enrolled pods on `node`.
    pub fn enrolled_on(&self, node: &str) -> Vec<String> {
        let enrolled = |pod: &&PodEntry| {
            pod.node == node && pod.labels.get(MODE).is_some_and(|mode| mode == "ambient")
        };
        self.pods.iter().filter(enrolled).map(|pod| pod.name.clone()).collect()
    }

    /// Replaces the file at `path` at once: a reader sees the old file or the new one, never half of one.
    pub fn write(&self, path: &Path) -> Result<()> {
        replace(path, &self.to_yaml()?)
    }

    /// Returns the file's text.
    pub fn to_yaml(&self) -> Result<String> {
        let mut text = String::new();
        section(&mut text, "namespaces", &self.namespaces)?;
        section(&mut text, "pods", &self.pods)?;
        section(&mut text, "services", &self.services)?;
        Ok(text)
    }
}

fn section<T: Serialize>(text: &mut String, key: &str, entries: &[T]) -> Result<()> {
    if entries.is_empty() {
        return Ok(writeln!(text, "{key}: []")?);
    }
    writeln!(text, "{key}:")?;
    for entry in entries {
        writeln!(text, "- {}", serde_json::to_string(entry)?)?;
    }
    Ok(())
}

/// Replaces a file by renaming a complete one over it.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    // The draft begins with a dot: all files in a directory of policies are read, except hidden ones.
    let name = path.file_name().context("no file name")?.to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.new"));
    fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
    fs::rename(&draft, path).with_context(|| format!("rename to {}", path.display()))
}
