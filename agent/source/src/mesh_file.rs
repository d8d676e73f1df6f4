//! `mesh.yaml`: namespaces, pods and services of a mesh without Kubernetes.

mod exempt;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use sluice_mesh::{Endpoints, Enrolment, Service, ServicePort, Workload, WorkloadUid, enrolment};
use sluice_spiffe::{TrustDomain, WorkloadName};

use self::exempt::WrittenBypass;
use crate::{FileError, Problem, files::is_blank, names, yaml};

/// What the file says, checked as far as the file alone allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MeshState {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) services: Vec<Service>,
}

type Labels = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
    #[serde(default)]
    pods: Option<Vec<Pod>>,
    #[serde(default)]
    services: Option<Vec<WrittenService>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Namespace {
    name: Spanned<String>,
    #[serde(default)]
    labels: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pod {
    namespace: Spanned<String>,
    name: Spanned<String>,
    #[serde(default)]
    service_account: Option<Spanned<String>>,
    #[serde(default)]
    labels: Option<Labels>,
    addresses: Spanned<Vec<Spanned<IpAddr>>>,
    node: Spanned<String>,
    #[serde(default)]
    netns: Option<Spanned<PathBuf>>,
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    probe_ports: Vec<Spanned<u16>>,
    #[serde(default)]
    bypass: WrittenBypass,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenService {
    namespace: Spanned<String>,
    name: Spanned<String>,
    addresses: Spanned<Vec<Spanned<IpAddr>>>,
    ports: Spanned<Vec<Port>>,
    #[serde(default)]
    selector: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Port {
    port: Spanned<u16>,
    #[serde(default)]
    target_port: Option<Spanned<u16>>,
}

/// Checks entries, and refuses what is listed twice with the line of the first.
struct Checker<'a> {
    file: &'a Path,
    trust_domain: &'a TrustDomain,
    names: HashMap<String, Location>,
    addresses: HashMap<IpAddr, (String, Location)>,
}

pub(crate) fn parse(
    file: &Path,
    text: &str,
    trust_domain: &TrustDomain,
) -> Result<MeshState, FileError> {
    // A file that is being written is empty at first; taken for an empty mesh it would free every pod.
    if is_blank(text) {
        return Err(FileError::Emptied { file: file.to_owned() });
    }
    let Written { namespaces, pods, services } = yaml::parse(file, text)?;
    let mut checker =
        Checker { file, trust_domain, names: HashMap::new(), addresses: HashMap::new() };
    let mut labels = HashMap::new();
    for (position, namespace) in namespaces.unwrap_or_default().into_iter().enumerate() {
        let field = format!("namespaces[{position}].name");
        checker.label(&field, &namespace.name)?;
        checker.once(
            &field,
            format!("namespace {}", namespace.name.value),
            namespace.name.referenced,
        )?;
        labels.insert(namespace.name.value, namespace.labels.unwrap_or_default());
    }
    let mut state = MeshState::default();
    for (position, pod) in pods.unwrap_or_default().into_iter().enumerate() {
        state.workloads.push(checker.workload(&format!("pods[{position}]"), pod, &labels)?);
    }
    for (position, service) in services.unwrap_or_default().into_iter().enumerate() {
        state.services.push(checker.service(&format!("services[{position}]"), service)?);
    }
    Ok(state)
}

// === impl Checker ===

impl Checker<'_> {
    fn workload(
        &mut self,
        path: &str,
        pod: Pod,
        namespaces: &HashMap<String, Labels>,
    ) -> Result<Workload, FileError> {
        self.label(&format!("{path}.namespace"), &pod.namespace)?;
        self.subdomain(&format!("{path}.name"), &pod.name)?;
        self.subdomain(&format!("{path}.node"), &pod.node)?;
        if let Some(account) = &pod.service_account {
            self.subdomain(&format!("{path}.serviceAccount"), account)?;
        }
        let uid = format!("{}/{}", pod.namespace.value, pod.name.value);
        self.once(&format!("{path}.name"), format!("pod {uid}"), pod.name.referenced)?;
        let addresses =
            self.addresses(&format!("{path}.addresses"), &format!("pod {uid}"), &pod.addresses)?;
        if let Some(netns) = pod.netns.as_ref().filter(|netns| netns.value.is_relative()) {
            let problem = Problem::RelativePath(netns.value.clone());
            return Err(yaml::content(
                self.file,
                netns.referenced,
                format!("{path}.netns"),
                problem,
            ));
        }
        let account = WorkloadName {
            namespace: pod.namespace.value,
            // As in Kubernetes, for a pod that names no account.
            service_account: pod
                .service_account
                .map_or_else(|| "default".to_owned(), |account| account.value),
        };
        let identity = account.identity(self.trust_domain).map_err(|error| {
            yaml::content(
                self.file,
                pod.namespace.referenced,
                path,
                Problem::NotATrustDomain(error),
            )
        })?;
        let bypass = self.bypass(&format!("{path}.bypass"), pod.bypass)?;
        let probe_ports = self.ports(&format!("{path}.probePorts"), &pod.probe_ports)?;
        let none = Labels::new();
        let labels = pod.labels.unwrap_or_default();
        let namespace_labels = namespaces.get(&account.namespace).unwrap_or(&none);
        Ok(Workload {
            uid: WorkloadUid(uid.into()),
            static_uid: None,
            name: pod.name.value,
            in_mesh: enrolment(namespace_labels, &labels) == Enrolment::Enrolled,
            account,
            identity,
            labels: labels.into(),
            addresses,
            node: pod.node.value,
            zone: None,
            netns: pod.netns.map(|netns| netns.value),
            ready: pod.ready.unwrap_or(true),
            bypass,
            probe_ports,
        })
    }

    fn service(&mut self, path: &str, service: WrittenService) -> Result<Service, FileError> {
        self.label(&format!("{path}.namespace"), &service.namespace)?;
        self.label(&format!("{path}.name"), &service.name)?;
        let name = format!("service {}/{}", service.namespace.value, service.name.value);
        self.once(&format!("{path}.name"), name.clone(), service.name.referenced)?;
        let addresses = self.addresses(&format!("{path}.addresses"), &name, &service.addresses)?;
        if service.ports.value.is_empty() {
            let at = service.ports.referenced;
            return Err(yaml::content(self.file, at, format!("{path}.ports"), Problem::Empty));
        }
        let mut seen = HashMap::new();
        let mut ports = Vec::new();
        for (position, Port { port, target_port }) in service.ports.value.into_iter().enumerate() {
            let refuse = |at, field: &str, problem| {
                Err(yaml::content(
                    self.file,
                    at,
                    format!("{path}.ports[{position}].{field}"),
                    problem,
                ))
            };
            let target = target_port.unwrap_or_else(|| port.clone());
            for (field, number) in [("port", &port), ("targetPort", &target)] {
                if number.value == 0 {
                    return refuse(number.referenced, field, Problem::PortZero);
                }
            }
            if let Some(first) = seen.insert(port.value, port.referenced.line()) {
                let name = format!("port {}", port.value);
                return refuse(port.referenced, "port", Problem::Twice { name, first });
            }
            ports.push(ServicePort { port: port.value, target_port: target.value });
        }
        Ok(Service {
            name: service.name.value,
            namespace: service.namespace.value,
            addresses,
            ports,
            endpoints: Endpoints::Selected(service.selector.unwrap_or_default()),
            ..Service::default()
        })
    }

    /// Returns the addresses in canonical form: IPv4 as IPv4, however it was written.
    fn addresses(
        &mut self,
        field: &str,
        owner: &str,
        written: &Spanned<Vec<Spanned<IpAddr>>>,
    ) -> Result<Vec<IpAddr>, FileError> {
        if written.value.is_empty() {
            return Err(yaml::content(self.file, written.referenced, field, Problem::Empty));
        }
        let mut addresses = Vec::new();
        for Spanned { value, referenced, .. } in &written.value {
            let address = value.to_canonical();
            let refuse = |problem| Err(yaml::content(self.file, *referenced, field, problem));
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                return refuse(Problem::NotUnicast(address));
            }
            if let Some((owner, first)) = self.addresses.get(&address) {
                let (owner, first) = (owner.clone(), first.line());
                return refuse(Problem::AddressTaken { address, owner, first });
            }
            self.addresses.insert(address, (owner.to_owned(), *referenced));
            addresses.push(address);
        }
        Ok(addresses)
    }

    fn once(&mut self, field: &str, name: String, at: Location) -> Result<(), FileError> {
        if let Some(first) = self.names.get(&name) {
            let problem = Problem::Twice { name, first: first.line() };
            return Err(yaml::content(self.file, at, field, problem));
        }
        self.names.insert(name, at);
        Ok(())
    }

    fn label(&self, field: &str, name: &Spanned<String>) -> Result<(), FileError> {
        if names::is_label(&name.value) {
            return Ok(());
        }
        let problem = Problem::NotALabel(name.value.clone());
        Err(yaml::content(self.file, name.referenced, field, problem))
    }

    fn subdomain(&self, field: &str, name: &Spanned<String>) -> Result<(), FileError> {
        if names::is_subdomain(&name.value) {
            return Ok(());
        }
        let problem = Problem::NotASubdomain(name.value.clone());
        Err(yaml::content(self.file, name.referenced, field, problem))
    }
}

#[cfg(test)]
mod tests;
