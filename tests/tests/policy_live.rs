//! Policies decide by identity who connects. A change is in force within a second, also for
//! connections that are open.

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Family, Lab, MeshFile, NodeName, World,
    agent::mesh_path,
    policies,
    traffic::{Probe, Server, Service},
};

const PORT: u16 = 7000;
/// The promise: a change on disk reaches open connections within this.
const IN_FORCE: Duration = Duration::from_secs(1);
/// How long to wait for a change once its file is written; the watcher collects bursts first.
const PATIENCE: Duration = Duration::from_secs(3);

fn lab(initial: &[(&str, &str)]) -> Result<Lab> {
    let world = World::builder()
        .pod("friend", NodeName::A)
        .pod("stranger", NodeName::A)
        .pod("outside", NodeName::A)
        .pod("server", NodeName::B)
        .build()?;
    let mut mesh = MeshFile::of(&world);
    for pod in ["friend", "stranger", "server"] {
        mesh.enrol(pod, true)?;
    }
    Lab::start_with(world, mesh, initial)
}

fn serve(lab: &Lab) -> Result<Server> {
    Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)
}

/// Fails unless connections from the pod are served or refused, as expected, over both families.
fn ensure_outcome(lab: &Lab, pod: &str, served: bool) -> Result<()> {
    for family in Family::BOTH {
        let target = lab.pod("server")?.at(family, PORT);
        let netns = &lab.pod(pod)?.netns;
        let outcome = if served {
            Probe::ensure_served(netns, target)
        } else {
            Probe::ensure_refused(netns, target).map(|_| ())
        };
        outcome.with_context(|| format!("from {pod} over {family:?}"))?;
    }
    Ok(())
}

#[test]
fn without_policies_everyone_is_served() -> Result<()> {
    let lab = lab(&[])?;
    let _server = serve(&lab)?;
    for pod in ["friend", "stranger", "outside"] {
        ensure_outcome(&lab, pod, true)?;
    }
    Ok(())
}

#[test]
fn an_allow_rule_by_principal_serves_the_named_and_refuses_all_others() -> Result<()> {
    let lab = lab(&[("allow.yaml", &policies::allow("server", &["friend"]))])?;
    let server = serve(&lab)?;
    ensure_outcome(&lab, "friend", true)?;
    let before = server.accepted().len();
    ensure_outcome(&lab, "stranger", false)?;
    ensure_outcome(&lab, "outside", false)?;
    assert_eq!(server.accepted().len(), before, "the application saw a refused connection");
    Ok(())
}

#[test]
fn a_deny_rule_by_principal_refuses_the_named_and_serves_all_others() -> Result<()> {
    let lab = lab(&[("deny.yaml", &policies::deny("server", &["stranger"]))])?;
    let _server = serve(&lab)?;
    ensure_outcome(&lab, "friend", true)?;
    ensure_outcome(&lab, "stranger", false)?;
    ensure_outcome(&lab, "outside", true)
}

#[test]
fn strict_refuses_the_pod_outside_and_serves_the_mesh() -> Result<()> {
    let lab = lab(&[("mtls.yaml", &policies::peer_authentication("STRICT"))])?;
    let server = serve(&lab)?;
    ensure_outcome(&lab, "friend", true)?;
    let before = server.accepted().len();
    ensure_outcome(&lab, "outside", false)?;
    assert_eq!(server.accepted().len(), before, "the application saw a plaintext connection");
    Ok(())
}

#[test]
fn a_change_cuts_the_open_connections_that_it_no_longer_allows_and_only_those() -> Result<()> {
    let lab = lab(&[])?;
    let _server = serve(&lab)?;
    for family in Family::BOTH {
        let target = lab.pod("server")?.at(family, PORT);
        let open = |pod: &str| {
            let mut probe = Probe::connect(&lab.pod(pod)?.netns, target)?;
            probe.echo(b"still allowed")?;
            Ok::<_, anyhow::Error>(probe)
        };
        let (mut friend, mut stranger, mut outside) =
            (open("friend")?, open("stranger")?, open("outside")?);
        lab.write_policy("allow.yaml", &policies::allow("server", &["friend"]))?;
        let start = std::time::Instant::now();
        for probe in [&mut stranger, &mut outside] {
            probe.wait_for_cut(PATIENCE)?;
        }
        let took = start.elapsed();
        ensure!(took <= IN_FORCE, "{family:?}: cut only after {took:?}");
        friend.echo(b"still allowed")?;
        lab.remove_policy("allow.yaml")?;
        Probe::wait_until_served(&lab.pod("stranger")?.netns, target, IN_FORCE)?;
        Probe::wait_until_served(&lab.pod("outside")?.netns, target, IN_FORCE)?;
        friend.echo(b"still allowed")?;
    }
    Ok(())
}

#[test]
fn a_file_beside_that_is_written_all_the_time_does_not_hold_a_change_up() -> Result<()> {
    let lab = lab(&[])?;
    let _server = serve(&lab)?;
    let target = lab.pod("server")?.at(Family::V4, PORT);
    let stranger = &lab.pod("stranger")?.netns;
    let stop = AtomicBool::new(false);
    let busy = mesh_path(&lab.world).with_file_name("some.log");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = std::fs::File::create(&busy)?;
            while !stop.load(Ordering::Relaxed) {
                log.write_all(b"a line\n")?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<_, std::io::Error>(())
        });
        let mut slowest = Duration::ZERO;
        let outcome = (0..5).try_for_each(|_| {
            lab.write_policy("allow.yaml", &policies::allow("server", &["friend"]))?;
            slowest = slowest.max(Probe::wait_until_refused(stranger, target, PATIENCE)?);
            lab.remove_policy("allow.yaml")?;
            slowest = slowest.max(Probe::wait_until_served(stranger, target, PATIENCE)?);
            Ok::<_, anyhow::Error>(())
        });
        stop.store(true, Ordering::Relaxed);
        outcome?;
        ensure!(slowest <= IN_FORCE, "a change took {slowest:?}");
        Ok(())
    })
}

#[test]
fn turning_strict_cuts_open_plaintext_connections() -> Result<()> {
    let lab = lab(&[])?;
    let _server = serve(&lab)?;
    let target = lab.pod("server")?.at(Family::V6, PORT);
    let mut outside = Probe::connect(&lab.pod("outside")?.netns, target)?;
    let mut friend = Probe::connect(&lab.pod("friend")?.netns, target)?;
    outside.echo(b"hello")?;
    friend.echo(b"hello")?;
    lab.write_policy("mtls.yaml", &policies::peer_authentication("STRICT"))?;
    let took = outside.wait_for_cut(PATIENCE)?;
    ensure!(took <= IN_FORCE, "cut only after {took:?}");
    friend.echo(b"hello")
}

#[test]
fn a_bad_policy_file_keeps_the_last_good_state_and_is_reported_with_its_line() -> Result<()> {
    let mut lab = lab(&[("allow.yaml", &policies::allow("server", &["friend"]))])?;
    let _server = serve(&lab)?;
    ensure_outcome(&lab, "friend", true)?;
    lab.write_policy("allow.yaml", "apiVersion: security.istio.io/v1\nkind: [nonsense\n")?;
    std::thread::sleep(IN_FORCE * 2);
    ensure_outcome(&lab, "friend", true)?;
    ensure_outcome(&lab, "stranger", false)?;
    let status = lab.agent(NodeName::B)?.status()?;
    let errors = status["source"]["errors"].to_string();
    ensure!(errors.contains("allow.yaml") && errors.contains('2'), "not reported: {status}");
    lab.write_policy("allow.yaml", &policies::allow("server", &["stranger"]))?;
    let target = lab.pod("server")?.at(Family::V4, PORT);
    Probe::wait_until_served(&lab.pod("stranger")?.netns, target, PATIENCE)?;
    ensure_outcome(&lab, "friend", false)
}

#[test]
fn a_bad_mesh_file_keeps_pods_captured() -> Result<()> {
    let mut lab = lab(&[("mtls.yaml", &policies::peer_authentication("STRICT"))])?;
    let _server = serve(&lab)?;
    let mesh = mesh_path(&lab.world);
    sluice_tests::mesh::replace(&mesh, "pods:\n- {namespace: shop, nonsense: true}\n")?;
    std::thread::sleep(IN_FORCE * 2);
    ensure_outcome(&lab, "friend", true)?;
    ensure_outcome(&lab, "outside", false)?;
    let status = lab.agent(NodeName::B)?.status()?;
    ensure!(status["source"]["errors"].to_string().contains("mesh.yaml"), "{status}");
    lab.edit_mesh(|_| Ok(()))
}
