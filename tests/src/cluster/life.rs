//! What tests of the mesh's own life (upgrade, uninstall, resilience) have in common: two pods that talk all the
//! time, and a look at what is left of Sluice on a node.

use std::{fmt, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Cluster, NODES, Namespace, SYSTEM, wait_for};
use crate::Canary;

/// The echo server's port in the pods.
pub const PORT: u16 = 9000;
const PATIENCE: Duration = Duration::from_mins(2);

/// What became of connections that were opened all the time.
#[derive(Clone, Debug, Default)]
pub struct Knocked {
    /// Connections that were served.
    pub served: u64,
    /// Connections that were not.
    pub failed: u64,
    /// Each of them: when it was opened (milliseconds of the wall clock), and why it failed.
    pub failures: Vec<(u64, String)>,
}

// === impl Cluster ===

impl Cluster {
    /// Brings the installation to the chart's state with these values (`name=value`), and waits until every agent
    /// is ready and none of the former is left.
    pub fn upgrade(&self, values: &[&str]) -> Result<()> {
        self.change(values)?;
        self.await_agents()?;
        wait_for("one agent on each node", PATIENCE, || Ok(self.agents()?.len() == NODES.len()))
    }

    /// As [`Cluster::upgrade`], without waiting for what becomes of it.
    pub fn change(&self, values: &[&str]) -> Result<()> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/sluice");
        let chart = chart.display().to_string();
        let mut arguments = vec!["upgrade", "--install", "sluice", &chart, "--namespace", SYSTEM];
        arguments.extend(["--create-namespace", "--set", "image.pullPolicy=Never"]);
        arguments.extend(values.iter().flat_map(|value| ["--set", *value]));
        self.helm(&arguments).map(drop)
    }

    /// Has the kubelets bring a changed `ConfigMap` to the agents now, instead of within a minute or two.
    pub fn hasten_volumes(&self) -> Result<()> {
        NODES.into_iter().try_for_each(|node| self.hasten_volumes_on(node))
    }

    /// The same for one node.
    pub fn hasten_volumes_on(&self, node: &str) -> Result<()> {
        let moment =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
        let mark = format!("sluice-tests/hastened={moment}");
        let agent = self.agent(node)?;
        self.kubectl(&["-n", SYSTEM, "annotate", "pod", &agent, "--overwrite", &mark]).map(drop)
    }

    /// Names of the agents' pods.
    pub fn agents(&self) -> Result<Vec<String>> {
        let path = "jsonpath={.items[*].metadata.name}";
        let selector = "-lapp.kubernetes.io/component=agent";
        let names = self.kubectl(&["-n", SYSTEM, "get", "pods", selector, "-o", path])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// Everything of Sluice that is on a node and should not be after an uninstallation; empty if nothing is.
    pub fn remains(&self, node: &str) -> Result<Vec<String>> {
        let mut remains = Vec::new();
        let mut look =
            |what: &str, program: &str, arguments: &[&str], marks: &[&str]| -> Result<()> {
                let output = self.inside(node, program).args(arguments).output()?;
                // By nsenter: a program that is not there would find nothing.
                ensure!(output.status.code() != Some(127), "{program} is not on {node}");
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let found =
                    text.lines().filter(|line| marks.iter().any(|mark| line.contains(mark)));
                remains.extend(found.map(|line| format!("{what}: {line}")));
                Ok(())
            };
        look("pin", "find", &["/sys/fs/bpf", "-mindepth", "1"], &["sluice"])?;
        look("CNI entry", "grep", &["-r", "sluice", "/etc/cni/net.d"], &["sluice"])?;
        look("listener", "ss", &["-Hltnp"], &["sluice", ":15020"])?;
        look("memory", "find", &["/var/lib/sluice", "-type", "f"], &["json"])?;
        Ok(remains)
    }
}

// === impl Namespace ===

impl Namespace {
    /// A talking pod on each node, `a` on the first and `b` on the second; ready.
    pub fn talkers(&self) -> Result<()> {
        let serve = format!("exec sluice-lab echo --port {PORT}");
        let [first, second] = NODES;
        let more = format!(
            "    readinessProbe: {{tcpSocket: {{port: {PORT}}}, periodSeconds: 1, failureThreshold: 60}}"
        );
        self.apply(&(self.pod("a", first, &serve, &more) + &self.pod("b", second, &serve, &more)))?;
        ["pod/a", "pod/b"].into_iter().try_for_each(|pod| self.await_ready(pod))
    }

    /// Whether a connection from one pod to the other is served now.
    pub fn reaches(&self, from: &str, to: &str, canary: &Canary) -> Result<bool> {
        let target = self.target(to)?;
        Ok(self.exec(from, &["sluice-lab", "send", &target, canary.as_str()]).is_ok())
    }

    /// Waits until a pod reaches the other.
    pub fn await_reached(&self, from: &str, to: &str, canary: &Canary) -> Result<()> {
        wait_for(&format!("{from} to reach {to}"), PATIENCE, || self.reaches(from, to, canary))
    }

    fn target(&self, to: &str) -> Result<String> {
        Ok(format!("{}:{PORT}", self.addresses(to)?.swap_remove(0)))
    }

    /// Has a pod open connections to the other at a steady rate, for some seconds; each stays open for `hold`.
    pub fn knock(
        &self,
        (from, to): (&str, &str),
        canary: &Canary,
        rate: u32,
        hold: Duration,
        seconds: u64,
    ) -> Result<()> {
        let (target, hold) = (self.target(to)?, hold.as_millis());
        let run = format!(
            "sluice-lab knock {target} {canary} --rate {rate} --hold {hold} --seconds {seconds} \
             > /tmp/knock-{rate} 2>&1 < /dev/null &"
        );
        self.exec(from, &["sh", "-c", &run]).map(drop)
    }

    /// What became of them, once all is over.
    pub fn knocked(&self, from: &str, rate: u32) -> Result<Knocked> {
        let file = format!("/tmp/knock-{rate}");
        let mut text = String::new();
        wait_for("the end of the knocking", PATIENCE * 2, || {
            text = self.exec(from, &["cat", &file]).unwrap_or_default();
            thread::sleep(Duration::from_millis(500));
            Ok(text.contains("in all: "))
        })
        .with_context(|| format!("it says: {text}"))?;
        Knocked::parse(&text)
    }
}

// === impl Knocked ===

impl Knocked {
    fn parse(text: &str) -> Result<Self> {
        let mut knocked = Self::default();
        for line in text.lines() {
            if let Some(failure) = line.strip_prefix("failed at ") {
                let (at, why) = failure.split_once(": ").context("a failure without a reason")?;
                knocked.failures.push((at.parse()?, why.to_owned()));
            } else if let Some(sums) = line.strip_prefix("in all: served ") {
                let (served, failed) = sums.split_once(" failed ").context("no sums")?;
                (knocked.served, knocked.failed) = (served.parse()?, failed.parse()?);
            }
        }
        ensure!(knocked.failed == knocked.failures.len() as u64, "lines are missing: {text}");
        Ok(knocked)
    }
}

impl fmt::Display for Knocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} served, {} failed", self.served, self.failed)?;
        let times = self.failures.iter().map(|(at, _)| *at);
        let (Some(first), Some(last)) = (times.clone().min(), times.max()) else { return Ok(()) };
        let mut reasons: Vec<_> = self.failures.iter().map(|(_, why)| why.as_str()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        write!(f, " within {} ms: {reasons:?}", last - first)
    }
}
