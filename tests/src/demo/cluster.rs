//! `sluice-lab cluster-demo`: the mesh on a real Kubernetes of two nodes, with kubectl and helm alone.
//!
//! As in the other demo, every line was observed by this run, and the first that is untrue ends it with an error. The
//! demo makes the cluster and removes it afterwards, even after Ctrl-C.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{settle, story::Story};
use crate::{
    Canary, Cluster, Seen,
    cleanup::{Guard, Undo},
    cluster::{NODES, Namespace, SYSTEM, wait_for},
    machine::Traces,
};

/// The cluster's name; its directory follows from it.
const INSTANCE: &str = "demo";
const DIRECTORY: &str = "/run/sluice-cluster/demo";
const WEB: u16 = 8080;
const SERVE: &str =
    "mkdir -p /tmp/www; echo welcome > /tmp/www/page; exec httpd -f -p 8080 -h /tmp/www";
const IDLE: &str = "exec sleep 1000000";
const PATIENCE: Duration = Duration::from_mins(1);
/// How long until a policy is in force, with room for a machine that is busy.
const IN_FORCE: Duration = Duration::from_secs(10);
/// How long an agent's pod may take to be back.
const BACK: Duration = Duration::from_mins(2);

/// Tells the whole story with a cluster that the program `xtask` makes. Fails at the first line that is untrue.
pub fn run(xtask: &Path) -> Result<()> {
    crate::privilege::check()?;
    let command = |action: &str| -> Vec<String> {
        let program = xtask.display().to_string();
        [program.as_str(), "cluster", "--instance", INSTANCE, action].map(str::to_owned).into()
    };
    // A run that was killed could not clear up.
    if Path::new(DIRECTORY).exists() {
        drop(Guard::new(Undo::Run(command("down"))));
    }
    let start = Instant::now();
    let before = Traces::of_machine()?;
    let story = Story::begin(
        "Two nodes of a real Kubernetes on this machine, installed by helm and used by kubectl. Each line was \
         observed\njust now; the first that is untrue ends the demo with an error.\n",
    )?;
    // Registered before the cluster is made: half a cluster is removed as well.
    let cluster = Guard::new(Undo::Run(command("down")));
    Play::set_up(&story, &command("up"))?.tell(&story)?;
    drop(cluster);
    story.section("And afterwards")?;
    ensure!(!Path::new(DIRECTORY).exists(), "{DIRECTORY} is still there");
    let differences = settle(&before)?;
    ensure!(
        differences.is_empty(),
        "the machine is not as it was:\n  {}",
        differences.join("\n  ")
    );
    story.line(
        "the cluster is gone and the machine is as it was: namespaces, devices, mounts, pins, kernel programs, \
         packet filters and routing rules compare equal",
    )?;
    story.end(start.elapsed())
}

/// The pods, and what has been seen of them.
struct Play {
    shop: Namespace,
    street: Namespace,
    canary: Canary,
    /// The web server's own address.
    address: String,
    containers: String,
    cluster: Cluster,
}

impl Play {
    fn set_up(story: &Story, up: &[String]) -> Result<Self> {
        story.section("The stage")?;
        let start = Instant::now();
        make(up)?;
        let cluster = Cluster::at(DIRECTORY.into())?;
        let ready = "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=='Ready')].status} {end}";
        let nodes = cluster.kubectl(&["get", "nodes", "-o", ready])?;
        let [first, second] = NODES;
        ensure!(nodes.trim() == format!("{first}=True {second}=True"), "nodes: {nodes}");
        let version = "jsonpath={.items[0].status.nodeInfo.kubeletVersion}";
        let version = cluster.kubectl(&["get", "nodes", "-o", version])?;
        story.line(&format!(
            "Kubernetes {version}: nodes {first} and {second} are Ready after {} s",
            start.elapsed().as_secs()
        ))?;
        let shop = cluster.namespace("shop")?;
        let street = cluster.namespace("street")?;
        let pods = [("customer", first, IDLE), ("stranger", first, IDLE), ("web", second, SERVE)];
        let pods = pods.map(|(name, node, command)| shop.pod(name, node, command, ""));
        shop.apply(&pods.concat())?;
        street.apply(&street.pod("outsider", first, IDLE, ""))?;
        shop.await_ready("-lapp")?;
        street.await_ready("-lapp")?;
        let address = shop.addresses("web")?.swap_remove(0);
        let play = Self {
            containers: shop.containers()?,
            canary: Canary::new()?,
            address,
            shop,
            street,
            cluster,
        };
        wait_for("the web server", PATIENCE, || Ok(play.fetch("customer").is_ok()))?;
        story.line(&format!(
            "in the namespace shop run customer and stranger on {first} and web on {second} ({}); in street runs \
             outsider on {first}",
            play.address
        ))?;
        Ok(play)
    }

    fn tell(&self, story: &Story) -> Result<()> {
        self.install(story)?;
        self.enrolment(story)?;
        self.strict(story)?;
        self.authorization(story)?;
        self.operator(story)?;
        self.failure(story)?;
        self.uninstall(story)
    }

    fn install(&self, story: &Story) -> Result<()> {
        story.section("helm install, and nothing changes yet")?;
        let start = Instant::now();
        self.cluster.install()?;
        let took = start.elapsed().as_secs();
        ensure!(self.shop.captured()? == 0, "a pod is captured that nobody asked for");
        story.line(&format!(
            "helm install: an agent is ready on each of {} nodes after {took} s",
            NODES.len()
        ))?;
        let seen = self.watched(|play| play.fetch("customer").map(drop))?;
        ensure!(seen.canaries > 0, "the secret was not seen in plaintext: {seen:?}");
        story.line(&format!(
            "customer asks web for a page; between the nodes its secret is read {} times",
            seen.canaries
        ))
    }

    fn enrolment(&self, story: &Story) -> Result<()> {
        story.section("kubectl label namespace shop istio.io/dataplane-mode=ambient")?;
        let start = Instant::now();
        self.shop.enrol()?;
        self.shop.await_captured(3)?;
        let took = start.elapsed();
        ensure!(self.shop.containers()? == self.containers, "a container was restarted");
        story.line(&format!(
            "3 running pods are captured {} ms after kubectl was called; their containers are the same, none was \
             restarted",
            took.as_millis()
        ))?;
        let seen = self.watched(|play| play.fetch("customer").map(drop))?;
        seen.ensure_tls_only(WEB)?;
        story.line(&format!(
            "customer asks again: the secret is on the wire {} times, in its place are {} TLS records, on the same \
             port {WEB}",
            seen.canaries,
            seen.tls_on(WEB)
        ))
    }

    fn strict(&self, story: &Story) -> Result<()> {
        story.section("kubectl apply: STRICT")?;
        self.visit().context("PERMISSIVE should have let outsider in")?;
        story.line("PERMISSIVE, the default: outsider still gets the page, in plaintext")?;
        let start = Instant::now();
        self.shop.apply(&object("PeerAuthentication", "default", "{mtls: {mode: STRICT}}"))?;
        wait_for("outsider to be refused", IN_FORCE, || Ok(self.visit().is_err()))?;
        let took = start.elapsed();
        self.fetch("customer").context("STRICT refuses a pod of the mesh")?;
        story.line(&format!(
            "PeerAuthentication STRICT: outsider is refused {} ms after kubectl was called, customer is served",
            took.as_millis()
        ))
    }

    fn authorization(&self, story: &Story) -> Result<()> {
        story.section("kubectl apply: who may, by identity")?;
        self.fetch("stranger").context("nothing forbids it yet")?;
        let principal = "cluster.local/ns/shop/sa/customer";
        let spec = format!(
            "{{selector: {{matchLabels: {{app: web}}}}, action: ALLOW, rules: [{{from: [{{source: {{principals: \
             [{principal}]}}}}]}}]}}"
        );
        let start = Instant::now();
        self.shop.apply(&object("AuthorizationPolicy", "web", &spec))?;
        wait_for("stranger to be refused", IN_FORCE, || Ok(self.fetch("stranger").is_err()))?;
        let took = start.elapsed();
        self.fetch("customer").context("the policy refuses whom it allows")?;
        story.line(&format!(
            "AuthorizationPolicy ALLOW {principal}: customer passes, stranger is refused {} ms after kubectl was \
             called",
            took.as_millis()
        ))
    }

    fn operator(&self, story: &Story) -> Result<()> {
        story.section("Seen from outside, with a kubeconfig")?;
        let mut status = None;
        wait_for("all to be well", PATIENCE, || {
            let asked = self.cluster.ask(&["status"])?;
            let is_well = asked.code == Some(0);
            status = Some(asked);
            Ok(is_well)
        })
        .with_context(|| format!("{status:?}"))?;
        let status = status.context("never asked")?.output;
        for node in NODES {
            ensure!(
                status.lines().any(|line| line.starts_with(node)),
                "no row of {node}: {status}"
            );
        }
        story.line("`sluice status` has rows of both nodes and ends with 0: all is well")?;
        Story::text("what it says of pods:", &section(&status, "PODS"))?;
        Story::text("and of policies:", &section(&status, "POLICIES"))?;
        let check = self.cluster.ask(&["check"])?;
        ensure!(check.code == Some(0), "sluice check: {check:?}");
        let ok = check.output.lines().filter(|line| line.starts_with("ok")).count();
        story.line(&format!("`sluice check` finds {ok} things in order and none that fails"))
    }

    fn failure(&self, story: &Story) -> Result<()> {
        story.section("kubectl delete pod: an agent is away")?;
        let [first, _] = NODES;
        let wire = self.cluster.eavesdrop(&self.canary)?;
        let agent = self.cluster.agent(first)?;
        let delete = ["-n", SYSTEM, "delete", "pod", &agent, "--wait=false", "--grace-period=1"];
        let start = Instant::now();
        self.cluster.kubectl(&delete)?;
        let (mut served, mut refused) = (0, 0);
        let back = loop {
            match self.fetch("customer") {
                Ok(_) if refused > 0 => break start.elapsed(),
                Ok(_) => served += 1,
                Err(_) => refused += 1,
            }
            ensure!(
                start.elapsed() < BACK,
                "served {served}, refused {refused}, not back in {BACK:?}"
            );
        };
        self.cluster.await_agents()?;
        let seen = wire.seen()?;
        seen.ensure_no_canary()?;
        story.line(&format!(
            "{agent} deleted: {refused} requests of customer refused while it was away, served again {:.1} s after \
             kubectl was called; secret on the wire {} times",
            back.as_secs_f64(),
            seen.canaries
        ))
    }

    fn uninstall(&self, story: &Story) -> Result<()> {
        story.section("Out again: label off, helm uninstall")?;
        self.shop.leave()?;
        self.shop.await_captured(0)?;
        self.cluster.helm(&["uninstall", "sluice", "--namespace", SYSTEM, "--wait"])?;
        wait_for("the agents to be gone", BACK, || {
            let pods = self.cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-o", "name"])?;
            Ok(pods.trim().is_empty())
        })?;
        let seen = self.watched(|play| {
            for pod in ["customer", "stranger"] {
                play.fetch(pod).with_context(|| format!("{pod} is refused without a mesh"))?;
            }
            play.visit().context("outsider is refused without a mesh").map(drop)
        })?;
        ensure!(seen.canaries > 0, "no plaintext without a mesh: {seen:?}");
        ensure!(self.shop.containers()? == self.containers, "a container was restarted");
        story.line(
            "everything is as before the mesh: all three are served, in plaintext, by the same containers",
        )
    }

    /// Watches the link between the nodes during `act`, and returns what was seen.
    fn watched(&self, act: impl FnOnce(&Self) -> Result<()>) -> Result<Seen> {
        let wire = self.cluster.eavesdrop(&self.canary)?;
        act(self)?;
        wire.seen()
    }

    /// Fetches the page from a pod of the shop, with the secret in the request.
    fn fetch(&self, pod: &str) -> Result<String> {
        let url = format!("http://{}:{WEB}/page?{}", self.address, self.canary);
        let page = self.shop.fetch(pod, &url)?;
        ensure!(page == "welcome\n", "{pod} got another page: {page:?}");
        Ok(page)
    }

    /// Fetches the page from outside the mesh, without the secret.
    fn visit(&self) -> Result<String> {
        self.street.fetch("outsider", &format!("http://{}:{WEB}/page", self.address))
    }
}

/// Makes the cluster. A signal ends the maker before what it has made is removed.
fn make(command: &[String]) -> Result<()> {
    let [program, arguments @ ..] = command else { anyhow::bail!("BUG: no command") };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let maker = command.spawn().with_context(|| format!("start {program}"))?;
    let pid = Pid::from_raw(maker.id().try_into()?).context("BUG: no pid")?;
    let _ended = Guard::new(Undo::Process(pidfd_open(pid, PidfdFlags::empty())?));
    let output = maker.wait_with_output()?;
    ensure!(
        output.status.success(),
        "the cluster did not come up: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// Returns the part of a text below a heading, up to the next empty line.
fn section(text: &str, heading: &str) -> String {
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}
