//! `agent.privileged=false`: the agent works with three capabilities, and needs each of them.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Canary, Cluster,
    cluster::{SYSTEM, wait_for},
};

const PATIENCE: Duration = Duration::from_mins(2);
/// All capabilities that the chart grants, each with what the agent says if it is missing.
const NEEDED: [(&str, &str); 3] = [
    ("NET_ADMIN", "the agent needs CAP_NET_ADMIN"),
    ("SYS_PTRACE", "the agent needs CAP_SYS_PTRACE"),
    ("SYS_ADMIN", "the agent needs CAP_SYS_ADMIN"),
];

fn without(missing: &str) -> String {
    let rest = NEEDED.iter().map(|(name, _)| *name).filter(|name| *name != missing);
    format!("agent.capabilities={{{}}}", rest.collect::<Vec<_>>().join(","))
}

#[test]
fn an_unprivileged_agent_captures_and_is_probed_and_each_capability_is_needed() -> Result<()> {
    let cluster = Cluster::open()?;
    // These pods run already, so their namespaces have to be found by their processes.
    let namespace = cluster.namespace("life-unprivileged")?;
    namespace.talkers()?;
    let canary = Canary::new()?;
    cluster.upgrade(&["agent.privileged=false"])?;
    let values = cluster.helm(&["get", "values", "sluice", "-n", SYSTEM, "--all"])?;
    for (name, _) in NEEDED {
        ensure!(values.contains(name), "{name} is not among the chart's: {values}");
    }
    namespace.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\n\
         spec: {mtls: {mode: STRICT}}\n",
    )?;
    let wire = cluster.eavesdrop(&canary)?;
    namespace.enrol()?;
    namespace.await_captured(2)?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        namespace.await_reached(from, to, &canary)?;
    }
    wire.seen()?.ensure_tls_only(sluice_tests::cluster::life::PORT)?;
    // Longer than failing probes would take to be noticed.
    thread::sleep(Duration::from_secs(5));
    ["pod/a", "pod/b"].into_iter().try_for_each(|pod| namespace.await_ready(pod))?;

    for (missing, words) in NEEDED {
        namespace.leave()?;
        namespace.await_captured(0)?;
        // A connection that is older than the capture and has to be ended.
        let hold = Duration::from_mins(1);
        namespace.knock(("a", "b"), &canary, 1, hold, 2)?;
        thread::sleep(Duration::from_secs(1));
        cluster.change(&["agent.privileged=false", &without(missing)])?;
        // Time for the agent either not to start, or to serve and fail at its work.
        thread::sleep(Duration::from_secs(8));
        namespace.enrol()?;
        wait_for(&format!("a word about {missing}"), PATIENCE, || {
            Ok(cluster.agents_logs().contains(words))
        })
        .with_context(|| cluster.agents_logs())?;
        println!("without {missing}: {words}");
        cluster.upgrade(&["agent.privileged=false"])?;
    }
    cluster.upgrade(&[])?;
    namespace.await_captured(2)
}
