//! `sluice controller` as the CA of both agents, in a mesh that is described by files.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use serde_json::json;

use crate::{
    Canary, Netns, NodeName, Process, World,
    agent::{self, mesh_path},
    mesh::replace,
};

const PORT: u16 = 15012;
/// The address at which the controller reports its state, within its node.
const METRICS: &str = "127.0.0.1:15021";
/// Node A's address on the link between the nodes.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a caller of a [`Doorbell`] waits for an answer that does not come.
const SILENCE: Duration = Duration::from_millis(50);

/// The controller of a world, on node A. Tests can end it and start it again.
#[derive(Debug)]
pub struct NodeCa {
    world: PathBuf,
    node: Netns,
    directory: PathBuf,
    process: Option<Process>,
}

/// A listener in the place of the CA, which counts who calls.
#[derive(Debug)]
pub struct Doorbell {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<HashMap<IpAddr, u32>>>,
}

// === impl NodeCa ===

impl NodeCa {
    /// Starts the controller. Its certificates live for a minute, the shortest time that it grants.
    pub fn start(world: &World) -> Result<Self> {
        let directory = world.directory().join("controller");
        fs::create_dir_all(&directory)?;
        let mut tokens = Vec::new();
        for node in NodeName::BOTH {
            let token = Canary::new()?;
            tokens.push(json!({ "token": token.as_str(), "node": node.as_str() }));
            let home = world.directory().join(node.as_str());
            fs::create_dir_all(&home)?;
            secret(&home.join("ca-token"), token.as_str())?;
        }
        secret(&directory.join("tokens.yaml"), &serde_json::to_string(&tokens)?)?;
        let config = format!(
            "listen: 0.0.0.0:{PORT}\nttl: 1m\nserverNames: ['{HOST}']\n\
             ca: {{mode: embedded, dir: ca}}\ncallers: {{tokens: tokens.yaml}}\nmetrics: {METRICS}\n\
             pods: {{mesh: {}}}\n",
            mesh_path(world).display()
        );
        replace(&directory.join("config.yaml"), &config)?;
        let node = world.node(NodeName::A).clone();
        let mut ca = Self { world: world.directory().to_owned(), node, directory, process: None };
        ca.come_back()?;
        Ok(ca)
    }

    /// Returns the lines of an agent's configuration that make the controller its CA.
    pub fn settings(&self) -> String {
        let roots = self.directory.join("ca/ca.crt").display().to_string();
        format!(
            "ca: {{ mode: istio, address: 'https://{HOST}:{PORT}', rootCert: {roots}, token: ca-token, ttl: 1m }}\n"
        )
    }

    /// Returns the controller's answer over HTTP, status line and headers included.
    pub fn get(&self, path: &str) -> Result<String> {
        self.node.run(|| {
            let mut stream = TcpStream::connect(METRICS)?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: controller\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    /// Kills the controller, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the CA is away already")?.kill()
    }

    /// Starts the controller again, with the key that it had before.
    pub fn come_back(&mut self) -> Result<()> {
        let mut command = Command::new(agent::binary()?);
        command.args(["controller", "--config"]).arg(self.directory.join("config.yaml"));
        // A log of its own for each run: an old line must not speak for the new process.
        let name = format!("controller-{}", fs::read_dir(&self.world)?.count());
        let mut process = Process::start(&self.world, &self.node, &name, command)?;
        process.wait_for_line("serving certificates", PATIENCE)?;
        self.process = Some(process);
        Ok(())
    }

    /// Listens in the place of a CA that is away.
    pub fn listen_instead(&self) -> Result<Doorbell> {
        let listener = self.node.run(|| {
            let listener = TcpListener::bind((HOST, PORT)).context("take the CA's place")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || count(&listener, &stopped));
        Ok(Doorbell { stop, thread })
    }
}

fn secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

fn count(listener: &TcpListener, stop: &AtomicBool) -> Result<HashMap<IpAddr, u32>> {
    let mut calls = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, caller)) => {
                *calls.entry(caller.ip()).or_default() += 1;
                thread::sleep(SILENCE);
                drop(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(calls)
}

// === impl Doorbell ===

impl Doorbell {
    /// Returns how often each address has called.
    pub fn finish(self) -> Result<HashMap<IpAddr, u32>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow!("the listener panicked"))?
    }
}
