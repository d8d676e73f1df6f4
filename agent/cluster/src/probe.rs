//! The ports that the kubelet connects to, as a pod declares them.

use std::collections::BTreeSet;

use crate::{
    Meaning,
    facts::Complaint,
    object::{Container, Handler, Lifecycle, PodSpec, PortReference},
};

/// Returns the ports of probes and of the hooks that the kubelet calls. Init containers are probed only as sidecars. A
/// probe of another host does not count.
pub(crate) fn ports(spec: &PodSpec, complaints: &mut Vec<Complaint>) -> BTreeSet<u16> {
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().filter(is_sidecar));
    let mut ports = BTreeSet::new();
    for container in containers {
        for handler in handlers(container) {
            let Some(reference) = target(handler) else { continue };
            match number(reference, container) {
                Some(port) => drop(ports.insert(port)),
                None => complaints.push(Complaint {
                    field: "spec.containers[*] probes".to_owned(),
                    meaning: Meaning::UnknownProbePort(match reference {
                        PortReference::Number(number) => number.to_string(),
                        PortReference::Name(name) => name.clone(),
                    }),
                }),
            }
        }
    }
    ports
}

fn handlers(container: &Container) -> impl Iterator<Item = &Handler> {
    let Container { readiness_probe, liveness_probe, startup_probe, lifecycle, .. } = container;
    let hooks = lifecycle.as_ref().map(|Lifecycle { post_start, pre_stop }| [post_start, pre_stop]);
    [readiness_probe, liveness_probe, startup_probe]
        .into_iter()
        .chain(hooks.into_iter().flatten())
        .flatten()
}

/// Returns the port that a handler connects to on its own pod.
fn target(handler: &Handler) -> Option<&PortReference> {
    let is_own = |host: &Option<String>| host.as_ref().is_none_or(String::is_empty);
    let Handler { http_get, tcp_socket, grpc } = handler;
    let http = http_get.as_ref().filter(|http| is_own(&http.host)).map(|http| &http.port);
    let tcp = tcp_socket.as_ref().filter(|tcp| is_own(&tcp.host)).map(|tcp| &tcp.port);
    http.or(tcp).or(grpc.as_ref().map(|grpc| &grpc.port))
}

fn number(reference: &PortReference, container: &Container) -> Option<u16> {
    let number = match reference {
        PortReference::Number(number) => u16::try_from(*number).ok(),
        PortReference::Name(name) => {
            let named = container.ports.iter().find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    number.filter(|port| *port != 0)
}
