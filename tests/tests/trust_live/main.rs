//! Trust changes while connections live: certificates are renewed, roots replaced, identities denied, certificates
//! revoked. Peers that are not affected notice nothing.

mod outage;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use sluice_tests::{
    Authority, Family, Lab, MeshFile, Netns, NodeName, TrustFiles, World,
    agent::sibling,
    full_size,
    privilege::descriptor_limit,
    traffic::{Load, Probe, Server, Service},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PORT: u16 = 7000;
/// The port of the server that has a process of its own.
const MANY_PORT: u16 = 7001;
const STRANGER: &str = "spiffe://cluster.local/ns/shop/sa/stranger";
/// How long a deny list may take to be in force, as promised; for roots this is the goal.
const IN_FORCE: Duration = Duration::from_secs(1);
/// How long roots may take to be in force, as promised.
const ROOT_IN_FORCE: Duration = Duration::from_mins(1);
/// Half of a certificate's life, after which no session rests on the old certificate. A session made just before the
/// renewal is resumed for half of the time that its certificate has left, a quarter of the life. A session resumed then
/// is used for half of what is left at that time, an eighth.
const OLD_SESSIONS: Duration = Duration::from_secs(30);

struct Bench {
    files: TrustFiles,
    ca: Authority,
    lab: Lab,
    _servers: Vec<Server>,
}

fn bench() -> Result<Bench> {
    let world = World::builder()
        .pod("friend", NodeName::A)
        .pod("stranger", NodeName::A)
        .pod("server", NodeName::B)
        .build()?;
    let ca = Authority::new("first")?;
    let files = TrustFiles::create(world.directory(), &ca)?;
    let mut mesh = MeshFile::of(&world);
    for pod in ["friend", "stranger", "server"] {
        mesh.enrol(pod, true)?;
    }
    let lab = Lab::start_set(world, mesh, &[], Some(&files.config()))?;
    let serve = |pod: &str| Server::on_port(&lab.pod(pod)?.netns, PORT, Service::Echo);
    let servers = vec![serve("server")?, serve("stranger")?];
    Ok(Bench { files, ca, lab, _servers: servers })
}

impl Bench {
    fn target(&self, family: Family) -> Result<SocketAddr> {
        Ok(self.lab.pod("server")?.at(family, PORT))
    }

    fn netns(&self, pod: &str) -> Result<Netns> {
        Ok(self.lab.pod(pod)?.netns.clone())
    }

    /// Waits until `so` holds of what both agents report about their certificates and trust.
    fn wait(&mut self, what: &str, patience: Duration, so: impl Fn(&Value) -> bool) -> Result<()> {
        let start = Instant::now();
        for node in NodeName::BOTH {
            loop {
                let certs = self.lab.agent(node)?.certs()?;
                if so(&certs) {
                    break;
                }
                ensure!(start.elapsed() < patience, "{what}: not within {patience:?}: {certs}");
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    fn serials(&mut self) -> Result<Vec<String>> {
        let mut serials = Vec::new();
        for node in NodeName::BOTH {
            let certs = self.lab.agent(node)?.certs()?;
            serials.extend(texts(&certs, "certificates", "serial"));
        }
        Ok(serials)
    }
}

/// Returns the texts under `field` of every entry of a list.
fn texts(certs: &Value, list: &str, field: &str) -> Vec<String> {
    let entries = certs.get(list).and_then(Value::as_array).into_iter().flatten();
    entries.filter_map(|entry| entry.get(field)?.as_str().map(str::to_owned)).collect()
}

fn roots(certs: &Value) -> usize {
    texts(certs, "trust", "kind").iter().filter(|kind| *kind == "root").count()
}

fn all_issued_by(certs: &Value, name: &str) -> bool {
    let issuers = texts(certs, "certificates", "issuer");
    !issuers.is_empty() && issuers.iter().all(|issuer| issuer.contains(name))
}

#[test]
fn leaves_are_renewed_at_steady_load_without_a_failed_request() -> Result<()> {
    let mut bench = bench()?;
    let targets = [bench.target(Family::V4)?, bench.target(Family::V6)?];
    let load = Load::start(&bench.netns("friend")?, &targets, Duration::from_millis(20));
    let mut open = Probe::connect(&bench.netns("friend")?, targets[0])?;
    // Certificates live for a minute and are renewed after half of it.
    let renewals = if full_size() { 10 } else { 3 };
    for renewal in 1..=renewals {
        let before = bench.serials()?;
        let changed = |certs: &Value| {
            texts(certs, "certificates", "serial").iter().all(|serial| !before.contains(serial))
        };
        bench.wait("all certificates renewed", Duration::from_secs(45), changed)?;
        open.echo(b"still open")?;
        println!("renewal {renewal}: {} requests", load.served());
    }
    let served = load.finish()?;
    println!("{served} requests, 0 failed, over {renewals} renewals of every certificate");
    Ok(())
}

#[test]
fn a_root_is_replaced_at_load_and_the_old_one_ends_what_rests_on_it() -> Result<()> {
    let mut bench = bench()?;
    let new = Authority::new("second")?;
    let targets = [bench.target(Family::V4)?, bench.target(Family::V6)?];
    let friend = bench.netns("friend")?;
    let mut on_old = Probe::connect(&friend, targets[0])?;
    on_old.echo(b"on the old root")?;
    let load = Load::start(&friend, &targets, Duration::from_millis(20));
    bench.files.believe(&[&bench.ca, &new])?;
    bench.wait("both roots", Duration::from_secs(5), |certs| roots(certs) == 2)?;
    bench.files.issue_from(&new)?;
    let issued = |certs: &Value| all_issued_by(certs, "second");
    bench.wait("certificates from the new root", Duration::from_mins(1), issued)?;
    thread::sleep(OLD_SESSIONS);
    let mut on_new = Probe::connect(&friend, targets[0])?;
    on_new.echo(b"on the new root")?;
    on_old.echo(b"on the old root")?;
    ensure!(load.failures().is_empty(), "before the removal: {:?}", load.failures());
    bench.files.believe(&[&new])?;
    let took = on_old.wait_for_cut(ROOT_IN_FORCE)?;
    println!("the connection that rested on the old root was cut after {took:?}");
    on_new.echo(b"on the new root")?;
    thread::sleep(Duration::from_secs(2));
    let served = load.finish()?;
    println!("{served} requests, 0 failed, from the old root to the new one alone");
    Ok(())
}

/// Connections that are held, each with the time at which it ended.
struct Held {
    ends: JoinHandle<Result<Vec<Option<Instant>>>>,
    stop: tokio::sync::watch::Sender<bool>,
}

/// Opens `count` connections over each family; returns once all of them carry bytes.
fn hold(netns: &Netns, targets: [SocketAddr; 2], count: usize) -> Held {
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (ready, all_open) = std::sync::mpsc::channel();
    let ends = netns.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut open = Vec::new();
            for target in targets {
                for _ in 0..count {
                    let mut stream = tokio::net::TcpStream::connect(target).await?;
                    stream.write_all(b"x").await?;
                    stream.read_exact(&mut [0]).await.context("the first byte")?;
                    open.push(stream);
                }
            }
            let mut held = Vec::new();
            for mut stream in open {
                let mut stopped = stopped.clone();
                held.push(tokio::spawn(async move {
                    let mut byte = [0];
                    let ended = tokio::select! {
                        _ = stream.read(&mut byte) => Some(Instant::now()),
                        _ = stopped.changed() => None,
                    };
                    if ended.is_some() {
                        return ended;
                    }
                    // A connection that was not to be cut must carry bytes as before.
                    let sent = stream.write_all(b"y").await;
                    let answered = stream.read_exact(&mut byte).await;
                    (sent.is_err() || answered.is_err()).then(Instant::now)
                }));
            }
            ready.send(())?;
            let mut ends = Vec::new();
            for connection in held {
                ends.push(connection.await?);
            }
            Ok(ends)
        })
    });
    // If nothing is received, opening has failed, which `finish` will say.
    all_open.recv().ok();
    Held { ends, stop }
}

impl Held {
    /// Returns when each connection ended; `None` for one that has not and still carries bytes.
    fn finish(self) -> Result<Vec<Option<Instant>>> {
        self.stop.send_replace(true);
        self.ends.join().map_err(|_panic| anyhow::anyhow!("a holder panicked"))?
    }
}

/// Returns how many connections each of several meshes holds. An agent needs two descriptors for each and keeps a
/// sixteenth of its limit in reserve.
fn shares() -> Vec<usize> {
    let mut left = if full_size() { 10_000 } else { 1_000 };
    let usable = descriptor_limit() / 16 * 15;
    let most = usize::try_from(usable.saturating_sub(600) / 2).unwrap_or(usize::MAX);
    let mut shares = Vec::new();
    while left > 0 {
        shares.push(left.min(most));
        left -= left.min(most);
    }
    shares
}

#[test]
fn a_denied_identity_loses_its_connections_within_a_second_and_nobody_else_does() -> Result<()> {
    let mut meshes = Vec::new();
    for share in shares() {
        let bench = bench()?;
        // The server is a process of its own: this one does not have the descriptors for both ends.
        let mut command = Command::new(sibling("sluice-lab")?);
        command.args(["echo", "--port", &MANY_PORT.to_string()]);
        let mut echo = bench.lab.world.start("server", "echo", command)?;
        echo.wait_for_line("listening", Duration::from_secs(10))?;
        let server = bench.lab.pod("server")?;
        let targets = Family::BOTH.map(|family| server.at(family, MANY_PORT));
        let strangers = hold(&bench.netns("stranger")?, targets, share / 4);
        let friends = hold(&bench.netns("friend")?, targets, share / 4);
        meshes.push((bench, strangers, friends, echo));
    }
    let mut delays = Vec::new();
    for (bench, strangers, friends, _echo) in meshes {
        bench.files.deny(&[STRANGER])?;
        let denied = Instant::now();
        thread::sleep(IN_FORCE * 3);
        for end in strangers.finish()? {
            let end = end.context("a connection of the denied identity is still open")?;
            delays.push(end.saturating_duration_since(denied));
        }
        let touched = friends.finish()?.into_iter().flatten().count();
        ensure!(touched == 0, "{touched} connections of another identity were cut");
        // The denied identity is refused as a client and as a server, from either node.
        let (target, as_server) =
            (bench.target(Family::V4)?, bench.lab.pod("stranger")?.at(Family::V6, PORT));
        Probe::ensure_refused(&bench.netns("stranger")?, target)?;
        Probe::ensure_refused(&bench.netns("server")?, as_server)?;
        Probe::ensure_refused(&bench.netns("friend")?, as_server)?;
        Probe::ensure_served(&bench.netns("friend")?, target)?;
        bench.files.deny(&[])?;
        Probe::wait_until_served(&bench.netns("stranger")?, target, Duration::from_secs(10))?;
    }
    delays.sort();
    let at = |part: usize| delays.get((delays.len() * part / 100).min(delays.len() - 1)).copied();
    let (Some(median), Some(p99)) = (at(50), at(99)) else { bail!("no connections") };
    println!("{} connections cut: median {median:?}, p99 {p99:?}", delays.len());
    ensure!(p99 <= IN_FORCE, "p99 {p99:?}");
    Ok(())
}

#[test]
fn a_revoked_certificate_loses_its_connections_and_its_successor_serves() -> Result<()> {
    let mut bench = bench()?;
    let target = bench.target(Family::V4)?;
    let (friend, stranger) = (bench.netns("friend")?, bench.netns("stranger")?);
    let (mut kept, mut revoked) =
        (Probe::connect(&friend, target)?, Probe::connect(&stranger, target)?);
    kept.echo(b"kept")?;
    revoked.echo(b"not yet")?;
    let certs = bench.lab.agent(NodeName::A)?.certs()?;
    let names = texts(&certs, "certificates", "identity");
    let serials = texts(&certs, "certificates", "serial");
    let serial = names.iter().zip(&serials).find(|(name, _)| *name == STRANGER);
    let serial = serial.context("no certificate of the stranger")?.1.clone();
    bench.files.revoke(&bench.ca.crl(2, &[&serial])?)?;
    let took = revoked.wait_for_cut(IN_FORCE * 3)?;
    println!("cut {took:?} after the list was written");
    ensure!(took <= IN_FORCE, "only after {took:?}");
    kept.echo(b"kept")?;
    Probe::wait_until_served(&stranger, target, Duration::from_secs(10))?;
    let after = texts(&bench.lab.agent(NodeName::A)?.certs()?, "certificates", "serial");
    ensure!(!after.contains(&serial), "the revoked certificate is still in use: {after:?}");
    // An older list, or one that somebody else signed, changes nothing.
    bench.files.revoke(&bench.ca.crl(1, &[])?)?;
    let told = |certs: &Value| certs["faults"].to_string().contains("is in force already");
    bench.wait("the older list is reported", Duration::from_secs(5), told)?;
    Ok(())
}

fn scrape(netns: &Netns, path: &str) -> Result<String> {
    netns.run(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 15020))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

#[test]
fn metrics_say_who_talked_with_whom_and_health_says_ready() -> Result<()> {
    let bench = bench()?;
    let (v4, v6) = (bench.target(Family::V4)?, bench.target(Family::V6)?);
    let mut open = Probe::connect(&bench.netns("friend")?, v6)?;
    open.echo(b"0123456789")?;
    Probe::ensure_served(&bench.netns("friend")?, v4)?;
    bench.files.deny(&[STRANGER])?;
    Probe::wait_until_refused(&bench.netns("stranger")?, v4, Duration::from_secs(5))?;
    let node = bench.lab.world.node(NodeName::A);
    ensure!(scrape(node, "/healthz/live")?.starts_with("HTTP/1.1 200"));
    let ready = scrape(node, "/healthz/ready")?;
    ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    // A connection is counted when its end has reached both agents.
    let start = Instant::now();
    loop {
        match check_metrics(&scrape(node, "/metrics")?) {
            Err(error) if start.elapsed() > Duration::from_secs(5) => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

fn check_metrics(metrics: &str) -> Result<()> {
    let line = |name: &str, labels: &[&str]| {
        let fits =
            |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
        metrics.lines().find(fits).map(str::to_owned)
    };
    let served = [
        "reporter=\"source\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/friend\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_flags=\"-\"",
    ];
    let value = |name: &str| {
        let line = line(name, &served).with_context(|| format!("no {name}: {metrics}"))?;
        Ok::<f64, anyhow::Error>(line.rsplit(' ').next().unwrap_or_default().parse()?)
    };
    ensure!(value("istio_tcp_connections_opened_total")? >= 2.0, "{metrics}");
    ensure!(value("istio_tcp_connections_closed_total")? >= 1.0, "{metrics}");
    ensure!(value("istio_tcp_sent_bytes_total")? >= 10.0, "{metrics}");
    ensure!(value("istio_tcp_received_bytes_total")? >= 10.0, "{metrics}");
    for name in [
        "identity_cert_expiration_timestamp_seconds{identity=\"spiffe://cluster.local/ns/shop/sa/friend\"}",
        "sluice_pods{state=\"captured\"} 2",
        "sluice_denied_identities 1",
        "sluice_policies{state=\"refused\"} 0",
        "sluice_crl_next_update_timestamp_seconds",
        "# EOF",
    ] {
        ensure!(metrics.contains(name), "no {name}: {metrics}");
    }
    Ok(())
}
