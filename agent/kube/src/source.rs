//! The source as a whole: starts its tasks and connects them.

use std::sync::Arc;

use kube::Client;
use sluice_cluster::{Cluster, object};
use sluice_mesh::Snapshot;
use tokio::sync::watch;

use crate::{
    Announcements, ConnectError, KubeConfig, OwnPod, Reports, StatusHandle, client, disk::Memory,
    follow::Follow, hub::Hub, leaving, publish::Publisher, resource,
};

/// Follows a cluster for as long as the runtime that it was started on lives.
pub struct KubeSource {
    /// The mesh; `None` until something is known of it.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The source's own state.
    pub status: StatusHandle,
    /// Takes what a CNI plugin says of new pods.
    pub announcements: Announcements,
    /// Takes reports on the node's pods, and tells their owners.
    pub reports: Reports,
    /// The agent's own pod, if it runs in one.
    pub own_pod: Option<OwnPod>,
}

// === impl KubeSource ===

impl KubeSource {
    /// Starts to follow the cluster. The API server need not be reachable: until it is, what an earlier run remembered
    /// is served.
    ///
    /// # Errors
    ///
    /// When the credentials cannot even be read.
    pub async fn start(config: KubeConfig) -> Result<Self, ConnectError> {
        let client = client::open(config.kubeconfig.as_deref()).await?;
        Ok(Self::with_client(config, &client))
    }

    fn with_client(config: KubeConfig, client: &Client) -> Self {
        let memory = Memory::new(config.directory);
        let mut cluster = Cluster::new(config.settings);
        let remembers = memory.restore(&mut cluster);
        let hub = Arc::new(Hub::new(cluster));
        let installation = config.installation.as_ref();
        if let Some(installation) = installation {
            leaving::follow(&hub, client, installation);
        }
        follow(&hub, client);
        let publisher = Publisher::new(Arc::clone(&hub), memory, remembers);
        tokio::spawn(publisher.run());
        Self {
            snapshots: hub.snapshots.subscribe(),
            status: StatusHandle(hub.status.subscribe()),
            announcements: Announcements::new(&hub, client, &config.node),
            reports: Reports::start(&hub, client, &config.node),
            own_pod: installation.map(|own| OwnPod::new(client, &own.namespace, &own.pod)),
        }
    }
}

fn follow(hub: &Arc<Hub>, client: &Client) {
    Follow::<object::Namespace>::start(hub, client, &resource::NAMESPACES);
    Follow::<object::Node>::start(hub, client, &resource::NODES);
    Follow::<object::Pod>::start(hub, client, &resource::PODS);
    Follow::<object::Service>::start(hub, client, &resource::SERVICES);
    Follow::<object::EndpointSlice>::start(hub, client, &resource::ENDPOINT_SLICES);
    Follow::<object::AuthorizationPolicy>::start(hub, client, &resource::AUTHORIZATION_POLICIES);
    Follow::<object::PeerAuthentication>::start(hub, client, &resource::PEER_AUTHENTICATIONS);
    Follow::<object::DestinationRule>::start(hub, client, &resource::DESTINATION_RULES);
}
