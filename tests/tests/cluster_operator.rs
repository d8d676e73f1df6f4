//! `sluice status`, `flows`, `certs`, `policy` and `check` of every node at once, from outside the cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use sluice_tests::{
    Cluster,
    cleanup::{Guard, Undo},
    cluster::{Asked, NODES, Namespace, SYSTEM, ask_with, wait_for},
};

const PATIENCE: Duration = Duration::from_mins(1);
const VIEWS: [&str; 4] = ["status", "flows", "certs", "policy"];
const WELL: Option<i32> = Some(0);
const WRONG: Option<i32> = Some(1);
const UNASKED: Option<i32> = Some(2);

/// Returns the cluster with Sluice installed on it, once for all tests of this file.
fn mesh() -> Result<Cluster> {
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let cluster = Cluster::open()?;
    let install = || cluster.install().map_err(|error| format!("{error:#}"));
    INSTALLED.get_or_init(install).clone().map_err(anyhow::Error::msg)?;
    Ok(cluster)
}

/// Starts a client on the first node that holds a connection to a server on the second.
fn talk(namespace: &Namespace) -> Result<()> {
    let [first, second] = NODES;
    let server = namespace.pod("server", second, "sleep 1000000 | nc -l -p 9000", "");
    namespace.apply(&server)?;
    namespace.await_ready("pod/server")?;
    let address = namespace.addresses("server")?.swap_remove(0);
    let hold = format!("sleep 1000000 | nc {address} 9000");
    // The client is captured before its program starts, so its connection is in the mesh.
    namespace.apply(&namespace.pod("client", first, &hold, ""))?;
    namespace.await_ready("pod/client")?;
    namespace.await_captured(2)
}

/// Asks until the answer is as it should be: what an earlier test has left may still be going away.
fn until(
    what: &str,
    ask: impl Fn() -> Result<Asked>,
    holds: impl Fn(&Asked) -> bool,
) -> Result<Asked> {
    let mut last = None;
    let waited = wait_for(what, PATIENCE, || {
        let asked = ask()?;
        let holds = holds(&asked);
        last = Some(asked);
        Ok(holds)
    });
    let words = last.as_ref().map(Asked::words).unwrap_or_default();
    waited.with_context(|| format!("the last answer: {words}"))?;
    last.context("never asked")
}

fn nodes(answer: &Value) -> Vec<&str> {
    let nodes = answer["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().filter_map(|node| node["node"].as_str()).collect()
}

#[test]
fn every_node_answers_an_operator_outside_the_cluster() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("operator-rows")?;
    namespace.enrol()?;
    talk(&namespace)?;
    namespace.apply(&policy("PeerAuthentication", "default", "{mtls: {mode: STRICT}}"))?;
    for view in VIEWS {
        let ask = || cluster.ask(&[view, "--output", "json"]);
        let asked = until(view, ask, |asked| asked.code == WELL)?;
        let answer = asked.json()?;
        ensure!(nodes(&answer) == NODES, "{view}: {answer}");
        let said = answer["nodes"].as_array().context("nodes")?;
        ensure!(said.iter().all(|node| !node["answer"].is_null()), "{view}: {answer}");
        let table = cluster.ask(&[view])?;
        let rows = |node: &str| table.output.lines().filter(|line| line.starts_with(node)).count();
        ensure!(table.output.starts_with("NODE"), "{view}: {}", table.output);
        ensure!(NODES.iter().all(|node| rows(node) > 0), "{view}: {}", table.output);
    }
    // Both ends of one connection, each reported by its own node, with the identities of both.
    let table = cluster.ask(&["flows"])?.output;
    for (node, direction) in NODES.iter().zip(["outbound", "inbound"]) {
        let has = |line: &str| {
            line.starts_with(node)
                && ["mtls", "ns/operator-rows/sa/client", "ns/operator-rows/sa/server", direction]
                    .iter()
                    .all(|part| line.contains(part))
        };
        ensure!(table.lines().any(has), "no {direction} flow of {node}:\n{table}");
    }
    let [_, second] = NODES;
    let one = cluster.ask(&["policy", "--node", second, "--output", "json"])?.json()?;
    ensure!(nodes(&one) == [second], "{one}");
    let policies = one["nodes"][0]["answer"].as_array().context("policies")?;
    let ours = policies.iter().find(|policy| policy["namespace"] == "operator-rows");
    let ours = ours.with_context(|| format!("no policy of operator-rows: {one}"))?;
    ensure!(ours["state"] == "accepted" && ours["version"] == 1, "{ours}");
    Ok(())
}

#[test]
fn check_says_of_each_thing_how_it_is() -> Result<()> {
    let cluster = mesh()?;
    let asked =
        until("check", || cluster.ask(&["check", "--output", "json"]), |asked| asked.code == WELL)?;
    let report = asked.json()?;
    let lines = report["lines"].as_array().context("lines")?;
    for subject in [
        "server",
        "clock",
        "permissions",
        "CRDs",
        "controller",
        "agents",
        "versions",
        "kernel",
        "CNI",
        "pods",
        "policies",
        "certificates",
    ] {
        let of = |line: &&Value| line["subject"] == subject;
        ensure!(lines.iter().any(|line| of(&line)), "nothing about {subject}: {report:#}");
    }
    let text = cluster.ask(&["check"])?.output;
    let cni = text.lines().find(|line| line.contains("CNI")).context("no CNI line")?;
    ensure!(cni.starts_with("ok") && cni.contains("chained in /etc/cni/net.d"), "{cni}");
    ensure!(text.contains("connect4"), "the hooks are not named:\n{text}");
    Ok(())
}

#[test]
fn a_refused_policy_is_said_by_every_node_and_by_check() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("operator-policy")?;
    namespace.apply(&policy("AuthorizationPolicy", "audits", "{action: AUDIT, rules: [{}]}"))?;
    let ask = || cluster.ask(&["policy", "--output", "json"]);
    let asked = until("the refusal", ask, |asked| asked.code == WRONG)?;
    let answer = asked.json()?;
    for node in answer["nodes"].as_array().context("nodes")? {
        let policies = node["answer"].as_array().context("policies")?;
        let refused = policies.iter().find(|policy| policy["name"] == "audits");
        let refused = refused.with_context(|| format!("{} does not know it", node["node"]))?;
        ensure!(refused["state"] == "refused", "{refused}");
        ensure!(refused["findings"].to_string().contains("AUDIT"), "{refused}");
    }
    let check = cluster.ask(&["check"])?;
    ensure!(check.code == WRONG, "{check:?}");
    let line = check.output.lines().find(|line| line.starts_with("fail")).unwrap_or_default();
    let parts = ["policies", "n1,n2", "operator-policy/audits", "is refused", "AUDIT"];
    ensure!(parts.iter().all(|part| line.contains(part)), "{}", check.output);
    let status = cluster.ask(&["status"])?;
    ensure!(status.code == WRONG && status.output.contains("WRONG: n1: "), "{}", status.output);
    namespace.kubectl(&["delete", "authorizationpolicy", "audits"])?;
    until("all to be well again", ask, |asked| asked.code == WELL).map(drop)
}

#[test]
fn an_agent_that_does_not_run_is_wrong_and_one_that_cannot_be_reached_is_unknown() -> Result<()> {
    let cluster = mesh()?;
    until("all to be well", || cluster.ask(&["status"]), |asked| asked.code == WELL)?;
    let [first, second] = NODES;
    let agent = cluster.agent(first)?;
    let agent = agent.as_str();
    let image = ["-n", SYSTEM, "set", "image", "pod", agent, "agent=sluice.dev/none:0"];
    cluster.kubectl(&image)?;
    let asked = until(
        "the agent to be gone",
        || cluster.ask(&["status"]),
        |asked| asked.code == WRONG && asked.output.contains("does not run"),
    );
    cluster.kubectl(&["-n", SYSTEM, "delete", "pod", agent, "--grace-period=1"])?;
    cluster.await_agents()?;
    let text = asked?.output;
    ensure!(text.contains(&format!("WRONG: {first}: the agent does not run")), "{text}");
    ensure!(text.contains(&format!("kubectl -n {SYSTEM} describe pod {agent}")), "{text}");
    ensure!(text.lines().any(|line| line.starts_with(second)), "no row of {second}:\n{text}");

    until("all to be well", || cluster.ask(&["status"]), |asked| asked.code == WELL)?;
    let away = cluster.away("n1/kubelet")?;
    let asked = cluster.ask(&["status"])?;
    drop(away);
    ensure!(asked.code == UNASKED, "{asked:?}");
    ensure!(asked.output.contains(&format!("NO ANSWER: {first}: ")), "{}", asked.output);
    ensure!(asked.output.lines().any(|line| line.starts_with(second)), "{}", asked.output);
    cluster.await_agents()
}

#[test]
fn an_agent_that_fails_is_quoted() -> Result<()> {
    let cluster = mesh()?;
    until("all to be well", || cluster.ask(&["status"]), |asked| asked.code == WELL)?;
    let [first, _] = NODES;
    let configuration = ["-n", SYSTEM, "get", "configmap", "sluice-agent", "--output"];
    let configuration =
        cluster.kubectl(&[&configuration[..], &["jsonpath={.data.agent\\.yaml}"]].concat())?;
    let configure = |text: &str| {
        let patch = serde_json::json!({ "data": { "agent.yaml": text } }).to_string();
        let arguments =
            ["-n", SYSTEM, "patch", "configmap", "sluice-agent", "--type=merge", "--patch", &patch];
        cluster.kubectl(&arguments)
    };
    let replace = || {
        let agent = cluster.agent(first)?;
        cluster.kubectl(&["-n", SYSTEM, "delete", "pod", &agent, "--grace-period=1"])
    };
    configure(&format!("{configuration}\nnonsense: true\n"))?;
    let asked = replace().and_then(|_deleted| {
        until(
            "the agent to fail",
            || cluster.ask(&["check"]),
            |asked| asked.code == WRONG && asked.output.contains("it ended with 1"),
        )
    });
    configure(&configuration)?;
    replace()?;
    cluster.await_agents()?;
    let text = asked?.output;
    let said = text.lines().find(|line| line.contains("it ended with 1")).unwrap_or_default();
    ensure!(said.contains(first) && said.contains("nonsense"), "{text}");
    Ok(())
}

#[test]
fn a_kubeconfig_that_is_no_use_is_named_with_what_to_do() -> Result<()> {
    let cluster = Cluster::open()?;
    let good = fs::read_to_string(cluster.kubeconfig())?;
    let server = good.lines().find(|line| line.contains("server:")).context("no server")?;
    let (place, _guard) = scratch("kubeconfigs")?;
    let nowhere = place.join("nowhere");
    fs::write(&nowhere, good.replace(server, "    server: https://127.0.0.1:1"))?;
    let missing = place.join("missing");
    let broken = place.join("broken");
    fs::write(&broken, "not: [a kubeconfig")?;
    let cases: [(&Path, &[&str], &str); 4] = [
        (&missing, &[], "missing: No such file"),
        (&broken, &[], "cannot be used"),
        (&nowhere, &[], "https://127.0.0.1:1 does not answer"),
        (&cluster.kubeconfig(), &["--context", "elsewhere"], "has no context \"elsewhere\""),
    ];
    for command in ["status", "flows", "certs", "policy", "check"] {
        for (kubeconfig, more, words) in &cases {
            let asked = ask_with(kubeconfig, &[&[command], *more].concat())?;
            ensure!(asked.code == UNASKED, "{command} {words}: {asked:?}");
            ensure!(asked.errors.contains(words), "{command}: {}", asked.errors);
        }
    }
    Ok(())
}

#[test]
fn a_namespace_without_sluice_is_named_with_the_one_that_has_it() -> Result<()> {
    let cluster = mesh()?;
    let asked = cluster.ask(&["status", "--namespace", "default"])?;
    ensure!(asked.code == UNASKED, "{asked:?}");
    let words = ["no Sluice in the namespace \"default\"", "its agents are in sluice-system"];
    ensure!(words.iter().all(|part| asked.errors.contains(part)), "{}", asked.errors);
    let asked = cluster.ask(&["status", "--node", "n9"])?;
    ensure!(asked.code == UNASKED, "{asked:?}");
    ensure!(asked.errors.contains("no agent is on the node \"n9\""), "{}", asked.errors);
    Ok(())
}

#[test]
fn a_missing_permission_is_named_and_the_charts_role_is_all_that_is_needed() -> Result<()> {
    let cluster = mesh()?;
    until("all to be well", || cluster.ask(&["status"]), |asked| asked.code == WELL)?;
    let namespace = cluster.namespace("operator-rights")?;
    namespace.kubectl(&["create", "serviceaccount", "watcher"])?;
    let (place, _guard) = scratch("rights")?;
    let kubeconfig = kubeconfig_of(&cluster, &namespace, "watcher", &place)?;
    let ask = |command: &str| ask_with(&kubeconfig, &[command]);
    let refused = |command: &str, right: &str| {
        until(
            right,
            || ask(command),
            |asked| asked.code == UNASKED && asked.words().contains(right),
        )
    };
    for command in VIEWS {
        refused(command, "list pods in the namespace sluice-system")?;
    }
    refused("check", "you may not list pods")?;

    let may_list = ["list-only", "--verb=list", "--resource=pods,daemonsets,deployments"];
    let role = [&["-n", SYSTEM, "create", "role"], may_list.as_slice()].concat();
    let undo = [Leftover::new(&cluster, "role", "list-only")];
    cluster.kubectl(&role)?;
    let undo = [undo, [bind(&cluster, "list-only", "watcher")?]];
    for command in VIEWS {
        let asked = refused(command, "get and create pods/exec")?;
        ensure!(asked.output.matches("pods/exec in the").count() == 1, "{}", asked.output);
    }
    let asked = refused("check", "you may not get pods/exec, create pods/exec")?;
    ensure!(asked.output.contains("the Role that the chart made"), "{}", asked.output);
    drop(undo);

    let bound = bind(&cluster, "sluice-operator", "watcher")?;
    for command in VIEWS.iter().chain(&["check"]) {
        until(command, || ask(command), |asked| asked.code == WELL)?;
    }
    drop(bound);
    Ok(())
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

/// Writes a kubeconfig for the same server, which authenticates as a service account.
fn kubeconfig_of(
    cluster: &Cluster,
    namespace: &Namespace,
    account: &str,
    place: &Path,
) -> Result<PathBuf> {
    let token = namespace.kubectl(&["create", "token", account])?;
    let view = ["config", "view", "--raw", "-o"];
    let of = |path: &str| cluster.kubectl(&[view.as_slice(), &[path]].concat());
    let server = of("jsonpath={.clusters[0].cluster.server}")?;
    let ca = of("jsonpath={.clusters[0].cluster.certificate-authority-data}")?;
    if ca.is_empty() {
        bail!("the kubeconfig names its CA in a file");
    }
    let file = place.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: '{server}', certificate-authority-data: {ca}}}}}]\n\
         users: [{{name: u, user: {{token: {}}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
        token.trim()
    );
    fs::write(&file, text)?;
    Ok(file)
}

/// An object in the system's namespace; deleted when dropped.
struct Leftover<'a> {
    cluster: &'a Cluster,
    kind: &'static str,
    name: String,
}

impl<'a> Leftover<'a> {
    fn new(cluster: &'a Cluster, kind: &'static str, name: &str) -> Self {
        Self { cluster, kind, name: name.to_owned() }
    }
}

impl Drop for Leftover<'_> {
    fn drop(&mut self) {
        let delete = ["-n", SYSTEM, "delete", self.kind, &self.name, "--ignore-not-found"];
        // If it stays, it only grants rights to an account of a namespace that is deleted.
        self.cluster.kubectl(&delete).ok();
    }
}

fn bind<'a>(cluster: &'a Cluster, role: &str, account: &str) -> Result<Leftover<'a>> {
    let name = format!("{role}-of-{account}");
    let binding = Leftover::new(cluster, "rolebinding", &name);
    cluster.kubectl(&[
        "-n",
        SYSTEM,
        "create",
        "rolebinding",
        &name,
        &format!("--role={role}"),
        &format!("--serviceaccount=operator-rights:{account}"),
    ])?;
    Ok(binding)
}

/// Makes a directory that is removed with its guard.
fn scratch(name: &str) -> Result<(PathBuf, Guard)> {
    let place = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
    let guard = Guard::new(Undo::Directory(place.clone()));
    fs::create_dir_all(&place)?;
    Ok((place, guard))
}
