//! Defaults, relative paths, and faults by line.

use super::*;

fn parse(text: &str) -> Result<AgentConfig, FileError> {
    AgentConfig::parse(Path::new("agent.yaml"), Path::new("/etc/sluice"), text, None)
}

#[test]
fn two_fields_suffice() {
    let config = parse("node: node-a\nmesh: mesh.yaml\n").unwrap();
    assert_eq!(config.node, "node-a");
    assert_eq!(config.instance, "node-a");
    assert_eq!(config.trust_domain.as_str(), "cluster.local");
    assert_eq!(config.state_dir, Path::new("/var/lib/sluice"));
    assert_eq!(config.ca, CaConfig::Embedded { dir: "/var/lib/sluice/ca".into() });
    let mesh = PathBuf::from("/etc/sluice/mesh.yaml");
    assert_eq!(config.source, SourceConfig::Files { mesh, policies: None });
    assert!((2..=8).contains(&config.workers));
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = parse(
        "node: n\ninstance: i_1\nstateDir: state\nsocket: s.sock\ncgroup: cg\nbpffs: /b\nworkers: 3\n\
         logLevel: debug\nca: {mode: embedded, dir: /ca}\nmesh: /m.yaml\npolicies: p/\ntrustDomain: a.b\n",
    )
    .unwrap();
    assert_eq!(config.state_dir, Path::new("/etc/sluice/state"));
    assert_eq!(config.socket, Path::new("/etc/sluice/s.sock"));
    assert_eq!(config.cgroup.as_deref(), Some(Path::new("/etc/sluice/cg")));
    assert_eq!(config.bpffs, Path::new("/b"));
    assert_eq!(config.ca, CaConfig::Embedded { dir: "/ca".into() });
    let (mesh, policies) = (PathBuf::from("/m.yaml"), Some(PathBuf::from("/etc/sluice/p/")));
    assert_eq!(config.source, SourceConfig::Files { mesh, policies });
    assert_eq!((config.workers, config.log_level.as_str()), (3, "debug"));
}

#[test]
fn a_provided_authority_is_three_files() {
    let config = parse(
        "node: n\nmesh: m\nca: {mode: pem, certificate: ca.pem, key: ca.key, roots: roots.pem}\n",
    );
    let expected = CaConfig::Pem {
        certificate: "/etc/sluice/ca.pem".into(),
        key: "/etc/sluice/ca.key".into(),
        roots: "/etc/sluice/roots.pem".into(),
    };
    assert_eq!(config.unwrap().ca, expected);
}

#[test]
fn faults_are_named_by_file_line_and_field() {
    let long = format!("socket: /{}", "s".repeat(107));
    for (line, words) in [
        ("nodes: x", "agent.yaml:3:1: unknown field `nodes`"),
        ("workers: 9", "agent.yaml:3: workers: 9 is not a number of workers"),
        ("workers: many", "agent.yaml:3:10:"),
        ("trustDomain: Cluster", "agent.yaml:3: trustDomain: \"Cluster\""),
        ("instance: a/b", "agent.yaml:3: instance: \"a/b\""),
        ("instance: ..", "agent.yaml:3: instance: \"..\""),
        ("ca: {mode: vault}", "agent.yaml:3: ca.mode: \"vault\""),
        ("ca: {mode: pem, certificate: a, key: b}", "agent.yaml:3: ca.roots: missing"),
        (
            "ca: {mode: pem, certificate: a, key: b, roots: c, dir: d}",
            "agent.yaml:3: ca.dir: ca.mode pem has no",
        ),
        ("ca: {mode: embedded, key: b}", "agent.yaml:3: ca.key: ca.mode embedded has no"),
        (&long, "agent.yaml:3: socket: "),
    ] {
        let said = parse(&format!("node: n\nmesh: m\n{line}\n")).unwrap_err().to_string();
        assert!(said.starts_with(words), "{line}: {said}");
    }
    assert!(parse("node: N\nmesh: m\n").unwrap_err().to_string().contains(":1: node: \"N\""));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let said = AgentConfig::load(Path::new("/nonexistent/agent.yaml")).unwrap_err().to_string();
    assert!(said.starts_with("/nonexistent/agent.yaml: cannot be read: "), "{said}");
}

#[test]
fn trust_names_files_and_a_policy() {
    let config = parse(
        "node: n\nmesh: m\nmetrics: 127.0.0.1:15020\ntrust:\n  roots: roots.pem\n  federated:\n  - {trustDomain: other.org, \
         roots: /o.pem}\n  crls: [a.crl, crls]\n  denied: denied.yaml\n  crlPolicy: refuse\n",
    )
    .unwrap();
    assert_eq!(config.metrics, Some("127.0.0.1:15020".parse().unwrap()));
    let trust = config.trust;
    assert_eq!(trust.roots.as_deref(), Some(Path::new("/etc/sluice/roots.pem")));
    assert_eq!(trust.federated, [("other.org".parse().unwrap(), "/o.pem".into())]);
    assert_eq!(trust.crls, [Path::new("/etc/sluice/a.crl"), Path::new("/etc/sluice/crls")]);
    assert_eq!(trust.denied.as_deref(), Some(Path::new("/etc/sluice/denied.yaml")));
    assert_eq!(trust.crl_policy, StaleCrls::Refuse);
    assert_eq!(parse("node: n\nmesh: m\n").unwrap().trust, TrustConfig::default());
}

#[test]
fn faults_of_trust_name_line_and_field() {
    for (text, expected) in [
        ("metrics: '15020'", "agent.yaml:3: metrics: \"15020\" is not an address"),
        ("trust: {crlPolicy: ignore}", "agent.yaml:3: trust.crlPolicy: \"ignore\" is not a policy"),
        (
            "trust: {federated: [{trustDomain: cluster.local, roots: a}]}",
            "agent.yaml:3: trust.federated[0].trustDomain: the roots of trust domain cluster.local",
        ),
        ("trust: {root: a}", "agent.yaml:3:"),
    ] {
        let error = parse(&format!("node: n\nmesh: m\n{text}\n")).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn the_environment_names_the_node_when_the_file_does_not() {
    let parse = |text, node: Option<&str>| {
        AgentConfig::parse(Path::new("a.yaml"), Path::new("/"), text, node.map(str::to_owned))
    };
    assert_eq!(parse("mesh: m\n", Some("node-e")).unwrap().node, "node-e");
    assert_eq!(parse("node: node-f\nmesh: m\n", Some("node-e")).unwrap().node, "node-f");
    assert!(parse("mesh: m\n", Some("NOT A NODE")).is_err());
    let said = parse("mesh: m\n", None).unwrap_err().to_string();
    assert!(said.contains("node: name this node here, or in the variable SLUICE_NODE"), "{said}");
}

#[test]
fn the_kubelets_cgroup_is_relative_to_the_file_like_every_path() {
    let parse = |kubelet: &str| parse(&format!("node: node-a\nmesh: mesh.yaml\n{kubelet}\n"));
    assert_eq!(parse("").unwrap().kubelet_cgroup, None);
    let named = parse("kubelet: { cgroup: /sys/fs/cgroup/system.slice/kubelet.service }").unwrap();
    let expected = Path::new("/sys/fs/cgroup/system.slice/kubelet.service");
    assert_eq!(named.kubelet_cgroup.as_deref(), Some(expected));
    assert!(parse("kubelet: { group: x }").is_err());
}
