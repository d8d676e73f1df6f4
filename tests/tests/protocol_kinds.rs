//! Kinds of protocols and destinations: servers that speak first, services with a virtual address,
//! refusals that must look like refusals.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use sluice_tests::{
    Canary, Capture, Family, Lab, MeshFile, NodeName, Process, ServiceEntry, World,
    mesh::{NAMESPACE, PortEntry},
    policies,
    traffic::{Pair, Probe, Server, Service},
    world::POD_DEVICE,
};
use socket2::{Domain, SockRef, Socket, Type};

const PORT: u16 = 2525;
/// How long the greeting of a server that speaks first may take: longer would be called slow.
const GREETING: Duration = Duration::from_secs(2);

fn world() -> Result<World> {
    World::builder()
        .pod("client", NodeName::A)
        .pod("outside", NodeName::A)
        .pod("server", NodeName::B)
        .pod("second", NodeName::B)
        .pod("near", NodeName::A)
        .build()
}

#[test]
fn a_server_that_speaks_first_is_heard_in_the_mesh_and_by_a_plaintext_client() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "server"])?;
    let canary = Canary::new()?;
    let server = lab.pod("server")?;
    let greeting = format!("220 {canary}");
    let _server = Server::on_port(&server.netns, PORT, Service::Greet(greeting.clone()))?;
    for family in Family::BOTH {
        for (pod, encrypted) in [("client", true), ("outside", false)] {
            let capture = Capture::between_nodes(&lab.world, &canary)?;
            let start = Instant::now();
            let mut probe = Probe::connect(&lab.pod(pod)?.netns, server.at(family, PORT))?;
            assert_eq!(probe.read_line()?, greeting, "{pod} {family:?}");
            let waited = start.elapsed();
            ensure!(waited < GREETING, "{pod} waited {waited:?} for the greeting");
            probe.echo(b"EHLO client\r\n")?;
            if encrypted {
                capture.seen()?.ensure_tls_only(PORT)?;
            } else {
                capture.wait_for_canary(Duration::from_secs(2))?;
            }
        }
    }
    Ok(())
}

#[test]
fn curl_delivers_mail_to_a_server_that_speaks_first() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "server"])?;
    let mut command = Command::new(sluice_tests::agent::sibling("sluice-lab")?);
    command.args(["mail-server", "--port", &PORT.to_string()]);
    let mut server = lab.world.start("server", "mail-server", command)?;
    server.wait_for_line("listening", Duration::from_secs(5))?;
    for family in Family::BOTH {
        let target = lab.pod("server")?.at(family, PORT);
        let canary = Canary::new()?;
        let letter = lab.world.directory().join("letter");
        std::fs::write(&letter, format!("Subject: hello\r\n\r\n{canary}\r\n"))?;
        let capture = Capture::between_nodes(&lab.world, &canary)?;
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "5", "-g", &format!("smtp://{target}/client")]);
        curl.args(["--mail-from", "a@example.org", "--mail-rcpt", "b@example.org", "-T"]);
        curl.arg(&letter);
        let output = Process::output(&lab.pod("client")?.netns, &mut curl)?;
        ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
        let line = server.wait_for_line(canary.as_str(), Duration::from_secs(2))?;
        let client = lab.pod("client")?.ip(family).to_string();
        ensure!(line.contains(&client), "the server saw {line:?}, not {client}");
        capture.seen()?.ensure_tls_only(PORT)?;
    }
    Ok(())
}

fn with_service(world: &World, ready: [bool; 2]) -> Result<MeshFile> {
    let mut mesh = MeshFile::of(world);
    for (pod, ready) in ["server", "second"].into_iter().zip(ready) {
        let entry = mesh.pod(pod)?;
        entry.ready = ready;
        entry.labels.insert("app".to_owned(), "web".to_owned());
        mesh.enrol(pod, true)?;
    }
    mesh.enrol("client", true)?;
    mesh.services.push(ServiceEntry {
        namespace: NAMESPACE.to_owned(),
        name: "web".to_owned(),
        addresses: vec!["10.96.0.10".parse()?, "fd96::10".parse()?],
        ports: vec![PortEntry { port: 80, target_port: PORT }],
        selector: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
    });
    Ok(mesh)
}

fn virtual_addresses() -> Result<[SocketAddr; 2]> {
    Ok(["10.96.0.10:80".parse()?, "[fd96::10]:80".parse()?])
}

#[test]
fn a_virtual_address_spreads_over_its_ready_endpoints() -> Result<()> {
    let world = world()?;
    let mesh = with_service(&world, [true, true])?;
    let mut lab = Lab::start_with(world, mesh, &[])?;
    let first = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    let second = Server::on_port(&lab.pod("second")?.netns, PORT, Service::Echo)?;
    for target in virtual_addresses()? {
        let canary = Canary::new()?;
        let capture = Capture::between_nodes(&lab.world, &canary)?;
        for _ in 0..20 {
            let mut probe = Probe::connect(&lab.pod("client")?.netns, target)?;
            probe.echo(canary.as_bytes())?;
            assert_eq!(probe.peer()?, target, "the client sees the address that it dialled");
        }
        capture.seen()?.ensure_tls_only(PORT)?;
    }
    let counts = (first.accepted().len(), second.accepted().len());
    ensure!(counts.0 + counts.1 == 40 && counts.0 >= 10 && counts.1 >= 10, "{counts:?}");

    lab.edit_mesh(|mesh| {
        mesh.pod("second")?.ready = false;
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(1));
    for target in virtual_addresses()? {
        for _ in 0..5 {
            Probe::connect(&lab.pod("client")?.netns, target)?.echo(b"hello")?;
        }
    }
    assert_eq!(second.accepted().len(), counts.1, "an endpoint that is not ready was used");
    Ok(())
}

#[test]
fn a_virtual_address_spreads_over_endpoints_of_the_clients_own_node() -> Result<()> {
    let pods = ["client", "outside", "server", "second"];
    let world = pods.into_iter().fold(World::builder(), |world, pod| world.pod(pod, NodeName::A));
    let world = world.build()?;
    let mesh = with_service(&world, [true, true])?;
    let lab = Lab::start_with(world, mesh, &[])?;
    for target in virtual_addresses()? {
        let serve = |pod| Server::on_port(&lab.pod(pod)?.netns, PORT, Service::Echo);
        let servers = [serve("server")?, serve("second")?];
        for _ in 0..20 {
            Probe::connect(&lab.pod("client")?.netns, target)?.echo(b"hello")?;
        }
        let shares = servers.each_ref().map(|server| server.accepted().len());
        ensure!(shares.iter().all(|share| *share >= 5), "{target}: {shares:?}");
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself_by_its_service_and_by_its_own_address() -> Result<()> {
    let world = world()?;
    let mesh = with_service(&world, [true, false])?;
    let lab = Lab::start_with(world, mesh, &[])?;
    let server = lab.pod("server")?;
    let service = Server::on_port(&server.netns, PORT, Service::Echo)?;
    let own = Family::BOTH.map(|family| server.at(family, PORT));
    for target in virtual_addresses()?.into_iter().chain(own) {
        let before = service.accepted().len();
        let mut probe = Probe::connect(&server.netns, target)?;
        probe.echo(b"hello").with_context(|| format!("to {target}"))?;
        assert_eq!(probe.peer()?, target, "the client sees the address that it dialled");
        let accepted = service.accepted();
        let [accepted] = accepted.get(before..).unwrap_or_default() else {
            bail!("to {target}: {accepted:?}");
        };
        assert_eq!(accepted.peer, probe.local()?, "the server sees the client");
    }
    let [virtual_address, _] = virtual_addresses()?;
    let mut open = Probe::connect(&server.netns, virtual_address)?;
    open.echo(b"hello")?;
    lab.write_policy("deny.yaml", &policies::deny("web", &["server"]))?;
    open.wait_for_cut(Duration::from_secs(5))?;
    for target in virtual_addresses()? {
        Probe::ensure_refused(&server.netns, target)?;
    }
    Ok(())
}

#[test]
fn a_service_without_a_ready_endpoint_and_a_port_without_a_listener_are_refused_at_once()
-> Result<()> {
    let world = world()?;
    let mesh = with_service(&world, [false, false])?;
    let lab = Lab::start_with(world, mesh, &[])?;
    let client = &lab.pod("client")?.netns;
    let nobody = Family::BOTH.map(|family| lab.pod("server").map(|pod| pod.at(family, 9)));
    for target in virtual_addresses()?.into_iter().map(Ok).chain(nobody) {
        let target = target?;
        let refusal = Probe::ensure_refused(client, target)?;
        ensure!(refusal.after < Duration::from_secs(1), "{target}: {refusal:?}");
    }
    Ok(())
}

#[test]
fn a_client_that_sends_in_small_pieces_and_waits_in_between_is_carried() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "server"])?;
    let server = lab.pod("server")?;
    let _server = Server::on_port(&server.netns, PORT, Service::Echo)?;
    for (pod, family) in [("client", Family::V4), ("outside", Family::V4), ("outside", Family::V6)]
    {
        let mut probe = Probe::connect(&lab.pod(pod)?.netns, server.at(family, PORT))?;
        for byte in b"GET / HTTP/1.1\r\n" {
            probe.stream().write_all(&[*byte])?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut answer = [0_u8; 16];
        probe.stream().read_exact(&mut answer).context("echo")?;
        assert_eq!(&answer, b"GET / HTTP/1.1\r\n");
    }
    Ok(())
}

#[test]
fn a_client_that_chooses_only_its_port_is_carried_from_the_pods_address() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "server"])?;
    let server = lab.pod("server")?;
    let service = Server::on_port(&server.netns, PORT, Service::Echo)?;
    let client = lab.pod("client")?;
    for family in Family::BOTH {
        let target = server.at(family, PORT);
        let stream = client.netns.run(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(family.unspecified(), 0).into())?;
            socket.connect(&target.into())?;
            Ok(socket.into())
        })?;
        let mut probe = Probe::from_stream(stream)?;
        probe.echo(b"hello")?;
        let own = probe.local()?;
        assert_eq!(own.ip(), client.ip(family), "getsockname");
        assert_eq!(service.last_accepted()?.peer, own, "the server sees the client");
    }
    Ok(())
}

/// Sends text with an urgent byte in it from one end, and checks what arrives at the other.
fn ensure_urgent_byte_arrives(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    to.set_read_timeout(Some(Duration::from_secs(2)))?;
    // RFC 6093 wants it read inline, because what is on the way may take the mark away.
    SockRef::from(&*to).set_out_of_band_inline(true)?;
    from.write_all(b"before")?;
    SockRef::from(&*from).send_out_of_band(b"!")?;
    from.write_all(b"after")?;
    let mut text = [0; 12];
    to.read_exact(&mut text).context("not every byte came")?;
    ensure!(&text == b"before!after", "{:?}", String::from_utf8_lossy(&text));
    Ok(())
}

#[test]
fn an_urgent_byte_arrives_in_its_place() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "near", "server"])?;
    for (client, server) in [("client", "server"), ("client", "near"), ("outside", "server")] {
        for family in Family::BOTH {
            let target = lab.pod(server)?.at(family, PORT);
            let Pair { client: mut near, server: mut far } =
                Pair::open(&lab.pod(client)?.netns, &lab.pod(server)?.netns, target)?;
            let what = || format!("{client} to {server}, {family:?}");
            ensure_urgent_byte_arrives(&mut near, &mut far).with_context(what)?;
            ensure_urgent_byte_arrives(&mut far, &mut near)
                .with_context(|| format!("back, {}", what()))?;
        }
    }
    Ok(())
}

#[test]
fn a_server_that_listens_on_its_device_alone_is_reached() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "near", "server"])?;
    // The first server, outside the mesh, shows that such a server can be reached at all.
    for name in ["second", "near", "server"] {
        let server = lab.pod(name)?;
        let _server = Server::on_device(&server.netns, POD_DEVICE, PORT, Service::Echo)?;
        for (client, family) in ["client", "outside", "client"]
            .into_iter()
            .flat_map(|client| Family::BOTH.map(|family| (client, family)))
        {
            Probe::connect(&lab.pod(client)?.netns, server.at(family, PORT))?
                .echo(b"hello")
                .with_context(|| format!("{client} to {name}, {family:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_server_whose_backlog_is_full_gets_every_client_once() -> Result<()> {
    const CLIENTS: &[u8] = b"0123";
    let lab = Lab::start(world()?, &["client", "server"])?;
    let server = lab.pod("server")?;
    for family in Family::BOTH {
        let target = server.at(family, PORT);
        let listener = server.netns.run(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&target.into())?;
            // With this backlog two clients wait to be accepted, and the kernel takes no more.
            socket.listen(1)?;
            socket.set_nonblocking(true)?;
            Ok(TcpListener::from(socket))
        })?;
        let mut clients = Vec::new();
        for name in CLIENTS {
            let mut probe = Probe::connect(&lab.pod("client")?.netns, target)?;
            probe.stream().write_all(&[*name])?;
            clients.push(probe);
        }
        std::thread::sleep(Duration::from_millis(200));
        let mut names = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(8);
        // Goes on a little longer than all clients take, to find one too many.
        let mut last = None;
        while Instant::now() < last.unwrap_or(deadline) {
            if let Ok((mut stream, _)) = listener.accept() {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                let mut name = [0];
                stream.read_exact(&mut name).context("an accepted client says nothing")?;
                names.extend(name);
                if names.len() == CLIENTS.len() {
                    last = Some(Instant::now() + Duration::from_millis(500));
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        names.sort_unstable();
        assert_eq!(names, CLIENTS, "{family:?}");
    }
    Ok(())
}

/// Serves each connection by its first byte: `h` is told that the server has ended, and never read; others are echoed.
fn hold_or_echo(listener: &TcpListener) -> Result<()> {
    let mut held = Vec::new();
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut first = [0];
        stream.read_exact(&mut first)?;
        match first {
            [b'h'] => {
                stream.shutdown(Shutdown::Write)?;
                held.push(stream);
            }
            [b'q'] => return Ok(()),
            _ => stream.write_all(&first)?,
        }
    }
}

#[test]
fn a_connection_does_not_wait_for_what_another_has_sent_to_a_server_that_does_not_read()
-> Result<()> {
    const PIECE: usize = 256 << 10;
    let lab = Lab::start(world()?, &["client", "server"])?;
    let server = lab.pod("server")?;
    let client = &lab.pod("client")?.netns;
    let target = server.at(Family::V4, PORT);
    let listener = server.netns.run(|| Ok(TcpListener::bind(target)?))?;
    let serving = server.netns.spawn(move || hold_or_echo(&listener));
    // How much is on the way between the agents when the client has ended depends on buffers' sizes.
    for pieces in 1..=32 {
        let mut sender = Probe::connect(client, target)?;
        sender.stream().write_all(b"h")?;
        ensure!(sender.stream().read(&mut [0])? == 0, "the server has ended");
        sender.stream().set_write_timeout(Some(Duration::from_millis(300)))?;
        let is_taken = sender.stream().write_all(&vec![0; pieces * PIECE]).is_ok();
        sender.stream().shutdown(Shutdown::Both)?;
        std::thread::sleep(Duration::from_millis(100));
        let mut next = Probe::connect(client, target)?;
        next.echo(b"e").with_context(|| format!("behind {pieces} times {PIECE} bytes"))?;
        if !is_taken {
            break;
        }
    }
    Probe::connect(client, target)?.stream().write_all(b"q")?;
    serving.join().map_err(|_panic| anyhow::anyhow!("the server panicked"))?
}
