//! Lists of all shapes, edited and given back.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::{list::List, *};

/// A list as Calico writes it, with a number that no float holds.
const CALICO: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "big": 123456789012345678901234567890.50,
      "ipam": {"type": "calico-ipam"}
    },
    {
      "type": "portmap",
      "snat": true,
      "capabilities": {"portMappings": true}
    }
  ]
}
"#;
const FLANNEL: &str =
    r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"flannel","delegate":{}}]}"#;
const SINGLE: &str = r#"{"cniVersion": "0.4.0", "name": "kind", "type": "ptp", "mtu": 1500}"#;

struct Node {
    root: TempDir,
    options: Options,
}

impl Node {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("net.d")).unwrap();
        fs::write(path("plugin"), b"the plugin").unwrap();
        let mut options = parse(std::iter::empty()).unwrap();
        options.config_dir = path("net.d");
        options.bin_dir = path("bin");
        fs::create_dir(path("bin")).unwrap();
        for main in ["calico", "flannel", "ptp", "ab"] {
            fs::write(options.bin_dir.join(main), main).unwrap();
        }
        options.binary = path("plugin");
        Self { root, options }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.options.config_dir.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn install(&self) -> Installed {
        install(&self.options).unwrap()
    }

    fn uninstall(&self) {
        uninstall(&self.options).unwrap();
    }

    /// Returns the types of a list's plugins.
    fn types(&self, name: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.read(name)).unwrap();
        let types = list["plugins"].as_array().unwrap().iter();
        types.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.options.config_dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn lists_get_an_entry_at_their_end_and_are_given_back_to_the_byte() {
    let odd = "\t{\"plugins\" :[\r\n{\"type\":\"a\\u0062\",\"x\":[1,2,{\"type\":\"sluice-cni\"}]} ] , \"cniVersion\":\"1.1.0\",\"name\":\"n\",\"n\":1e300,\"cniVersions\":[\"0.4.0\"]}\n\n";
    for original in [CALICO, FLANNEL, odd] {
        let node = Node::new();
        node.write("10-main.conflist", original);
        fs::set_permissions(node.file("10-main.conflist"), fs::Permissions::from_mode(0o640))
            .unwrap();
        let Installed::InPlace { changed, file, .. } = node.install() else { panic!("waiting") };
        assert!(changed && file == node.file("10-main.conflist"));
        let types = node.types("10-main.conflist");
        assert_eq!(types.last().unwrap(), "sluice-cni");
        let text = node.read("10-main.conflist");
        let Installed::InPlace { changed, .. } = node.install() else { panic!("waiting") };
        assert!(!changed, "done twice, it changes nothing");
        assert_eq!(node.read("10-main.conflist"), text);
        let mode = fs::metadata(node.file("10-main.conflist")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        node.uninstall();
        assert_eq!(node.read("10-main.conflist"), original);
        assert_eq!(node.names(), ["10-main.conflist"]);
        node.uninstall();
    }
}

#[test]
fn an_entry_that_is_outdated_misplaced_or_twice_is_put_right() {
    for plugins in [
        r#"{"type":"sluice-cni","socket":"/old"},{"type":"flannel"}"#,
        r#"{"type":"flannel"},{"type":"sluice-cni"},{"type":"portmap"}"#,
        r#"{"type":"sluice-cni"},{"type":"flannel"},{"type":"sluice-cni"}"#,
        r#"{"type":"flannel"},{"type":"sluice-cni"},{"type":"sluice-cni"}"#,
    ] {
        let node = Node::new();
        let list = format!(r#"{{"name":"n","cniVersion":"1.0.0","plugins":[{plugins}]}}"#);
        node.write("10-a.conflist", &list);
        node.install();
        let types = node.types("10-a.conflist");
        assert_eq!(types.iter().filter(|kind| *kind == "sluice-cni").count(), 1, "{plugins}");
        assert_eq!(types.last().unwrap(), "sluice-cni", "{plugins}");
        assert!(node.read("10-a.conflist").contains("/run/sluice/cni.sock"));
        node.uninstall();
        assert!(!node.types("10-a.conflist").contains(&"sluice-cni".to_owned()));
    }
}

#[test]
fn the_first_list_that_a_runtime_takes_is_chosen_and_nothing_is_made_up() {
    let node = Node::new();
    assert_eq!(node.install(), Installed::Waiting);
    for (name, text) in [
        ("00-broken.conflist", "{"),
        ("01-empty.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#),
        ("02-nameless.conflist", r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#),
        ("03-untyped.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":[{}]}"#),
        ("04-list.conf", FLANNEL),
        ("05-cilium.conflist.cilium_bak", FLANNEL),
        ("06-draft.conflist.tmp", FLANNEL),
        ("07-loopback.conf", r#"{"cniVersion":"1.0.0","name":"lo","type":"loopback"}"#),
        ("README", "not a list"),
    ] {
        node.write(name, text);
        assert_eq!(node.install(), Installed::Waiting, "{name}");
        assert_eq!(node.read(name), text);
    }
    let before = node.names();
    node.write("20-second.conflist", CALICO);
    node.write("10-first.conflist", FLANNEL);
    node.install();
    assert_eq!(node.types("10-first.conflist"), ["flannel", "sluice-cni"]);
    assert_eq!(node.read("20-second.conflist"), CALICO);
    assert_eq!(node.names().len(), before.len() + 2);

    // The main plugin changes: the entry moves with it.
    node.write("05-new.conflist", CALICO);
    node.install();
    assert_eq!(node.types("05-new.conflist"), ["calico", "portmap", "sluice-cni"]);
    assert_eq!(node.read("10-first.conflist"), FLANNEL);
    let missing = Options { config_dir: "/nonexistent".into(), ..node.options.clone() };
    assert_eq!(install(&missing).unwrap(), Installed::Waiting);
}

#[test]
fn a_single_plugin_becomes_a_list_and_is_given_back() {
    let node = Node::new();
    node.write("10-ptp.conf", SINGLE);
    node.install();
    assert_eq!(node.types("10-ptp.conflist"), ["ptp", "sluice-cni"]);
    assert_eq!(node.names(), ["10-ptp.conf.sluice-saved", "10-ptp.conflist"]);
    node.install();
    assert_eq!(node.types("10-ptp.conflist"), ["ptp", "sluice-cni"]);
    // The file's owner writes it again, changed.
    let newer = SINGLE.replace("1500", "1400");
    node.write("10-ptp.conf", &newer);
    node.install();
    let list: Value = serde_json::from_str(&node.read("10-ptp.conflist")).unwrap();
    assert_eq!((&list["name"], &list["plugins"][0]["mtu"]), (&"kind".into(), &1400.into()));
    node.uninstall();
    assert_eq!(node.names(), ["10-ptp.conf"]);
    assert_eq!(node.read("10-ptp.conf"), newer);

    // Somebody has edited the list since: the edited list stays, without our entry.
    node.install();
    let edited = node.read("10-ptp.conflist").replace("1400", "9000");
    node.write("10-ptp.conflist", &edited);
    node.uninstall();
    assert_eq!(node.names(), ["10-ptp.conflist"]);
    assert_eq!(node.types("10-ptp.conflist"), ["ptp"]);

    let node = Node::new();
    node.write("10-ptp.conf", SINGLE);
    node.write("10-ptp.conflist", FLANNEL);
    let error = install(&node.options).unwrap_err().to_string();
    assert!(error.contains("both exist"), "{error}");
    assert_eq!(node.read("10-ptp.conflist"), FLANNEL);
}

#[test]
fn a_list_that_the_plugin_would_break_is_refused() {
    for version in [
        r#""cniVersion":"0.2.0","#,
        r#""cniVersion":"9.0.0","#,
        "",
        r#""cniVersion":"1.0.0","cniVersions":["1.2.0"],"#,
    ] {
        let node = Node::new();
        let list = format!(r#"{{{version}"name":"n","plugins":[{{"type":"flannel"}}]}}"#);
        node.write("10-a.conflist", &list);
        let error = install(&node.options).unwrap_err();
        assert!(matches!(error, InstallError::Version { .. }), "{error}");
        assert_eq!(node.read("10-a.conflist"), list);
    }
}

#[test]
fn a_list_whose_plugins_are_elsewhere_gets_no_entry() {
    for (file, text) in [("10-a.conflist", FLANNEL), ("10-a.conf", SINGLE)] {
        for runtime in ["", "containerd://2.2.0"] {
            let mut node = Node::new();
            node.options.runtime = runtime.to_owned();
            node.options.bin_dir = node.root.path().join("elsewhere");
            node.write(file, text);
            let error = install(&node.options).unwrap_err();
            assert!(matches!(error, InstallError::BinDir { .. }), "{error}");
            assert!(error.to_string().contains("cni.binDir"), "{error}");
            assert_eq!((node.names(), node.read(file)), (vec![file.to_owned()], text.to_owned()));
        }
    }
}

#[test]
fn a_runtime_that_reads_dropins_gets_one_and_nobodys_file_changes() {
    let mut node = Node::new();
    node.options.runtime = "containerd://2.2.0".to_owned();
    node.write("10-flannel.conflist", FLANNEL);
    let Installed::InPlace { changed, .. } = node.install() else { panic!("waiting") };
    assert!(changed);
    assert_eq!(node.read("10-flannel.conflist"), FLANNEL);
    let entry: Value = serde_json::from_str(&node.read("cbr0/sluice-cni.conf")).unwrap();
    assert_eq!(entry["type"], "sluice-cni");
    let Installed::InPlace { changed, .. } = node.install() else { panic!("waiting") };
    assert!(!changed);

    // With an older runtime the entry goes back into the list, and only there.
    node.options.runtime = "containerd://1.7.28".to_owned();
    node.install();
    assert_eq!(node.types("10-flannel.conflist"), ["flannel", "sluice-cni"]);
    assert_eq!(node.names(), ["10-flannel.conflist"]);
    node.options.runtime = "cri-o://1.34.2".to_owned();
    node.install();
    assert_eq!(node.read("10-flannel.conflist"), FLANNEL);
    node.uninstall();
    assert_eq!(node.names(), ["10-flannel.conflist"]);

    // A list that allows no drop-ins, and a name that is no directory's.
    for (list, name) in [
        (FLANNEL.replace("\"name\"", "\"loadOnlyInlinedPlugins\":true,\"name\""), "only inlined"),
        (FLANNEL.replace("cbr0", "../x"), "name"),
    ] {
        node.write("10-flannel.conflist", &list);
        node.install();
        assert_eq!(node.types("10-flannel.conflist").last().unwrap(), "sluice-cni", "{name}");
    }
}

#[test]
fn what_others_have_changed_meanwhile_is_not_overwritten() {
    let node = Node::new();
    node.write("10-a.conflist", FLANNEL);
    let text = directory::Text { path: node.file("10-a.conflist"), text: CALICO.to_owned() };
    assert!(directory::rewrite(&text, "{}").is_err());
    assert_eq!(node.read("10-a.conflist"), FLANNEL);
}

#[test]
fn a_list_behind_a_link_is_edited_where_it_is() {
    let node = Node::new();
    fs::write(node.root.path().join("real"), FLANNEL).unwrap();
    std::os::unix::fs::symlink(node.root.path().join("real"), node.file("10-a.conflist")).unwrap();
    node.install();
    assert!(fs::symlink_metadata(node.file("10-a.conflist")).unwrap().is_symlink());
    assert_eq!(node.types("10-a.conflist"), ["flannel", "sluice-cni"]);
}

#[test]
fn the_binary_is_replaced_whole_and_outlives_the_entry() {
    let node = Node::new();
    node.write("10-a.conflist", FLANNEL);
    node.install();
    let binary = node.options.bin_dir.join("sluice-cni");
    assert_eq!(fs::read(&binary).unwrap(), b"the plugin");
    assert_eq!(fs::metadata(&binary).unwrap().permissions().mode() & 0o7777, 0o755);
    let running = fs::File::open(&binary).unwrap();
    fs::write(&node.options.binary, b"the next plugin").unwrap();
    node.install();
    assert_eq!(fs::read(&binary).unwrap(), b"the next plugin");
    assert_eq!(std::io::read_to_string(running).unwrap(), "the plugin");
    let marker = node.options.bin_dir.join("sluice-cni.retired");
    assert!(!marker.exists());
    node.uninstall();
    assert!(binary.exists() && marker.exists());
    node.install();
    assert!(!marker.exists());
}

#[test]
fn drafts_of_killed_installers_are_swept_up() {
    let node = Node::new();
    node.write("10-a.conflist", FLANNEL);
    node.write(".sluice-cni.999999.draft", "half");
    node.write(".other.draft", "not ours");
    node.install();
    assert_eq!(node.names(), [".other.draft", "10-a.conflist"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let node = Node::new();
    node.write("10-a.conflist", FLANNEL);
    fs::write(node.root.path().join("file"), "").unwrap();
    let options = Options { bin_dir: node.root.path().join("file"), ..node.options.clone() };
    let error = install(&options).unwrap_err().to_string();
    assert!(error.contains("/file"), "{error}");
    assert_eq!(node.read("10-a.conflist"), FLANNEL, "no entry without a binary");
}

#[test]
fn an_entry_alone_is_not_taken_for_a_network() {
    let alone = r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"sluice-cni"}]}"#;
    assert_eq!(List::parse(alone).unwrap().main_plugin(), None);
    let node = Node::new();
    node.write("10-a.conflist", alone);
    assert_eq!(node.install(), Installed::Waiting);
    node.uninstall();
    assert_eq!(node.read("10-a.conflist"), alone);
}

#[test]
fn arguments_are_understood_or_explained() {
    let parsed = |arguments: &[&str]| parse(arguments.iter().map(Into::into));
    let options = parsed(&[
        "--socket",
        "/s",
        "--exclude-namespace",
        "a",
        "--exclude-namespace",
        "b",
        "--own-pod",
        "ns/x-",
    ])
    .unwrap();
    let entry: Value = serde_json::from_str(&options.entry.to_json()).unwrap();
    assert_eq!(entry["excludeNamespaces"], serde_json::json!(["a", "b"]));
    assert_eq!(entry["ownPods"][0]["namePrefix"], "x-");
    for wrong in [&["--socket"][..], &["--socket", "s"], &["--own-pod", "x"], &["--what", "x"]] {
        let error = parsed(wrong).unwrap_err().to_string();
        assert!(error.contains("usage:"), "{error}");
    }
}
