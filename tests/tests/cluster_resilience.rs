//! Failures of a node's own components neither open nor break the mesh, and its surroundings (a filter on the host, a
//! node's port) meet what is documented.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{
    Authority, Canary, Capture, Cluster,
    cluster::{
        NODES, Namespace, SYSTEM,
        life::{Knocked, PORT},
        wait_for,
    },
};

const PATIENCE: Duration = Duration::from_mins(2);
const RATE: u32 = 50;

fn mode(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// Makes two enrolled pods that talk, each on a node of its own, in a STRICT namespace.
fn talking(cluster: &Cluster, name: &str) -> Result<(Namespace, Canary, Capture)> {
    cluster.upgrade(&[])?;
    let namespace = cluster.namespace(name)?;
    namespace.enrol()?;
    namespace.apply(&mode("STRICT"))?;
    namespace.talkers()?;
    namespace.await_captured(2)?;
    let canary = Canary::new()?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        namespace.await_reached(from, to, &canary)?;
    }
    let wire = cluster.eavesdrop(&canary)?;
    Ok((namespace, canary, wire))
}

/// Opens connections in both directions while `disturb` runs and for some seconds more. Returns what came of them.
fn under_load(
    (namespace, canary): (&Namespace, &Canary),
    seconds: u64,
    disturb: impl FnOnce() -> Result<()>,
) -> Result<Vec<Knocked>> {
    for pair in [("a", "b"), ("b", "a")] {
        namespace.knock(pair, canary, RATE, Duration::ZERO, seconds)?;
    }
    thread::sleep(Duration::from_secs(2));
    disturb()?;
    ["a", "b"].into_iter().map(|from| namespace.knocked(from, RATE)).collect()
}

#[test]
fn a_kubelet_and_a_containerd_that_restart_are_not_noticed_by_connections() -> Result<()> {
    let cluster = Cluster::open()?;
    let (namespace, canary, wire) = talking(&cluster, "life-components")?;
    let containers = namespace.containers()?;
    for component in ["kubelet", "containerd"] {
        let [first, _] = NODES;
        let unit = format!("{first}/{component}");
        let mut recovery = Duration::ZERO;
        let knocked = under_load((&namespace, &canary), 25, || {
            let away = cluster.away(&unit)?;
            thread::sleep(Duration::from_secs(5));
            drop(away);
            // A kubelet exits when containerd does.
            cluster.start(&format!("{first}/kubelet"))?;
            let back = Instant::now();
            wait_for("the node to take commands again", PATIENCE, || {
                Ok(namespace.exec("a", &["true"]).is_ok())
            })?;
            recovery = back.elapsed();
            Ok(())
        })?;
        for knocked in knocked {
            println!("{component} away for 5 s: {knocked}");
            ensure!(knocked.served > 0 && knocked.failed == 0, "{component}: {knocked}");
        }
        println!("{component}: the node took commands again {recovery:?} after its start");
    }
    // Pods that start now are captured, and probed by the new kubelet.
    namespace.kubectl(&["delete", "pod", "a", "--now"])?;
    namespace.talkers()?;
    namespace.await_captured(2)?;
    namespace.await_reached("a", "b", &canary)?;
    wire.seen()?.ensure_tls_only(PORT)?;
    let of_b = |text: &str| text.split(' ').find(|pod| pod.starts_with("b=")).map(str::to_owned);
    ensure!(of_b(&namespace.containers()?) == of_b(&containers), "a container was restarted");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_is_back_without_a_byte_in_plaintext() -> Result<()> {
    let cluster = Cluster::open()?;
    let (namespace, canary, wire) = talking(&cluster, "life-agent")?;
    let [first, _] = NODES;
    let ctr = cluster.directory().join("bin/ctr").display().to_string();
    let knocked = under_load((&namespace, &canary), 40, || {
        let agent = cluster.agent_container(first)?;
        let mut kill = cluster.inside(first, &ctr);
        kill.args(["--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", &agent]);
        ensure!(kill.status()?.success(), "killing the agent of {first}");
        Ok(())
    })?;
    for knocked in knocked {
        println!("agent killed: {knocked}");
        ensure!(knocked.served > 0, "{knocked}");
    }
    for (from, to) in [("a", "b"), ("b", "a")] {
        namespace.await_reached(from, to, &canary)?;
    }
    wire.seen()?.ensure_tls_only(PORT)?;
    ensure!(namespace.captured()? == 2, "a pod lost its mark");
    Ok(())
}

/// Returns the issuer of the certificate of a pod's identity, as its node's agent knows it.
fn issuer_of(cluster: &Cluster, node: &str, namespace: &Namespace, pod: &str) -> Result<String> {
    let certs = cluster.sluice(node, "certs")?;
    let suffix = format!("/ns/{}/sa/{pod}", namespace.name());
    let all = certs.get("certificates").and_then(Value::as_array).context("no certificates")?;
    let own = all.iter().find(|one| {
        one.get("identity").and_then(Value::as_str).is_some_and(|id| id.ends_with(&suffix))
    });
    own.and_then(|own| own.get("issuer")?.as_str()).map(str::to_owned).context(certs.to_string())
}

#[test]
fn a_new_root_issues_only_when_every_node_knows_it() -> Result<()> {
    const DELAY: Duration = Duration::from_secs(40);
    let cluster = Cluster::open()?;
    let (namespace, canary, wire) = talking(&cluster, "life-root")?;
    cluster.upgrade(&[&format!("ca.newRootDelay={}s", DELAY.as_secs())])?;
    let [first, second] = NODES;
    let before = issuer_of(&cluster, first, &namespace, "a")?;
    let serve = format!("exec sluice-lab echo --port {PORT}");
    let knocked = under_load((&namespace, &canary), 70, || {
        let system = ["-n", SYSTEM];
        // Its own name, because the cluster may have gone through this before.
        let name = format!("root {}", std::process::id());
        let next = Authority::new(&name)?;
        let patch = serde_json::json!({"stringData": {
            "tls.crt": next.pem(), "tls.key": next.key_pem(), "ca.crt": next.pem(),
        }});
        let patch = patch.to_string();
        cluster
            .kubectl(&[&system[..], &["patch", "secret", "sluice-ca", "-p", &patch]].concat())?;
        let changed = Instant::now();
        wait_for("the new root to be published", PATIENCE, || {
            let roots = ["get", "configmap", "sluice-ca-roots", "-o", "yaml"];
            let published = cluster.kubectl(&[&system[..], &roots].concat())?;
            // Indented, as YAML.
            Ok(next.pem().lines().all(|line| published.contains(line)))
        })?;
        // The second node does not know the new root yet.
        cluster.hasten_volumes_on(first)?;
        thread::sleep(Duration::from_secs(3));
        namespace.apply(&namespace.pod("early", first, &serve, ""))?;
        namespace.await_captured(3)?;
        namespace.await_reached("early", "b", &canary)?;
        let issuer = issuer_of(&cluster, first, &namespace, "early")?;
        ensure!(changed.elapsed() < DELAY, "too slow to show anything: {:?}", changed.elapsed());
        ensure!(issuer == before, "{issuer} issues after {:?}", changed.elapsed());
        cluster.hasten_volumes()?;
        wait_for("every replica to issue under it", PATIENCE, || {
            let logs =
                ["logs", "-lapp.kubernetes.io/component=controller", "--tail=-1", "--prefix"];
            let logs = cluster.kubectl(&[&system[..], &logs].concat())?;
            let told = |words: &str| logs.lines().filter(|line| line.contains(words)).count();
            Ok(told("issuing with the CA as it is now") == told("serving certificates"))
        })?;
        ensure!(changed.elapsed() >= DELAY, "they issue after {:?}", changed.elapsed());
        namespace.apply(&namespace.pod("late", second, &serve, ""))?;
        namespace.await_captured(4)?;
        for to in ["a", "early"] {
            namespace.await_reached("late", to, &canary)?;
        }
        let issuer = issuer_of(&cluster, second, &namespace, "late")?;
        ensure!(issuer == format!("CN={name}"), "{issuer} still issues");
        Ok(())
    })?;
    for knocked in knocked {
        println!("root replaced: {knocked}");
        ensure!(knocked.served > 0 && knocked.failed == 0, "{knocked}");
    }
    wire.seen()?.ensure_tls_only(PORT)
}

#[test]
fn a_nodes_port_is_served_under_permissive_and_refused_under_strict() -> Result<()> {
    let cluster = Cluster::open()?;
    let (namespace, canary, _wire) = talking(&cluster, "life-ports")?;
    let serve = "mkdir -p /tmp/www; echo page > /tmp/www/page; exec httpd -f -p 8080 -h /tmp/www";
    let [first, second] = NODES;
    namespace.apply(&namespace.pod("web", second, serve, ""))?;
    namespace.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
         spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n",
    )?;
    namespace.await_ready("pod/web")?;
    namespace.await_captured(3)?;
    let path = "jsonpath={.spec.ports[0].nodePort}";
    let port = namespace.kubectl(&["get", "service", "web", "-o", path])?;
    // This is what a load balancer in front of the cluster would dial: any node, by its own address.
    let path = r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#;
    let addresses = cluster.kubectl(&["get", "node", first, "-o", path])?;
    let address = addresses.split(' ').next().context("a node without an address")?;
    let url = format!("http://{address}:{port}/page");
    let get = || -> Result<bool> {
        let mut curl = cluster.inside("control", "curl");
        Ok(curl.args(["--silent", "--max-time", "5", &url]).output()?.status.success())
    };
    ensure!(!get()?, "plaintext from outside got past STRICT");
    namespace.apply(&mode("PERMISSIVE"))?;
    wait_for("the node's port under PERMISSIVE", PATIENCE, get)?;
    namespace.apply(&mode("STRICT"))?;
    wait_for("a refusal under STRICT", PATIENCE, || Ok(!get()?))?;
    namespace.await_reached("a", "b", &canary)
}

/// A filter on a node that lets nothing but one port pass between two pods; removed when dropped.
struct Filter<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    rules: Vec<Vec<String>>,
}

impl<'a> Filter<'a> {
    fn put_up(cluster: &'a Cluster, node: &'a str, [a, b]: [&str; 2], port: u16) -> Result<Self> {
        let port = port.to_string();
        let rule = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        // The last rule is asked first, because each is inserted in front of the others.
        let drop_others = |from, to| rule(&["-s", from, "-d", to, "-j", "DROP"]);
        let rules = vec![
            drop_others(a, b),
            drop_others(b, a),
            rule(&["-s", a, "-d", b, "-p", "tcp", "--dport", &port, "-j", "ACCEPT"]),
            rule(&["-s", b, "-d", a, "-p", "tcp", "--sport", &port, "-j", "ACCEPT"]),
        ];
        let filter = Self { cluster, node, rules };
        filter.rules.iter().try_for_each(|rule| filter.change("-I", rule))?;
        Ok(filter)
    }

    fn change(&self, action: &str, rule: &[String]) -> Result<()> {
        let mut iptables = self.cluster.inside(self.node, "iptables");
        let output = iptables.args(["-w", action, "FORWARD"]).args(rule).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "iptables {action} {rule:?}: {said}");
        Ok(())
    }
}

impl Drop for Filter<'_> {
    fn drop(&mut self) {
        for rule in &self.rules {
            if let Err(error) = self.change("-D", rule) {
                sluice_tests::cleanup::report(&format!("{error:#}"));
            }
        }
    }
}

#[test]
fn a_filter_on_the_host_that_knows_the_applications_port_alone_lets_the_mesh_through() -> Result<()>
{
    let cluster = Cluster::open()?;
    let (namespace, canary, wire) = talking(&cluster, "life-filter")?;
    let [a, b] = ["a", "b"].map(|pod| namespace.addresses(pod).map(|mut all| all.swap_remove(0)));
    let (a, b) = (a?, b?);
    let [_, second] = NODES;
    let filter = Filter::put_up(&cluster, second, [&a, &b], PORT)?;
    let knocked = under_load((&namespace, &canary), 5, || Ok(()))?;
    let [from_a, from_b] = knocked.as_slice() else { unreachable!("two pods") };
    println!("to the port that is let through: {from_a}; the other way: {from_b}");
    ensure!(from_a.served > 0 && from_a.failed == 0, "{from_a}");
    // The filter works: it does not let the other direction through.
    ensure!(from_b.served == 0, "the filter lets everything through: {from_b}");
    drop(filter);
    namespace.await_reached("b", "a", &canary)?;
    wire.seen()?.ensure_tls_only(PORT)
}
