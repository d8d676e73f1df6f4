//! The CA is away for longer than certificates live: these serve until they end, then nothing does, and all is well
//! soon after the CA is back.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{
    Canary, Capture, Family, Lab, MeshFile, Netns, NodeCa, NodeName, World,
    traffic::{Probe, Server, Service},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const PORT: u16 = 7000;
/// The pause between one attempt to connect and the next.
const PAUSE: Duration = Duration::from_millis(200);
/// How exactly a test can tell whether a connection was before or after an expiry.
const SLACK: Duration = Duration::from_secs(2);
/// How long nothing is valid before the CA comes back.
const DARK: Duration = Duration::from_secs(8);
/// How soon all is well after the CA is back, as promised.
const RECOVERY: Duration = Duration::from_secs(10);

/// Returns when the first of an agent's certificates ends.
fn first_end(certs: &Value) -> Result<OffsetDateTime> {
    let entries = certs["certificates"].as_array().context("no certificates")?;
    let ends = entries.iter().map(|entry| {
        let text = entry["not_after"].as_str().with_context(|| format!("no end: {entry}"))?;
        Ok(OffsetDateTime::parse(text, &Rfc3339)?)
    });
    ends.collect::<Result<Vec<_>>>()?.into_iter().min().context("no certificates")
}

/// Connects from `client` and sends the canary. Returns whether it came back.
fn is_served(client: &Netns, server: std::net::SocketAddr, canary: &Canary) -> bool {
    let outcome =
        Probe::connect(client, server).and_then(|mut probe| probe.echo(canary.as_bytes()));
    outcome.is_ok()
}

fn attempts(
    lab: &Lab,
    canary: &Canary,
    until: OffsetDateTime,
    mut judge: impl FnMut(OffsetDateTime, OffsetDateTime, bool) -> Result<()>,
) -> Result<u32> {
    let client = &lab.pod("client")?.netns;
    let mut count = 0;
    while OffsetDateTime::now_utc() < until {
        for family in Family::BOTH {
            let begin = OffsetDateTime::now_utc();
            let served = is_served(client, lab.pod("server")?.at(family, PORT), canary);
            judge(begin, OffsetDateTime::now_utc(), served)?;
            count += 1;
        }
        thread::sleep(PAUSE);
    }
    Ok(count)
}

/// Waits until the CA's metrics say that it has issued `count` certificates. Agents fetch each pod's as soon as they
/// know of the pod, even if it does nothing yet.
fn wait_until_issued(ca: &NodeCa, count: u32) -> Result<()> {
    let (start, expected) = (Instant::now(), format!("\nsluice_ca_issued_total {count}\n"));
    loop {
        let metrics = ca.get("/metrics")?;
        for line in ["sluice_ca_expiration_timestamp_seconds ", "# EOF"] {
            ensure!(metrics.contains(line), "no {line}: {metrics}");
        }
        if metrics.contains(&expected) {
            return Ok(());
        }
        ensure!(start.elapsed() < RECOVERY, "not{expected}after {RECOVERY:?}: {metrics}");
        thread::sleep(PAUSE);
    }
}

#[test]
fn while_the_ca_is_away_certificates_serve_to_their_end_and_nothing_does_after_it() -> Result<()> {
    let world = World::builder()
        .pod("client", NodeName::A)
        .pod("other", NodeName::A)
        .pod("server", NodeName::B)
        .build()?;
    let mut ca = NodeCa::start(&world)?;
    let mut mesh = MeshFile::of(&world);
    for pod in ["client", "other", "server"] {
        mesh.enrol(pod, true)?;
    }
    let mut lab = Lab::start_set(world, mesh, &[], Some(&ca.settings()))?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    let client = lab.pod("client")?.netns.clone();
    let target = lab.pod("server")?.at(Family::V4, PORT);
    Probe::wait_until_served(&client, target, Duration::from_secs(10))?;

    let ready = ca.get("/healthz/ready")?;
    ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    ensure!(ca.get("/healthz/live")?.starts_with("HTTP/1.1 200"));
    wait_until_issued(&ca, 3)?;
    ca.kill()?;
    let doorbell = ca.listen_instead()?;
    let listening = Instant::now();
    let canary = Canary::new()?;
    let capture = Capture::between_nodes(&lab.world, &canary)?;
    let mut end = OffsetDateTime::now_utc() + Duration::from_mins(1);
    for node in NodeName::BOTH {
        end = end.min(first_end(&lab.agent(node)?.certs()?)?);
    }
    let (mut good, mut refused) = (0, 0);
    let count = attempts(&lab, &canary, end + SLACK + DARK, |begin, over, served| {
        ensure!(served || over > end - SLACK, "refused {} before the end", end - over);
        ensure!(!served || begin < end + SLACK, "served {} after the end", begin - end);
        *(if served { &mut good } else { &mut refused }) += 1;
        Ok(())
    })?;
    let (seconds, calls) = (listening.elapsed().as_secs(), doorbell.finish()?);
    println!(
        "of {count} connections {good} were served, then {refused} refused; the CA was asked: {calls:?} in {seconds} s"
    );
    ensure!(good > 0 && refused > 0);
    // Two identities on the client's node and one on the server's, each asked for at most once a second.
    let most = u32::try_from(seconds)? + 1;
    let asked: Vec<u32> = calls.values().copied().collect();
    ensure!(calls.len() == 2 && asked.iter().all(|calls| *calls >= 3), "hardly asked: {calls:?}");
    ensure!(asked.iter().max() <= Some(&(2 * most)), "asked too often: {calls:?}");
    ensure!(asked.iter().sum::<u32>() <= 3 * most, "asked too often: {calls:?}");
    let seen = capture.seen()?;
    seen.ensure_no_canary()?;
    ensure!(seen.tls_on(PORT) > 0, "the capture saw nothing of the connections");

    ca.come_back()?;
    let back = Instant::now();
    for family in Family::BOTH {
        let target = lab.pod("server")?.at(family, PORT);
        Probe::wait_until_served(&client, target, RECOVERY)?;
    }
    println!("served again {:?} after the CA was back", back.elapsed());
    ensure!(back.elapsed() <= RECOVERY, "only after {:?}", back.elapsed());
    capture.seen()?.ensure_no_canary()
}
