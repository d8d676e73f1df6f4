//! `sluice controller` against a real API server: whom it believes, what it issues, how replicas share the work.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{
    Authority, Cluster,
    certificate_authority::{Answer, CaClient},
    cluster::{LAB_IMAGE, NODES, Namespace, wait_for},
    controller::{NEW_ROOT_DELAY, Release, Replica},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// gRPC's status codes.
const PERMISSION_DENIED: u32 = 7;
const UNAUTHENTICATED: u32 = 16;

/// Returns the manifest of a pod that is bound to a node. It does not matter here whether the pod ever runs.
fn pod(name: &str, account: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: idle, image: '{LAB_IMAGE}', imagePullPolicy: Never, command: [sleep, infinity]}}
---
"
    )
}

/// Makes an agent's pod on each node, `web` on the first, and `cart` on the second.
fn populate(namespace: &Namespace) -> Result<()> {
    for account in ["web", "cart"] {
        namespace.kubectl(&["create", "serviceaccount", account])?;
    }
    let [first, second] = NODES;
    let pods = [
        pod("agent-1", "sluice-agent", first),
        pod("agent-2", "sluice-agent", second),
        pod("web", "web", first),
        pod("cart", "cart", second),
    ];
    namespace.apply(&pods.concat())
}

/// Returns a token of `account`, for `audience`, bound to `pod` if there is one.
fn token(
    namespace: &Namespace,
    account: &str,
    audience: &str,
    pod: Option<&str>,
) -> Result<String> {
    let mut arguments = vec!["create", "token", account, "--audience", audience];
    if let Some(pod) = pod {
        arguments.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod]);
    }
    Ok(namespace.kubectl(&arguments)?.trim().to_owned())
}

fn agent_token(namespace: &Namespace, pod: &str) -> Result<String> {
    token(namespace, "sluice-agent", "sluice-ca", Some(pod))
}

fn identity(namespace: &Namespace, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/{account}", namespace.name())
}

fn refused(answer: &Answer, code: u32, rule: &str) -> Result<()> {
    ensure!(answer.is_refused(code, rule), "not refused with {code} {rule}: {answer:?}");
    Ok(())
}

/// Returns a client that trusts what the replicas publish.
fn client(release: &Release, replica: &Replica) -> Result<CaClient> {
    replica.client(&published(release)?)
}

fn published(release: &Release) -> Result<String> {
    let mut roots = String::new();
    wait_for("the published roots", PATIENCE, || {
        roots = release.text("configmap/sluice-ca-roots", "root-cert.pem").unwrap_or_default();
        Ok(roots.contains("BEGIN CERTIFICATE"))
    })?;
    Ok(roots)
}

#[test]
fn an_agent_gets_the_identities_of_its_own_nodes_pods_and_no_others() -> Result<()> {
    let cluster = Cluster::open()?;
    let release = Release::create(&cluster, "ca-callers")?;
    let namespace = release.namespace();
    populate(namespace)?;
    let replica = release.start("replica-1")?;
    let client = client(&release, &replica)?;
    let (web, cart) = (identity(namespace, "web"), identity(namespace, "cart"));
    let first = agent_token(namespace, "agent-1")?;
    let second = agent_token(namespace, "agent-2")?;
    wait_for("the first certificate", PATIENCE, || {
        Ok(matches!(client.ask(&first, &web)?, Answer::Issued(_)))
    })?;
    client.ask(&second, &cart)?.issued()?;

    let elsewhere = "pod-on-callers-node: no pod of";
    refused(&client.ask(&second, &web)?, PERMISSION_DENIED, elsewhere)?;
    refused(&client.ask(&first, &cart)?, PERMISSION_DENIED, elsewhere)?;
    refused(&client.ask(&first, &identity(namespace, "none"))?, PERMISSION_DENIED, elsewhere)?;

    let tampered = format!("{}AAAA", first.get(..first.len() - 4).context("a token")?);
    let strangers = [
        ("made for another audience", token(namespace, "sluice-agent", "other", Some("agent-1"))?),
        ("bound to no pod", token(namespace, "sluice-agent", "sluice-ca", None)?),
        ("of another account", token(namespace, "web", "sluice-ca", Some("web"))?),
        ("with another signature", tampered),
        ("no token", "x".repeat(100)),
    ];
    for (what, stranger) in strangers {
        let answer = client.ask(&stranger, &web)?;
        refused(&answer, UNAUTHENTICATED, "caller-token").context(what)?;
    }

    namespace.kubectl(&["delete", "pod", "web", "--wait=true", "--timeout=60s"])?;
    let gone = Instant::now();
    wait_for("the refusal of a pod that is gone", PATIENCE, || {
        Ok(client.ask(&first, &web)?.is_refused(PERMISSION_DENIED, "pod-on-callers-node"))
    })?;
    println!("a pod that is gone was refused after {:?}", gone.elapsed());

    // The agent's token is remembered as good until the watch says that the pod is gone.
    client.ask(&second, &cart)?.issued()?;
    namespace.kubectl(&["delete", "pod", "agent-2", "--wait=true", "--timeout=60s"])?;
    let gone = Instant::now();
    wait_for("the refusal of an agent that is gone", Duration::from_secs(5), || {
        Ok(client.ask(&second, &cart)?.is_refused(UNAUTHENTICATED, "caller-token"))
    })?;
    println!("an agent that is gone was refused after {:?}", gone.elapsed());
    Ok(())
}

#[test]
fn replicas_share_one_authority_that_is_replaced_live() -> Result<()> {
    let cluster = Cluster::open()?;
    let release = Release::create(&cluster, "ca-replicas")?;
    let namespace = release.namespace();
    populate(namespace)?;
    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(|| release.start("replica-1"));
        let two = scope.spawn(|| release.start("replica-2"));
        (one.join(), two.join())
    });
    let replicas = [
        one.map_err(|_panic| anyhow::anyhow!("panic"))??,
        two.map_err(|_panic| anyhow::anyhow!("panic"))??,
    ];
    let roots = published(&release)?;
    ensure!(release.text("secret/sluice-ca", "ca.crt")? == roots, "other roots are published");
    let agent = agent_token(namespace, "agent-1")?;
    let web = identity(namespace, "web");
    for replica in &replicas {
        let client = replica.client(&roots)?;
        let mut chain = Vec::new();
        wait_for("a certificate", PATIENCE, || {
            let answer = client.ask(&agent, &web)?;
            if let Answer::Issued(issued) = answer {
                chain = issued;
            }
            Ok(!chain.is_empty())
        })?;
        ensure!(chain.last() == Some(&roots), "another root: {chain:?}");
    }

    namespace.kubectl(&["delete", "configmap", "sluice-ca-roots"])?;
    ensure!(published(&release)? == roots, "other roots than before");

    let new = Authority::new("the next")?;
    let patch = serde_json::json!({"stringData": {
        "tls.crt": new.pem(), "tls.key": new.key_pem(), "ca.crt": new.pem(),
    }});
    let changed = Instant::now();
    namespace.kubectl(&["patch", "secret", "sluice-ca", "-p", &patch.to_string()])?;
    let both = || Ok(published(&release)?.matches("BEGIN").count() == 2);
    wait_for("both roots", PATIENCE, both)?;
    let issues = |replica: &Replica, root: &str| -> Result<bool> {
        let issued = replica.client(root)?.ask(&agent, &web).and_then(Answer::issued);
        Ok(issued.is_ok_and(|chain| chain.last().is_some_and(|last| last.contains(root))))
    };
    for replica in &replicas {
        let waits = issues(replica, &roots)? || changed.elapsed() >= NEW_ROOT_DELAY;
        ensure!(waits, "the new authority issues before agents can know it");
    }
    for replica in &replicas {
        wait_for("the new authority", PATIENCE, || issues(replica, &new.pem()))?;
    }
    // By the old one agents hold certificates for a while.
    thread::sleep(Duration::from_secs(5));
    ensure!(both()?, "the old root did not stay");
    println!("both replicas issue from the new authority after {:?}", changed.elapsed());
    Ok(())
}

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: get}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: audit}
spec: {action: AUDIT}
";

fn object(namespace: &Namespace, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&namespace.kubectl(&["get", name, "-o", "json"])?)?)
}

/// Waits for Sluice's own condition of an object, and returns it.
fn condition(namespace: &Namespace, name: &str) -> Result<Value> {
    let mut found = None;
    wait_for(&format!("the condition of {name}"), PATIENCE, || {
        let object = object(namespace, name)?;
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array).cloned();
        let generation = object.pointer("/metadata/generation");
        let is_ours = |condition: &Value| {
            condition.get("type") == Some(&"sluice.dev/Accepted".into())
                && condition.get("observedGeneration") == generation
        };
        found = conditions.unwrap_or_default().into_iter().find(is_ours);
        Ok(found.is_some())
    })?;
    found.context("no condition")
}

/// Checks that one of the replicas has written the status, and only once. If Sluice is also installed on the cluster,
/// it may be that none has: a status that is already right is left alone.
fn told_once(
    cluster: &Cluster,
    namespace: &Namespace,
    replicas: &mut [Replica],
    name: &str,
) -> Result<()> {
    let (_, short) = name.split_once('/').context("a name")?;
    let told = format!("{}/{short}", namespace.name());
    let leases = cluster.kubectl(&["get", "leases", "-A", "-o", "name"])?;
    let installations = leases.lines().filter(|line| line.ends_with("/sluice-controller")).count();
    // After that: a log is a few milliseconds behind.
    let logs: String = replicas.iter_mut().map(|replica| replica.process().log()).collect();
    let is_it = |line: &&str| line.contains("wrote the status") && line.contains(&told);
    let times = logs.lines().filter(is_it).count();
    ensure!(
        times == 1 || times == 0 && installations > 1,
        "{name} was written {times} times; the replicas' logs:\n{logs}"
    );
    Ok(())
}

#[test]
fn each_policy_is_told_once_by_one_replica_and_another_takes_over() -> Result<()> {
    let cluster = Cluster::open()?;
    let release = Release::create(&cluster, "policy-status")?;
    let namespace = release.namespace();
    let mut replicas = [release.start("replica-1")?, release.start("replica-2")?];
    namespace.apply(POLICIES)?;
    let (strict, get, audit) =
        ("peerauthentication/strict", "authorizationpolicy/get", "authorizationpolicy/audit");
    for (name, status, reason, message) in [
        (strict, "True", "Accepted", "enforced as written"),
        (get, "True", "AcceptedWithWarnings", "methods: L4 cannot check this HTTP condition"),
        (audit, "False", "NotEnforceable", "spec.action: \"AUDIT\" is not enforced here"),
    ] {
        let told = condition(namespace, name)?;
        let said = told["message"].as_str().unwrap_or_default();
        let is_right =
            told["status"] == status && told["reason"] == reason && said.contains(message);
        ensure!(is_right, "{name}: {told}");
    }

    let theirs = r#"[{"op": "add", "path": "/status/conditions/-", "value": {"type": "theirs", "status": "True"}}]"#;
    namespace.kubectl(&["patch", get, "--subresource=status", "--type=json", "-p", theirs])?;
    let version = |name: &str| {
        Ok::<_, anyhow::Error>(object(namespace, name)?["metadata"]["resourceVersion"].clone())
    };
    let before = [version(strict)?, version(get)?, version(audit)?];
    thread::sleep(Duration::from_secs(5));
    let after = [version(strict)?, version(get)?, version(audit)?];
    ensure!(before == after, "written again: {before:?} {after:?}");
    for name in [strict, get, audit] {
        told_once(&cluster, namespace, &mut replicas, name)?;
    }

    let lease = object(namespace, "lease/sluice-controller")?;
    let leader = lease["spec"]["holderIdentity"].as_str().context("no holder")?.to_owned();
    let position = usize::from(leader == "replica-2");
    let leading = replicas.get_mut(position).context("a replica")?;
    leading.process().terminate(Duration::from_secs(10))?;
    let stopped = Instant::now();
    let fix =
        r#"{"spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}}"#;
    namespace.kubectl(&["patch", audit, "--type=merge", "-p", fix])?;
    let told = condition(namespace, audit)?;
    ensure!(told["status"] == "True", "{told}");
    println!(
        "the other replica told the next change {:?} after the first had ended",
        stopped.elapsed()
    );
    let kept = object(namespace, get)?;
    let kept = kept["status"]["conditions"].to_string();
    ensure!(kept.contains("theirs"), "another controller's condition is gone: {kept}");
    Ok(())
}
