//! `sluice-lab demo`: what a mesh of pods without sidecars does, shown on one machine.
//!
//! Every line that is printed was observed by this run, and the first that is untrue ends it with an
//! error. Afterwards the machine is compared with what it was before.

use std::{fs, process::Command, thread, time::Duration, time::Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Canary, Capture, Family, Lab, NodeName, Process, World,
    agent::sibling,
    machine::Traces,
    policies,
    traffic::{Probe, Refusal},
};

pub mod cluster;
mod curl;
mod story;

use story::Story;

/// The web server's port.
const WEB: u16 = 8000;
/// The mail server's port.
const MAIL: u16 = 2525;
/// The pods: two customers, one of them not welcome; a visitor who stays outside; the shop.
const PODS: [(&str, NodeName); 4] = [
    ("customer", NodeName::A),
    ("stranger", NodeName::A),
    ("outsider", NodeName::A),
    ("shop", NodeName::B),
];
/// The pods that join the mesh.
const ENROLLED: [&str; 3] = ["customer", "stranger", "shop"];
/// How long a refusal may take, and how long until a policy is in force.
const REFUSED_WITHIN: Duration = Duration::from_millis(100);
const IN_FORCE: Duration = Duration::from_secs(2);

/// Tells the whole story. Fails at the first line that is untrue.
pub fn run() -> Result<()> {
    crate::privilege::check()?;
    crate::cleanup::remove_leftovers()?;
    let start = Instant::now();
    let before = Traces::of_machine()?;
    let story = Story::begin(
        "Two nodes, four pods, all of them network namespaces of this machine. Each line was observed\njust now; the \
         first that is untrue ends the demo with an error.\n",
    )?;
    Play::set_up(&story)?.tell(&story)?;
    story.section("And afterwards")?;
    let differences = settle(&before)?;
    if !differences.is_empty() {
        bail!("the machine is not as it was:\n  {}", differences.join("\n  "));
    }
    story.line(
        "the machine is as it was: namespaces, devices, mounts, pins, kernel programs, packet \
         filters and routing rules compare equal",
    )?;
    story.end(start.elapsed())
}

/// Returns the differences from `before`, once the kernel has had time to free what is no longer used.
fn settle(before: &Traces) -> Result<Vec<String>> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let differences = before.differences(&Traces::of_machine()?);
        if differences.is_empty() || Instant::now() > deadline {
            return Ok(differences);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The pods, their programs and the agents.
struct Play {
    web: Process,
    mail: Process,
    canary: Canary,
    rules: Vec<Traces>,
    lab: Lab,
}

impl Play {
    fn set_up(story: &Story) -> Result<Self> {
        story.section("The stage")?;
        let mut builder = World::builder().named("demo");
        for (pod, node) in PODS {
            builder = builder.pod(pod, node);
        }
        let world = builder.build()?;
        for (pod, node) in PODS {
            let [v4, v6] = Family::BOTH.map(|family| world.pod(pod).map(|pod| pod.ip(family)));
            story.line(&format!("{:9}on {}: {}, {}", pod, node.as_str(), v4?, v6?))?;
        }
        let rules = world.namespaces().map(Traces::of_rules).collect::<Result<_>>()?;
        let canary = Canary::new()?;
        let files = world.directory().join("files");
        fs::create_dir_all(&files)?;
        fs::write(files.join("secret"), canary.as_str())?;
        let mut command = Command::new("python3");
        command.args(["-u", "-m", "http.server", "--bind", "::", &WEB.to_string()]);
        command.arg("--directory").arg(&files);
        let mut web = world.start("shop", "web", command)?;
        let mut command = Command::new(sibling("sluice-lab")?);
        command.args(["mail-server", "--port", &MAIL.to_string()]);
        let mut mail = world.start("shop", "mail", command)?;
        web.wait_for_line("Serving HTTP", Duration::from_secs(10))?;
        mail.wait_for_line("listening", Duration::from_secs(10))?;
        story.line(&format!(
            "in the shop run python3 -m http.server (port {WEB}, pid {}) and a mail server, which \
             speaks first (port {MAIL}, pid {})",
            web.id(),
            mail.id()
        ))?;
        let lab = Lab::start(world, &[])?;
        story.line("one agent runs on each node; no pod is in the mesh yet")?;
        Ok(Self { web, mail, canary, rules, lab })
    }

    fn tell(mut self, story: &Story) -> Result<()> {
        self.plaintext(story)?;
        self.enrolment(story)?;
        self.addresses(story)?;
        self.strict(story)?;
        self.authorization(story)?;
        self.failure(story)?;
        self.traces(story)
    }

    fn plaintext(&self, story: &Story) -> Result<()> {
        story.section("Before: anyone on the wire can read along")?;
        let seen = self.fetch_watched("customer")?;
        ensure!(seen.canaries >= 2, "the canary was not seen in plaintext: {seen:?}");
        ensure!(seen.tls_on(WEB) == 0, "TLS before the enrolment: {seen:?}");
        story.line(&format!(
            "customer fetches a page with curl, over IPv4 and IPv6; between the nodes the page's \
             secret is read {} times",
            seen.canaries
        ))
    }

    fn enrolment(&mut self, story: &Story) -> Result<()> {
        story.section("Enrolled live: one label, nothing restarted")?;
        let start = Instant::now();
        self.lab.edit_mesh(|mesh| ENROLLED.iter().try_for_each(|pod| mesh.enrol(pod, true)))?;
        let took = start.elapsed();
        let (web, mail) = (self.web.is_running()?, self.mail.is_running()?);
        ensure!(web && mail, "a program did not survive the enrolment");
        story.line(&format!(
            "{} are in the mesh {} ms after the label was written; pids {} and {} still serve",
            ENROLLED.join(", "),
            took.as_millis(),
            self.web.id(),
            self.mail.id()
        ))?;
        let seen = self.fetch_watched("customer")?;
        seen.ensure_tls_only(WEB)?;
        story.line(&format!(
            "customer fetches the page again: the secret is on the wire {} times, in its place are \
             {} TLS records, on the same port {WEB}",
            seen.canaries,
            seen.tls_on(WEB)
        ))
    }

    fn addresses(&mut self, story: &Story) -> Result<()> {
        story.section("Programs see what they saw before")?;
        let log = self.web.log();
        for family in Family::BOTH {
            let client = self.lab.pod("customer")?.ip(family).to_string();
            let lines = log.lines().filter(|line| line.contains(&client)).count();
            ensure!(lines == 2, "{lines} requests of {client}, not 2, in the server's log:\n{log}");
        }
        let [v4, v6] = Family::BOTH;
        let customer = self.lab.pod("customer")?;
        story.line(&format!(
            "the web server's own log names the true clients, before and after: {} and {}",
            customer.ip(v4),
            customer.ip(v6)
        ))?;
        let letter = self.lab.world.directory().join("letter");
        let canary = Canary::new()?;
        fs::write(&letter, format!("Subject: order\r\n\r\n{canary}\r\n"))?;
        let capture = Capture::between_nodes(&self.lab.world, &canary)?;
        curl::send_mail(customer, self.lab.pod("shop")?.at(v4, MAIL), &letter)?;
        let line = self.mail.wait_for_line(canary.as_str(), Duration::from_secs(2))?;
        let from = format!("mail from {}:", customer.ip(v4));
        ensure!(line.starts_with(&from), "the mail server saw {line:?}");
        let seen = capture.seen()?;
        seen.ensure_tls_only(MAIL)?;
        story.line(&format!(
            "curl sends a letter to the mail server, which has to speak first: delivered, from {}, \
             in {} TLS records and no plaintext",
            customer.ip(v4),
            seen.tls_on(MAIL)
        ))
    }

    fn strict(&self, story: &Story) -> Result<()> {
        story.section("STRICT: who is outside stays outside")?;
        self.ensure_fetches("outsider")?;
        story.line("PERMISSIVE, the default: outsider still gets the page, in plaintext")?;
        self.lab.write_policy("mtls.yaml", &policies::peer_authentication("STRICT"))?;
        let took = self.wait_until_refused("outsider")?;
        self.ensure_fetches("customer")?;
        story.line(&format!(
            "PeerAuthentication STRICT: outsider is refused {} ms after the policy was written, \
             customer is served",
            took.as_millis()
        ))
    }

    fn authorization(&self, story: &Story) -> Result<()> {
        story.section("Authorization by identity, not by address")?;
        self.ensure_fetches("stranger")?;
        let shop = self.lab.pod("shop")?;
        let netns = &self.lab.pod("stranger")?.netns;
        let mut open = Probe::connect(netns, shop.at(Family::V4, MAIL))?;
        open.read_line()?;
        self.lab.write_policy("allow.yaml", &policies::allow("shop", &["customer"]))?;
        let cut = open.wait_for_cut(IN_FORCE)?;
        self.wait_until_refused("stranger")?;
        self.ensure_fetches("customer")?;
        story.line(&format!(
            "AuthorizationPolicy ALLOW {}: customer passes, stranger is refused",
            policies::principal("customer")
        ))?;
        story.line(&format!(
            "stranger's open connection was cut {} ms after the policy was written",
            cut.as_millis()
        ))
    }

    fn failure(&mut self, story: &Story) -> Result<()> {
        story.section("An agent dies: refused, never plaintext")?;
        let capture = Capture::between_nodes(&self.lab.world, &self.canary)?;
        let pid = self.lab.agent(NodeName::A)?.process()?.id();
        self.lab.agent(NodeName::A)?.kill9()?;
        let mut slowest = Duration::ZERO;
        let mut attempts = 0;
        for family in Family::BOTH.into_iter().cycle().take(10) {
            let refusal = self.attempt("customer", family)?;
            slowest = slowest.max(refusal.after);
            attempts += 1;
            ensure!(curl::fetch(self.lab.pod("customer")?, self.shop(family)?).is_err(), "served");
        }
        ensure!(slowest <= REFUSED_WITHIN, "refused only after {slowest:?}");
        let seen = capture.seen()?;
        seen.ensure_no_canary()?;
        story.line(&format!(
            "kill -9 {pid} (node-a's agent): {attempts} of {attempts} connections refused, the \
             slowest after {} us; secret on the wire {} times",
            slowest.as_micros(),
            seen.canaries
        ))?;
        let start = Instant::now();
        self.lab.start_agent(NodeName::A)?;
        self.lab.wait_until_settled(Duration::from_secs(10))?;
        let seen = self.fetch_watched("customer")?;
        let took = start.elapsed();
        seen.ensure_tls_only(WEB)?;
        story.line(&format!(
            "started again: customer is served {} ms later, over TLS as before",
            took.as_millis()
        ))
    }

    fn traces(&mut self, story: &Story) -> Result<()> {
        story.section("How it got there")?;
        let mut lines = 0;
        for (netns, before) in self.lab.world.namespaces().zip(&self.rules) {
            let now = Traces::of_rules(netns)?;
            let differences = before.differences(&now);
            ensure!(differences.is_empty(), "in {}: {differences:?}", netns.name());
            lines += now.rule_lines();
        }
        ensure!(lines == 0, "{lines} lines of packet filters or routing rules");
        story.line(&format!(
            "iptables, nftables and `ip rule` in all {} namespaces: {lines} rules, as before",
            self.rules.len()
        ))?;
        let status = self.lab.agent(NodeName::B)?.status_table()?;
        Story::text("what `sluice status` says on node-b:", &status)
    }

    fn shop(&self, family: Family) -> Result<std::net::SocketAddr> {
        Ok(self.lab.pod("shop")?.at(family, WEB))
    }

    /// Lets the pod fetch the page over both families, and returns what was seen on the link meanwhile.
    fn fetch_watched(&self, pod: &str) -> Result<crate::Seen> {
        let capture = Capture::between_nodes(&self.lab.world, &self.canary)?;
        self.ensure_fetches(pod)?;
        capture.seen()
    }

    fn ensure_fetches(&self, pod: &str) -> Result<()> {
        for family in Family::BOTH {
            let page = curl::fetch(self.lab.pod(pod)?, self.shop(family)?)
                .with_context(|| format!("{pod} should have been served over {family:?}"))?;
            ensure!(page == self.canary.as_str(), "{pod} got another page: {page:?}");
        }
        Ok(())
    }

    /// Tries to fetch from the pod, and returns how the shop refused it.
    fn attempt(&self, pod: &str, family: Family) -> Result<Refusal> {
        Probe::ensure_refused(&self.lab.pod(pod)?.netns, self.shop(family)?)
    }

    /// Waits until curl in the pod is refused over both families. Returns how long that took.
    fn wait_until_refused(&self, pod: &str) -> Result<Duration> {
        let start = Instant::now();
        for family in Family::BOTH {
            while curl::fetch(self.lab.pod(pod)?, self.shop(family)?).is_ok() {
                ensure!(start.elapsed() < IN_FORCE, "{pod} is still served over {family:?}");
            }
        }
        Ok(start.elapsed())
    }
}
