//! Every command in every version, against agents that answer, lie, hang, or are not there.

mod lab;

use std::{os::unix::net::UnixListener, thread, time::Instant};

use serde_json::{Value, json};

use self::lab::{Lab, RESULT, failure_of, succeeded};
use super::*;
use crate::protocol::{AttachmentId, receive};

#[test]
fn add_passes_the_result_on_unchanged_in_every_version() {
    for version in SUPPORTED {
        let mut lab = Lab::new("ADD");
        let asked = lab.version(version).agent(Answer::Captured);
        let result = lab.config["prevResult"].clone();
        let outcome = lab.run();
        let output: Value = serde_json::from_str(succeeded(&outcome).unwrap()).unwrap();
        assert_eq!(output, result, "{version}");
        let Request::Add(attachment) = asked.recv().unwrap() else { panic!("not ADD") };
        assert_eq!(attachment.network, "pods");
        assert_eq!(attachment.id.container, "c0ffee");
        let addresses: Vec<_> = attachment.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.2", "fd00::2"], "the host's end is not the pod's address");
        assert_eq!(attachment.pod.unwrap().uid.as_deref(), Some("u-1"));
    }
}

#[test]
fn the_result_keeps_its_bytes() {
    let lab = Lab::new("ADD");
    let _asked = lab.agent(Answer::Outside);
    let socket = lab.socket();
    let config = format!(
        r#"{{"cniVersion":"1.1.0","name":"pods","type":"sluice-cni","socket":{socket:?},"prevResult":{RESULT}}}"#
    );
    assert_eq!(succeeded(&lab.run_text(&config, false)), Some(RESULT));
}

#[test]
fn a_result_of_the_same_form_gets_the_version_that_was_asked_for() {
    for (asked, had, passes) in [
        ("1.1.0", Some("1.0.0"), true),
        ("0.4.0", Some("0.3.1"), true),
        ("1.1.0", None, true),
        ("1.1.0", Some("0.4.0"), false),
        ("0.3.1", Some("1.0.0"), false),
    ] {
        let mut lab = Lab::new("ADD");
        let _asked = lab.version(asked).agent(Answer::Captured);
        lab.config["prevResult"].as_object_mut().unwrap().remove("cniVersion");
        if let Some(had) = had {
            lab.config["prevResult"]["cniVersion"] = had.into();
        }
        if passes {
            let outcome = lab.run();
            let output: Value = serde_json::from_str(succeeded(&outcome).unwrap()).unwrap();
            assert_eq!(output["cniVersion"], asked);
            assert_eq!(output["ips"], lab.config["prevResult"]["ips"]);
        } else {
            assert_eq!(lab.failure().0, 7, "{asked} {had:?}");
        }
    }
}

#[test]
fn without_a_result_the_plugin_says_that_it_must_be_chained() {
    for command in ["ADD", "CHECK"] {
        for absent in [None, Some(Value::Null)] {
            let mut lab = Lab::new(command);
            lab.config.as_object_mut().unwrap().remove("prevResult");
            if let Some(null) = absent {
                lab.set("prevResult", null);
            }
            let (code, text) = lab.failure();
            assert!(code == 7 && text.contains("must be chained"), "{text}");
        }
    }
    let mut lab = Lab::new("ADD");
    assert_eq!(lab.set("prevResult", json!([])).failure().0, 7);
}

#[test]
fn what_cannot_be_decided_is_to_be_tried_again() {
    let lab = Lab::new("ADD");
    let (code, text) = lab.failure();
    assert!(code == 11 && text.contains("no agent answers"), "{text}");
    for answer in [
        Answer::TryAgain { reason: "unknown pod".into() },
        Answer::Amiss { reason: "unknown pod".into() },
        Answer::NotUnderstood { reason: "unknown pod".into() },
    ] {
        let lab = Lab::new("ADD");
        let _asked = lab.agent(answer);
        let (code, text) = lab.failure();
        assert!(code == 11 && text.contains("unknown pod"), "{text}");
    }
    // Agents that hang up, and agents that talk nonsense.
    for said in [b"".as_slice(), &[0, 0, 0, 2, b'{', b'x'], &[255; 8], &[0, 0, 0, 2, b'{', b'}']] {
        let lab = Lab::new("ADD");
        let listener = UnixListener::bind(lab.socket()).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            drop(receive::<Request>(&mut stream));
            std::io::Write::write_all(&mut stream, said).unwrap();
        });
        assert_eq!(lab.failure().0, 11, "{said:?}");
        agent.join().unwrap();
    }
}

#[test]
fn an_agent_that_hangs_costs_a_second_to_connect_and_no_more_than_is_allowed() {
    // An agent that accepts nothing: its backlog is full.
    let lab = Lab::new("ADD");
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(lab.socket()).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(lab.socket()).unwrap();
    let start = Instant::now();
    assert_eq!(lab.failure().0, 11);
    assert!((0.9..2.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
    // An agent that accepts, and says nothing.
    let lab = Lab::new("STATUS");
    let _listener = UnixListener::bind(lab.socket()).unwrap();
    let start = Instant::now();
    assert_eq!(lab.failure().0, 51);
    assert!((2.5..4.5).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
}

#[test]
fn exempt_pods_start_without_an_agent() {
    for (arguments, starts) in [
        ("K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=coredns", true),
        ("K8S_POD_NAMESPACE=sluice-system;K8S_POD_NAME=sluice-agent-x7", true),
        ("K8S_POD_NAMESPACE=sluice-system;K8S_POD_NAME=other", false),
        ("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=sluice-agent-x7", false),
        ("K8S_POD_NAMESPACE=kube-system", false),
        ("", false),
    ] {
        for command in ["ADD", "CHECK"] {
            let mut lab = Lab::new(command);
            lab.variables.insert("CNI_ARGS", arguments.into());
            assert_eq!(lab.run().success, starts, "{command} {arguments}");
        }
    }
}

#[test]
fn del_succeeds_whatever_is_left() {
    for version in SUPPORTED {
        let mut lab = Lab::new("DEL");
        lab.version(version);
        assert_eq!(succeeded(&lab.run()), None, "no agent");
        lab.variables.insert("CNI_NETNS", "/run/netns/long-gone".into());
        lab.variables.insert("CNI_ARGS", "garbage".into());
        assert_eq!(succeeded(&lab.run()), None, "no namespace");
        lab.variables.remove("CNI_NETNS");
        lab.config.as_object_mut().unwrap().remove("prevResult");
        assert_eq!(succeeded(&lab.run()), None, "no result");
        let asked = lab.agent(Answer::TryAgain { reason: "busy".into() });
        assert_eq!(succeeded(&lab.run()), None, "an agent that cannot");
        let Request::Del(attachment) = asked.recv().unwrap() else { panic!("not DEL") };
        assert_eq!((attachment.netns, attachment.addresses.len()), (None, 0));
    }
}

#[test]
fn check_reports_what_the_agent_finds() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        for (answer, code) in [
            (Answer::Captured, None),
            (Answer::Outside, None),
            (Answer::Amiss { reason: "the guard is detached".into() }, Some(100)),
            (Answer::TryAgain { reason: "no state yet".into() }, Some(11)),
        ] {
            let mut lab = Lab::new("CHECK");
            let _asked = lab.version(version).agent(answer);
            match code {
                None => assert_eq!(succeeded(&lab.run()), None),
                Some(code) => assert_eq!(lab.failure().0, code),
            }
        }
    }
    assert_eq!(Lab::new("CHECK").failure().0, 11, "a missing daemon is an error of CHECK");
    for old in ["0.3.0", "0.3.1"] {
        assert_eq!(Lab::new("CHECK").version(old).failure().0, 1, "CHECK came with 0.4.0");
    }
}

#[test]
fn status_tells_apart_what_the_runtime_may_expect() {
    for (answer, code) in [
        (Answer::Done, None),
        (Answer::TryAgain { reason: "no state yet".into() }, Some(50)),
        (Answer::Amiss { reason: "hooks are gone".into() }, Some(51)),
    ] {
        let mut lab = Lab::new("STATUS");
        lab.variables.retain(|name, _| *name == "CNI_COMMAND");
        lab.config.as_object_mut().unwrap().remove("prevResult");
        let _asked = lab.agent(answer);
        match code {
            None => assert_eq!(succeeded(&lab.run()), None),
            Some(code) => assert_eq!(lab.failure().0, code),
        }
    }
    assert_eq!(Lab::new("STATUS").failure().0, 51, "no agent");
    for old in ["0.3.1", "0.4.0", "1.0.0"] {
        assert_eq!(Lab::new("STATUS").version(old).failure().0, 1);
        assert_eq!(Lab::new("GC").version(old).failure().0, 1);
    }
}

#[test]
fn gc_hands_over_what_is_valid_and_refuses_to_guess() {
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let mut lab = Lab::new("GC");
        lab.variables.retain(|name, _| *name == "CNI_COMMAND");
        let asked =
            lab.set(key, json!([{ "containerID": "a", "ifname": "eth0" }])).agent(Answer::Done);
        assert_eq!(succeeded(&lab.run()), None);
        let valid = vec![AttachmentId { container: "a".into(), interface: "eth0".into() }];
        assert_eq!(asked.recv().unwrap(), Request::Gc { network: "pods".into(), valid });
    }
    let mut lab = Lab::new("GC");
    let asked = lab.agent(Answer::Done);
    assert_eq!(lab.failure().0, 7, "no list is not an empty list");
    assert_eq!(lab.set("cni.dev/valid-attachments", json!({})).failure().0, 7);
    assert!(asked.try_recv().is_err(), "nothing was asked of the agent");
    assert!(lab.set("cni.dev/valid-attachments", json!([])).run().success);
    assert_eq!(asked.recv().unwrap(), Request::Gc { network: "pods".into(), valid: vec![] });
    let mut lab = Lab::new("GC");
    assert_eq!(lab.set("cni.dev/valid-attachments", json!([])).failure().0, 11, "no agent");
}

#[test]
fn version_needs_nothing() {
    for (input, version) in [
        ("", "1.1.0"),
        ("{", "1.1.0"),
        (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        (r#"{"cniVersion":"0.2.0"}"#, "0.2.0"),
    ] {
        let mut lab = Lab::new("VERSION");
        lab.variables.retain(|name, _| *name == "CNI_COMMAND");
        let outcome = lab.run_text(input, false);
        let answer: Value = serde_json::from_str(succeeded(&outcome).unwrap()).unwrap();
        assert_eq!(answer, json!({ "cniVersion": version, "supportedVersions": SUPPORTED }));
    }
}

#[test]
fn variables_that_are_missing_or_invalid_are_named() {
    for (command, required) in [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"][..]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
    ] {
        let mut lab = Lab::new(command);
        lab.variables.retain(|name, _| *name == "CNI_COMMAND");
        let (code, text) = lab.failure();
        assert_eq!(code, 4);
        assert!(required.iter().all(|name| text.contains(name)), "{text}");
        assert_eq!(text.contains("CNI_NETNS"), command != "DEL");
    }
    let long = "x".repeat(16);
    for (name, value) in [
        ("CNI_CONTAINERID", "../etc"),
        ("CNI_CONTAINERID", "-a"),
        ("CNI_CONTAINERID", "ä"),
        ("CNI_IFNAME", long.as_str()),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a b"),
        ("CNI_NETNS", "/run/netns/none"),
        ("CNI_NETNS", "relative"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_ARGS", "K8S_POD_NAME"),
        ("CNI_COMMAND", "add"),
        ("CNI_COMMAND", ""),
    ] {
        let mut lab = Lab::new("ADD");
        lab.variables.insert(name, value.into());
        let (code, text) = lab.failure();
        assert!(code == 4 && text.contains(name), "{name}={value}: {text}");
    }
    let mut lab = Lab::new("ADD");
    let bytes = std::os::unix::ffi::OsStringExt::from_vec(vec![255]);
    lab.variables.insert("CNI_CONTAINERID", bytes);
    assert_eq!(lab.failure().0, 4);
}

/// Standard input that was closed under us.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
}

#[test]
fn input_that_makes_no_sense_is_refused_with_its_own_code() {
    for (input, code) in [
        ("", 6),
        ("{", 6),
        ("[]", 6),
        ("null", 6),
        (r#"{"cniVersion":"1.1.0"}"#, 7),
        (r#"{"cniVersion":"1.1.0","name":"../x"}"#, 7),
        (r#"{"cniVersion":"1.1.0","name":5}"#, 7),
        (r#"{"name":"pods"}"#, 1),
        (r#"{"cniVersion":"0.2.0","name":"pods"}"#, 1),
        (r#"{"cniVersion":"2.0.0","name":"pods"}"#, 1),
        (r#"{"cniVersion":"x","name":"pods"}"#, 1),
        (r#"{"cniVersion":"1.1.0","name":"pods","socket":"relative"}"#, 7),
        (r#"{"cniVersion":"1.1.0","name":"pods","excludeNamespaces":"shop"}"#, 7),
        (r#"{"cniVersion":"1.1.0","name":"pods","ownPods":[{"namespace":"x"}]}"#, 7),
    ] {
        for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
            let (found, text) = failure_of(&Lab::new(command).run_text(input, false));
            assert_eq!(found, code, "{command} {input}: {text}");
        }
    }
    let lab = Lab::new("ADD");
    let variables = |name: &str| lab.variables.get(name).cloned();
    assert_eq!(failure_of(&run(&variables, &mut Broken, false)).0, 5);
}

#[test]
fn deep_and_long_input_is_an_error_and_not_a_crash() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    for input in
        [deep.clone(), format!(r#"{{"prevResult":{deep},"name":"a","cniVersion":"1.1.0"}}"#)]
    {
        let outcome = Lab::new("ADD").run_text(&input, false);
        assert!(!outcome.success);
    }
    assert_eq!(failure_of(&Lab::new("ADD").run_text(&" ".repeat(17 << 20), false)).0, 6);
}

#[test]
fn a_retired_plugin_stands_in_nobodys_way() {
    for command in ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"] {
        let mut lab = Lab::new(command);
        lab.set("cni.dev/valid-attachments", json!([]));
        let outcome = lab.run_text(&lab.config.to_string(), true);
        assert_eq!(succeeded(&outcome).is_some(), ["ADD", "VERSION"].contains(&command));
    }
}
