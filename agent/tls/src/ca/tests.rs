//! What the authorities inside the agent issue, refuse, and keep on disk.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use x509_parser::extensions::ParsedExtension;

use super::*;
use crate::{
    DEFAULT_TTL, Svid,
    clock::before,
    issuer::PendingKey,
    testing::{Authority, DOMAIN, WEB, at, test_clock},
};

fn domain() -> TrustDomain {
    DOMAIN.parse().unwrap()
}

fn open(dir: &Path) -> Result<LocalCa, CaError> {
    LocalCa::embedded(dir, &domain(), test_clock())
}

fn request(id: &str, ttl: Duration) -> CertRequest {
    let id = id.parse().unwrap();
    PendingKey::generate(&id).unwrap().request(&id, ttl)
}

fn bundle(ca: &LocalCa) -> TrustBundle {
    TrustBundle::new(domain(), ca.roots().iter().cloned()).unwrap()
}

/// Issues a leaf for [`WEB`] and has it judged as every peer would.
fn issue_and_verify(ca: &LocalCa) -> (IssuedChain, Svid) {
    let chain = ca.sign(&request(WEB, DEFAULT_TTL)).unwrap();
    let bundle = bundle(ca);
    verify_chain(&bundle, &chain.certificates, PeerRole::Client, at(0)).unwrap();
    let svid = verify_chain(&bundle, &chain.certificates, PeerRole::Server, at(0)).unwrap();
    (chain, svid)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_leaf_is_a_workloads_certificate_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(&dir.path().join("ca")).unwrap();
    let (chain, svid) = issue_and_verify(&ca);
    assert_eq!(svid.id.as_str(), WEB);
    assert_eq!((svid.not_before, svid.not_after), (at(-60), at(86_400)));
    assert_eq!(svid.serial.len(), 32);
    assert_ne!(svid.serial, issue_and_verify(&ca).1.serial);
    let [leaf] = chain.certificates.as_slice() else { panic!("a root was sent along") };
    let leaf = svid::parse(leaf).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "RFC 5280 section 4.2.1.6: critical beside an empty subject");
    assert_eq!(names.value.general_names.len(), 1);
    assert!(leaf.key_usage().unwrap().unwrap().critical);
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
    let known = |extension: &ParsedExtension<'_>| {
        !matches!(extension, ParsedExtension::UnsupportedExtension { .. })
    };
    assert!(leaf.extensions().iter().all(|extension| known(extension.parsed_extension())));
}

#[test]
fn what_must_not_be_issued_is_refused_with_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path().join("ca").as_path()).unwrap();
    let mut relabelled = request("spiffe://cluster.local/other", DEFAULT_TTL);
    relabelled.id = WEB.parse().unwrap();
    for (request, rule) in [
        (request("spiffe://other.example/web", DEFAULT_TTL), "only workloads of trust domain"),
        (request("spiffe://cluster.local", DEFAULT_TTL), "only workloads of trust domain"),
        (request(WEB, Duration::from_secs(59)), "at least 60 s"),
        (relabelled, "the identity as its only name"),
    ] {
        let error = ca.sign(&request).unwrap_err();
        assert!(matches!(error, IssueError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(rule), "{error}");
    }
    let mut forged = request(WEB, DEFAULT_TTL);
    let mut bytes = forged.csr.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    forged.csr = bytes.into();
    let error = ca.sign(&forged).unwrap_err().to_string();
    assert!(error.contains("signed with its own key"), "{error}");
    assert!(ca.sign(&request(WEB, Duration::from_mins(1))).is_ok());
}

#[test]
fn a_leaf_never_outlives_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let clock = test_clock();
    let ca = LocalCa::embedded(&dir.path().join("ca"), &domain(), clock.clone()).unwrap();
    clock.set(before(ca.not_after(), Duration::from_hours(1)));
    let chain = ca.sign(&request(WEB, DEFAULT_TTL)).unwrap();
    assert_eq!(Svid::read(&chain.certificates[0]).unwrap().not_after, ca.not_after());
    clock.set(ca.not_after());
    let error = ca.sign(&request(WEB, DEFAULT_TTL)).unwrap_err();
    assert!(error.to_string().contains("has expired"), "{error}");
}

#[test]
fn the_embedded_authority_is_private_and_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("state/ca");
    let ca = open(&dir).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("ca.key")), 0o600);
    let names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let again = open(&dir).unwrap();
    assert_eq!(ca.roots(), again.roots());
    let (chain, _) = issue_and_verify(&again);
    assert!(verify_chain(&bundle(&ca), &chain.certificates, PeerRole::Client, at(0)).is_ok());
    // A clock that is set back by less than a day does not undo the root.
    assert!(verify_chain(&bundle(&ca), &chain.certificates, PeerRole::Client, at(-60)).is_ok());
}

#[test]
fn agents_that_start_at_once_share_one_authority() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    let roots: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> =
            (0..8).map(|_| scope.spawn(|| open(&dir).unwrap().roots().to_vec())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_start_that_was_cut_short_is_made_good() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    open(&dir).unwrap();
    fs::remove_file(dir.join("ca.crt")).unwrap();
    fs::write(dir.join(".ca.crt.new"), "half a certif").unwrap();
    issue_and_verify(&open(&dir).unwrap());
}

#[test]
fn a_state_that_cannot_be_trusted_is_refused_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    open(&dir).unwrap();
    let (key, certificate) = (dir.join("ca.key"), dir.join("ca.crt"));
    let before = fs::read(&certificate).unwrap();

    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(open(&dir).unwrap_err(), CaError::Exposed { mode: 0o640, .. }));
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(open(&dir).unwrap_err(), CaError::Exposed { mode: 0o755, .. }));
    fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();

    let good = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    assert!(matches!(open(&dir).unwrap_err(), CaError::KeyMissing { .. }));
    fs::write(&key, "not a key").unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(open(&dir).unwrap_err(), CaError::Key { .. }));
    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = open(&dir).unwrap_err().to_string();
    assert!(error.contains("belongs to another key"), "{error}");
    fs::write(&key, good).unwrap();
    assert_eq!(fs::read(&certificate).unwrap(), before);
    issue_and_verify(&open(&dir).unwrap());
}

/// Opens an authority from files that hold `certificates`, `key` and, if given, `roots`.
fn from_files(certificates: &str, key: &str, roots: Option<&str>) -> Result<LocalCa, CaError> {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let files = PemFiles {
        certificate: write("tls.crt", certificates),
        key: write("tls.key", key),
        roots: roots.map(|roots| write("ca.crt", roots)),
    };
    LocalCa::from_pem(&files, &domain(), test_clock())
}

#[test]
fn a_root_or_an_intermediate_may_be_given_as_files() {
    let root = Authority::root("root");
    let (root_pem, root_key) = root.pem();
    let (chain, _) = issue_and_verify(&from_files(&root_pem, &root_key, None).unwrap());
    assert_eq!(chain.certificates.len(), 1);
    let (lower_pem, lower_key) = root.intermediate("lower").pem();
    // cert-manager's layout: the chain without the root, and the root apart.
    let apart = from_files(&lower_pem, &lower_key, Some(&root_pem)).unwrap();
    let (chain, _) = issue_and_verify(&apart);
    assert_eq!(chain.certificates.len(), 2);
    let together = from_files(&(lower_pem + &root_pem), &lower_key, None).unwrap();
    let (chain, _) = issue_and_verify(&together);
    assert_eq!((chain.certificates.len(), together.roots().len()), (2, 1));
}

#[test]
fn files_that_cannot_issue_are_refused_with_the_reason() {
    let root = Authority::root("root");
    let (root_pem, root_key) = root.pem();
    let (lower_pem, lower_key) = root.intermediate("lower").pem();
    let expired = Authority::root_with("old", |params| Authority::validity(params, -9, -1)).pem();
    let future = Authority::root_with("new", |params| Authority::validity(params, 1, 9)).pem();
    let leaf = root.leaf(WEB);
    for (name, certificates, key, reason) in [
        ("no root", &lower_pem, &lower_key, "no root was given"),
        ("another key", &lower_pem, &root_key, "belongs to another key"),
        ("expired", &expired.0, &expired.1, "has expired"),
        ("not yet", &future.0, &future.1, "not valid yet"),
        ("a leaf", &leaf.pem, &leaf.key.serialize_pem(), "is not a CA certificate"),
        ("empty", &String::new(), &root_key, "holds no certificate"),
        ("no key", &root_pem, &root_pem, "holds no usable private key"),
    ] {
        let error = from_files(certificates, key, None).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
        assert!(error.contains("/tls."), "{name} does not say which file: {error}");
    }
}

#[test]
fn keys_of_other_kinds_may_issue() {
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let key_pem = key.serialize_pem();
        let root = Authority::root_of("root", key);
        issue_and_verify(&from_files(&root.pem().0, &key_pem, None).unwrap());
    }
}

#[test]
fn an_authority_that_is_replaced_issues_from_the_next_request_on() {
    let dir = tempfile::tempdir().unwrap();
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| dir.path().join(name));
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let write = |path: &Path, text: &str| {
        let draft = path.with_extension("new");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, path).unwrap();
    };
    write(&certificate, &old.pem().0);
    write(&key, &old.pem().1);
    let files = PemFiles { certificate: certificate.clone(), key: key.clone(), roots: None };
    let ca = FollowedCa::open(files, &domain(), test_clock()).unwrap();
    let issuer = |ca: &FollowedCa| issue_and_verify(&ca.current()).1.issuer;
    assert!(issuer(&ca).contains("old"));
    write(&certificate, &new.pem().0);
    assert!(issuer(&ca).contains("old"), "the certificate does not fit the key yet");
    write(&key, &new.pem().1);
    assert!(issuer(&ca).contains("new"));
    fs::remove_file(&key).unwrap();
    assert!(issuer(&ca).contains("new"), "what was there last goes on");
}
