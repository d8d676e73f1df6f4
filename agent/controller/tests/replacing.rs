//! The authority's key and certificate are replaced while the controller serves.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

#[expect(dead_code, reason = "the other tests need more of it")]
mod support;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};
use sluice_controller::{CaFiles, CaMaterial, Pending};
use sluice_spiffe::TrustDomain;
use sluice_tls::{
    CertificateDer, Clock, Svid, TestClock,
    ca::{CaError, LocalCa},
};
use support::{Ask, ONE, Setup, WEB, eventually, parts_of, verified};
use time::OffsetDateTime;

type Root = CertifiedIssuer<'static, KeyPair>;

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root(name: &str) -> Root {
    CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap()
}

/// Writes an intermediate authority as Kubernetes mounts cert-manager's Secret: files behind one link, which is
/// swapped.
fn mount(dir: &Path, version: &str, root: &Root) {
    mount_with(dir, version, root, &ca_params(version));
}

/// The same, with an authority that ends at this second since 1970.
fn mount_until(dir: &Path, version: &str, root: &Root, end: u64) {
    let mut params = ca_params(version);
    params.not_after = OffsetDateTime::from_unix_timestamp(end.try_into().unwrap()).unwrap();
    mount_with(dir, version, root, &params);
}

fn mount_with(dir: &Path, version: &str, root: &Root, params: &CertificateParams) {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, root).unwrap();
    let data = dir.join(format!("..{version}"));
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("tls.crt"), certificate.pem()).unwrap();
    fs::write(data.join("tls.key"), key.serialize_pem()).unwrap();
    fs::write(data.join("ca.crt"), root.pem()).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        let link = dir.join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    let draft = dir.join("..data_tmp");
    std::os::unix::fs::symlink(format!("..{version}"), &draft).unwrap();
    fs::rename(draft, dir.join("..data")).unwrap();
}

fn issuer_of(chain: &[String]) -> String {
    verified(chain).issuer
}

#[tokio::test]
async fn a_new_key_in_cert_managers_layout_is_taken_over_while_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (root("old root"), root("new root"));
    mount(dir.path(), "first", &old);
    let material = Some(Arc::new(CaFiles::cert_manager(dir.path())) as _);
    let controller = Setup { material, ..Setup::default() }.start().await;
    let client = controller.client_trusting(&old.pem(), "ca.test").await.unwrap();
    let chain = client.ask(&Ask::new(ONE, WEB)).await.unwrap();
    let (path, roots) = parts_of(&chain);
    assert_eq!((path.len(), roots.len(), chain.len()), (2, 1, 3), "leaf, intermediate, root");
    assert_eq!(issuer_of(&chain), "CN=first");

    mount(dir.path(), "second", &old);
    eventually("the second", async || {
        issuer_of(&client.ask(&Ask::new(ONE, WEB)).await.unwrap()) == "CN=second"
    })
    .await;

    // With another root the server's own certificate changes too.
    mount(dir.path(), "third", &new);
    eventually("the third", async || {
        issuer_of(&client.ask(&Ask::new(ONE, WEB)).await.unwrap()) == "CN=third"
    })
    .await;
    eventually("the new root", async || {
        controller.client_trusting(&new.pem(), "ca.test").await.is_ok()
    })
    .await;
    assert!(controller.client_trusting(&old.pem(), "ca.test").await.is_err());
}

/// Files, and the roots that agents know.
struct Known {
    files: CaFiles,
    roots: Mutex<Vec<CertificateDer<'static>>>,
}

impl CaMaterial for Known {
    fn open<'a>(
        &'a self,
        domain: &'a TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Pending<'a, Result<LocalCa, CaError>> {
        self.files.open(domain, clock)
    }

    fn changed(&self) -> Pending<'_, ()> {
        self.files.changed()
    }

    fn are_roots_known(&self, authority: &LocalCa) -> Option<bool> {
        Some(authority.is_believed_under(&self.roots.lock().unwrap()))
    }
}

#[tokio::test]
async fn a_new_root_issues_when_agents_know_it() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, other) = (root("old root"), root("new root"), root("other root"));
    mount(dir.path(), "first", &old);
    let roots = Mutex::new(vec![old.der().clone()]);
    let known = Arc::new(Known { files: CaFiles::cert_manager(dir.path()), roots });
    let setup = Setup { material: Some(Arc::clone(&known) as _), ..Setup::default() };
    let controller = setup.start().await;
    let client = controller.client_trusting(&old.pem(), "ca.test").await.unwrap();
    let issuer = async || issuer_of(&client.ask(&Ask::new(ONE, WEB)).await.unwrap());

    mount(dir.path(), "second", &new);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(issuer().await, "CN=first");
    assert!(controller.client_trusting(&old.pem(), "ca.test").await.is_ok());
    // The newest material counts, and its root is all that matters.
    mount(dir.path(), "third", &new);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(issuer().await, "CN=first");
    known.roots.lock().unwrap().push(new.der().clone());
    eventually("the third", async || issuer().await == "CN=third").await;
    // The server's own certificate changed with it, not earlier.
    assert!(controller.client_trusting(&old.pem(), "ca.test").await.is_err());

    // Taken back before it had issued.
    mount(dir.path(), "fourth", &other);
    tokio::time::sleep(Duration::from_secs(3)).await;
    mount(dir.path(), "fifth", &new);
    eventually("the fifth", async || issuer().await == "CN=fifth").await;
    known.roots.lock().unwrap().push(other.der().clone());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(issuer().await, "CN=fifth");
}

#[tokio::test]
async fn a_new_root_issues_at_once_when_the_old_authority_is_of_no_use() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (root("old root"), root("new root"));
    mount(dir.path(), "first", &old);
    let roots = Mutex::new(vec![old.der().clone()]);
    let known = Arc::new(Known { files: CaFiles::cert_manager(dir.path()), roots });
    let clock = TestClock::started_now();
    let setup = Setup { material: Some(known), clock: clock.clone(), ..Setup::default() };
    let controller = setup.start().await;
    let client = controller.client_trusting(&old.pem(), "ca.test").await.unwrap();
    mount_until(dir.path(), "brief", &old, clock.now().as_secs() + 3_600);
    // Not judged: the controller's clock will be ahead of this one.
    let issuer = async || {
        let answer = client.ask(&Ask::new(ONE, WEB)).await;
        answer.map(|chain| Svid::read(&parts_of(&chain).0[0]).unwrap().issuer)
    };
    eventually("the brief one", async || issuer().await.unwrap() == "CN=brief").await;
    mount(dir.path(), "second", &new);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(issuer().await.unwrap(), "CN=brief");
    clock.advance(Duration::from_hours(2));
    eventually("the second", async || issuer().await.is_ok_and(|issuer| issuer == "CN=second"))
        .await;
}

#[tokio::test]
async fn half_a_change_of_files_leaves_the_authority_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let old = root("old root");
    mount(dir.path(), "first", &old);
    let material = Some(Arc::new(CaFiles::cert_manager(dir.path())) as _);
    let controller = Setup { material, ..Setup::default() }.start().await;
    let client = controller.client_trusting(&old.pem(), "ca.test").await.unwrap();
    let data = dir.path().join("..first");
    let whole = |name: &str| fs::read(data.join(name)).unwrap();
    let (key, roots) = (whole("tls.key"), whole("ca.crt"));
    for (name, text, whole) in [
        ("tls.key", KeyPair::generate().unwrap().serialize_pem(), &key),
        ("tls.key", String::new(), &key),
        ("ca.crt", root("foreign").pem(), &roots),
    ] {
        fs::write(data.join(name), text).unwrap();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(issuer_of(&client.ask(&Ask::new(ONE, WEB)).await.unwrap()), "CN=first");
        fs::write(data.join(name), whole).unwrap();
    }
    mount(dir.path(), "second", &old);
    eventually("the second", async || {
        issuer_of(&client.ask(&Ask::new(ONE, WEB)).await.unwrap()) == "CN=second"
    })
    .await;
}
