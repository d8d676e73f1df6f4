//! The whole life of a source in one test, because a server takes its time to start.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use serde_json::json;
use sluice_kube::{
    Announcement, ApiServer, Capture, Decision, KubeSource, UninstallError, Uninstallation,
};
use sluice_mesh::{Client, Destination, WorkloadUid};
use sluice_policy::{Connection, DenyReason, Verdict};
use tempfile::TempDir;

use crate::{
    server::Server,
    world::{World, enrolled, source, until},
};

#[tokio::test]
async fn a_source_follows_announces_reports_and_remembers() {
    let Some(mut server) = Server::start().await else { return };
    let directory = TempDir::new().unwrap();
    let world = World(server.client().await);
    world.namespace("shop", None).await;
    let web = world.pod("shop", "web").await;
    world.runs("shop", "web", "10.0.0.1").await;
    let source_one = source(&server, &directory).await;
    until(&source_one, "the first list", |snapshot| {
        snapshot.member(&WorkloadUid(web.as_str().into())).is_some_and(|pod| !pod.workload.in_mesh)
    })
    .await;
    labels(&world, &source_one, &web).await;
    services(&world, &source_one, &web).await;
    announcements(&world, &source_one).await;
    static_pods(&world, &source_one).await;
    reports(&world, &source_one, &web).await;
    reports_in_a_namespace_that_goes(&world, &source_one).await;
    uninstallations(&world, &source_one, &server).await;
    policies(&world, &source_one, &web).await;
    outage(&mut server, &directory, source_one, &web).await;
}

/// Labels take a pod in and out without a restart of anything.
async fn labels(world: &World, source: &KubeSource, web: &str) {
    world.namespace("shop", Some("ambient")).await;
    let snapshot = until(source, "label on", |snapshot| enrolled(snapshot, web)).await;
    let member = snapshot.member(&WorkloadUid(web.into())).unwrap();
    assert_eq!(member.workload.probe_ports, [8080].into());
    world.namespace("shop", None).await;
    until(source, "label off", |snapshot| !enrolled(snapshot, web)).await;
    world.namespace("shop", Some("ambient")).await;
    until(source, "label on again", |snapshot| enrolled(snapshot, web)).await;
}

async fn services(world: &World, source: &KubeSource, web: &str) {
    let address = world.service("shop", "web", web, "10.0.0.1").await;
    let target = format!("{address}:80").parse().unwrap();
    let client = Client { address: "10.0.0.9".parse().unwrap(), node: "node-b", zone: None };
    until(source, "a service", |snapshot| {
        matches!(snapshot.resolve(target, &client, 0),
            Destination::Member(_, at) if at == "10.0.0.1:8080".parse().unwrap())
    })
    .await;
}

/// A pod that has no address at the API server yet is in the snapshot once a plugin has announced it.
async fn announcements(world: &World, source: &KubeSource) {
    let uid = world.pod("shop", "new").await;
    let announcement = Announcement {
        uid: Some(uid.clone()),
        namespace: "shop".to_owned(),
        name: "new".to_owned(),
        netns: PathBuf::from("/run/netns/new"),
        addresses: vec!["10.0.0.2".parse().unwrap()],
    };
    let started = Instant::now();
    let decision = source.announcements.announce(announcement.clone()).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "the plugin waits 10 s");
    assert_eq!(decision, Decision::Enrolled(WorkloadUid(uid.as_str().into())));
    assert!(enrolled(source.snapshots.borrow().as_deref().unwrap(), &uid));
    let nameless = Announcement { uid: None, ..announcement.clone() };
    assert_eq!(source.announcements.announce(nameless).await, Ok(decision));
    let impostor = Announcement { name: "other".to_owned(), ..announcement.clone() };
    assert!(source.announcements.announce(impostor).await.is_err());
    world.pod("default", "outside").await;
    let outside = Announcement {
        uid: None,
        namespace: "default".to_owned(),
        name: "outside".to_owned(),
        ..announcement
    };
    let decision = source.announcements.announce(outside).await.unwrap();
    assert!(matches!(decision, Decision::Outside(_)), "{decision:?}");
    world.delete_pod("shop", "new").await;
    until(source, "the pod's end", |snapshot| !enrolled(snapshot, &uid)).await;
}

/// The runtime has the kubelet's UID for them, and the API server another.
async fn static_pods(world: &World, source: &KubeSource) {
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    let mirror = json!({"kubernetes.io/config.mirror": HASH});
    let uid = world.annotated_pod("shop", "static", mirror).await;
    let announcement = Announcement {
        uid: Some(HASH.to_owned()),
        namespace: "shop".to_owned(),
        name: "static".to_owned(),
        netns: PathBuf::from("/run/netns/static"),
        addresses: vec!["10.0.0.4".parse().unwrap()],
    };
    let enrolled_as_its_mirror = Ok(Decision::Enrolled(WorkloadUid(uid.as_str().into())));
    for _ in 0..2 {
        let decision = source.announcements.announce(announcement.clone()).await;
        assert_eq!(decision, enrolled_as_its_mirror);
    }
    let foreign = Announcement { name: "web".to_owned(), ..announcement };
    assert!(source.announcements.announce(foreign).await.is_err());
    world.delete_pod("shop", "static").await;
    until(source, "the static pod's end", |snapshot| !enrolled(snapshot, &uid)).await;
}

async fn reports(world: &World, source: &KubeSource, web: &str) {
    let istios = json!({"ambient.istio.io/redirection": "enabled"});
    world.annotated_pod("default", "istios", istios.clone()).await;
    let uid = WorkloadUid(web.into());
    source.reports.report([(uid.clone(), Capture::Captured)].into());
    let annotated =
        json!({"ambient.istio.io/redirection": "enabled", "sluice.dev/captured": "true"});
    eventually("the annotation", async || world.annotations("shop", "web").await == annotated)
        .await;
    source.reports.report([(uid, Capture::Failed("no veth".to_owned()))].into());
    let events: Api<Event> = Api::namespaced(world.0.clone(), "shop");
    eventually("the event", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        events.items.iter().any(|event| event.note.as_deref() == Some("no veth"))
    })
    .await;
    eventually("no annotation", async || world.annotations("shop", "web").await.is_null()).await;
    assert_eq!(world.annotations("default", "istios").await, istios, "what is Istio's stays");
    source.reports.report(BTreeMap::new());
}

/// In a namespace that is ending no event can be written, and that is no error that an operator has to see to.
async fn reports_in_a_namespace_that_goes(world: &World, source: &KubeSource) {
    world.namespace("leaving", Some("ambient")).await;
    let uid = world.pod("leaving", "last").await;
    world.runs("leaving", "last", "10.0.0.3").await;
    until(source, "the last pod", |snapshot| enrolled(snapshot, &uid)).await;
    world.end_namespace("leaving").await;
    let uid = WorkloadUid(uid.as_str().into());
    source.reports.report([(uid, Capture::Failed("no veth".to_owned()))].into());
    for (step, code) in [("the end has begun", 403), ("it is over", 404)] {
        if code == 404 {
            world.finalize_namespace("leaving").await;
        }
        let before = world.events_refused(code).await;
        // The second attempt shows that the first was judged.
        eventually(step, async || world.events_refused(code).await >= before + 2).await;
        let errors = &source.status.status().errors;
        assert!(errors.is_empty(), "{step}: {errors:?}");
    }
    source.reports.report(BTreeMap::new());
}

/// What an agent said at one that was called off confirms no other one.
async fn uninstallations(world: &World, source: &KubeSource, server: &Server) {
    let left = async || world.annotations("default", "agent").await.get("sluice.dev/left").cloned();
    world.annotated_pod("default", "agent", json!({"sluice.dev/left": "before"})).await;
    world.runs("default", "agent", "10.0.0.5").await;
    world.daemon_set("default", "agents", "agent").await;
    let agent = source.own_pod.as_ref().unwrap();
    agent.serves().await;
    assert_eq!(left().await, None);
    agent.has_left().await;
    let said = left().await;
    agent.serves().await;
    assert!(said.is_some() && left().await == said, "told late, it is not taken back");

    let api = ApiServer::open(Some(&server.kubeconfig())).await.unwrap();
    let uninstallation = Uninstallation::new(api, "default", "agents");
    let outcome = uninstallation.run(Duration::ZERO, |_| {}).await;
    assert!(matches!(outcome, Err(UninstallError::NotLeft { .. })), "{outcome:?}");
    agent.has_left().await;
    assert_ne!(left().await, said);
    // This one goes on with what that one began.
    uninstallation.run(Duration::ZERO, |_| {}).await.unwrap();
}

/// A kind that is installed later is found.
async fn policies(world: &World, source: &KubeSource, web: &str) {
    world.install_policies().await;
    world.deny_all("shop").await;
    until(source, "a policy", |snapshot| {
        verdict(snapshot, web) == Verdict::Deny(DenyReason::NotAllowed)
    })
    .await;
}

fn verdict(snapshot: &sluice_mesh::Snapshot, web: &str) -> Verdict {
    let connection = Connection {
        principal: None,
        source: "10.0.0.9".parse().unwrap(),
        destination: "10.0.0.1:80".parse().unwrap(),
    };
    snapshot.member(&WorkloadUid(web.into())).unwrap().policy.decide(&connection)
}

/// Without the API server the known state stays in force, also across a restart. When the server is back, the source
/// catches up.
async fn outage(server: &mut Server, directory: &TempDir, first: KubeSource, web: &str) {
    let rules = directory.path().join("rules.json");
    eventually("the copies", async || {
        let members = directory.path().join("members.json").exists();
        members
            && std::fs::read_to_string(&rules)
                .is_ok_and(|text| text.contains("AuthorizationPolicy"))
    })
    .await;
    let mode = std::fs::metadata(&rules).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.down();
    eventually("errors", async || !first.status.status().errors.is_empty()).await;
    assert!(enrolled(first.snapshots.borrow().as_deref().unwrap(), web));
    let second = source(server, directory).await;
    let remembered = until(&second, "what is remembered", |snapshot| enrolled(snapshot, web)).await;
    assert!(remembered.is_provisional() && second.status.status().is_provisional);
    assert_eq!(verdict(&remembered, web), Verdict::Deny(DenyReason::NotAllowed));
    server.up().await;
    World(server.client().await).namespace("shop", None).await;
    for source in [&first, &second] {
        until(source, "catching up", |snapshot| {
            !snapshot.is_provisional() && !enrolled(snapshot, web)
        })
        .await;
    }
    // A damaged copy is refused: then nothing is known until the API server answers.
    std::fs::write(&rules, "{").unwrap();
    server.down();
    let third = source(server, directory).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(third.snapshots.borrow().is_none());
}

async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
