//! The source on real files: live changes, bad files, deletions, restarts. Each test waits for a state to
//! come about and fails with the state it found instead.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use sluice_mesh::Snapshot;
use sluice_policy::{Connection, DenyReason, MtlsMode, Verdict};
use sluice_source::{AgentConfig, Consequence, FileSource, SourceStatus};
use tempfile::TempDir;

const WITHIN: Duration = Duration::from_secs(10);
const MESH: &str = "\
pods:
- { namespace: shop, name: web, addresses: [10.0.0.1], node: a, labels: {istio.io/dataplane-mode: ambient} }
- { namespace: pay, name: db, addresses: [10.0.0.2], node: a }
";

/// A directory with an agent's files, and the source that follows them.
struct Scene {
    directory: TempDir,
    source: Option<FileSource>,
}

impl Scene {
    /// Makes the directory, and starts nothing yet.
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join("policies")).unwrap();
        let config = "node: a\nstateDir: state\nmesh: mesh.yaml\npolicies: policies\n";
        fs::write(directory.path().join("agent.yaml"), config).unwrap();
        Self { directory, source: None }
    }

    fn started(mesh: &str, policies: &[(&str, &str)]) -> Self {
        let mut scene = Self::new();
        scene.replace("mesh.yaml", mesh);
        for (name, text) in policies {
            scene.replace(&format!("policies/{name}"), text);
        }
        scene.start();
        scene
    }

    /// Starts the source, or starts it anew as a restarted agent does.
    fn start(&mut self) {
        let config = AgentConfig::load(&self.path("agent.yaml")).unwrap();
        self.source = Some(FileSource::watch(&config).unwrap());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces a file as editors do: a new file is renamed over the old one.
    fn replace(&self, name: &str, text: &str) {
        let draft = self.path(".draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.path(name)).unwrap();
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.source.as_ref().expect("started").snapshots.borrow().clone()
    }

    fn status(&self) -> Arc<SourceStatus> {
        self.source.as_ref().expect("started").status.status()
    }

    #[track_caller]
    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) -> Duration {
        let started = Instant::now();
        while !condition(self) {
            let found = (self.status(), self.snapshot());
            assert!(started.elapsed() < WITHIN, "never came about: {what}; found {found:#?}");
            thread::sleep(Duration::from_millis(5));
        }
        started.elapsed()
    }

    #[track_caller]
    fn wait_for_error(&self, words: &str, consequence: Consequence) {
        self.wait(words, |scene| {
            let status = scene.status();
            let says = |error: &sluice_source::SourceError| {
                error.consequence == consequence && error.error.to_string().contains(words)
            };
            status.errors.iter().any(says)
        });
    }

    fn pods(&self) -> usize {
        self.snapshot().map_or(0, |snapshot| snapshot.members().len())
    }

    fn mode(&self, pod: &str) -> MtlsMode {
        let snapshot = self.snapshot().expect("a state");
        let address = if pod == "shop/web" { "10.0.0.1" } else { "10.0.0.2" };
        snapshot.member_at(address.parse().unwrap()).unwrap().policy.mode(80)
    }

    /// Returns the verdict on a plaintext connection to a pod.
    fn verdict(&self, pod: &str) -> Verdict {
        let snapshot = self.snapshot().expect("a state");
        let member =
            snapshot.members().iter().find(|member| &*member.workload.uid.0 == pod).unwrap();
        member.policy.decide(&Connection {
            principal: None,
            source: "10.0.0.9".parse().unwrap(),
            destination: (member.workload.addresses.first().copied().unwrap(), 80).into(),
        })
    }

    fn is_unknown(&self, pod: &str) -> bool {
        matches!(self.verdict(pod), Verdict::Deny(DenyReason::PolicyUnknown(_)))
    }
}

fn peer(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: default, namespace: {namespace}}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

const STRICT: MtlsMode = MtlsMode::Strict;
const PERMISSIVE: MtlsMode = MtlsMode::Permissive;

#[test]
fn changes_on_disk_are_applied_live() {
    let scene = Scene::started(MESH, &[]);
    assert_eq!((scene.pods(), scene.mode("shop/web"), scene.status().version), (2, PERMISSIVE, 1));

    // Both files change, in place and by renaming; a policy file is new, and goes again.
    fs::write(scene.path("policies/mtls.yaml"), peer("shop", "STRICT")).unwrap();
    let took = scene.wait("STRICT", |scene| scene.mode("shop/web") == STRICT);
    assert!(took < Duration::from_secs(1), "took {took:?}");
    scene.replace("policies/mtls.yaml", &peer("shop", "DISABLE"));
    scene.wait("DISABLE", |scene| scene.mode("shop/web") == MtlsMode::Disable);
    fs::remove_file(scene.path("policies/mtls.yaml")).unwrap();
    scene.wait("no policy", |scene| scene.mode("shop/web") == PERMISSIVE);

    let smaller = MESH.lines().take(2).collect::<Vec<_>>().join("\n");
    scene.replace("mesh.yaml", &smaller);
    scene.wait("one pod", |scene| scene.pods() == 1);
    fs::write(scene.path("mesh.yaml"), MESH).unwrap();
    scene.wait("two pods", |scene| scene.pods() == 2);
    let status = scene.status();
    assert_eq!((status.version, status.errors.len()), (6, 0));
    assert!(status.loaded_at.is_some());
}

#[test]
fn files_that_are_no_policies_are_left_alone() {
    let scene = Scene::started(MESH, &[("README.md", "- not: [a policy"), (".hidden.yaml", "- [")]);
    assert_eq!(scene.status().errors, []);
    fs::write(scene.path("policies/mtls.yml~"), "[").unwrap();
    fs::write(scene.path("policies/mtls.yml"), peer("shop", "STRICT")).unwrap();
    scene.wait("STRICT", |scene| scene.mode("shop/web") == STRICT);
    assert_eq!(scene.status().errors, []);
}

#[test]
fn a_bad_mesh_file_keeps_the_last_good_state_and_names_the_line() {
    let scene = Scene::started(MESH, &[]);
    scene.replace("mesh.yaml", &MESH.replace("10.0.0.2", "10.0.0.1"));
    let words = "mesh.yaml:3: pods[1].addresses: 10.0.0.1 already belongs to pod shop/web (line 2)";
    scene.wait_for_error(words, Consequence::LastGoodStays);
    assert_eq!((scene.pods(), scene.status().version), (2, 1));
    assert_eq!(scene.status().errors[0].error.line(), Some(3));

    // Policies can still change meanwhile.
    scene.replace("policies/mtls.yaml", &peer("pay", "STRICT"));
    scene.wait("STRICT", |scene| scene.mode("pay/db") == STRICT);
    // An empty file is a file that is being written, not an empty mesh: pods would leave it.
    fs::write(scene.path("mesh.yaml"), "").unwrap();
    scene.wait_for_error("mesh.yaml: is empty", Consequence::LastGoodStays);
    fs::remove_file(scene.path("mesh.yaml")).unwrap();
    scene.wait_for_error("mesh.yaml: cannot be read", Consequence::LastGoodStays);
    assert_eq!(scene.pods(), 2);

    scene.replace("mesh.yaml", "{}");
    scene.wait("an empty mesh", |scene| scene.pods() == 0 && scene.status().errors.is_empty());
}

#[test]
fn a_bad_policy_file_keeps_its_last_good_version_only() {
    let scene = Scene::started(
        MESH,
        &[("a.yaml", &peer("shop", "STRICT")), ("b.yaml", &peer("pay", "STRICT"))],
    );
    scene.replace("policies/a.yaml", &peer("shop", "LAX"));
    scene.wait_for_error("a.yaml:4: spec.mtls.mode: \"LAX\"", Consequence::LastGoodStays);
    assert_eq!(scene.mode("shop/web"), STRICT);
    scene.replace("policies/b.yaml", &peer("pay", "DISABLE"));
    scene.wait("DISABLE", |scene| scene.mode("pay/db") == MtlsMode::Disable);
    assert_eq!(scene.mode("shop/web"), STRICT);
    // An emptied file is not a deleted one.
    fs::write(scene.path("policies/a.yaml"), "").unwrap();
    scene.wait_for_error("a.yaml: is empty", Consequence::LastGoodStays);
    assert_eq!(scene.mode("shop/web"), STRICT);
    fs::remove_file(scene.path("policies/a.yaml")).unwrap();
    scene.wait("deletion", |scene| scene.mode("shop/web") == PERMISSIVE);
    assert_eq!(scene.status().errors, []);
}

#[test]
fn a_policy_that_never_was_good_denies_what_it_could_be_about() {
    let scene = Scene::started(MESH, &[("a.yaml", &peer("shop", "LAX"))]);
    scene.wait_for_error("a.yaml:4:", Consequence::Denied);
    assert!(scene.is_unknown("shop/web"));
    assert_eq!(scene.verdict("pay/db"), Verdict::Allow);
    // Without its outline, the policy could be about anything.
    scene.replace("policies/a.yaml", "kind: [\n");
    scene.wait("mesh-wide", |scene| scene.is_unknown("pay/db"));
    assert!(scene.is_unknown("shop/web"));
    scene.replace("policies/a.yaml", &peer("shop", "PERMISSIVE"));
    scene.wait("mended", |scene| scene.verdict("shop/web") == Verdict::Allow);
    assert_eq!((scene.verdict("pay/db"), scene.status().errors.len()), (Verdict::Allow, 0));
}

#[test]
fn a_new_empty_file_denies_nothing() {
    let scene = Scene::started(MESH, &[]);
    fs::write(scene.path("policies/new.yaml"), "").unwrap();
    scene.replace("policies/mtls.yaml", &peer("pay", "STRICT"));
    scene.wait("STRICT", |scene| scene.mode("pay/db") == STRICT);
    assert_eq!((scene.verdict("shop/web"), scene.status().errors.len()), (Verdict::Allow, 0));
}

#[test]
fn one_policy_has_one_file() {
    let scene = Scene::started(MESH, &[("b.yaml", &peer("shop", "STRICT"))]);
    // The file that had the policy first keeps it, whatever the files' names.
    scene.replace("policies/a.yaml", &peer("shop", "PERMISSIVE"));
    scene.wait_for_error(
        "a.yaml: PeerAuthentication shop/default is already defined in",
        Consequence::Denied,
    );
    assert!(scene.is_unknown("shop/web"));
    fs::rename(scene.path("policies/a.yaml"), scene.path("policies/b.yaml")).unwrap();
    scene.wait("b.yaml replaced", |scene| scene.verdict("shop/web") == Verdict::Allow);
    assert_eq!(scene.status().errors, []);
    fs::rename(scene.path("policies/b.yaml"), scene.path("policies/c.yaml")).unwrap();
    scene.replace("policies/d.yaml", &peer("pay", "STRICT"));
    scene.wait("renamed", |scene| scene.mode("pay/db") == STRICT);
    assert_eq!(scene.status().errors, []);
}

#[test]
fn nothing_is_known_until_the_mesh_file_is_good() {
    let scene = Scene::started("pods: [\n", &[]);
    scene.wait_for_error("mesh.yaml:", Consequence::NoState);
    assert!(scene.snapshot().is_none());
    assert_eq!((scene.status().version, scene.status().loaded_at), (0, None));
    scene.replace("mesh.yaml", MESH);
    scene.wait("mended", |scene| scene.pods() == 2);
    assert_eq!(scene.status().errors, []);
}

#[test]
fn a_restart_beside_bad_files_knows_what_was_in_force() {
    let mut scene = Scene::started(
        MESH,
        &[("a.yaml", &peer("shop", "STRICT")), ("b.yaml", &peer("pay", "STRICT"))],
    );
    scene.source = None;
    scene.replace("mesh.yaml", "pods: [\n");
    scene.replace("policies/a.yaml", "kind: [\n");
    fs::remove_file(scene.path("policies/b.yaml")).unwrap();
    scene.start();
    // Bad files stay as they last were; the deleted one is gone.
    assert_eq!(
        (scene.pods(), scene.mode("shop/web"), scene.mode("pay/db")),
        (2, STRICT, PERMISSIVE)
    );
    assert_eq!(scene.status().errors.len(), 2);
    assert!(
        scene.status().errors.iter().all(|error| error.consequence == Consequence::LastGoodStays)
    );

    // A second restart starts from copies of copies, with the directory of policies gone altogether.
    scene.source = None;
    fs::remove_file(scene.path("mesh.yaml")).unwrap();
    fs::remove_dir_all(scene.path("policies")).unwrap();
    scene.start();
    assert_eq!((scene.pods(), scene.mode("shop/web")), (2, STRICT));
    // Another directory takes its place at the same path, empty.
    fs::create_dir(scene.path("policies")).unwrap();
    scene.wait("empty directory", |scene| scene.mode("shop/web") == PERMISSIVE);
    scene.replace("policies/c.yaml", &peer("shop", "STRICT"));
    scene.wait("new file in the new directory", |scene| scene.mode("shop/web") == STRICT);
}

#[test]
fn a_directory_of_policies_that_never_was_denies_everything() {
    let mut scene = Scene::new();
    scene.replace("mesh.yaml", MESH);
    fs::remove_dir(scene.path("policies")).unwrap();
    scene.start();
    scene.wait_for_error("policies: cannot be read", Consequence::Denied);
    assert!(scene.is_unknown("shop/web") && scene.is_unknown("pay/db"));
    fs::create_dir(scene.path("policies")).unwrap();
    scene.wait("created", |scene| scene.verdict("pay/db") == Verdict::Allow);
}

#[test]
fn links_swapped_as_kubernetes_does_are_followed() {
    let mut scene = Scene::new();
    fs::remove_dir(scene.path("policies")).unwrap();
    let version = |name: &str, mode: &str, mesh: &str| {
        fs::create_dir(scene.path(name)).unwrap();
        scene.replace(&format!("{name}/mesh.yaml"), mesh);
        fs::create_dir(scene.path(&format!("{name}/policies"))).unwrap();
        scene.replace(&format!("{name}/policies/mtls.yaml"), &peer("shop", mode));
    };
    version("..1", "STRICT", MESH);
    version("..2", "DISABLE", MESH.lines().take(2).collect::<Vec<_>>().join("\n").as_str());
    symlink("..1", scene.path("..data")).unwrap();
    symlink("..data/mesh.yaml", scene.path("mesh.yaml")).unwrap();
    symlink("..data/policies", scene.path("policies")).unwrap();
    scene.start();
    assert_eq!((scene.pods(), scene.mode("shop/web")), (2, STRICT));

    symlink("..2", scene.path("..data_tmp")).unwrap();
    fs::rename(scene.path("..data_tmp"), scene.path("..data")).unwrap();
    scene.wait("second version", |scene| {
        scene.pods() == 1 && scene.mode("shop/web") == MtlsMode::Disable
    });
    // The directory behind the link is another one now, and watched.
    scene.replace("..2/policies/mtls.yaml", &peer("shop", "STRICT"));
    scene.wait("change behind the link", |scene| scene.mode("shop/web") == STRICT);
}

#[test]
fn a_slow_writer_is_waited_for() {
    use std::io::Write;

    let whole = peer("shop", "STRICT") + "---\n" + &peer("pay", "STRICT");
    let scene = Scene::started(MESH, &[("a.yaml", &whole)]);
    let half = whole.split("---").next().unwrap();
    let mut file = fs::File::create(scene.path("policies/a.yaml")).unwrap();
    file.write_all(half.as_bytes()).unwrap();
    // Half of the file is valid, but must not be believed while the file is open.
    thread::sleep(Duration::from_millis(400));
    assert_eq!((scene.mode("pay/db"), scene.status().version), (STRICT, 1));
    file.write_all(whole.strip_prefix(half).unwrap().as_bytes()).unwrap();
    file.write_all(b"# done\n").unwrap();
    drop(file);
    scene.wait("the whole", |scene| scene.status().version == 2);
    assert_eq!(scene.mode("pay/db"), STRICT);
}

#[test]
fn the_thread_ends_with_its_last_reader() {
    let mut scene = Scene::started(MESH, &[]);
    let mut status = scene.source.take().unwrap().status;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let ended = runtime.block_on(async {
        tokio::time::timeout(WITHIN, async { while status.changed().await.is_some() {} }).await
    });
    assert!(ended.is_ok(), "the source outlived its readers");
}
